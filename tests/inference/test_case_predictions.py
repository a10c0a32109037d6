"""``cases.csv``."""

import csv
from pathlib import Path

import pytest

from tests.inference.test_results import AGE, LABEL
from wsi_ips.errors import ManifestError
from wsi_ips.evaluation.task_scores import Pooling
from wsi_ips.inference.predictions import PredictionRow, read_case_table, write_cases

THREE = [
    PredictionRow(
        slide_id=name,
        status="ok",
        # One class's rounding need not be the other's.
        probabilities={
            "label": {"normal": 0.4999 if name == "b1" else 1 - p, "tumor": p},
            "age": {"years": 100 * p, "sd": 1.0},
        },
        n_patches=1,
    )
    for name, p in (("a1", 0.25), ("a2", 0.75), ("b1", 0.5))
]
CASES = {"a1": "a", "a2": "a", "b1": "b", "c1": "c", "a3": "a"}


@pytest.mark.parametrize(("pool", "tumor"), [("max", 0.75), ("mean", 0.5), ("noisy_or", 0.8125)])
def test_a_patient_is_the_pool_of_the_slides_that_were_labelled(
    tmp_path: Path, pool: Pooling, tumor: float
) -> None:
    rows = [*THREE, PredictionRow.failed("c1", "gone"), PredictionRow.failed("a3", "gone")]
    write_cases(tmp_path / "cases.csv", rows, CASES, tasks=[LABEL, AGE], pool=pool)
    with (tmp_path / "cases.csv").open(newline="") as file:
        cases = {row["case_id"]: row for row in csv.DictReader(file)}
    assert [*cases] == ["a", "b", "c"]
    assert float(cases["a"]["prob_label_tumor"]) == tumor
    assert float(cases["a"]["prob_label_normal"]) == 1 - tumor
    assert float(cases["a"]["prob_age_years"]) == 50, "numbers are averaged"
    assert cases["a"]["pred_label"] == ("normal" if pool == "mean" else "tumor")
    assert (cases["a"]["n_slides"], cases["a"]["n_failed"]) == ("2", "1")
    assert float(cases["b"]["prob_label_normal"]) == 0.4999, "one slide's numbers are left as they are"
    assert (cases["c"]["prob_label_tumor"], cases["c"]["n_slides"]) == ("", "0")


def test_a_manifest_says_whose_slides_they_are(tmp_path: Path) -> None:
    table = tmp_path / "m.csv"
    table.write_text("slide_id,case_id,label\ns1,p1,tumor\ns2,p1,\nother,p2,\n", encoding="utf-8")
    assert read_case_table(table, ["s2", "s1"]) == {"s2": "p1", "s1": "p1"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("slide_id,case\ns1,p\n", "lacks the column 'case_id'"),
        ("slide_id,case_id\ns2,p\n", "does not give the case of slide s1"),
        ("slide_id,case_id\ns1,\n", "does not give the case of slide s1"),
        ("slide_id,case_id\ns1,p\ns1,q\n", "slide s1 has two cases"),
        ('slide_id,case_id\n"s1"x,p\n', "is no CSV"),
    ],
)
def test_a_table_that_leaves_it_open_is_refused(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(ManifestError, match=why):
        read_case_table(tmp_path / "m.csv", ["s1"])
    with pytest.raises(ManifestError, match="does not exist"):
        read_case_table(tmp_path / "gone.csv", ["s1"])
