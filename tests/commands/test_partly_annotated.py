"""Slides with tumour beside their outlines: judged by their label, not by their lesions."""

from pathlib import Path

import pytest

from tests.commands.console import Console
from tests.commands.evaluated_run import Slide, make_run, tumor
from tests.commands.test_evaluate_command import FAST, lesions, metrics, rows
from wsi_ips.config import TaskConfig
from wsi_ips.datasets.camelyon import camelyon16_rows
from wsi_ips.datasets.irregular import PARTLY_ANNOTATED


@pytest.mark.parametrize("name", ["test_114", "Test_114", "tumor_010", "tumor_110"])
def test_camelyon16_s_partly_annotated_slides_are_judged_by_their_label_alone(
    console: Console, tmp_path: Path, name: str
) -> None:
    """Their tumour outside of the outlines would be counted as false positives (the challenge's README)."""
    partly = tumor(name, 0.95, "tumor", lesion=(4000, 3000, 600), hot=((1000, 7000, 0.5), (7000, 7000, 0.4)))
    alone = make_run(tmp_path / "alone", lesions())
    console("evaluate", alone.run, alone.manifest, *FAST, "--annotations", alone.annotations)
    made = make_run(tmp_path / "both", [*lesions(), partly])
    said = console("evaluate", made.run, made.manifest, *FAST, "--annotations", made.annotations)
    assert said.code == 0, "by rule, not by failure"
    assert f"{name}: left out of FROC, not of the AUC: CAMELYON16's slide of this name is not" in said.out
    out = made.run / "evaluation"
    froc, without = metrics(out)["froc"], metrics(alone.run / "evaluation")["froc"]
    assert list(froc["left_out"]["partly_annotated"]) == [name]
    for figure in ("score", "sensitivity_at", "slides", "lesions"):
        assert froc[figure] == without[figure]
    assert metrics(out)["slides"]["scored"] == 5
    assert name in {row["slide_id"] for row in rows(out / "slides.csv") if row["status"] == "ok"}
    # The challenge's script divides by the number of files.
    assert not (out / "detections" / f"{name}.csv").exists()
    console(
        "evaluate", made.run, made.manifest, *FAST, "--annotations", made.annotations, "--partly-annotated"
    )
    assert metrics(out)["froc"]["slides"] == without["slides"] + 1


def test_camelyon17_s_isolated_cells_are_judged_by_their_label_alone(
    console: Console, tmp_path: Path
) -> None:
    task = TaskConfig(classes=("negative", "itc", "micro", "macro"))

    def node(slide_id: str, label: str, **rest: object) -> Slide:
        chances = {name: 0.7 if name == label else 0.1 for name in task.classes}
        return Slide(slide_id, {"label": chances}, {"label": label}, **rest)  # type: ignore[arg-type]

    hot = ((4000, 3000, 0.5),)
    made = make_run(
        tmp_path,
        [
            node("patient_000_node_0", "macro", lesion=(4000, 3000, 600), hot=hot),
            node("patient_000_node_1", "negative", hot=hot),
            node("patient_000_node_2", "itc", lesion=(4000, 3000, 60), hot=((1000, 7000, 0.5),)),
        ],
        [task],
    )
    said = console("evaluate", made.run, made.manifest, *FAST, "--annotations", made.annotations)
    assert "patient_000_node_2: left out of FROC, not of the AUC: isolated tumour cells" in said.out
    froc = metrics(made.run / "evaluation")["froc"]
    assert (froc["slides"], froc["lesions"]) == (2, 1)


def test_the_partly_annotated_slides_are_those_of_the_readme() -> None:
    assert len(PARTLY_ANNOTATED) == 21
    noted = {row["slide_id"] for row in camelyon16_rows() if "not exhaustively annotated" in row["notes"]}
    assert noted == PARTLY_ANNOTATED
