"""A patch at its own resolution: from which level it is read and how it is resampled (:class:`PatchRegion`).

:class:`RegionSource` fills chunks with patches from a reader that only gives regions, one read a patch. Readers
that give stored tiles have ``tile_source.py``.

Names begin with their frame of reference: ``l0_`` level-0 pixels, ``lv_`` pixels of the level that is read. Shape
suffixes: N patches of the slide, n some of them, P pixels along a patch's side, C or 3 channels.
"""

from dataclasses import dataclass, replace
from time import perf_counter
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_ips.errors import ConfigError, SlideReadError
from wsi_ips.slides.base import WHITE, RgbImage, SlideInfo, SlideReader, TiledReader
from wsi_ips.streaming.area_means import area_means
from wsi_ips.streaming.telemetry import BadTiles, StreamTelemetry
from wsi_ips.units import L0Point, Mpp

FITS = 0.01
"""Relative difference up to which a level's resolution counts as the wanted one, so that its pixels are used
unchanged.
"""

WHOLE = 1e-6
"""How close to a whole number a factor is for the decoder's own scaling: a patch drifts by less than a pixel."""

BLOCK = 4096
"""Patches whose geometry is checked at once, to bound memory."""

LARGEST_REGION_PX = 16_384
"""Side of the largest region that is read for one patch (0.8 GB)."""


@dataclass(frozen=True, slots=True)
class PatchRegion:
    """How the patches of one slide are read: from which level, and at which scale.

    ``patch_px`` is a patch's side in its own pixels. ``lv_downsample`` is level-0 pixels per pixel of the level,
    ``lv_per_px`` pixels of the level per pixel of the patch.

    Example: patches at 1.0 µm per pixel of a slide with levels at 0.25 and 0.5 µm come from level 1, two pixels to
    one.
    """

    patch_px: int
    level: int
    lv_downsample: float
    lv_per_px: float

    @classmethod
    def of(cls, info: SlideInfo, *, patch_px: int, patch_mpp: Mpp, slide_mpp: Mpp) -> Self:
        """Choose the coarsest level that is at least as fine as ``patch_mpp``. Both resolutions are µm per pixel.

        Raises :class:`ConfigError` if one patch would take a region that is too large to hold.
        """
        downsample = patch_mpp / slide_mpp
        level = info.level_for(downsample)
        lv_downsample = info.levels[level].downsample
        lv_per_px = downsample / lv_downsample
        if patch_px * lv_per_px > LARGEST_REGION_PX:
            raise ConfigError(
                f"{info.path}: a patch of {patch_px} px at {patch_mpp} µm covers {patch_px * lv_per_px:.0f} px "
                f"of level {level}, more than {LARGEST_REGION_PX}; check the slide's µm per pixel ({slide_mpp})"
            )
        return cls(patch_px, level, lv_downsample, 1.0 if abs(lv_per_px - 1) <= FITS else lv_per_px)

    @property
    def fits(self) -> bool:
        """Whether patches are pixels of the level without resampling."""
        return self.lv_per_px == 1.0

    def shrunk(self, slide: TiledReader, l0_xy_N2: NDArray[np.int64]) -> "tuple[Self, int]":
        """Let the decoder make tiles smaller, if that serves these patches: returns the region and the factor.

        The region is then in pixels of the smaller tiles. If the decoder cannot do it, the result is this region
        and 1. It can if patches are a whole factor coarser than the level and every patch starts on a whole pixel
        of the smaller tiles.

        ``l0_xy_N2`` has to hold all patches of the slide: the two ways of making pixels differ by about a quarter
        of a grey level, and a patch that is read again has to be the same.
        """
        scale = round(self.lv_per_px)
        if scale < 2:  # as fine as the level, or finer: nothing to make smaller
            return self, 1
        if abs(self.lv_per_px / scale - 1) > WHOLE or scale not in slide.tile_scales(self.level):
            return self, 1
        for start in range(0, len(l0_xy_N2), BLOCK):
            l0_xy_n2 = l0_xy_N2[start : start + BLOCK]
            if (self.lv_boxes(l0_xy_n2)[:, :2] % scale).any() or self.insets(l0_xy_n2).any():
                return self, 1
        return replace(self, lv_downsample=self.lv_downsample * scale, lv_per_px=1.0), scale

    @property
    def lv_side(self) -> float:
        """Side of a patch in pixels of the level; not rounded."""
        return self.patch_px * self.lv_per_px

    def lv_boxes(self, l0_xy_n2: NDArray[np.int64]) -> NDArray[np.int64]:
        """Boxes of whole pixels of the level that contain the patches at these level-0 corners.

        Returns (n, 4) int64: left, top, width, height.
        """
        if self.fits:
            lv_xy_n2 = np.floor(l0_xy_n2 / self.lv_downsample + 0.5).astype(np.int64)
            return np.concatenate([lv_xy_n2, np.full_like(lv_xy_n2, self.patch_px)], axis=1)
        lv_xy_n2 = np.floor(l0_xy_n2 / self.lv_downsample).astype(np.int64)
        sizes_n2 = np.ceil(self.insets(l0_xy_n2) + self.lv_side).astype(np.int64)
        return np.concatenate([lv_xy_n2, sizes_n2], axis=1)

    def insets(self, l0_xy_n2: NDArray[np.int64]) -> NDArray[np.float64]:
        """Where inside its box of whole pixels each patch starts, (n, 2) float64 (x, y) in 0..1.

        All are 0 if patches are not resampled.
        """
        if self.fits:
            return np.zeros(l0_xy_n2.shape)
        lv_xy_n2 = l0_xy_n2 / self.lv_downsample
        return np.asarray(lv_xy_n2 - np.floor(lv_xy_n2))

    def read(self, slide: SlideReader, l0_xy: L0Point) -> RgbImage:
        """Read the patch with the top-left corner ``l0_xy``, (patch_px, patch_px, 3) uint8, white beyond the
        slide.

        If the level's resolution is not the patch's, pixels are resampled as :func:`resample` describes. Raises
        the reader's :class:`SlideReadError`.
        """
        if self.fits:
            return slide.read(l0_xy, level=self.level, size_px=(self.patch_px, self.patch_px))
        l0_xy_12 = np.array([l0_xy], np.int64)
        left, top, width, height = self.lv_boxes(l0_xy_12)[0].tolist()
        inset_x, inset_y = self.insets(l0_xy_12)[0].tolist()
        l0_start = (round(left * self.lv_downsample), round(top * self.lv_downsample))
        region = slide.read(l0_start, level=self.level, size_px=(width, height))
        patch = np.empty((self.patch_px, self.patch_px, 3), np.uint8)
        resample(
            np.require(region, requirements=["C", "W"]), patch, inset=(inset_x, inset_y), side=self.lv_side
        )
        return patch


