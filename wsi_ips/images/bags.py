"""Images as bags (:class:`ImageBag`): cut into patches in memory, without a tissue mask.

:class:`ImageViews` and :func:`read_views` serve images that are small enough to be attended to as a whole, as the
published attention-sampling models do it.

Shape suffixes: n patches of a chunk, C channels, H height, W width, P patch side, N patches or samples, K
positions of the attention map, T queries; h, w height and width of the small view.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol, Self, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from wsi_ips.config import CoarseConfig, SelectionConfig, StreamingConfig, TilingConfig
from wsi_ips.datasets.manifest import Target
from wsi_ips.errors import ConfigError
from wsi_ips.models.ips_net import scoring
from wsi_ips.models.sampling_net import SamplingNet
from wsi_ips.selection.coarse_report import CoarseReport
from wsi_ips.selection.coarse_to_fine import EVALUATION_SEED
from wsi_ips.selection.memory import Kept
from wsi_ips.selection.score_store import ScoreStore
from wsi_ips.selection.slide_reading import SlideReading
from wsi_ips.streaming.patch_source import Chunk, Windows
from wsi_ips.units import PlaceKind


@dataclass(frozen=True, slots=True)
class ImageGrid:
    """The whole patches that fit into an image, in raster order.

    What is left over at the right and bottom edge is ignored, as ``Tensor.unfold`` does, with which the paper's
    code cuts patches.
    """

    patch_px: int
    step_px: int
    rows: int
    columns: int

    @classmethod
    def cover(cls, height_px: int, width_px: int, tiling: TilingConfig) -> Self:
        """The grid of an image.

        Of ``tiling``, only ``patch_px`` and ``overlap_px`` are used: images are read at their own size.

        Raises :class:`ConfigError` for an image smaller than a patch.
        """
        patch_px, step_px = tiling.patch_px, tiling.patch_px - tiling.overlap_px
        if min(height_px, width_px) < patch_px:
            raise ConfigError(
                f"images of {width_px} x {height_px} px hold no patch of {patch_px} px; lower tiling.patch_px"
            )
        rows, columns = ((side - patch_px) // step_px + 1 for side in (height_px, width_px))
        return cls(patch_px, step_px, rows, columns)

    def __len__(self) -> int:
        return self.rows * self.columns

    def corners(self, ids_n: Tensor) -> Tensor:
        """Top-left corners of these patches, (n, 2) int64 (x, y) in pixels."""
        rows_n, columns_n = ids_n // self.columns, ids_n % self.columns
        return torch.stack([columns_n, rows_n], dim=1) * self.step_px


Pixels = Callable[[str | None], NDArray[np.uint8]]
"""Loads an image, (H, W, C) uint8. The argument seeds its augmentation; None means without augmentation."""


@dataclass(frozen=True, slots=True)
class ImageBag:
    """An image of a data set as a bag (:class:`wsi_ips.training.bags.Bag`).

    Its pixels exist only while it is open.

    ``key`` seeds the image's augmentation; None means none. ``small`` makes the small view of a loaded image, (h,
    w, C) uint8, for attention sampling; None means that there is none.
    """

    bag_id: str
    targets: Mapping[str, Target]
    grid: ImageGrid
    load: Pixels
    key: str | None = None
    small: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None

    def __len__(self) -> int:
        return len(self.grid)

    def as_seen(self, key: str) -> Self:
        """The same image as the network sees it in one epoch. ``key`` names the seed, the epoch and the image."""
        return replace(self, key=key)

    @contextmanager
    def open(self, streaming: StreamingConfig, device: torch.device) -> Iterator["ImagePatches"]:
        """Context manager: the image's patches on ``device``. Raises the image's own error."""
        image_HWC = self.load(self.key)
        image_CHW = torch.from_numpy(image_HWC).permute(2, 0, 1).to(device)
        small_CHW = None
        if self.small is not None:
            small_CHW = torch.from_numpy(self.small(image_HWC)).permute(2, 0, 1).to(device)
        yield ImagePatches(image_CHW, self.grid, batch=streaming.batch, small_CHW=small_CHW)


class ImagePatches:
    """The patches of an image that is in memory, a :class:`wsi_ips.streaming.patch_source.PatchSource`."""

    def __init__(
        self, image_CHW: Tensor, grid: ImageGrid, *, batch: int, small_CHW: Tensor | None = None
    ) -> None:
        """``image_CHW`` is uint8 on the wanted device, ``batch`` the number of patches of a chunk.

        ``small_CHW`` is the small view of the same image, if there is one.
        """
        self.image = image_CHW
        self._small = small_CHW
        self._ids_N = torch.arange(len(grid))
        cut = image_CHW.unfold(1, grid.patch_px, grid.step_px).unfold(2, grid.patch_px, grid.step_px)
        self._patches_rcCPP = cut.permute(1, 2, 0, 3, 4)  # a view: nothing is copied before a chunk is
        self._grid = grid
        self._batch = batch

    def __iter__(self) -> Iterator[Chunk]:
        for ids_n in self._ids_N.split(self._batch):
            yield self.read(ids_n)

    @property
    def patch_px(self) -> int:
        """Side of a patch."""
        return self._grid.patch_px

    @property
    def small(self) -> Tensor:
        """The small view, (C, h, w) uint8. Raises :class:`ConfigError` if the images have none."""
        if self._small is None:
            raise ConfigError("these images have no small view for attention sampling: set data.small_scale")
        return self._small

    def ids(self) -> Tensor:
        """Raster indices of the patches that iterating gives, (N,) int64."""
        return self._ids_N

    def only(self, ids_n: Tensor) -> "ImagePatches":
        """The same image, but iterating over these patches only, in raster order."""
        narrowed = copy.copy(self)
        narrowed._ids_N = ids_n.cpu().sort().values
        return narrowed

    def windows(self, coarse: CoarseConfig) -> Windows:
        """The patches as a coarse scorer sees them: each made smaller by ``coarse.mpp``, as means of areas.

        Raises :class:`ConfigError` for a coarse scorer other than ``conv`` without ``context_px``.
        """
        if coarse.scorer != "conv" or coarse.context_px:
            raise ConfigError(
                "images need coarse.scorer: conv without context_px; set them in selection.coarse"
            )
        px = max(1, round(self._grid.patch_px / coarse.mpp))
        return Windows(_ImageWindows(self, px), torch.arange(len(self._ids_N)))

    def read(self, ids_n: Tensor) -> Chunk:
        """The patches with these raster indices, in the order given.

        Raises ``KeyError`` for an index outside the image.
        """
        strangers = ids_n[(ids_n < 0) | (ids_n >= len(self._grid))]
        if len(strangers):
            raise KeyError(f"patches {strangers[:5].tolist()} are not in an image of {len(self._grid)}")
        ids_n = ids_n.cpu()
        pixels_nCPP = self._patches_rcCPP[ids_n // self._grid.columns, ids_n % self._grid.columns]
        pixels_nCPP = pixels_nCPP.contiguous(memory_format=torch.channels_last)
        return Chunk(ids_n, self._grid.corners(ids_n), pixels_nCPP)

    def places(self, ids_n: Tensor, kind: PlaceKind) -> Tensor:
        """Positions of these patches: their ids, or their centres, (n, 2) float64.

        A pixel of an image counts as 1 µm.
        """
        if kind == "ids":
            return ids_n
        return self._grid.corners(ids_n).double() + self._grid.patch_px / 2


class _ImageWindows:
    """The patches of an image, each made smaller. Ids are their places in the order of iterating."""

    def __init__(self, patches: ImagePatches, px: int) -> None:
        self._patches = patches
        self._px = px
        self._all_N = patches.ids()

    def __iter__(self) -> Iterator[Chunk]:
        for chunk in self._patches:
            yield self._smaller(chunk)

    def only(self, ids_n: Tensor) -> "_ImageWindows":
        narrowed = copy.copy(self)
        narrowed._patches = self._patches.only(self._all_N[ids_n.cpu()])
        return narrowed

    def ids(self) -> Tensor:
        return torch.arange(len(self._all_N))

    def read(self, ids_n: Tensor) -> Chunk:
        return self._smaller(self._patches.read(self._all_N[ids_n.cpu()]))

    def places(self, ids_n: Tensor, kind: PlaceKind) -> Tensor:
        return self._patches.places(self._all_N[ids_n.cpu()], kind)

    def _smaller(self, chunk: Chunk) -> Chunk:
        pixels = functional.interpolate(chunk.pixels_n3PP.float(), size=(self._px, self._px), mode="area")
        ids_n = torch.searchsorted(self._all_N, chunk.ids_n)
        return Chunk(ids_n, chunk.l0_xy_n2, pixels.round().to(torch.uint8))


@runtime_checkable
class ImageViews(Protocol):
    """An image in both resolutions. ``patch_px`` is the side of the patches that are read from it."""

    @property
    def image(self) -> Tensor:
        """The image, (C, H, W) uint8."""
        ...

    @property
    def small(self) -> Tensor:
        """The small view, (C, h, w) uint8. Raises :class:`ConfigError` if the data set has none."""
        ...

    @property
    def patch_px(self) -> int:
        """Side of a patch."""
        ...


@torch.no_grad()
def read_views(
    net: SamplingNet,
    source: ImageViews,
    selection: SelectionConfig,
    *,
    through: Callable[[Iterable[Chunk]], Iterable[Chunk]] = iter,
) -> SlideReading:
    """Predict an image with attention sampling. Kept ids are positions of the attention map, in raster order.

    ``through`` is not used, for there are no chunks. Raises :class:`ConfigError` for patches of a slide.
    """
    if not isinstance(source, ImageViews):
        raise ConfigError(f"a network with coarse.scorer: {selection.coarse.scorer} reads images, not slides")
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
