"""``evaluate`` of slides that lack a label for one of several tasks."""

from pathlib import Path

from tests.commands.console import Console
from tests.commands.evaluated_run import Slide, make_run
from tests.commands.test_evaluate_command import FAST, metrics, rows
from wsi_ips.config import TaskConfig

TASKS = (TaskConfig(), TaskConfig(name="grade", classes=("low", "high")))


def slides(*, all_known: bool) -> list[Slide]:
    made = []
    for number in range(12):
        label, grade = ("normal", "tumor")[number % 2], ("low", "high")[number // 2 % 2]
        chances = {
            "label": {"normal": 1 - number / 12, "tumor": number / 12},
            "grade": {"low": 0.9 - number / 20, "high": 0.1 + number / 20},
        }
        cells = {"label": label, "grade": grade if all_known or number >= 4 else ""}
        made.append(Slide(f"s{number:02}", chances, cells))
    return made


def test_a_slide_without_a_label_counts_for_the_other_task_alone(console: Console, tmp_path: Path) -> None:
    made = make_run(tmp_path / "some", slides(all_known=False), TASKS)
    said = console("evaluate", made.run, made.manifest, *FAST)
    assert said.code == 0, said.err
    assert "grade: 4 slides have no label: left out of its figures" in said.out
    found = metrics(made.run / "evaluation")["tasks"]
    assert found["grade"]["without_label"] == ["s00", "s01", "s02", "s03"]
    assert sum(map(sum, found["grade"]["confusion"]["rows_are_labels"])) == 8
    whole = make_run(tmp_path / "all", slides(all_known=True), TASKS)
    assert console("evaluate", whole.run, whole.manifest, *FAST).code == 0
    assert found["label"] == metrics(whole.run / "evaluation")["tasks"]["label"]
    table = {(row["task"], row["slide_id"]): row for row in rows(made.run / "evaluation" / "slides.csv")}
    assert table["grade", "s01"]["status"] == "unlabelled"
    labels = {row["slide_id"]: row["label"] for (task, _), row in table.items() if task == "grade"}
    assert [labels[f"s{number:02}"] for number in range(4, 8)] == ["low", "low", "high", "high"]


def test_one_task_alone_may_lack_labels_and_none_at_all_is_said(console: Console, tmp_path: Path) -> None:
    made = make_run(tmp_path, slides(all_known=False), TASKS)
    assert console("evaluate", made.run, made.manifest, *FAST, "--task", "grade").code == 0
    for slide in ("some", "none"):
        text = made.manifest.read_text()
        made.manifest.write_text(
            text.replace(",low,", ",,").replace(",high,", ",,") if slide == "none" else text
        )
    said = console("evaluate", made.run, made.manifest, *FAST, "--task", "grade")
    assert said.code == 2
    assert "no scored slide of split 'test' has a grade" in said.complaint
