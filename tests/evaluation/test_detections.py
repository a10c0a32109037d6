from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wsi_ips.config import TilingConfig
from wsi_ips.errors import ResultsError
from wsi_ips.evaluation.froc import (
    Detections,
    detections_from_attention,
    detections_from_contributions,
    read_detections,
    write_detections,
)
from wsi_ips.tiling.grid import PatchCoords, PatchGrid
from wsi_ips.units import Mpp

PATCH = 64
COLUMNS, ROWS = 12, 9


def patches(ids: list[int] | None = None) -> PatchCoords:
    """Patches of 64 level-0 pixels on a grid of 12 x 9, 0.5 µm a pixel."""
    tiling = TilingConfig(patch_px=PATCH, patch_mpp=0.5)
    size = (COLUMNS * PATCH, ROWS * PATCH)
    grid = PatchGrid.cover(size, slide_mpp=Mpp(0.5), tiling=tiling)
    chosen = np.arange(COLUMNS * ROWS) if ids is None else np.array(ids, np.int64)
    return PatchCoords.on_grid(
        grid, chosen, slide_id="s", l0_size=size, slide_mpp=Mpp(0.5), tiling=tiling,
        tissue_N=np.ones(len(chosen), np.float32),
    )  # fmt: skip


def heat(**peaks: float) -> np.ndarray:
    """Attention by grid column and row: ``heat(c3r4=0.5)``."""
    grid = np.zeros((ROWS, COLUMNS))
    for name, value in peaks.items():
        column, row = name[1:].split("r")
        grid[int(row), int(column)] = value
    return grid.ravel()


def test_each_hill_is_one_detection_at_its_top() -> None:
    attention = heat(c3r4=0.4, c4r4=0.3, c3r3=0.1, c10r7=0.2)
    found = detections_from_attention(patches(), attention, probability=0.8)
    assert found.probability_N.tolist() == [0.8, 0.4]
    assert found.l0_xy_N2.tolist() == [[3 * PATCH + 32, 4 * PATCH + 32], [10 * PATCH + 32, 7 * PATCH + 32]]


def test_the_radius_is_in_micrometres() -> None:
    """Two peaks three patches apart: 96 µm at 0.5 µm a pixel."""
    attention = heat(c3r4=0.6, c6r4=0.4)
    for radius_um, count in ((95, 2), (97, 1), (None, 2)):
        assert (
            len(detections_from_attention(patches(), attention, probability=1, radius_um=radius_um)) == count
        )


def test_of_equals_the_first_and_no_more_than_asked_for() -> None:
    found = detections_from_attention(patches(), np.full(COLUMNS * ROWS, 1e-3), probability=0.5, most=3)
    assert found.l0_xy_N2[:, 1].tolist() == [32, 32, 32]
    assert found.l0_xy_N2[:, 0].tolist() == [32, 2 * PATCH + 32, 4 * PATCH + 32]
    assert found.probability_N.tolist() == [0.5] * 3
    # Equals among others: a sort that is not stable passes the test above.
    steps = np.random.default_rng(0).integers(0, 2, COLUMNS * ROWS) / 10
    found = detections_from_attention(patches(), steps, probability=1, radius_um=0)
    assert np.array_equal(found.l0_xy_N2 // PATCH @ [1, COLUMNS], np.flatnonzero(steps))


@given(hnp.arrays(float, COLUMNS * ROWS, elements=st.floats(0, 1)))
def test_detections_are_local_maxima_apart_and_cover_every_patch(attention: np.ndarray) -> None:
    coords = patches()
    found = detections_from_attention(coords, attention, probability=1.0)
    taken = (found.l0_xy_N2 - PATCH // 2) // PATCH
    ids = taken[:, 1] * COLUMNS + taken[:, 0]
    steps = np.abs(taken[:, None] - taken[None]).max(axis=2)
    assert (steps + 9 * np.eye(len(taken)) > 1).all()
    for patch in np.flatnonzero(attention):
        near = np.abs(taken - np.array([patch % COLUMNS, patch // COLUMNS])).max(axis=1) <= 1
        assert attention[ids[near]].max(initial=0) >= attention[patch]


def test_no_patches_or_no_attention_is_no_detection() -> None:
    assert len(detections_from_attention(patches([]), np.zeros(0), probability=0.9)) == 0
    assert len(detections_from_attention(patches([3, 4]), np.zeros(2), probability=0.9)) == 0


@pytest.mark.parametrize("wrong", [np.zeros(3), np.array([0.1, np.nan]), np.array([0.1, -0.1])])
def test_attention_that_cannot_be_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="attention"):
        detections_from_attention(patches([3, 4]), wrong, probability=0.9)


def test_the_challenge_s_file_reads_back_exactly(tmp_path: Path) -> None:
    found = Detections(np.array([0.1, 1 / 3]), np.array([[5, 7], [100_000, 2**40]]))
    write_detections(tmp_path / "a.csv", found)
    assert (tmp_path / "a.csv").read_text().splitlines()[0] == "0.1,5,7"
    read = read_detections(tmp_path / "a.csv")
    assert np.array_equal(read.probability_N, found.probability_N)
    assert np.array_equal(read.l0_xy_N2, found.l0_xy_N2)
    write_detections(tmp_path / "none.csv", Detections(np.zeros(0), np.zeros((0, 2), np.int64)))
    assert (tmp_path / "none.csv").read_text() == ""
    assert len(read_detections(tmp_path / "none.csv")) == 0


@pytest.mark.parametrize("line", ["0.5,1", "0.5,1.5,2", "nan,1,2", "p,x,y", f"0.5,{10**30},1", "0.5,1,\x00"])
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"0.1,5,7\n{line}\n")
    with pytest.raises(ResultsError, match=r"a\.csv: line"):
        read_detections(path)


def test_of_contributions_only_what_adds_is_a_detection_and_one_more_has_probability_0() -> None:
    added = np.zeros(COLUMNS * ROWS)
    added[[0, 5, COLUMNS * ROWS - 1]] = (1.5, 3.0, -2.0)
    found = detections_from_contributions(patches(), added, probability=0.8, radius_um=0)
    assert found.probability_N.tolist() == pytest.approx([0.8, 0.4, 0])
    every = detections_from_attention(patches(), np.ones(COLUMNS * ROWS), probability=1, radius_um=0)
    np.testing.assert_array_equal(found.l0_xy_N2, every.l0_xy_N2[[5, 0, COLUMNS * ROWS - 1]])
    assert len(detections_from_contributions(patches([]), np.zeros(0), probability=0.9)) == 0
    with pytest.raises(ValueError, match="is not one finite value"):
        detections_from_contributions(patches([3, 4]), np.array([np.nan, 1]), probability=0.9)
