from pathlib import Path

import numpy as np
from PIL import Image

from tests.tiling.drawn import Drawing
from wsi_ips.config import TilingConfig
from wsi_ips.heatmaps.tissue_preview import CONTOUR, PATCH, write_preview
from wsi_ips.tiling.contours import tissue_contours
from wsi_ips.tiling.patches import tile_slide

SIZE = (1600, 1200)


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
    assert picture.shape[0] > SIZE[1], "a legend below"
    assert picture.shape[1] == SIZE[0]
    seen = drawing.pixels.astype(int)
    tissue = (slice(420, 580), slice(420, 580))
    assert np.abs(picture[tissue].mean(axis=(0, 1)) - seen[tissue].mean(axis=(0, 1))).max() < 3
    glass = (slice(900, 1100), slice(1000, 1400))
    assert picture[glass].mean() < 0.75 * seen[glass].mean()
    lines = near(picture[: SIZE[1]], CONTOUR)
    rows, columns = np.nonzero(lines)
    assert abs(columns.min() - 240) < 12
    assert abs(columns.max() - 740) < 12
    assert abs(rows.min() - 340) < 12
    assert near(picture[398:403, 440:560], PATCH).any(axis=0).mean() > 0.9, "a patch begins at row 400"


def test_a_slide_without_tissue_is_drawn_and_says_so(tmp_path: Path) -> None:
    picture = preview(tmp_path / "s01.jpg", Drawing(SIZE).paint((30, 60, 190), 300, 300, 900, 200))
    legend = picture[SIZE[1] :]
    assert (legend < 100).all(axis=2).sum() > 500, "words"
    assert not near(picture[: SIZE[1]], CONTOUR).any()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_narrow_slide_has_a_legend_that_can_be_read(tmp_path: Path) -> None:
    picture = preview(tmp_path / "s01.jpg", Drawing((120, 900)).tissue(20, 20, 80, 800))
    assert picture.shape[1] == 640
