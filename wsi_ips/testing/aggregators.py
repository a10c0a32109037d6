"""What every aggregator must do, whatever it computes.

Shape suffixes: see :mod:`wsi_ips.models.aggregators.base`.
"""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from wsi_ips.config import TaskConfig
from wsi_ips.errors import ConfigError
from wsi_ips.models.aggregators.base import Aggregated, Aggregator
from wsi_ips.models.aggregators.registry import AGGREGATORS, aggregator_kind, aggregator_options
from wsi_ips.models.heads import Heads
from wsi_ips.registry import Registry
from wsi_ips.testing.own_names import OwnNameContract

DIM = 16
TASKS = (
    TaskConfig(name="label", classes=("a", "b", "c")),
    TaskConfig(name="tumor.grade", classes=("no", "yes")),
)


def build(name: str, options: Mapping[str, Any], *, seed: int = 0) -> Aggregator:
    """The aggregator of this name for embeddings 16 wide and two tasks, in float64 and eval mode."""
    torch.manual_seed(seed)
    made = aggregator_kind(name).build(aggregator_options(name, options), DIM, TASKS)
    return made.double().eval()


def logits_of(out: Aggregated, heads: Heads) -> dict[str, Tensor]:
    """{task: (B, C)}, by the aggregator itself or by the heads."""
    return heads(out.tokens_BTE) if out.logits is None else out.logits


class AggregatorContract(OwnNameContract):
    """Subclass with ``name``, as ``model.aggregator`` has it; or override the fixture ``aggregator``.

    options: settings that are not the defaults.
    """

    name: str
    options: Mapping[str, Any] = {}

    def registry(self) -> Registry[Any]:
        return AGGREGATORS

    @pytest.fixture
    def aggregator(self) -> Aggregator:
        """The aggregator in float64 and eval mode, for embeddings 16 wide and ``TASKS``."""
        return build(self.name, self.options)

    @pytest.fixture
    def heads(self, aggregator: Aggregator) -> Heads:
        """What reads its tokens."""
        return Heads(aggregator.token_dim, TASKS).double()

    @pytest.fixture
    def x(self) -> Tensor:
        """(9, 16) float64: the embeddings of a bag."""
        return torch.randn(9, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def test_logits_and_attention_have_their_shapes(
        self, aggregator: Aggregator, heads: Heads, x: Tensor
    ) -> None:
        out = aggregator.read(x[None])
        assert {task: logits.shape for task, logits in logits_of(out, heads).items()} == {
            task.name: (1, len(task.classes)) for task in TASKS
        }
        assert out.attention_BHTM.shape[0] == 1
        assert out.attention_BHTM.shape[3] == len(x)
        assert torch.isfinite(out.attention_BHTM).all()

    def test_a_bag_does_not_depend_on_what_stands_at_empty_places_or_on_other_bags(
        self, aggregator: Aggregator, heads: Heads
    ) -> None:
        torch.manual_seed(2)
        bags = [torch.randn(count, DIM).double() for count in (7, 1, 4)]
        padded = torch.full((3, 7, DIM), torch.nan).double()
        empty = torch.ones(3, 7, dtype=torch.bool)
        for number, bag in enumerate(bags):
            where = torch.randperm(7)[: len(bag)].sort().values  # not only behind the patches
            padded[number, where], empty[number, where] = bag, False
        padded.requires_grad_()
        together = aggregator.read(padded, empty)
        logits = logits_of(together, heads)
        for number, bag in enumerate(bags):
            alone = aggregator.read(bag[None])
            for task, alone_1C in logits_of(alone, heads).items():
                torch.testing.assert_close(logits[task][number], alone_1C[0], rtol=0, atol=1e-10)
            ours, its = together.attention_BHTM[number], alone.attention_BHTM[0]
            torch.testing.assert_close(ours[..., ~empty[number]], its, rtol=0, atol=1e-10)
            assert not ours[..., empty[number]].any()
        torch.stack([each.sum() for each in logits.values()]).sum().backward()
        assert padded.grad is not None
        assert not padded.grad[empty].any()
        assert torch.isfinite(padded.grad).all()

    def test_the_order_of_patches_does_not_matter(
        self, aggregator: Aggregator, heads: Heads, x: Tensor
    ) -> None:
        """Where an aggregator reads them in order, it is the order of their places that counts."""
        shuffled = torch.randperm(len(x), generator=torch.Generator().manual_seed(5))
        straight, places = aggregator.read(x[None]), None
        if aggregator.ordered:
            places = shuffled[None]
        again = aggregator.read(x[shuffled][None], None, places)
        torch.testing.assert_close(again.attention_BHTM, straight.attention_BHTM[..., shuffled])
        ours, whole = logits_of(again, heads), logits_of(straight, heads)
        for task in whole:
            torch.testing.assert_close(ours[task], whole[task])

    def test_softmax_attention_sums_to_one_and_its_logits_give_it(
        self, aggregator: Aggregator, x: Tensor
    ) -> None:
        out = aggregator.read(torch.stack([x, x.flip(0) * 2]))
        if not aggregator.has_softmax:
            assert out.attention_logits_BHTM is None
            return
        sums = out.attention_BHTM.sum(dim=-1)
        torch.testing.assert_close(sums, torch.ones_like(sums))
        assert out.attention_logits_BHTM is not None
        torch.testing.assert_close(out.attention_logits_BHTM.softmax(dim=-1), out.attention_BHTM)

    def test_a_patch_is_scored_by_itself_or_not_at_all(self, aggregator: Aggregator, x: Tensor) -> None:
        if not aggregator.scores_patches:
            with pytest.raises(ConfigError, match="scores no patch"):
                aggregator.logits(x)
            return
        scores_nHT = aggregator.logits(x)
        assert scores_nHT.ndim == 3
        assert len(scores_nHT) == len(x)
        torch.testing.assert_close(aggregator.logits(x[3:5]), scores_nHT[3:5])

    def test_contributions_and_bias_are_the_logits(
        self, aggregator: Aggregator, heads: Heads, x: Tensor
    ) -> None:
        out = aggregator.read(x[None])
        told = aggregator.contributions(x, out.attention_BHTM[0], heads)
        if told is None:
            return
        no_patch = {task.name: torch.zeros(len(task.classes)).double() for task in TASKS}
        # What is left when all contributions are taken away is the bias: the same for every bag.
        other = aggregator.read(x[:4][None])
        told_other = aggregator.contributions(x[:4], other.attention_BHTM[0], heads)
        assert told_other is not None
        for task, zeros_C in no_patch.items():
            assert told[task].shape == (len(x), len(zeros_C))
            bias_C = logits_of(out, heads)[task][0] - told[task].sum(dim=0)
            bias_of_other_C = logits_of(other, heads)[task][0] - told_other[task].sum(dim=0)
            torch.testing.assert_close(bias_C, bias_of_other_C)

    def test_gradients_reach_patches_and_weights(
        self, aggregator: Aggregator, heads: Heads, x: Tensor
    ) -> None:
        x.requires_grad_()
        logits = logits_of(aggregator.train().read(x[None]), heads)
        torch.stack([each.square().sum() for each in logits.values()]).sum().backward()
        assert x.grad is not None
        assert torch.isfinite(x.grad).all()
        assert x.grad.any()
        given = [weight.grad for weight in aggregator.parameters() if weight.grad is not None]
        assert all(torch.isfinite(gradient).all() for gradient in given)
        assert any(gradient.any() for gradient in given) or not list(aggregator.parameters())
