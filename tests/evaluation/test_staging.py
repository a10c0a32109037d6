import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_cohen_kappa

from wsi_ips.datasets.camelyon import NODE_CLASSES, STAGES
from wsi_ips.errors import ResultsError
from wsi_ips.evaluation.staging import (
    pn_stage,
    quadratic_kappa,
    read_submission,
    score_submission,
    write_submission,
)

stages = st.lists(st.tuples(st.sampled_from(STAGES), st.sampled_from(STAGES)), min_size=2, max_size=60)


def test_the_published_stages_follow_from_the_published_nodes(real_data: Path) -> None:
    table = read_submission(real_data / "camelyon" / "camelyon17_stages.csv")
    assert (len(table.patients), len(table.nodes)) == (100, 500)
    disagree = [name for name, stage in table.patients.items() if pn_stage(table.nodes_of(name)) != stage]
    assert disagree == []


@pytest.mark.parametrize(
    ("nodes", "stage"),
    [
        (["negative"] * 5, "pN0"),
        (["itc"] * 5, "pN0(i+)"),
        (["itc", "micro", "negative", "negative", "negative"], "pN1mi"),
        (["micro"] * 5, "pN1mi"),  # however many: without a macro it is pN1mi
        (["macro", "micro", "micro", "itc", "itc"], "pN1"),
        (["macro", "micro", "micro", "micro", "itc"], "pN2"),
        (["macro"] * 9, "pN2"),
    ],
)
def test_stages_by_the_rules(nodes: list[str], stage: str) -> None:
    assert pn_stage(nodes) == stage
    assert pn_stage(nodes[::-1]) == stage


def test_every_five_nodes_have_a_stage_and_worse_nodes_no_better_one() -> None:
    for nodes in itertools.product(NODE_CLASSES, repeat=5):
        stage = STAGES.index(pn_stage(nodes))
        for place, node in enumerate(nodes[:2]):
            for worse in NODE_CLASSES[NODE_CLASSES.index(node) + 1 :]:
                assert STAGES.index(pn_stage([*nodes[:place], worse, *nodes[place + 1 :]])) >= stage


@pytest.mark.parametrize(
    ("nodes", "problem"), [([], "without nodes"), (["Micro"], "'Micro'"), (["micro"] * 10, "pN3")]
)
def test_nodes_that_cannot_be_staged(nodes: list[str], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        pn_stage(nodes)


@given(stages)
def test_kappa_is_the_formula_s_and_the_library_s(pairs: list[tuple[str, str]]) -> None:
    """By sums over pairs, in float64; torchmetrics says the same in float32, too coarse to be used."""
    first, second = (
        np.array([STAGES.index(label) for label in column]) for column in zip(*pairs, strict=True)
    )
    by_chance = np.mean(np.subtract.outer(first, second) ** 2)
    one, other = ([STAGES[place] for place in column] for column in (first, second))
    if by_chance == 0:
        with pytest.raises(ValueError, match="not defined"):
            quadratic_kappa(one, other)
        return
    kappa = quadratic_kappa(one, other)
    assert kappa == pytest.approx(1 - np.mean((first - second) ** 2) / by_chance, abs=1e-12)
    library = multiclass_cohen_kappa(torch.tensor(first), torch.tensor(second), 5, weights="quadratic")
    assert kappa == pytest.approx(float(library), abs=1e-4)
    assert quadratic_kappa(other, one) == pytest.approx(kappa, abs=1e-12)


def test_a_submission_is_written_as_the_challenge_wants_it(tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    nodes = {
        f"patient_{number}": {f"patient_{number}_node_{node}": kind for node, kind in enumerate(kinds)}
        for number, kinds in ((101, ["macro"] * 5), (100, ["itc", "negative"]))
    }
    write_submission(path, nodes)
    assert path.read_text().splitlines()[:4] == [
        "patient,stage",
        "patient_100.zip,pN0(i+)",
        "patient_100_node_0.tif,itc",
        "patient_100_node_1.tif,negative",
    ]
    assert read_submission(path).patients == {"patient_100": "pN0(i+)", "patient_101": "pN2"}
    assert score_submission(path, path) == 1


def test_only_the_reference_s_patients_count(tmp_path: Path) -> None:
    reference, submission = tmp_path / "reference.csv", tmp_path / "submission.csv"
    reference.write_text(
        "patient,stage\na.zip,pN0\nb.zip,pN2\nc.zip,pN1\na_node_0.tif,negative\n", encoding="utf-8"
    )
    submission.write_text("patient,stage\nb.zip,pN2\nx.zip,pN7\nc.zip,pN1mi\na.zip,pN0\n", encoding="utf-8")
    expected = quadratic_kappa(["pN0", "pN2", "pN1"], ["pN0", "pN2", "pN1mi"])
    assert score_submission(submission, reference) == expected
    assert 0.8 < expected < 1


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("a.zip,pn0", "unknown stage 'pn0' of 'a'"),
        ("b.zip,pN0", "lacks patient 'a'"),
        ("a.zip,pN0\na.zip,pN1", "occurs twice"),
        (",pN0", "has no name"),
    ],
)
def test_the_challenge_s_errors(tmp_path: Path, row: str, problem: str) -> None:
    reference, submission = tmp_path / "reference.csv", tmp_path / "submission.csv"
    reference.write_text("patient,stage\na.zip,pN0\n")
    submission.write_text(f"patient,stage\n{row}\n")
    with pytest.raises(ResultsError, match=problem) as raised:
        score_submission(submission, reference)
    assert str(submission) in str(raised.value)


def test_tables_that_are_none(tmp_path: Path) -> None:
    path, good = tmp_path / "reference.csv", tmp_path / "good.csv"
    good.write_text("patient,stage\na.zip,pN0\n")
    for content, problem in (
        (b"patient,stage\na.zip,pN3\n", "unknown stage 'pN3'"),
        (b"patient,stage\na_node_0.tif,itc\n", "no patient"),
        (b"a.zip,pN0\n", "columns patient,stage"),
        (b"\xff\xfe", "UTF-8"),
        (b"patient,stage\na.zip,pN0\n", "not defined"),
    ):
        path.write_bytes(content)
        with pytest.raises(ResultsError, match=problem):
            score_submission(good, path)
    with pytest.raises(ResultsError, match="no such table"):
        read_submission(tmp_path / "absent.csv")
