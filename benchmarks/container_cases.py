"""The same drawn slide in each container, and what is read of each: patches, and the stored tiles under them."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import imagecodecs
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from benchmarks.container_files import (
    ScannedArea,
    StoredLevel,
    jpeg_420,
    jpeg_422,
    write_dicom,
    write_ome_tiff,
    write_philips,
    write_scn,
    write_svs_jpeg2000,
    write_tiff,
)
from benchmarks.drawn_slide import MPP, Tiles, draw_library, draw_slide
from benchmarks.make_gigapixel import (
    PHILIPS_MPP,
    philips_level_count,
    philips_levels,
    plain_level_count,
    stored_levels,
)
from benchmarks.ndpi_file import write_ndpi
from wsi_ips.config import TilingConfig
from wsi_ips.slides.base import RgbImage, paste, white_region
from wsi_ips.tiling.grid import PatchCoords, PatchGrid
from wsi_ips.units import Mpp, Size

CAMELYON_PX, CAMELYON_MPP = 256, Mpp(0.5)
INTERVAL_PX = 2048
J2K_DECIBELS = 38
SCN_OFFSETS = ((1037, 523), (1291, 1811))
"""Where the scanned areas begin beside their own place, in level-0 pixels: on no tile's border, at no level."""
SCN_ROOM = 4096
"""Pixels of the slide beyond what was scanned."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Stored tiles of a level. lv_xy: where the first of them begins, in pixels of the level."""

    stored: StoredLevel
    lv_xy: tuple[int, int] = (0, 0)

    def under(self, lv_box: tuple[float, float, float, float]) -> list[int]:
        """The numbers of the tiles that are stored and lie under a box (left, top, right, bottom)."""
        (x, y), (width, height) = self.lv_xy, self.stored.tile_size
        left, top, right, bottom = lv_box
        cols = range(max(0, int((left - x) // width)), min(self.stored.cols, int(-((x - right) // width))))
        rows = range(max(0, int((top - y) // height)), min(self.stored.rows, int(-((y - bottom) // height))))
        numbers = [row * self.stored.cols + col for row in rows for col in cols]
        return [number for number in numbers if self.stored.tiles[number]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A container, and patches that are read of it.

    path: what ``open_slide`` is given; openslide_path: what OpenSlide is. placed: the stored tiles of the level
    that serves the patches, at level-0 pixels / ``downsample``. decode: such a tile's bytes to its pixels.
    """

    name: str
    path: Path
    openslide_path: Path
    vendor: str
    mpp: Mpp
    l0_size: Size
    placed: Sequence[Placed]
    decode: Callable[[bytes], RgbImage]
    coords: PatchCoords
    downsample: int = 1

    @property
    def lv_size(self) -> Size:
        return self.l0_size[0] // self.downsample, self.l0_size[1] // self.downsample

    def tiles_under_patches(self) -> list[bytes]:
        """Each stored tile under any of the patches, once."""
        side, found = self.coords.l0_patch / self.downsample, set()
        for x, y in (self.coords.l0_xy_N2 / self.downsample).tolist():
            for area, placed in enumerate(self.placed):
                found |= {(area, number) for number in placed.under((x, y, x + side, y + side))}
        return [self.placed[area].stored.tiles[number] for area, number in sorted(found)]

    def pixels(self, lv_xy: tuple[int, int], size_px: Size) -> RgbImage:
        """What a region of the level has to be, (height, width, 3): the stored tiles in their places, on white."""
        (x, y), (width, height) = lv_xy, size_px
        region = white_region(size_px)
        for placed in self.placed:
            tile_width, tile_height = placed.stored.tile_size
            for number in placed.under((x, y, x + width, y + height)):
                row, col = divmod(number, placed.stored.cols)
                tile_x, tile_y = placed.lv_xy[0] + col * tile_width, placed.lv_xy[1] + row * tile_height
                tile = self.decode(placed.stored.tiles[number])
                # A tile may be cut by the level's edge.
                tile = tile[: max(0, self.lv_size[1] - tile_y), : max(0, self.lv_size[0] - tile_x)]
                paste(region, tile, at=(tile_x - x, tile_y - y))
        return region


class DrawnSlide:
    """One drawn slide of ``side_px`` (a power of two) pixels a side, encoded when it is asked for.

    library: the tiles it is made of (:func:`draw_library`), where they are drawn already.
    """

    def __init__(
        self, side_px: int, *, block: int, pool: ThreadPoolExecutor, library: Tiles | None = None
    ) -> None:
        self.side_px, self.size, self.pool = side_px, (side_px, side_px), pool
        self._library = draw_library(block, seed=0) if library is None else library
        self._block = block
        self.mosaic = draw_slide(side_px, self._library, block=block)

    @cached_property
    def smaller(self) -> "DrawnSlide":
        """A slide of half the side, for containers that take long to write."""
        return DrawnSlide(self.side_px // 2, block=self._block, pool=self.pool, library=self._library)

    def on_tissue(self, xy_N2: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which of these points (level-0 pixels of the picture) lie on a 256-px tile that is not all glass."""
        g_xy_N2 = np.floor(xy_N2 / self.mosaic.tile_px).astype(np.int64)
        inside = ((g_xy_N2 >= 0) & (g_xy_N2 < len(self.mosaic.g_tiles))).all(axis=1)
        cols, rows = np.where(inside[:, None], g_xy_N2, 0).T
        return inside & ~self.mosaic.glass[self.mosaic.g_tiles[rows, cols]]

    def stored(self, encode: Callable[[RgbImage], bytes]) -> list[StoredLevel]:
        """Levels that halve, in 256-px tiles."""
        return list(
            stored_levels(self.mosaic, plain_level_count(self.side_px), encode=encode, pool=self.pool)
        )

    @cached_property
    def jpeg_420(self) -> list[StoredLevel]:
        return self.stored(jpeg_420)

    @cached_property
    def jpeg_422(self) -> list[StoredLevel]:
        return self.stored(jpeg_422)

    def pictures(self) -> list[RgbImage]:
        """Levels that halve, as pixels, (side, side, 3) uint8 each."""
        levels = [self.mosaic.pixels()]
        for _ in range(plain_level_count(self.side_px) - 1):
            levels.append(np.asarray(Image.fromarray(levels[-1]).reduce(2)))
        return levels


def philips(drawn: DrawnSlide, folder: Path) -> list[Case]:
    """512-px patches that are tiles, and what is read of CAMELYON: 256 px at 0.5 µm, which no level fits."""
    path, count = folder / "philips.tif", philips_level_count(drawn.side_px)
    levels = list(philips_levels(drawn.mosaic, count, pool=drawn.pool))
    write_philips(path, levels, count=count, mpp=PHILIPS_MPP)
    aligned = _case("philips_aligned", path, "philips", drawn, levels[:1], mpp=PHILIPS_MPP, patch_px=512)
    camelyon = _case("camelyon", path, "philips", drawn, levels[1:2], mpp=PHILIPS_MPP,
                     patch_px=CAMELYON_PX, patch_mpp=CAMELYON_MPP, downsample=2)  # fmt: skip
    return [aligned, camelyon]


def dicom_jpeg(drawn: DrawnSlide, folder: Path) -> list[Case]:
    """256-px patches that are frames."""
    path = folder / "dicom_jpeg"
    write_dicom(path, drawn.jpeg_422, mpp=MPP)
    return [_case("dicom_jpeg", path, "dicom", drawn, drawn.jpeg_422[:1])]


def ome_tiff(drawn: DrawnSlide, folder: Path) -> list[Case]:
    """256-px patches that are tiles."""
    path = folder / "slide.ome.tif"
    write_ome_tiff(path, drawn.jpeg_420, mpp=MPP)
    return [_case("ome_tiff", path, "generic-tiff", drawn, drawn.jpeg_420[:1])]


def tiff(drawn: DrawnSlide, folder: Path) -> list[Case]:
    """256-px patches that are tiles: the plain pyramid, to compare with."""
    path = folder / "plain.tif"
    write_tiff(path, drawn.jpeg_420, mpp=MPP)
    return [_case("tiff", path, "generic-tiff", drawn, drawn.jpeg_420[:1])]


def scn(drawn: DrawnSlide, folder: Path) -> list[Case]:
    """256-px patches of a grid over the slide, on whose lines no tile lies: of one area, and of two."""
    width, levels = drawn.side_px, drawn.jpeg_422
    halves = [
        [level.columns(level.cols * half // 2, level.cols * (half + 1) // 2) for level in levels]
        for half in (0, 1)
    ]
    whole = [ScannedArea(levels, SCN_OFFSETS[0])]
    (first_x, first_y), (second_x, second_y) = SCN_OFFSETS
    apart = [
        ScannedArea(halves[0], (first_x, first_y)),
        ScannedArea(halves[1], (second_x + width // 2, second_y)),
    ]
    size = width + SCN_ROOM, width + SCN_ROOM
    cases = []
    for name, areas in (("scn", whole), ("scn_two_areas", apart)):
        path = folder / f"{name}.scn"
        write_scn(path, areas, l0_size=size, mpp=MPP)
        placed = [Placed(area.levels[0], area.l0_xy) for area in areas]
        cases.append(_case(name, path, "leica", drawn, placed, l0_size=size))
    return cases


def ndpi(drawn: DrawnSlide, folder: Path) -> list[Case]:
    """512-px patches of intervals that are four patches wide; the limit decodes stacks of 64 intervals."""
    slide, path = drawn.smaller, folder / "slide.ndpi"
    interval_px = min(INTERVAL_PX, slide.side_px // 4)
    stacks = write_ndpi(path, slide.pictures(), interval_px=interval_px, mpp=MPP, pool=slide.pool)
    return [_case("ndpi", path, "hamamatsu", slide, [stacks], patch_px=512)]


def svs_j2k(drawn: DrawnSlide, folder: Path) -> list[Case]:
    """256-px patches that are tiles, of the slide's middle alone: JPEG 2000 takes ten times as long as JPEG."""
    slide, path = drawn.smaller, folder / "j2k.svs"
    levels = slide.stored(_jpeg2000)
    write_svs_jpeg2000(path, levels, mpp=MPP)
    return [_case("svs_j2k", path, "aperio", slide, levels[:1], decode=_decode_jpeg2000, share=0.5)]


CONTAINERS: Mapping[str, Callable[[DrawnSlide, Path], list[Case]]] = MappingProxyType(
    {
        "philips": philips,
        "dicom_jpeg": dicom_jpeg,
        "ome_tiff": ome_tiff,
        "scn": scn,
        "ndpi": ndpi,
        "svs_j2k": svs_j2k,
        "tiff": tiff,
    }
)


def _jpeg2000(pixels: RgbImage) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(pixels, level=J2K_DECIBELS, codecformat="j2k", mct=True))


def _decode_jpeg(data: bytes) -> RgbImage:
    return np.asarray(simplejpeg.decode_jpeg(data, "RGB"))


def _decode_jpeg2000(data: bytes) -> RgbImage:
    return np.asarray(imagecodecs.jpeg2k_decode(data, numthreads=1))


def _case(
    name: str,
    path: Path,
    vendor: str,
    drawn: DrawnSlide,
    stored: Sequence[StoredLevel | Placed],
    *,
    l0_size: Size | None = None,
    mpp: Mpp = MPP,
    patch_px: int = 256,
    patch_mpp: Mpp | None = None,
    downsample: int = 1,
    decode: Callable[[bytes], RgbImage] = _decode_jpeg,
    share: float = 1.0,
) -> Case:
    """Patches on tissue, as tiling finds them. l0_size: of the slide, where it is larger than what is drawn.

    share: of the slide's width and height, in its middle, that patches are read of.
    """
    l0_size = l0_size or drawn.size
    placed = [each if isinstance(each, Placed) else Placed(each) for each in stored]
    tiling = TilingConfig(patch_px=patch_px, patch_mpp=patch_mpp or mpp)
    grid = PatchGrid.cover(l0_size, slide_mpp=mpp, tiling=tiling)
    ids_N = np.arange(grid.g_cols * grid.g_rows, dtype=np.int64)
    l0_centres_N2 = grid.l0_corners(ids_N) + grid.l0_patch / 2
    middle_N2 = np.abs(l0_centres_N2 / np.array(l0_size) - 0.5) <= share / 2
    ids_N = ids_N[middle_N2.all(axis=1) & _on_tissue(drawn, placed, l0_centres_N2, downsample)]
    coords = PatchCoords.on_grid(
        grid,
        ids_N,
        slide_id=name,
        l0_size=l0_size,
        slide_mpp=mpp,
        tiling=tiling,
        tissue_N=np.ones(len(ids_N), np.float32),
    )
    return Case(
        name=name,
        path=path,
        openslide_path=path / "level_0.dcm" if path.is_dir() else path,
        vendor=vendor,
        mpp=mpp,
        l0_size=l0_size,
        placed=placed,
        decode=decode,
        coords=coords,
        downsample=downsample,
    )


def _on_tissue(
    drawn: DrawnSlide, placed: Sequence[Placed], l0_xy_N2: NDArray[np.float64], downsample: int
) -> NDArray[np.bool_]:
    """Which of these points of the slide lie on a stored tile that shows tissue."""
    found, first_col = np.zeros(len(l0_xy_N2), bool), 0
    for area in placed:
        (x, y), (width, height) = (np.array(pair) * downsample for pair in (area.lv_xy, area.stored.size))
        in_area_N2 = l0_xy_N2 - np.array((x, y))
        inside = ((in_area_N2 >= 0) & (in_area_N2 < (width, height))).all(axis=1)
        # Areas are the picture's columns, one after the other.
        found |= inside & drawn.on_tissue(in_area_N2 + np.array((first_col, 0)))
        first_col += width
    return found
