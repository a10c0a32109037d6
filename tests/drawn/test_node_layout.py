"""Where tissue and metastases lie: exact numbers of cells, whole nodes, pieces apart."""

import numpy as np
import pytest
import shapely
from scipy import ndimage
from shapely import Polygon

from tests.drawn.drawn_textures import draw_outlines
from wsi_ips.drawn.composite import read_outlines
from wsi_ips.drawn.lymph_nodes import MARGIN, lay_out_node, node_tissue, outlines_of
from wsi_ips.errors import ConfigError


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> list[Polygon]:
    return read_outlines(draw_outlines(tmp_path_factory.mktemp("outlines")))


def test_tissue_is_one_piece_or_two_of_exactly_so_many_cells_with_glass_around() -> None:
    pieces = []
    for seed in range(30):
        tissue_RC = node_tissue(137 + seed, np.random.default_rng(seed))
        assert tissue_RC.sum() == 137 + seed
        pieces.append(ndimage.label(tissue_RC)[1])
        inner = tissue_RC[MARGIN:-MARGIN, MARGIN:-MARGIN]
        assert inner.sum() == tissue_RC.sum()
        # No wider than it has to be: the tissue touches all four sides within the margin.
        assert inner[0].any()
        assert inner[-1].any()
        assert inner[:, 0].any()
        assert inner[:, -1].any()
    assert set(pieces) == {1, 2}


@pytest.mark.parametrize("lesion", [1, 2, 5, 15, 25, 60, 100])
def test_metastases_take_exactly_their_cells_within_the_tissue(shapes: list[Polygon], lesion: int) -> None:
    pieces = set()
    for seed in range(8):
        layout = lay_out_node(500, lesion, shapes, rng=np.random.default_rng(seed))
        assert layout.tissue_RC.sum() == 500
        assert layout.lesion_RC.sum() == lesion
        assert not (layout.lesion_RC & ~layout.tissue_RC).any()
        pieces.add(ndimage.label(layout.lesion_RC, np.ones((3, 3)))[1])
    assert len(pieces) > 1 or lesion < 5
    assert max(pieces) <= 3 + 1  # the outline's own cells may touch nowhere


def test_a_metastasis_has_its_outlines_form() -> None:
    bar = Polygon([(-2, -0.125), (2, -0.125), (2, 0.125), (-2, 0.125)])
    long, wide = [], []
    for seed in range(10):
        lesion_RC = lay_out_node(900, 30, [bar], rng=np.random.default_rng(seed)).lesion_RC
        labels_RC, count = ndimage.label(lesion_RC, np.ones((3, 3)))
        for number in range(1, count + 1):
            box = shapely.minimum_rotated_rectangle(outlines_of(labels_RC == number, side_px=1))
            sides = sorted(np.hypot(*np.diff(np.array(box.exterior.coords)[:3], axis=0).T))
            wide.append(sides[0])
            long.append(sides[1])
    assert np.mean(long) > 2.5 * np.mean(wide)


def test_no_metastasis_where_none_is_asked_for(shapes: list[Polygon]) -> None:
    assert not lay_out_node(200, 0, shapes, rng=np.random.default_rng(0)).lesion_RC.any()


def test_a_node_without_room_is_told(shapes: list[Polygon]) -> None:
    with pytest.raises(ConfigError, match="no room for a metastasis of 125 of 120"):
        lay_out_node(120, 125, shapes, rng=np.random.default_rng(0))


def test_outlines_run_on_the_cells_borders_around_holes_too() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        cells_RC = rng.random((9, 7)) < 0.5
        rows, columns = np.nonzero(cells_RC)
        area = outlines_of(cells_RC, side_px=96)
        assert area.area == cells_RC.sum() * 96**2
        assert area.is_valid
        assert (shapely.get_coordinates(area) % 96 == 0).all()
        assert shapely.contains_xy(area, columns * 96 + 48, rows * 96 + 48).all()
