"""``predictions.csv``."""

import csv
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.inference.test_results import AGE, LABEL, STAGE, result_of
from wsi_ips.errors import ResultsError
from wsi_ips.inference.predictions import PredictionRow, read_predictions, write_predictions


def rows_of_one_task() -> list[PredictionRow]:
    return [
        PredictionRow(
            slide_id="s,1",
            status="ok",
            probabilities={"label": {"normal": 0.1, "tumor": 0.9}},
            n_patches=12,
        ),
        PredictionRow.failed("s2", "a.svs: cannot be\n  read; convert it"),
    ]


def test_the_table_of_one_task_is_what_people_expect(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    write_predictions(path, rows_of_one_task(), tasks=[LABEL])
    assert path.read_text(encoding="utf-8") == (
        "slide_id,prob_normal,prob_tumor,pred,n_patches,status,error\n"
        '"s,1",0.1,0.9,tumor,12,ok,\n'
        "s2,,,,,failed,a.svs: cannot be read; convert it\n"
    )
    assert read_predictions(path, tasks=[LABEL]) == rows_of_one_task()


def test_several_tasks_have_their_names_in_the_columns(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    probabilities = {
        "label": {"normal": 0.5, "tumor": 0.5},
        "stage": {"a": 0.7, "b_c": 0.2, "tumor": 0.5},
        "age": {"years": 61.25, "sd": -0.5},
    }
    row = PredictionRow(slide_id="s", status="ok", probabilities=probabilities, n_patches=1)
    write_predictions(path, [row], tasks=[LABEL, STAGE, AGE])
    with path.open(newline="") as file:
        (cells,) = csv.DictReader(file)
    assert cells["prob_stage_b_c"] == "0.2"
    assert cells["pred_label"] == "normal", "of equals, the first"
    assert cells["pred_stage"] == "a|tumor", "sigmoid: every class from 0.5 on"
    assert cells["pred_age"] == "61.25|-0.5", "linear: the numbers, which are no classes to choose from"
    assert read_predictions(path, tasks=[LABEL, STAGE, AGE]) == [row]


def test_the_row_of_a_result(tmp_path: Path) -> None:
    row = PredictionRow.done(result_of())
    assert (row.slide_id, row.status, row.n_patches, row.error) == ("slide_01", "ok", 5, "")
    write_predictions(tmp_path / "p.csv", [row], tasks=[LABEL])
    assert read_predictions(tmp_path / "p.csv", tasks=[LABEL])[0].probabilities == {
        "label": {"normal": 0.1, "tumor": 0.9}
    }


def test_a_labelled_slide_may_say_what_else_failed(tmp_path: Path) -> None:
    row = PredictionRow.done(result_of(), error="overlay not drawn:\n disk full")
    assert (row.status, row.error) == ("ok", "overlay not drawn: disk full")
    write_predictions(tmp_path / "p.csv", [row], tasks=[LABEL])
    (read,) = read_predictions(tmp_path / "p.csv", tasks=[LABEL])
    assert (read.status, read.error, read.probabilities["label"]["tumor"]) == ("ok", row.error, 0.9)


def test_a_name_that_is_not_utf8_does_not_cost_the_table(tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.csv", [PredictionRow.failed("bad\udce9", "x")], tasks=[LABEL])
    assert read_predictions(tmp_path / "p.csv", tasks=[LABEL])[0].slide_id == "bad\\udce9"


@settings(deadline=None)
@given(
    slide_id=st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1),
    p=st.floats(0, 1),
)
def test_numbers_and_names_survive_the_table(
    tmp_path_factory: pytest.TempPathFactory, slide_id: str, p: float
) -> None:
    path = tmp_path_factory.mktemp("table") / "p.csv"
    row = PredictionRow(
        slide_id=slide_id,
        status="ok",
        probabilities={"label": {"normal": 1 - p, "tumor": p}},
        n_patches=3,
    )
    write_predictions(path, [row], tasks=[LABEL])
    assert read_predictions(path, tasks=[LABEL]) == [row]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not a CSV"),
        ("slide_id,label\na,b\n", "columns"),
        ("HEADER\ns,0.1,0.9,tumor,1,done,\n", "row 2"),
        ("HEADER\ns,0.1,,tumor,1,ok,\n", "row 2"),
        ("HEADER\ns,0.1\n", "row 2"),
        ('HEADER\ns,0.1,"0.9"x,tumor,1,ok,\n', "not a CSV"),
    ],
)
def test_a_broken_table_is_refused(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "p.csv"
    write_predictions(path, [], tasks=[LABEL])
    path.write_text(text.replace("HEADER", path.read_text().strip()))
    with pytest.raises(ResultsError, match=why):
        read_predictions(path, tasks=[LABEL])


@pytest.mark.parametrize("output", ["inf", "-Infinity", "1.5", "-0.1", "1e999"])
def test_what_no_network_says_is_refused(tmp_path: Path, output: str) -> None:
    path = tmp_path / "predictions.csv"
    row = PredictionRow(
        slide_id="a", status="ok", probabilities={"label": {"normal": 0.25, "tumor": 0.75}}, n_patches=3
    )
    write_predictions(path, [row], tasks=[LABEL])
    path.write_text(path.read_text().replace("0.25", output))
    with pytest.raises(ResultsError, match=r"row 2 is broken \(prob_normal is"):
        read_predictions(path, tasks=[LABEL])
