"""Means and scales of features, before a network learns (``model.encoder.standardise``).

Which of them a network takes, where the configuration leaves it open, is decided in
:mod:`wsi_ips.training.open_settings`. A few patches of many training slides say what each feature is on average
and how much it varies. The network keeps both
(:class:`wsi_ips.models.encoders.projectors.StandardisedProjector`).

Shape suffixes: n patches, C feature width.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from wsi_ips.config import StreamingConfig
from wsi_ips.errors import NotFinite, WsiIpsError
from wsi_ips.models.encoders.projectors import StandardisedProjector
from wsi_ips.models.ips_net import BagNet, scoring
from wsi_ips.training.bags import Bag

MOST_BAGS = 64
"""Bags that are looked into."""
MOST_PATCHES = 64
"""Patches of a bag that are encoded."""


@torch.no_grad()
def standardise(
    net: BagNet, bags: Sequence[Bag], streaming: StreamingConfig, *, device: torch.device
) -> None:
    """Give a network the means and standard deviations of its features, if it centres or standardises them.

    64 bags, evenly spaced, and 64 patches of each are read and encoded, so that it takes seconds whatever there is
    to learn from. A bag that cannot be read, or has features that are not finite, is passed over: training says so
    when it comes to it. Where several processes train, each does the same.

    Args:
        net: The network. Its encoder is moved to ``device``.
        bags: The bags to learn from.
        streaming: How they are read.
        device: Where the encoder runs.
    """
    if not isinstance(net.projector, StandardisedProjector):
        return
    encoder = net.encoder.to(device)
    patches, width = 0, net.feature_width
    total_C, squares_C = torch.zeros(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    with scoring(encoder):
        for bag in [bags[place] for place in _spaced(len(bags), MOST_BAGS)]:
            try:
                features_nC = _features(encoder, bag, streaming, device)
            except WsiIpsError:
                continue
            patches += len(features_nC)
            total_C += features_nC.sum(dim=0)
            squares_C += features_nC.square().sum(dim=0)
    if patches:
        mean_C = total_C / patches
        deviation_C = (squares_C / patches - mean_C.square()).clamp(min=0).sqrt()
        net.projector.take(mean_C.float(), deviation_C.float())


def _features(encoder: torch.nn.Module, bag: Bag, streaming: StreamingConfig, device: torch.device) -> Tensor:
    """(n, C) float64, on the CPU: the features of some patches of a bag."""
    with bag.open(streaming, device) as source:
        ids_N = source.ids()
        parts = ids_N[_spaced(len(ids_N), MOST_PATCHES)].split(streaming.batch)
        encoded = [encoder(source.read(ids_n).pixels_n3PP).double().cpu() for ids_n in parts]
    features_nC = torch.cat(encoded)
    if not torch.isfinite(features_nC).all():
        raise NotFinite("features")
    return features_nC


def _spaced(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` places, evenly spaced."""
    return [round(place) for place in np.linspace(0, count - 1, min(count, most))]
