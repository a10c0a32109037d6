"""Around the optimizer: learning rates by layer, and an average of the weights.

Learning rates that fall from the last layer of an encoder to its first: :func:`layer_rates`.

An average of the weights of the last steps, which predicts better than the last weights alone:
:class:`WeightAverage`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from timm.models import group_parameters
from torch import Tensor, nn

from wsi_ips.errors import ConfigError
from wsi_ips.models.encoders.lora import stored_state


def layer_rates(encoder: nn.Module, rate: float, *, decay: float) -> dict[int, float]:
    """The learning rate of every weight of an encoder, with layer-wise decay (BEiT: Bao et al. 2021).

    The last group of layers has ``rate``, and each group before it ``decay`` times the rate of the next. A group
    is what timm's ``group_matcher`` of the model says: for a transformer the embedding of patches and positions,
    and each block, the last one with the norm behind it.

    Args:
        encoder: The encoder, with the network as ``backbone``.
        rate: The learning rate of the last group.
        decay: The factor from one group to the one before it.

    Returns:
        ``{id(weight): rate}``.

    Raises:
        ConfigError: The network does not say what its layers are, or has only one.
    """
    network: Any = getattr(encoder, "backbone", None)
    if not hasattr(network, "group_matcher"):
        raise ConfigError("training.layer_decay: this encoder does not say what its layers are; leave it out")
    layers = group_parameters(network, network.group_matcher(coarse=False), reverse=True)
    last = max(layers.values())
    if last == 0:
        raise ConfigError("training.layer_decay: this encoder has a single layer; leave it out")
    return {
        id(weight): rate * decay ** (last - layers.get(name, last))
        for name, weight in network.named_parameters()
    }


class WeightAverage:
    """An exponential moving average of everything that changes in training: weights, and running statistics.

    After step t (from 0) an average becomes d * itself + (1 - d) * the present value, where d is ``decay``, or
    (1 + t) / (10 + t) while that is smaller, so that the random beginning is soon forgotten. Tensors that do not
    learn, or are not floats, have no average.

    Args:
        net: The network that learns.
        decay: How much of the average is left after a step, in 0..1.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self._net = net
        self._decay = decay
        self._steps = 0
        self._averages = {name: tensor.clone() for name, tensor in self._changing().items()}

    @torch.no_grad()
    def stepped(self) -> None:
        """Take the present weights into the average. Call it after each step of the optimiser."""
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        for name, now in self._changing().items():
            average = self._averages[name] = self._averages[name].to(now.device)
            average.lerp_(now, 1 - decay)
        self._steps += 1

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Context manager that gives the network the averages. Its own weights are put back bit for bit, also
        after an error.
        """
        own = {name: tensor.clone() for name, tensor in self._changing().items()}
        try:
            self._put(self._averages)
            yield
        finally:
            self._put(own)

    def state(self) -> dict[str, object]:
        """What a run resumes from."""
        return {"steps": self._steps, "averages": dict(self._averages)}

    def restore(self, state: Mapping[str, object]) -> None:
        """Put back what :meth:`state` returned.

        Raises:
            ValueError: The averages are those of another network.
        """
        steps, averages = state["steps"], state["averages"]
        if not isinstance(steps, int) or not isinstance(averages, Mapping):
            raise ValueError("there is no average of weights")
        shapes = {name: tensor.shape for name, tensor in self._averages.items()}
        if {name: tensor.shape for name, tensor in averages.items()} != shapes:
            raise ValueError("the averages are those of another network")
        self._steps, self._averages = steps, dict(averages)

    def _changing(self) -> dict[str, Tensor]:
        """The tensors that have an average, as views on the network's own."""
        frozen = {name for name, weight in self._net.named_parameters() if not weight.requires_grad}
        return {
            name: tensor.detach()
            for name, tensor in stored_state(self._net).items()
            if tensor.is_floating_point() and name not in frozen
        }

    @torch.no_grad()
    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        for name, now in self._changing().items():
            now.copy_(tensors[name])
