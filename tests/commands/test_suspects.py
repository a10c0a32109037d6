"""Slides that an earlier start died of: who is one, what becomes of them, and what stays meanwhile.

The processes of their own are this one here, or say that they died; real ones are in ``test_killed*.py``.
"""

import json
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.commands.console import Console
from tests.commands.deadly import Command, detect, features, predict, rows
from tests.conftest import SmallData
from wsi_ips.inference.in_hand import IN_HAND, Died
from wsi_ips.inference.label import predict_in_turn
from wsi_ips.inference.made_from import SlideSource
from wsi_ips.inference.results import SlideResult
from wsi_ips.inference.slide_work import Done, SlideJob, SlideRecorder
from wsi_ips.inference.telemetry import SlideRow, Status, read_slide_table, write_slide_table

BY_KILL = "the process that read it was killed by SIGKILL; if memory ran out give it more"


@pytest.fixture
def slides(small_data: SmallData, tmp_path: Path) -> Path:
    folder = tmp_path / "slides"
    folder.mkdir()
    good = sorted(small_data.slides.glob("*.tif"))[0]
    for name in "abc":
        shutil.copy(good, folder / f"{name}.tif")
    return folder


@pytest.fixture
def tried_alone(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The slides that were given to processes of their own. That of b dies."""
    tried: list[str] = []

    def alone(work: Callable[[Any], Any], argument: Any) -> Any:
        travelled_work, travelled = pickle.loads(pickle.dumps((work, argument)))
        tried.append(travelled[1].slide_id)
        if tried[-1] == "b":
            raise Died(-9)
        return travelled_work(travelled)

    monkeypatch.setattr("wsi_ips.inference.in_hand.alone", alone)
    return tried


def suspect(out: Path, **states: str) -> None:
    out.mkdir(exist_ok=True)
    (out / IN_HAND).write_text(json.dumps({"slides": states}))


def in_hand(out: Path) -> dict[str, str]:
    path = out / IN_HAND
    return dict(json.loads(path.read_text())["slides"]) if path.exists() else {}


def statuses(table: Path) -> dict[str, str]:
    return {name: row["status"] for name, row in rows(table).items()}


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.*") if path.is_file()}


@pytest.mark.parametrize(
    ("command", "table"),
    [(predict, "slides.csv"), (features, "features.csv"), (detect, "detections.csv")],
)
def test_suspects_come_last_and_alone(
    console: Console,
    slides: Path,
    small_checkpoint: Path,
    small_detector: Path,
    tried_alone: list[str],
    tmp_path: Path,
    command: Command,
    table: str,
) -> None:
    out = tmp_path / "out"
    suspect(out, a="read", b="read", elsewhere="read")
    said = console(*command(slides, small_checkpoint, small_detector), "--out", out)
    assert said.code == 3, said.err
    assert tried_alone == ["a", "b"]
    assert statuses(out / table) == {"a": "ok", "b": "failed", "c": "ok"}
    assert f"failed: {slides / 'b.tif'}: {BY_KILL}" in said.out
    assert in_hand(out) == {"b": "deadly", "elsewhere": "read"}, "of other slides as much is known as before"


def test_a_running_row_of_a_run_without_workers_is_a_suspect(
    console: Console, slides: Path, small_checkpoint: Path, tried_alone: list[str], tmp_path: Path
) -> None:
    """A run that an earlier version was killed in. What a worker had in hand killed the worker at most."""
    out = tmp_path / "out"
    out.mkdir()
    states: tuple[tuple[str, Status, str], ...] = (
        ("a", "running", "tcp://127.0.0.1:9"), ("b", "running", ""), ("c", "waiting", "")
    )  # fmt: skip
    write_slide_table(
        out / "slides.csv",
        [SlideRow(slide_id=name, path=name, status=status, worker=worker) for name, status, worker in states],
    )
    assert console(*predict(slides, small_checkpoint, Path()), "--out", out).code == 3
    assert tried_alone == ["b"]
    assert statuses(out / "slides.csv") == {"a": "ok", "b": "failed", "c": "ok"}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("gone")])
def test_what_ends_with_an_error_leaves_no_suspect(
    console: Console,
    slides: Path,
    small_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    write = SlideRecorder.write

    def interrupted(recorder: SlideRecorder, job: SlideJob, result: SlideResult, source: SlideSource) -> Done:
        if job.slide_id == "b":
            raise error
        return write(recorder, job, result, source)

    monkeypatch.setattr(SlideRecorder, "write", interrupted)
    out = tmp_path / "out"
    said = console(*predict(slides, small_checkpoint, Path()), "--out", out, "--on-error", "stop")
    assert said.code in (1, 2, 130)
    table = read_slide_table(out / "slides.csv")
    assert table["b"].status == ("waiting" if isinstance(error, KeyboardInterrupt) else "failed")
    assert not [row for row in table.values() if row.status == "running"]
    assert in_hand(out) == {}


def test_stop_ends_with_a_slide_that_dies_alone(
    console: Console, slides: Path, small_checkpoint: Path, tried_alone: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    suspect(out, b="read", c="read")
    said = console(*predict(slides, small_checkpoint, Path()), "--out", out, "--on-error", "stop")
    assert said.code == 2
    assert BY_KILL in said.complaint
    assert tried_alone == ["b"]
    assert statuses(out / "slides.csv") == {"a": "ok", "b": "failed", "c": "waiting"}
    assert in_hand(out) == {"b": "deadly", "c": "read"}


def test_a_slide_that_killed_who_looked_ahead_is_tried_once_more_alone(
    console: Console,
    slides: Path,
    small_checkpoint: Path,
    tried_alone: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a GPU. It may have been memory that was short; and no start dies at all."""

    from wsi_ips.inference import in_hand as module

    alone = module.alone

    def dying(work: Callable[[Any], Any], task: Any) -> Any:
        if work is module._find:
            raise Died(-9)
        return alone(work, task)

    monkeypatch.setattr(module, "alone", dying)
    monkeypatch.setattr("wsi_ips.inference.label.predict_in_turn", partial(predict_in_turn, ahead=True))
    out = tmp_path / "out"
    assert console(*predict(slides, small_checkpoint, Path()), "--out", out).code == 3
    assert tried_alone == ["b", "c"]
    assert statuses(out / "slides.csv") == {"a": "ok", "b": "failed", "c": "ok"}
    assert in_hand(out) == {"b": "deadly"}


def test_a_start_that_died_after_a_slide_was_stored_is_not_its_fault(
    console: Console, slides: Path, small_checkpoint: Path, tried_alone: list[str], tmp_path: Path
) -> None:
    out, command = tmp_path / "out", predict(slides, small_checkpoint, Path())
    assert console(*command, "--out", out).code == 0
    suspect(out, b="read")
    assert console(*command, "--out", out).code == 0
    assert (tried_alone, in_hand(out)) == ([], {})


def test_a_label_stands_whose_picture_kills(
    console: Console, slides: Path, small_checkpoint: Path, tried_alone: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [part for part in predict(slides, small_checkpoint, Path()) if part != "--no-overlays"]
    assert console(*command, "--out", out).code == 0
    (out / "overlays" / "b.png").unlink()
    suspect(out, b="read")
    label = (out / "attention" / "b.h5").read_bytes()
    said = console(*command, "--out", out)
    assert said.code == 3
    assert f"overlay of b not drawn: {slides / 'b.tif'}: {BY_KILL}" in said.out
    assert statuses(out / "slides.csv") == {"a": "ok", "b": "ok", "c": "ok"}
    assert (out / "attention" / "b.h5").read_bytes() == label
    assert tried_alone == ["b"]


@pytest.mark.slow
def test_a_slide_is_in_hand_while_its_missing_picture_is_drawn(
    console: Console, slides: Path, small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wsi_ips.heatmaps import overlay as module

    out, draw = tmp_path / "out", module.write_overlay
    command = [part for part in predict(slides, small_checkpoint, Path()) if part != "--no-overlays"]
    assert console(*command, "--out", out).code == 0
    (out / "overlays" / "b.png").unlink()
    told = []

    def watched(*arguments: Any, **options: Any) -> None:
        told.append(in_hand(out))
        draw(*arguments, **options)

    monkeypatch.setattr(module, "write_overlay", watched)
    assert console(*command, "--out", out).code == 0
    assert told == [{"b": "read"}]
    assert in_hand(out) == {}


def test_features_that_are_as_they_should_be_survive_the_slide_s_death(
    console: Console, slides: Path, small_checkpoint: Path, tried_alone: list[str], tmp_path: Path
) -> None:
    out, command = tmp_path / "out", features(slides, small_checkpoint, Path())
    assert console(*command, "--out", out).code == 0
    before = contents(out)
    suspect(out, b="read")
    assert console(*command, "--out", out).code == 3
    assert contents(out)["h5_files/b.h5"] == before["h5_files/b.h5"]
    assert tried_alone == ["b"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("torn")])
def test_features_stay_until_others_are_whole(
    console: Console,
    slides: Path,
    small_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    """The process that is interrupted stands for one that is killed; a slide that fails loses old features."""

    def torn(*_: object, **__: object) -> None:
        raise error

    out = tmp_path / "out"
    command = ("features", slides, "--checkpoint", small_checkpoint, "--out", out, "--device", "cpu")
    assert console(*command).code == 0
    before = contents(out)
    (tmp_path / "mpp.csv").write_text("wsi,mpp\na,0.6\n")
    with monkeypatch.context() as patched:
        patched.setattr("wsi_ips.inference.feature_export.FeatureExport._save_tensor", torn)
        assert console(*command, "--mpp-csv", tmp_path / "mpp.csv").code != 0
    killed = isinstance(error, KeyboardInterrupt)
    names = set(before) - (set() if killed else {"h5_files/a.h5", "pt_files/a.pt"})
    after = contents(out)
    assert set(after) == names
    same = {name for name in names if after[name] == before[name]}
    assert names - same <= {"run.json"} | (set() if killed else {"features.csv"})
    assert console(*command, "--mpp-csv", tmp_path / "mpp.csv").code == 0
    now = contents(out)
    assert now["h5_files/a.h5"] != before["h5_files/a.h5"]
    assert now["pt_files/a.pt"] != before["pt_files/a.pt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("torn")])
@pytest.mark.slow
def test_objects_stay_until_others_are_whole(
    console: Console,
    slides: Path,
    small_detector: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    def torn(*_: object, **__: object) -> None:
        raise error

    out, command = tmp_path / "out", detect(slides, Path(), small_detector)
    assert console(*command, "--out", out).code == 0
    before = contents(out)
    with monkeypatch.context() as patched:
        patched.setattr("wsi_ips.nuclei.detect_slides.write_found_geojson", torn)
        assert console(*command, "--out", out).code != 0
    if isinstance(error, KeyboardInterrupt):
        assert contents(out) == before, "its rows too"
    else:
        assert set(contents(out)) == {".lock", "detections.csv"}
        assert set(statuses(out / "detections.csv").values()) == {"failed"}
    assert console(*command, "--out", out).code == 0
    assert contents(out) == before


def test_tile_and_detect_hold_their_folder(
    console: Console, slides: Path, small_detector: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with FileLock(out / ".lock"):
        for command in (detect(slides, Path(), small_detector), ("tile", slides)):
            said = console(*command, "--out", out)
            assert said.code == 2
            assert "another run is writing into it" in said.complaint
    assert not (out / "detections.csv").exists()
