"""Slides with maps of attention that are drawn for contracts, and the value of a place worked out by hand."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wsi_ips.config import TilingConfig
from wsi_ips.heatmaps.maps import Heat, choose_heat
from wsi_ips.inference.results import SlideResult
from wsi_ips.slides.base import Bounds
from wsi_ips.slides.image_reader import MemoryReader
from wsi_ips.tiling.grid import PatchCoords, PatchGrid
from wsi_ips.units import Mpp

L0_SIZE, SLIDE_MPP = (1511, 997), 0.243
GREY = 200
BOUNDS = Bounds(203, 101, 1100, 800)


@dataclass(frozen=True)
class Drawn:
    """A slide that is a multiple of nothing, its patches' float corners and side, and one value a patch."""

    slide: MemoryReader
    heat: Heat
    l0_corners_N2: NDArray[np.float64]
    l0_patch: float

    def value_at(self, l0_x: float, l0_y: float) -> float:
        """The mean of the patches that hold this point; NaN where none does."""
        inside = (self.l0_corners_N2 <= (l0_x, l0_y)) & ((l0_x, l0_y) < self.l0_corners_N2 + self.l0_patch)
        held = self.heat.values_N[inside.all(axis=1)].astype(np.float64)
        return float(held.mean()) if len(held) else float("nan")


def drawn(
    *,
    patch_px: int = 30,
    overlap_px: int = 0,
    share: float = 0.7,
    queries: int = 1,
    bounds: Bounds | None = None,
    seed: int = 0,
) -> Drawn:
    """A slide of 1511 x 997 pixels, its patches, and attention drawn at random.

    Patches have ``patch_px`` pixels at 0.5 µm: 61.73 level-0 pixels for 30. ``share`` of the grid's cells are
    there.
    """
    rng = np.random.default_rng(seed)
    tiling = TilingConfig(patch_px=patch_px, patch_mpp=0.5, overlap_px=overlap_px)
    grid = PatchGrid.cover(L0_SIZE, slide_mpp=Mpp(SLIDE_MPP), tiling=tiling)
    cells = grid.g_cols * grid.g_rows
    ids = np.flatnonzero(rng.random(cells) < share)
    coords = PatchCoords.on_grid(
        grid,
        ids,
        slide_id="slide_01",
        l0_size=L0_SIZE,
        slide_mpp=Mpp(SLIDE_MPP),
        tiling=tiling,
        tissue_N=np.ones(len(ids), np.float32),
    )
    attention = rng.random((len(ids), 2, queries)).astype(np.float32) ** 4
    attention /= attention.sum(axis=0)
    l0_step = (patch_px - overlap_px) * 0.5 / SLIDE_MPP
    corners = np.stack([ids % grid.g_cols, ids // grid.g_cols], axis=1).astype(np.float64) * l0_step
    image = np.full((L0_SIZE[1], L0_SIZE[0], 3), GREY, np.uint8)
    return Drawn(
        MemoryReader(image, mpp=Mpp(SLIDE_MPP), bounds=bounds),
        choose_heat(result_of(coords, attention)),
        corners,
        patch_px * 0.5 / SLIDE_MPP,
    )


def result_of(coords: PatchCoords, attention_NHT: NDArray[np.float32]) -> SlideResult:
    """The result of a slide with these patches and this attention."""
    return SlideResult(
        slide_path="slide_01.svs",
        coords=coords,
        logits_NHT=np.zeros_like(attention_NHT),
        attention_NHT=attention_NHT,
        kept_ids_M=coords.ids_N[:1],
        kept_scores_M=np.zeros(len(coords.ids_N[:1]), np.float32),
        probabilities={"label": {"normal": 0.0713, "tumor": 0.9287}},
    )


def without_patches() -> Drawn:
    """The same slide, nothing on it."""
    full = drawn()
    coords = full.heat.coords
    none = replace(coords, ids_N=coords.ids_N[:0], l0_xy_N2=coords.l0_xy_N2[:0], tissue_N=coords.tissue_N[:0])
    heat = choose_heat(result_of(none, np.empty((0, 2, 1), np.float32)))
    return Drawn(full.slide, heat, full.l0_corners_N2[:0], full.l0_patch)
