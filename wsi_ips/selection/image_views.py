"""An image that is small enough to be attended to as a whole: the published models' way.

Shape suffixes: C channels, H height, W width, K positions of the map, N samples, T queries.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from wsi_ips.models.bag_net import scoring
from wsi_ips.models.sampling_net import SamplingNet
from wsi_ips.selection.coarse_report import CoarseReport
from wsi_ips.selection.from_afar import EVALUATION_SEED
from wsi_ips.selection.ips import Kept
from wsi_ips.selection.score_store import ScoreStore
from wsi_ips.selection.slide_reading import SlideReading


@runtime_checkable
class ImageViews(Protocol):
    """An image in both resolutions. patch_px: side of the patches that are read of it."""

    @property
    def image(self) -> Tensor:
        """(C, H, W) uint8."""
        ...

    @property
    def small(self) -> Tensor:
        """(C, h, w) uint8. Raises :class:`ConfigError` where the data set has no small views."""
        ...

    @property
    def patch_px(self) -> int: ...


@torch.no_grad()
def read_views(net: SamplingNet, source: ImageViews) -> SlideReading:
    """Read an image's label; kept ids are positions of the attention map, in raster order of it."""
    image_CHW = source.image
    generator = torch.Generator(image_CHW.device).manual_seed(EVALUATION_SEED)
    with scoring(net):
        found = net(source.small[None], image_CHW[None], patch_px=source.patch_px, generator=generator)
        attention_K = found.attention_Bhw.flatten()
        bag = net.reading(found.features_BD, attention_K[None])
    store = ScoreStore()
    logits_KHT = attention_K.log()[:, None, None].expand(-1, 1, net.heads.queries).cpu()
    store.add(torch.arange(len(attention_K)), logits_KHT)
    n = found.patches_BNCPP.shape[1]
    most_K = attention_K.cpu().argsort(descending=True, stable=True)[:n]
    kept = Kept(most_K, None, attention_K.cpu()[most_K], logits_KHT[most_K])
    report = CoarseReport(len(attention_K), n, 1, 0, None)
    return SlideReading(kept, store, found.features_BD, bag, coarse=report)
