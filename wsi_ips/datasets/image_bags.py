"""An image as a bag: cut into patches in memory, without a tissue mask.

Shape suffixes: n patches of a chunk, C channels, H height, W width, P patch side.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_ips.config import StreamingConfig, TilingConfig
from wsi_ips.datasets.targets import Target
from wsi_ips.errors import ConfigError
from wsi_ips.streaming.stream import Chunk
from wsi_ips.units import PlaceKind


@dataclass(frozen=True, slots=True)
class ImageGrid:
    """The whole patches that fit into an image, in raster order; what is left over at the right and bottom edge
    is not looked at (as ``Tensor.unfold`` does, by which the paper's code cuts)."""

    patch_px: int
    step_px: int
    rows: int
    columns: int

    @classmethod
    def cover(cls, height_px: int, width_px: int, tiling: TilingConfig) -> Self:
        """Only ``patch_px`` and ``overlap_px`` of ``tiling`` are used: an image is read at its own resolution.

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
        """Top-left corners (n, 2) int64, (x, y) in pixels."""
        rows_n, columns_n = ids_n // self.columns, ids_n % self.columns
        return torch.stack([columns_n, rows_n], dim=1) * self.step_px


Pixels = Callable[[str | None], NDArray[np.uint8]]
"""Loads an image, (H, W, C) uint8. Its argument seeds an augmentation; None: the image as it is."""


@dataclass(frozen=True, slots=True)
class ImageBag:
    """An image of a data set. Its pixels exist only while it is open.

    key: what the augmentation of the image is drawn from; None: none. See :class:`wsi_ips.training.bags.Bag`.
    """

    bag_id: str
    targets: Mapping[str, Target]
    grid: ImageGrid
    load: Pixels
    key: str | None = None

    def __len__(self) -> int:
        return len(self.grid)

    def as_seen(self, key: str) -> Self:
        """The same image as it is shown to the network in one epoch; ``key`` names seed, epoch and image."""
        return replace(self, key=key)

    @contextmanager
    def open(self, streaming: StreamingConfig, device: torch.device) -> Iterator["ImagePatches"]:
        """The image's patches, on ``device``. Raises the image's own error."""
        image_CHW = torch.from_numpy(self.load(self.key)).permute(2, 0, 1).to(device)
        yield ImagePatches(image_CHW, self.grid, batch=streaming.batch)


class ImagePatches:
    """The patches of an image that is in memory: a :class:`wsi_ips.streaming.patch_source.PatchSource`."""

    def __init__(self, image_CHW: Tensor, grid: ImageGrid, *, batch: int) -> None:
        """image_CHW: uint8, on the device that the patches are wanted on. ``batch``: patches of a chunk."""
        cut = image_CHW.unfold(1, grid.patch_px, grid.step_px).unfold(2, grid.patch_px, grid.step_px)
        self._patches_rcCPP = cut.permute(1, 2, 0, 3, 4)  # a view: nothing is copied before a chunk is
        self._grid = grid
        self._batch = batch

    def __iter__(self) -> Iterator[Chunk]:
        for ids_n in torch.arange(len(self._grid)).split(self._batch):
            yield self.read(ids_n)

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
        """See :class:`wsi_ips.streaming.patch_source.PatchSource`; a pixel of an image counts as 1 µm."""
        if kind == "ids":
            return ids_n
        return self._grid.corners(ids_n).double() + self._grid.patch_px / 2
