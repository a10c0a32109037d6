from pathlib import Path

import numpy as np
from PIL import Image

from tests.tiling.drawn import Drawing
from wsi_ips.config import TilingConfig
from wsi_ips.heatmaps.tissue_preview import CONTOUR, PATCH, SHADE, draw_preview, write_preview
from wsi_ips.tiling.contours import tissue_contours
from wsi_ips.tiling.patches import tile_slide
from wsi_ips.tiling.picture import slide_picture

SIZE = (1600, 1200)
SHOWN, L0_PER_PX = (1000, 750), 1.6
"""The slide's size in the picture, and level-0 pixels for each pixel of it."""


def preview(path: Path, drawing: Drawing) -> np.ndarray:
    slide = drawing.reader()
    coords, mask = tile_slide(slide, TilingConfig(patch_px=200, patch_mpp=2.0), slide_id="s01")
    write_preview(path, slide, coords, mask, tissue_contours(mask))
    return np.asarray(Image.open(path)).astype(int)


def near(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """JPEG keeps thin coloured lines roughly."""
    return np.asarray(np.abs(picture - colour).max(axis=2) < 70)


def test_glass_is_shaded_tissue_is_not_and_lines_lie_where_they_belong(tmp_path: Path) -> None:
    drawing = Drawing(SIZE).tissue(240, 340, 500, 400)
    picture = preview(tmp_path / "s01.jpg", drawing)
    assert picture.shape[0] > SHOWN[1], "a legend below"
    assert picture.shape[1] == SHOWN[0]
    seen = drawing.pixels.astype(int)
    tissue, tissue_seen = (slice(265, 360), slice(265, 360)), (slice(424, 576), slice(424, 576))
    assert np.abs(picture[tissue].mean(axis=(0, 1)) - seen[tissue_seen].mean(axis=(0, 1))).max() < 3
    glass, glass_seen = (slice(563, 687), slice(625, 875)), (slice(900, 1100), slice(1000, 1400))
    assert picture[glass].mean() < 0.75 * seen[glass_seen].mean()
    lines = near(picture[: SHOWN[1]], CONTOUR)
    rows, columns = np.nonzero(lines)
    assert abs(columns.min() - 240 / L0_PER_PX) < 8
    assert abs(columns.max() - 740 / L0_PER_PX) < 8
    assert abs(rows.min() - 340 / L0_PER_PX) < 8
    assert near(picture[248:253, 275:350], PATCH).any(axis=0).mean() > 0.9, "a patch begins at row 400"


def test_patches_beyond_the_slide_do_not_cross_its_legend() -> None:
    slide = Drawing((1600, 1250)).tissue(0, 0, 1600, 1250).reader()
    coords, mask = tile_slide(slide, TilingConfig(patch_px=200, patch_mpp=2.0), slide_id="s01")
    l0_bottom = float(coords.l0_exact_corners()[:, 1].max()) + coords.l0_patch
    assert l0_bottom > 1250 + 20 * L0_PER_PX
    page = np.asarray(draw_preview(slide, coords, mask, tissue_contours(mask)))
    below = round(1250 / L0_PER_PX) + 1
    legend = page[below:, SHOWN[0] // 2 :]
    assert not (legend == PATCH).all(axis=2).any()
    assert not (legend == CONTOUR).all(axis=2).any()


def test_a_slide_without_tissue_is_drawn_and_says_so(tmp_path: Path) -> None:
    picture = preview(tmp_path / "s01.jpg", Drawing(SIZE).paint((30, 60, 190), 300, 300, 900, 200))
    legend = picture[SHOWN[1] :]
    assert (legend < 100).all(axis=2).sum() > 500, "words"
    assert near(picture[: SHOWN[1]], CONTOUR).sum() < 10, "at most JPEG's noise in a corner"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_narrow_slide_has_a_legend_that_can_be_read(tmp_path: Path) -> None:
    picture = preview(tmp_path / "s01.jpg", Drawing((120, 900)).tissue(20, 20, 80, 800))
    assert picture.shape[1] == 640


def test_every_pixel_is_the_slide_or_its_shade(tmp_path: Path) -> None:
    """To the far corner, where the mask, too, ends between pixels."""
    drawing = Drawing((1603, 1207)).tissue(700, 500, 903, 707)
    slide = drawing.reader()
    coords, mask = tile_slide(slide, TilingConfig(patch_px=2000, patch_mpp=2.0), slide_id="s01")
    size, scale = (1000, 753), 1.603
    picture = np.asarray(draw_preview(slide, coords, mask, [])).astype(int)[: size[1], : size[0]]
    exact = slide_picture(slide, size, l0_per_px=scale).astype(int)
    rows, columns = (((np.arange(side) + 0.5) * scale / 4).astype(int) for side in size[::-1])
    tissue = mask.mask_HW[np.ix_(rows, columns)]
    expected = np.where(tissue[..., None], exact, exact * SHADE[0] + SHADE[1] * (1 - SHADE[0]))
    assert tissue[-1, -1]
    assert 0.1 < tissue.mean() < 0.9
    assert np.abs(picture - expected).max() <= 3
