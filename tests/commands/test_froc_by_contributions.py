"""``evaluate``: lesions found by contributions, beside those found by attention."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.commands.console import Console
from tests.commands.evaluated_run import Slide, make_run, tumor
from tests.commands.test_evaluate_command import FAST, metrics, rows
from wsi_ips.config import TaskConfig
from wsi_ips.evaluation.froc import read_detections
from wsi_ips.inference.results import read_result, write_result
from wsi_ips.inference.run_folder import RunFolder


def telling() -> list[Slide]:
    """Attention misses every lesion, contributions find it; what they take elsewhere is no detection."""
    big = (4000, 3000, 900)
    adds = ((4000, 3000, 2.0), (7500, 500, -3.0), (6000, 6000, 0.5))
    hot = ((7500, 500, 0.6),)
    return [
        tumor("first", 0.9, "tumor", lesion=big, hot=hot, adds=adds),
        tumor("second", 0.8, "tumor", lesion=big, hot=hot, adds=adds),
        tumor("normal", 0.4, "normal", hot=hot, adds=((7500, 500, -1.0),)),
    ]


@pytest.mark.parametrize("asked", ["", "contribution", "attention"])
def test_froc_by_contributions_stands_beside_that_by_attention(
    console: Console, tmp_path: Path, asked: str
) -> None:
    made = make_run(tmp_path, telling())
    choice = ["--detections", asked] if asked else []
    said = console("evaluate", made.run, made.manifest, *FAST, "--annotations", made.annotations, *choice)
    assert said.code == 0, said.err
    out = made.run / "evaluation"
    froc = metrics(out)["froc"]
    first, other = ("attention", "contribution") if asked == "attention" else ("contribution", "attention")
    assert (froc["detections"], list(froc["beside"])) == (first, [other])
    figures = {first: froc, other: froc["beside"][other]}
    assert figures["contribution"]["score"]["value"] == 1
    # Attention finds the lesions only among patches that all have next to no attention.
    assert figures["attention"]["sensitivity_at"]["0.5"] == 0
    assert "FROC score by contribution 1.000" in said.out
    assert "FROC score by attention 0." in said.out
    table = rows(out / "froc.csv")
    assert list(dict.fromkeys(row["detections"] for row in table)) == [first, other]
    best = {by: max(float(row["sensitivity"]) for row in table if row["detections"] == by) for by in figures}
    assert best["contribution"] == 1
    found = read_detections(out / "detections" / "first.csv")
    if first == "contribution":
        assert found.probability_N.tolist() == pytest.approx([0.9, 0.9 * 0.5 / 2, 0])
    assert abs(found.l0_xy_N2[0] - ([4000, 3000] if first == "contribution" else [7500, 500])).max() < 512
    assert len(read_detections(out / "detections" / "normal.csv")) == (1 if first == "contribution" else 64)


def test_contributions_that_the_head_does_not_tell_are_no_detections(
    console: Console, tmp_path: Path
) -> None:
    made = make_run(tmp_path, [replace(each, adds=None) for each in telling()])
    asked = ["evaluate", made.run, made.manifest, *FAST, "--annotations", made.annotations]
    said = console(*asked, "--detections", "contribution")
    assert said.code == 2
    assert "does not tell what a patch contributes" in said.complaint
    assert said.complaint.endswith("use --detections attention")
    assert not (made.run / "evaluation").exists()
    assert console(*asked).code == 0
    froc = metrics(made.run / "evaluation")["froc"]
    assert (froc["detections"], froc["beside"]) == ("attention", {})


def test_a_lesion_is_what_takes_from_the_first_of_several_classes(console: Console, tmp_path: Path) -> None:
    """Which of the others is called does not matter: it is the first that has no lesion."""
    task = TaskConfig(classes=("normal", "itc", "macro"))
    slides = []
    for each in telling():
        p = each.probabilities["label"]["tumor"]  # type: ignore[index]
        chances = {"label": {"normal": 1 - p, "itc": p / 4, "macro": 3 * p / 4}}
        slides.append(
            replace(each, probabilities=chances, cells={"label": "normal" if p < 0.5 else "macro"}, adds=None)
        )
    made = make_run(tmp_path, slides, [task])
    for each in telling():
        path = RunFolder(made.run).attention(each.slide_id)
        result = read_result(path)
        kept = np.array([y // 512 * 16 + x // 512 for x, y, _ in each.adds or ()])
        told = np.array([[-value, 3 * value, -2 * value] for _, _, value in each.adds or ()], np.float32)
        scores = np.zeros(len(kept), np.float32)
        write_result(path, replace(result, kept_ids_M=kept, kept_scores_M=scores, kept_contributions_MK=told))
    said = console("evaluate", made.run, made.manifest, *FAST, "--annotations", made.annotations)
    assert said.code == 0, said.err
    froc = metrics(made.run / "evaluation")["froc"]
    assert (froc["detections"], froc["score"]["value"]) == ("contribution", 1)


def test_no_lesion_is_lost_where_nothing_but_lesions_is_found(console: Console, tmp_path: Path) -> None:
    """The challenge's script leaves out the lowest threshold of all: here it would be that of ``second``."""
    only = [
        replace(each, adds=each.adds[:1] if each.lesion else each.adds) for each in telling() if each.adds
    ]
    made = make_run(tmp_path, only)
    said = console("evaluate", made.run, made.manifest, *FAST, "--annotations", made.annotations)
    assert said.code == 0, said.err
    froc = metrics(made.run / "evaluation")["froc"]
    assert (froc["detections"], froc["score"]["value"]) == ("contribution", 1)
    assert set(froc["sensitivity_at"].values()) == {1}
