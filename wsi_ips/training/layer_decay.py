"""Learning rates that fall from the last layer of an encoder to its first: :func:`layer_rates`."""

from typing import Any

from timm.models import group_parameters
from torch import nn

from wsi_ips.errors import ConfigError


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