class RegionSource:
    """Fills chunks of patches from a reader that gives regions. Several threads may fill chunks in any order."""

    def __init__(
        self, slide: SlideReader, region: PatchRegion, l0_xy_N2: NDArray[np.int64], *, bad: BadTiles
    ) -> None:
        """``l0_xy_N2`` holds the top-left corners of all patches that are going to be asked for."""
        self._slide = slide
        self._region = region
        self._l0_xy_N2 = l0_xy_N2
        self._bad = bad
        bad.expect(len(l0_xy_N2))

    @property
    def patches_are_tiles(self) -> bool:
        """False: a reader without tiles has no patches that are tiles."""
        return False

    def stored_jpegs(self, start: int, n: int) -> None:
        """None: a reader without tiles has no stored tiles."""

    def fill(self, start: int, into_nPPC: NDArray[np.uint8]) -> StreamTelemetry:
        """Fill ``into_nPPC``, (n, P, P, 3) uint8, with the n patches from place ``start`` on.

        What lies beyond the level is white.

        A patch that cannot be read twice is white and counted. Raises :class:`SlideReadError` if too many patches
        are unreadable.
        """
        started, n = perf_counter(), len(into_nPPC)
        for place, (l0_x, l0_y) in enumerate(self._l0_xy_N2[start : start + n].tolist()):
            into_nPPC[place] = self._read((l0_x, l0_y))
        return StreamTelemetry(decode_s=perf_counter() - started, patches=n, tile_uses=n, tiles_decoded=n)

    def _read(self, l0_xy: tuple[int, int]) -> NDArray[np.uint8] | int:
        try:
            return self._region.read(self._slide, l0_xy)
        except SlideReadError:
            pass
        try:
            # The reader has reopened itself (see SlideReader).
            return self._region.read(self._slide, l0_xy)
        except SlideReadError as error:
            self._bad.add(f"patch at {l0_xy}", error)
            return WHITE


def resample(region: RgbImage, patch: RgbImage, *, inset: tuple[float, float], side: float) -> None:
    """Fill ``patch`` with the square of ``side`` pixels at ``inset`` (x, y) inside ``region``.

    ``region``, (height, width, 3) uint8, is contiguous and writable; ``patch``, (P, P, 3) uint8, is contiguous.
    When the square is made smaller, each pixel is the mean of the area that it covers, within 0.51 grey levels of
    the float64 mean up to a factor of 32. When it is made larger, it is interpolated bilinearly.

    Raises ``ValueError`` if the square does not lie inside the region.
    """
    if side >= patch.shape[0]:
        area_means(region, patch, inset=inset, side=side)
        return
    box = (inset[0], inset[1], inset[0] + side, inset[1] + side)
    enlarged = Image.fromarray(region).resize(patch.shape[:2], Image.Resampling.BILINEAR, box=box)
    patch[:] = np.asarray(enlarged)
