"""Tables of people and spreadsheets: what would put a value, or a patient, in the wrong place is an error."""

from pathlib import Path
from unicodedata import normalize

import pytest

from wsi_ips.config import TaskConfig
from wsi_ips.datasets.look_alikes import first_look_alikes
from wsi_ips.datasets.manifest import read_manifest
from wsi_ips.errors import ManifestError
from wsi_ips.inference.predictions import read_case_table
from wsi_ips.slides.resolution import read_mpp_table

TASKS = [TaskConfig(classes=("normal", "tumor"))]
COMPOSED, APART = (normalize(form, "Müller") for form in ("NFC", "NFD"))


def written(folder: Path, text: str) -> Path:
    path = folder / "table.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("one", "other"),
    [("P1", "p1"), ("001", "1"), ("7.0", "7"), (COMPOSED, APART), ("P 1", "P\u00a01"), ("P 1", "P  1")],
)
def test_cases_that_look_like_one_patient(tmp_path: Path, one: str, other: str) -> None:
    """Of CLAM's users: zeros in front of numbers are lost, numbers become 7.0; splits no longer fit patients."""
    assert first_look_alikes([one, "another", other, one]) == (one, other)
    lines = f"a,{one},normal,train,a.tif\nb,{other},tumor,test,b.tif\n"
    manifest = written(tmp_path, "slide_id,case_id,label,split,path\n" + lines)
    with pytest.raises(ManifestError, match="which look like one patient; give all slides of a patient"):
        read_manifest(manifest, tasks=TASKS, need_slides=False)
    cases = written(tmp_path, f"slide_id,case_id\na,{one}\nb,{other}\n")
    with pytest.raises(ManifestError, match="which look like one patient"):
        read_case_table(cases, ["a", "b"])


def test_names_that_are_others() -> None:
    assert first_look_alikes(["P1", "P01", "1", "10", "1.5", "15", "a b", "ab", "P1"]) is None


def test_a_column_that_stands_there_twice(tmp_path: Path) -> None:
    table = written(tmp_path, "slide_id,case_id,label,label,split,path\na,p1,normal,tumor,train,a.tif\n")
    with pytest.raises(ManifestError, match="has the column label twice"):
        read_manifest(table, tasks=TASKS, need_slides=False)
    with pytest.raises(ManifestError, match="has the column mpp twice"):
        read_mpp_table(written(tmp_path, "wsi,mpp,mpp\na.tif,0.25,0.5\n"))
    with pytest.raises(ManifestError, match="has the column case_id twice"):
        read_case_table(written(tmp_path, "slide_id,case_id,case_id\na,p1,p2\n"), ["a"])
    notes = written(tmp_path, "slide_id,note,note,case_id,label,split,path\na,x,y,p1,tumor,train,a.tif\n")
    assert read_manifest(notes, tasks=TASKS, need_slides=False).records[0].labels == {"label": "tumor"}


def test_a_comma_that_is_not_in_quotes(tmp_path: Path) -> None:
    """A decimal comma would be read as 0 µm and a note; a name with a comma moves the cells behind it."""
    with pytest.raises(
        ManifestError, match="line 2: has more cells than the first line names; put values with"
    ):
        read_mpp_table(written(tmp_path, "mpp,wsi\n1,25,a.tif\n"))
    header = "slide_id,case_id,split,path,label\n"
    with pytest.raises(ManifestError, match="line 2: has more cells"):
        read_manifest(
            written(tmp_path, header + "a,p1,train,a.tif,tumor,normal\n"), tasks=TASKS, need_slides=False
        )
    with pytest.raises(ManifestError, match="line 2: has more cells"):
        read_case_table(written(tmp_path, "slide_id,case_id\na,Miller, J\n"), ["a"])
    trailing = written(tmp_path, header + "a,p1,train,a.tif,tumor,,\n")
    assert len(read_manifest(trailing, tasks=TASKS, need_slides=False).records) == 1


def test_blanks_around_a_case_make_no_other_patient(tmp_path: Path) -> None:
    table = written(tmp_path, "slide_id,case_id\na,p1\nb , p1\n")
    assert read_case_table(table, ["a", "b"]) == {"a": "p1", "b": "p1"}
    with pytest.raises(ManifestError, match="does not give the case of slide b"):
        read_case_table(written(tmp_path, "slide_id,case_id\na,p1\nb\n"), ["a", "b"])
