"""A bag read by whatever selector its network has. Prediction, validation and scoring share it."""

from collections.abc import Callable, Iterable
from typing import cast

import torch

from wsi_ips.config import SelectionConfig
from wsi_ips.errors import ConfigError
from wsi_ips.images.bags import ImageViews, read_views
from wsi_ips.models.ips_net import BagNet, IPSNet
from wsi_ips.models.sampling_net import AttentionNet, SamplingNet
from wsi_ips.selection.all_patches import read_all
from wsi_ips.selection.coarse_to_fine import read_cascade, read_sampled
from wsi_ips.selection.slide_reading import SlideReading, read_slide
from wsi_ips.streaming.patch_source import Chunk, CoarseSource, PatchSource


def read_bag(
    net: BagNet,
    source: PatchSource,
    selection: SelectionConfig,
    *,
    through: Callable[[Iterable[Chunk]], Iterable[Chunk]] = iter,
) -> SlideReading:
    """Read a bag's label as ``selection.selector`` does, in eval mode; the net's own mode is restored.

    ``through``: as of :func:`read_slide`; not every selector has chunks of all patches. Raises as
    :func:`read_slide`, and :class:`ConfigError` for patches that cannot be looked at as the network does.
    """
    if isinstance(net, SamplingNet) and isinstance(net.coarse, AttentionNet):
        if not isinstance(source, ImageViews):
            raise ConfigError(
                f"a network with coarse.scorer: {selection.coarse.scorer} reads images, not slides"
            )
        return read_views(net, source)
    if selection.selector == "ips":
        return read_slide(cast(IPSNet, net), source, selection, through=through)
    if selection.selector == "all":
        return read_all(cast(IPSNet, net), source, through=through)
    if not hasattr(source, "windows"):
        raise ConfigError(f"selection.selector: {selection.selector} cannot look at these patches from afar")
    with torch.no_grad():
        if isinstance(net, SamplingNet):
            return read_sampled(net, cast(CoarseSource, source), selection, through=through)
        return read_cascade(cast(IPSNet, net), cast(CoarseSource, source), selection, through=through)
