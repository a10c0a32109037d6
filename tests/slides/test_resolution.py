from pathlib import Path

import pytest

from wsi_ips.errors import ConfigError, ManifestError
from wsi_ips.slides.resolution import SlideMpp, read_mpp_table
from wsi_ips.units import Mpp


def test_a_row_of_the_table_wins_over_the_value_for_all() -> None:
    slide_mpp = SlideMpp(0.5, {"a": Mpp(0.25)})
    assert (slide_mpp("a"), slide_mpp("b"), SlideMpp()("a")) == (0.25, 0.5, None)


def test_the_table_takes_file_names_and_slide_ids(tmp_path: Path) -> None:
    table = tmp_path / "mpp.csv"
    table.write_text("wsi,mpp\na.svs,0.25\nb.case.1,0.5\n")
    slide_mpp = SlideMpp(None, read_mpp_table(table))
    assert (slide_mpp("a"), slide_mpp("b.case.1")) == (0.25, 0.5)


def test_ids_with_dots_are_not_file_names(cases_folder: Path) -> None:
    slide_mpp = SlideMpp(None, read_mpp_table(cases_folder / "names" / "dots_ids.csv"))
    assert [slide_mpp(name) for name in ("S23", "S23.1", "S23.2")] == [0.5, 0.25, 0.2]


def test_blanks_around_names_are_no_part_of_them(tmp_path: Path) -> None:
    table = tmp_path / "mpp.csv"
    table.write_text("wsi , mpp\n a.svs , 0.25 \n")
    assert SlideMpp(None, read_mpp_table(table))("a") == 0.25


def test_rows_that_name_no_slide_are_found() -> None:
    slide_mpp = SlideMpp(None, {"a.svs": Mpp(0.25), "b": Mpp(0.5), "S1.2": Mpp(0.5), "typo.tif": Mpp(0.5)})
    assert slide_mpp.unmatched({"a", "b", "S1"}) == ["S1.2", "typo.tif"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wsi,mpp\na,0.5\n,0.5\n", "line 3: names no slide"),
        ("wsi,mpp\na.svs,0.5\na,0.25\n", "line 3: slide a has another mpp above"),
        ("wsi,mpp\na,0.5\na,0.25\n", "line 3"),
        ("slide,mpp\na,1\n", "lacks the column wsi; its first line must name wsi,mpp; did you mean slide"),
        ("wsi,mmp\na,1\n", "lacks the column mpp; .* did you mean mmp"),
        ("a;b\n1;2\n", "lacks the column wsi; its first line must name wsi,mpp$"),
        ("wsi,mpp\na,0.5\nb,half\n", "line 3"),
        ("wsi,mpp\na,0\n", "line 2"),
    ],
)
def test_a_wrong_table_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    table = tmp_path / "mpp.csv"
    table.write_text(text)
    with pytest.raises(ManifestError, match=message):
        read_mpp_table(table)


@pytest.mark.parametrize("mpp", [0.0, -1.0, 1e6, float("nan")])
def test_a_resolution_that_no_slide_has_is_refused(mpp: float) -> None:
    with pytest.raises(ConfigError, match="µm per pixel"):
        SlideMpp(mpp)
