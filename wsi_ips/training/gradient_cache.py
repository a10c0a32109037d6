"""Gradients through more patches than one graph can hold.

The loss needs all patches of a step at once, the encoder does not: it works patch by patch. So the features are
made without a graph, the loss is taken back to the features, and the encoder is run once more in micro-batches,
each with its rows of that gradient (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory
Limited Setup"). The gradients are those of the one large graph; memory is that of one micro-batch.

Shape suffixes: K patches of a step, C width of features.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from wsi_ips.errors import TrainingError

Parts = Callable[[], Iterable[Tensor]]
"""Called for each pass: the pixels of the step in micro-batches, the same ones in the same order."""


def backward_in_one_graph(
    encode: Callable[[Tensor], Tensor],
    parts: Parts,
    loss_of: Callable[[Tensor], Tensor],
    *,
    backward: Callable[[Tensor], None] = Tensor.backward,
) -> Tensor:
    """All patches in one graph: what an encoder with batch statistics needs. Returns the detached loss."""
    loss = finite(loss_of(encode(torch.cat(list(parts())))))
    backward(loss)
    return loss.detach()


def backward_in_parts(
    encode: Callable[[Tensor], Tensor],
    parts: Parts,
    loss_of: Callable[[Tensor], Tensor],
    *,
    features_KC: Tensor | None = None,
    learn_encoder: bool = True,
    backward: Callable[[Tensor], None] = Tensor.backward,
) -> Tensor:
    """The same gradients with one micro-batch's graph at a time. Returns the detached loss.

    features_KC: what ``encode`` makes of all parts, where that is known already (the pass that scored them).
    learn_encoder: False leaves the encoder's gradients out. backward: takes the loss back (scaled, where
    precision is mixed). Random layers draw the same numbers in both passes. Raises :class:`TrainingError`
    where the loss is not finite, before any gradient is there.
    """
    states: list[list[Tensor]] = []
    if features_KC is None:
        features = []
        with torch.no_grad():
            for pixels in parts():
                states.append(_random_states(pixels.device))
                features.append(encode(pixels))
        features_KC = torch.cat(features)
    leaf_KC = features_KC.detach().float() if features_KC.dtype.itemsize < 4 else features_KC.detach()
    leaf_KC = leaf_KC.clone().requires_grad_()
    loss = finite(loss_of(leaf_KC))
    backward(loss)
    if learn_encoder:
        assert leaf_KC.grad is not None
        _backward_to_encoder(encode, parts(), leaf_KC.grad, states)
    return loss.detach()


def random_in_training(encoder: nn.Module) -> bool:
    """Whether the encoder, in the mode that it is in, gives other features each time or per batch."""
    for module in encoder.modules():
        if not module.training:
            continue
        rate = getattr(module, "p", getattr(module, "drop_prob", getattr(module, "prob", None)))
        drops = "Drop" in type(module).__name__ and (not isinstance(rate, int | float) or rate > 0)
        if drops or isinstance(module, nn.modules.batchnorm._BatchNorm):
            return True
    return False


def _backward_to_encoder(
    encode: Callable[[Tensor], Tensor], parts: Iterable[Tensor], grad_KC: Tensor, states: list[list[Tensor]]
) -> None:
    start = 0
    for number, pixels in enumerate(parts):
        with _replayed(pixels.device, states[number] if states else None):
            features_nC = encode(pixels)
        end = start + len(features_nC)
        torch.autograd.backward(features_nC, grad_KC[start:end].to(features_nC.dtype))
        start = end
    assert start == len(grad_KC), "the second pass saw other patches than the first"


def finite(loss: Tensor) -> Tensor:
    """The loss itself. Raises :class:`TrainingError` where it is not finite."""
    if not torch.isfinite(loss.detach()).all():
        raise TrainingError(
            f"the loss is {loss.item()}: lower training.lr, set training.gradient_clip=1, or use another "
            "training.precision"
        )
    return loss


def _random_states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


@contextmanager
def _replayed(device: torch.device, states: list[Tensor] | None) -> Iterator[None]:
    """Random numbers as they were; those after the block are not disturbed."""
    if states is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.set_rng_state(states[0])
        if device.type == "cuda":
            torch.cuda.set_rng_state(states[1], device)
        yield
