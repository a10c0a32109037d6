"""What keeps attention from collapsing, apart from the golden arrays."""

import math

import pytest
import torch
from torch import nn

from wsi_ips.training.losses import Anchor, HideTopPatches, anchor_loss, anchor_target, negative_entropy


def logits_of(*rows: list[float]) -> torch.Tensor:
    """A bag for each row, padded with minus infinity, (B, 1, 1, M)."""
    padded = nn.utils.rnn.pad_sequence(
        [torch.tensor(row) for row in rows], batch_first=True, padding_value=-math.inf
    )
    return padded[:, None, None]


def test_entropy_knows_nothing_of_padding_and_can_forget_the_size_of_a_bag() -> None:
    flat = logits_of([0.0] * 8, [3.0] * 2).requires_grad_()
    assert negative_entropy(flat).item() == pytest.approx(-(math.log(8) + math.log(2)) / 2)
    assert negative_entropy(flat, by_size=True).item() == pytest.approx(-1)
    peaked = logits_of([100.0, 0.0, 0.0])
    assert negative_entropy(peaked).item() == pytest.approx(0, abs=1e-6)
    negative_entropy(flat).backward()
    assert flat.grad is not None
    assert torch.isfinite(flat.grad).all()


def test_a_bag_of_one_patch_has_no_entropy_to_divide_by() -> None:
    assert negative_entropy(logits_of([2.0]), by_size=True).item() == 0


@pytest.mark.parametrize(("count", "hidden"), [(1, 0), (2, 1), (3, 1), (10, 6), (50, 6)])
def test_the_top_is_hidden_but_never_all_of_a_bag(count: int, hidden: int) -> None:
    torch.manual_seed(0)
    row = torch.randn(count).tolist()
    logits = logits_of(row, [0.0] * 60)
    masked = HideTopPatches(top=10, share=0.6)(logits)
    gone = (masked[0, 0, 0, :count] == -math.inf).nonzero().flatten().tolist()
    assert len(gone) == hidden
    top = sorted(range(count), key=lambda place: -row[place])[:10]
    assert set(gone) <= set(top)
    assert torch.isfinite(masked[0, 0, 0, :count]).sum() >= 1
    assert torch.equal(torch.isfinite(masked[1]).sum(), torch.tensor(54))


def test_everything_hidden_leaves_one_patch() -> None:
    masked = HideTopPatches(top=10, share=1.0)(logits_of([1.0, 2.0, 3.0]))
    assert torch.isfinite(masked).sum() == 1


def test_an_anchor_asks_for_nothing_where_there_is_no_patch() -> None:
    logits = logits_of([1.0, -1.0, 0.5], [2.0])
    target = anchor_target(logits, temperature=0.5)
    assert (target[1, 0, 0, 1:] == 0).all()
    torch.testing.assert_close(target.sum(dim=-1), torch.ones(2, 1, 1))
    # The loss of an attention that is the target itself is its entropy, the least that it can be.
    least = anchor_loss(target.log(), target)
    assert least < anchor_loss(logits_of([0.0, 0.0, 0.0], [0.0]), target)
    assert torch.isfinite(least)


def test_an_anchor_begins_as_a_copy_and_follows_slowly() -> None:
    torch.manual_seed(0)
    module = nn.BatchNorm1d(3)
    anchor = Anchor(module, momentum=0.9)
    module(torch.randn(8, 3))
    with torch.no_grad():
        module.weight.fill_(2.0)
    anchor.follow(module)
    torch.testing.assert_close(anchor.module.weight.detach(), torch.full((3,), 1.1))
    assert anchor.module.num_batches_tracked == 1
    assert not anchor.module.training
    assert not any(weight.requires_grad for weight in anchor.module.parameters())
