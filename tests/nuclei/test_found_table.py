"""The table that ``detect`` writes, read again: all of it, a part of the slide, and tables that are none."""

from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from wsi_ips.errors import ResultsError
from wsi_ips.nuclei import found_table
from wsi_ips.nuclei.detect import FoundObjects
from wsi_ips.nuclei.found_files import write_found_csv
from wsi_ips.nuclei.found_table import COLUMNS, OUTLINE, FoundTable

HEADER = ",".join(COLUMNS)


def some_objects(count: int, seed: int) -> FoundObjects:
    rng = np.random.default_rng(seed)
    starts = rng.uniform(0, 100_000, (count, 2))
    boxes = np.concatenate([starts, starts + rng.uniform(5, 500, (count, 2))], axis=1)
    outlines = np.array([shapely.box(*box).buffer(-1) for box in boxes], object)
    return FoundObjects(boxes, np.sort(rng.random(count))[::-1], rng.integers(0, 2, count), outlines)


@given(st.integers(0, 40), st.integers(0, 1000), st.booleans())
def test_a_table_reads_back(
    tmp_path_factory: pytest.TempPathFactory, count: int, seed: int, outlined: bool
) -> None:
    found = some_objects(count, seed)
    if not outlined:
        found = FoundObjects(found.l0_boxes_N4, found.scores_N, found.classes_N)
    path = tmp_path_factory.mktemp("t") / "a.csv"
    classes = ("nucleus, left", 'a "b"')
    write_found_csv(path, found, classes=classes)
    table = FoundTable.read(path)
    assert (len(table), table.outlined) == (count, outlined)
    assert np.abs(table.l0_boxes_N4 - found.l0_boxes_N4).max(initial=0) < 0.02
    assert np.abs(table.scores_N - found.scores_N).max(initial=0) < 1e-4
    assert [table.classes[place] for place in table.classes_N] == [
        classes[place] for place in found.classes_N
    ]
    rings = table.l0_rings(range(count))
    for ring, box, outline in zip(
        rings, found.l0_boxes_N4, some_objects(count, seed).l0_outlines_N, strict=True
    ):  # type: ignore[arg-type]
        wanted = outline if outlined else shapely.box(*box)
        assert shapely.Polygon(ring).symmetric_difference(wanted).area < 0.05 * wanted.length


def test_a_class_of_two_lines_costs_its_outlines_only(tmp_path: Path) -> None:
    found = some_objects(5, 0)
    write_found_csv(tmp_path / "a.csv", found, classes=("a", "b\nc"))
    table = FoundTable.read(tmp_path / "a.csv")
    rings = table.l0_rings(range(5))
    for place, ring, box in zip(found.classes_N, rings, found.l0_boxes_N4, strict=True):
        width = box[2] - box[0] - (2 if place == 0 else 0)
        assert np.ptp(ring[:, 0]) == pytest.approx(width, abs=0.05)


def test_a_part_of_the_slide(tmp_path: Path) -> None:
    found = some_objects(4000, 3)  # several across each edge
    write_found_csv(tmp_path / "a.csv", found, classes=("a", "b"))
    window = (20_000, 30_000, 60_000, 50_000)
    rows = FoundTable.read(tmp_path / "a.csv").rows_in(*window)
    wanted = [
        i for i, box in enumerate(found.l0_boxes_N4) if shapely.box(*box).intersects(shapely.box(*window))
    ]
    assert rows.tolist() == wanted
    assert 200 < len(rows) < 1000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a,b\n1,2\n",
        f"{HEADER}\nnucleus,0.5,1,1,0,0,2\n",
        f"{HEADER}\nnucleus,half,1,1,0,0,2,2\n",
        f"{HEADER}\nnucleus,0.5,1,1,0,0,nan,2\n",
        f"{HEADER}\nnucleus,0.5,1,1,0,0,1e999,2\n",
        f"{HEADER}\n{'x' * 70_000},0.5,1,1,0,0,2,2\n",
        f"{HEADER}\n\xff,0.5,1,1,0,0,2,2\n",
        "\0" * 100,
    ],
)
def test_what_is_no_table_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.csv").write_text(text, encoding="latin-1")
    with pytest.raises(ResultsError, match=r"a\.csv: is no table of found objects") as caught:
        FoundTable.read(tmp_path / "a.csv")
    assert "\n" not in str(caught.value)


def test_a_table_is_not_trusted_with_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(found_table, "MOST_OBJECTS", 10)
    write_found_csv(tmp_path / "a.csv", some_objects(10, 0), classes=("a", "b"))
    assert len(FoundTable.read(tmp_path / "a.csv")) == 10
    write_found_csv(tmp_path / "a.csv", some_objects(11, 0), classes=("a", "b"))
    with pytest.raises(ResultsError, match="more than 10 objects"):
        FoundTable.read(tmp_path / "a.csv")


@pytest.mark.parametrize(
    "wkt", ["", "POINT (1 2)", "POLYGON EMPTY", "POLYGON ((0 0, 1", "no", "POLYGON ((0 0,1 nan,1 1,0 0))"]
)
def test_an_outline_that_cannot_be_drawn_is_the_box(tmp_path: Path, wkt: str) -> None:
    (tmp_path / "a.csv").write_text(f'{HEADER},{OUTLINE}\nnucleus,0.5,1,1,0,0,2,4,"{wkt}"\n')
    (ring,) = FoundTable.read(tmp_path / "a.csv").l0_rings([0])
    assert ring.tolist() == [[0, 0], [2, 0], [2, 4], [0, 4]]
