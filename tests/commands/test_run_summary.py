"""``predict`` leaves a ``summary.md``: whole, at the end, the same however often the run was interrupted."""

import json
import shutil
from pathlib import Path

import pytest

from tests.commands.console import Console
from tests.conftest import SmallData
from wsi_ips.config import TaskConfig
from wsi_ips.inference.predictions import read_predictions
from wsi_ips.inference.run_folder import RunFolder, tasks_of_run
from wsi_ips.report import run_summary
from wsi_ips.report.run_summary import settings_fingerprint


@pytest.fixture
def slides(small_data: SmallData, tmp_path: Path) -> Path:
    """Three slides, one of them with a name that Markdown would obey, and a file that is none."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for name, path in zip(("a|b <b>", "c", "d"), sorted(small_data.slides.glob("*.tif")), strict=False):
        shutil.copy(path, folder / f"{name}.tif")
    (folder / "broken|`.svs").write_text("no slide")
    return folder


def predict(console: Console, slides: Path, checkpoint: Path, out: Path, *more: str | Path, code: int) -> str:
    said = console("predict", slides, "--checkpoint", checkpoint, "--out", out, *more)
    assert said.code == code, said.err
    return (out / "summary.md").read_text(encoding="utf-8")


def without_times(text: str) -> str:
    before, times = text.split("## Times\n")
    assert times
    return before


def row(text: str, beginning: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {beginning}"))
    return [cell.strip() for cell in line.strip("|").split(" |")]


def test_the_summary_counts_what_the_tables_say(
    console: Console, slides: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    text = predict(console, slides, small_checkpoint, tmp_path / "run", code=3)
    run = RunFolder(tmp_path / "run")
    rows = [row for row in read_predictions(run.predictions, tasks=tasks_of_run(run)) if row.status == "ok"]
    assert text.splitlines()[2] == "**3 of 4 slides labelled, 1 failed**."
    assert f"Patches of all of them: {sum(each.n_patches or 0 for each in rows)}." in text
    tumor = sorted(each.probabilities["label"]["tumor"] for each in rows)
    said = sum(value >= 0.5 for value in tumor)
    cells = row(text, "tumor")
    assert cells[1:] == [
        str(said),
        f"{sum(tumor) / 3:.4f}",
        f"{tumor[1]:.4f}",
        f"{tumor[0]:.4f}",
        f"{tumor[2]:.4f}",
    ]
    assert int(row(text, "normal")[1]) == 3 - said
    assert "| broken\\|\\` | " in text, "a name is one cell, and no markup"
    assert "no reader could open it" in text
    assert "| overlays/ | 3 pictures, one of each slide |" in text
    described = json.loads(run.description.read_text())
    assert f"`{described['checkpoint']['sha256'][:12]}`" in text
    assert "3 slides took " in text.split("## Times")[1]


def test_a_resumed_run_and_one_elsewhere_have_the_same_summary_but_for_times(
    console: Console, slides: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    first = predict(console, slides, small_checkpoint, tmp_path / "run", code=3)
    (tmp_path / "run" / "attention" / "c.h5").unlink()
    (tmp_path / "run" / "summary.md").write_text("old")
    assert without_times(
        predict(console, slides, small_checkpoint, tmp_path / "run", code=3)
    ) == without_times(first)
    (tmp_path / "elsewhere").mkdir()
    other = ("--set", "streaming.threads=1", "--set", "streaming.batch=7")
    again = predict(console, slides, small_checkpoint, tmp_path / "elsewhere" / "run", *other, code=3)
    assert without_times(again) == without_times(first)


def test_files_of_slides_that_were_taken_out_are_not_counted(
    console: Console, slides: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    (slides / "broken|`.svs").unlink()
    predict(console, slides, small_checkpoint, tmp_path / "run", code=0)
    (slides / "d.tif").unlink()
    text = predict(console, slides, small_checkpoint, tmp_path / "run", code=0)
    assert (tmp_path / "run" / "attention" / "d.h5").exists()
    assert row(text, "attention/")[1].startswith("2 files:")
    assert row(text, "overlays/")[1] == "2 pictures, one of each slide"


def test_a_run_that_ends_early_leaves_no_summary_of_an_earlier_start(
    console: Console, slides: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    predict(console, slides, small_checkpoint, out, "--no-overlays", code=3)
    said = console("predict", slides, "--checkpoint", small_checkpoint, "--out", out, "--on-error", "stop")
    assert said.code == 2
    assert (out / "predictions.csv").is_file()
    assert not (out / "summary.md").exists()


def test_a_summary_that_cannot_be_written_is_not_there_in_part(
    console: Console, slides: Path, small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(run: object) -> object:
        yield "# half a"
        raise OSError(28, "No space left on device", "summary.md")

    monkeypatch.setattr(run_summary, "_lines", broken)
    said = console(
        "predict", slides, "--checkpoint", small_checkpoint, "--out", tmp_path / "run", "--no-overlays"
    )
    assert said.code == 2
    assert "No space left" in said.complaint
    assert not (tmp_path / "run" / "summary.md").exists()
    assert (tmp_path / "run" / "predictions.csv").is_file(), "what was labelled stays"


def test_other_settings_are_another_fingerprint_and_other_places_are_not() -> None:
    described = {
        "config": {"out": "a", "device": "cpu", "slide_mpp": None, "tiling": {"patch_px": 32},
                   "streaming": {"threads": 1, "decode": "cpu"}, "from_coords": None},
        "checkpoint": {"path": "a", "sha256": "12"},
    }  # fmt: skip
    before = settings_fingerprint(described)

    def changed(**settings: object) -> str:
        return settings_fingerprint({**described, "config": {**described["config"], **settings}})

    assert len(before) == 12
    assert changed(out="b", device="cuda", streaming={"threads": 9, "decode": "cpu"}) == before
    others = [
        changed(slide_mpp=0.25),
        changed(tiling={"patch_px": 64}),
        changed(streaming={"threads": 1, "decode": "device"}),
        changed(from_coords="somewhere"),
        settings_fingerprint({**described, "checkpoint": {"path": "a", "sha256": "34"}}),
        settings_fingerprint({**described, "calibration": {"t": 2}}),
    ]
    assert len({before, *others}) == 7
    assert changed(from_coords="elsewhere") == changed(from_coords="somewhere")
    assert settings_fingerprint({}) != before, "and of a broken run.json too"


@pytest.mark.parametrize(
    ("activation", "outputs", "counts"),
    [("softmax", (0.2, 0.7, 0.1), [0, 1, 0]), ("sigmoid", (0.6, 0.5, 0.1), [1, 1, 0])],
)
def test_labels_are_counted_as_predictions_have_them(
    activation: str, outputs: tuple[float, ...], counts: list[int]
) -> None:
    task = TaskConfig.model_validate({"name": "t", "classes": ["x", "y", "z"], "activation": activation})
    output = dict(zip(task.classes, outputs, strict=True))
    assert [int(run_summary._is_said(task, output, name)) for name in task.classes] == counts
