"""The gradient cache against the one graph that it stands for."""

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from wsi_ips.errors import TrainingError
from wsi_ips.training.kept_patches import regrouped
from wsi_ips.training.learning import backward_in_one_graph, backward_in_parts, random_in_training


def gradients(module: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    return found


def step() -> tuple[nn.Module, Tensor, nn.Module]:
    """An encoder in training with frozen BatchNorm, pixels, and what makes a loss of all features at once."""
    torch.manual_seed(0)
    encoder = timm.create_model("resnet10t", num_classes=0).train()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            module.eval()
    return encoder, torch.rand(11, 3, 32, 32), nn.Sequential(nn.Linear(512, 4), nn.Softmax(dim=0))


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("size", [1, 4, 11, 100])
def test_the_gradients_are_those_of_one_graph(size: int, known: bool) -> None:
    encoder, pixels, head = step()

    def loss_of(features_KC: Tensor) -> Tensor:
        return (head(features_KC) * features_KC[:, :4]).std()  # every patch looks at all others

    plain_loss = backward_in_one_graph(encoder, lambda: [pixels], loss_of)
    plain = gradients(encoder), gradients(head)
    with torch.no_grad():
        features = encoder(pixels) if known else None
    loss = backward_in_parts(encoder, lambda: pixels.split(size), loss_of, features_KC=features)
    cached = gradients(encoder), gradients(head)
    assert float(loss) == pytest.approx(float(plain_loss), rel=1e-6)
    for ours, theirs in zip(cached, plain, strict=True):
        assert ours.keys() == theirs.keys()
        for name, gradient in theirs.items():
            assert (ours[name] - gradient).abs().max() <= 1e-6 * max(1, gradient.abs().max()), name


def test_random_layers_draw_the_same_numbers_in_both_passes_and_nothing_after_is_disturbed() -> None:
    drop, weight = nn.Dropout(0.5), nn.Parameter(torch.ones(1))
    drawn: list[Tensor] = []

    def encode(pixels: Tensor) -> Tensor:
        drawn.append(drop(pixels * weight))
        return drawn[-1]

    torch.manual_seed(3)
    backward_in_parts(encode, lambda: torch.ones(6, 40).split(2), lambda x: x.sum())
    after = torch.rand(1)
    first, second = drawn[:3], drawn[3:]
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])
    assert float(weight.grad) == float(sum(part.sum() for part in first))
    torch.manual_seed(3)
    for _ in range(3):
        drop(torch.ones(2, 40))
    assert torch.equal(after, torch.rand(1))


def test_an_encoder_that_does_not_learn_is_not_run_backwards() -> None:
    encoder, pixels, head = step()
    backward_in_parts(encoder, lambda: pixels.split(4), lambda x: head(x).std(), learn_encoder=False)
    assert not gradients(encoder)
    assert gradients(head)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_training_before_a_gradient_is_there(value: float) -> None:
    encoder, pixels, _ = step()
    for backward in (backward_in_parts, backward_in_one_graph):
        with pytest.raises(TrainingError, match=r"the loss is (nan|inf): lower training.lr"):
            backward(encoder, lambda: [pixels], lambda x: x.sum() * value)
    assert not gradients(encoder)


def test_what_is_random_in_training_is_known() -> None:
    assert not random_in_training(step()[0])
    assert random_in_training(timm.create_model("resnet10t", num_classes=0).train())  # batch statistics
    assert not random_in_training(timm.create_model("resnet10t", num_classes=0).eval())
    assert random_in_training(
        timm.create_model("vit_tiny_patch16_224", drop_path_rate=0.1, img_size=32).train()
    )
    assert random_in_training(
        timm.create_model("vit_tiny_patch16_224", attn_drop_rate=0.1, img_size=32).train()
    )
    assert not random_in_training(timm.create_model("vit_tiny_patch16_224", img_size=32).train())


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 12))
def test_regrouping_keeps_rows_and_order(lengths: list[int], size: int) -> None:
    rows = torch.arange(sum(lengths))
    groups = list(regrouped(rows.split(lengths), size))
    assert torch.equal(torch.cat(groups), rows)
    assert all(len(group) == size for group in groups[:-1])
    assert len(groups[-1]) <= size
