"""A prediction run that was killed, and folders that hold another run or are in use."""

import json
import multiprocessing
import os
import shutil
import signal
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import SmallData
from tests.inference.conftest import SHA256
from wsi_ips.config import StreamingConfig, TaskConfig
from wsi_ips.errors import ConfigError, ResultsError
from wsi_ips.inference.label import predict_slides
from wsi_ips.inference.predict import Predictor, PreparedSlide
from wsi_ips.inference.predictions import PredictionRow
from wsi_ips.inference.results import SlideResult, read_result
from wsi_ips.inference.run_folder import RunFolder, claimed
from wsi_ips.inference.run_tables import RunTables
from wsi_ips.inference.slide_work import Done, SlideJob, SlideRecorder
from wsi_ips.inference.telemetry import read_slide_table
from wsi_ips.slides.folder import find_slides
from wsi_ips.tiling.patches import StoredPatches
from wsi_ips.units import Mpp

SETTINGS = {"slide_mpp": None, "mpp_csv": None, "device": "cpu"}


@pytest.fixture
def jobs(small_data: SmallData) -> list[SlideJob]:
    return [SlideJob(path.stem, path) for path in find_slides(small_data.slides)[:3]]


def draw(result: SlideResult, path: Path, fingerprint: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(result.coords.slide_id)


def hold(
    folder: Path, *, sha256: str = SHA256, force: bool = False, **settings: object
) -> AbstractContextManager[str]:
    return claimed(
        RunFolder(folder),
        config={**SETTINGS, **settings},
        checkpoint=Path("model.safetensors"),
        sha256=sha256,
        force=force,
    )


def test_a_run_that_was_stopped_does_what_is_left(
    predictor: Predictor, jobs: list[SlideJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, read = RunFolder(tmp_path), predictor.read
    whole = predict_slides(jobs, predictor, RunFolder(tmp_path / "whole"), draw=draw)

    def dies_at_the_second(prepared: PreparedSlide, **options: object) -> SlideResult:
        if prepared.coords.slide_id == jobs[1].slide_id:
            prepared.slide.close()
            raise KeyboardInterrupt
        return read(prepared, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(predictor, "read", dies_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            predict_slides(jobs, predictor, run, draw=draw)
    first = run.attention(jobs[0].slide_id).stat().st_mtime_ns
    run.overlay(jobs[0].slide_id).unlink()
    tables = predict_slides(jobs, predictor, run, draw=draw, resume=True)
    assert len(tables.measured) == 2
    assert run.attention(jobs[0].slide_id).stat().st_mtime_ns == first
    assert tables.rows == whole.rows
    assert run.predictions.read_bytes() == (tmp_path / "whole" / "predictions.csv").read_bytes()
    for job in jobs:
        again = RunFolder(tmp_path / "whole").attention(job.slide_id)
        assert run.attention(job.slide_id).read_bytes() == again.read_bytes()
    attempts = [row.attempts for row in read_slide_table(run.slides).values()]
    assert attempts == [1, 2, 1], "the slide that the run died of was begun twice"
    assert all(run.overlay(job.slide_id).exists() for job in jobs), "a missing overlay is drawn again"


def test_only_the_same_checkpoint_s_whole_results_count(
    predictor: Predictor, jobs: list[SlideJob], small_checkpoint: Path, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path)
    predict_slides(jobs, predictor, run)
    run.attention(jobs[0].slide_id).write_bytes(b"\x89HDF\r\n\x1a\n cut short")
    tables = predict_slides(jobs, predictor, run, resume=True)
    assert [row.attempts for row in read_slide_table(run.slides).values()] == [2, 1, 1]
    predictor.checkpoint = "d" * 64
    tables = predict_slides(jobs, predictor, run, resume=True)
    assert len(tables.measured) == 3
    assert read_result(run.attention(jobs[2].slide_id)).checkpoint == "d" * 64


def test_another_slide_under_the_same_name_is_read_again(
    predictor: Predictor, small_data: SmallData, tmp_path: Path
) -> None:
    """A copy of the same slide is not: its date says nothing."""
    first, second = find_slides(small_data.slides)[:2]
    run, path = RunFolder(tmp_path / "out"), tmp_path / "a.tif"
    job = SlideJob("a", path)
    shutil.copy(first, path)
    (row,) = predict_slides([job], predictor, run, resume=True).rows
    path.unlink()
    shutil.copy(first, path)
    assert not predict_slides([job], predictor, run, resume=True).measured
    shutil.copy(second, path)
    (other,) = predict_slides([job], predictor, run, resume=True).rows
    assert other.probabilities != row.probabilities


def test_other_coordinates_are_read_again(
    predictor: Predictor, small_data: SmallData, tmp_path: Path
) -> None:
    """``predict --from-coords`` over a folder whose files were laid out anew."""
    coords, run = tmp_path / "coords", RunFolder(tmp_path / "out")
    coords.mkdir()
    job = SlideJob("a", find_slides(small_data.slides)[0])
    (coords / "a.h5").write_bytes(b"1")
    recorder = SlideRecorder(
        run, checkpoint=SHA256, find_patches=StoredPatches(coords, predictor.pipeline.tiling)
    )
    source = recorder.source(job)
    recorder.write(job, predictor.read(predictor.prepare(job.path, slide_id="a")), source)
    assert recorder.found(job) is not None
    (coords / "a.h5").write_bytes(b"2")
    assert recorder.found(job) is None


def test_a_resolution_that_was_corrected_is_used(
    predictor: Predictor, small_data: SmallData, tmp_path: Path
) -> None:
    """Given at first, then taken back: the file's own is used, whatever the earlier result says."""
    path, run = find_slides(small_data.slides)[0], RunFolder(tmp_path / "out")
    (own,) = predict_slides([SlideJob("a", path)], predictor, run).rows
    (given,) = predict_slides([SlideJob("a", path, Mpp(0.6))], predictor, run, resume=True).rows
    assert read_result(run.attention("a")).coords.slide_mpp == 0.6
    assert given.probabilities != own.probabilities
    assert not predict_slides([SlideJob("a", path, Mpp(0.6))], predictor, run, resume=True).measured
    (again,) = predict_slides([SlideJob("a", path)], predictor, run, resume=True).rows
    assert again == own


def test_what_decides_how_slides_are_read_decides_what_stands(
    predictor: Predictor, small_data: SmallData, tmp_path: Path
) -> None:
    job, run = SlideJob("a", find_slides(small_data.slides)[0]), RunFolder(tmp_path / "out")

    def recorder(**streaming: object) -> SlideRecorder:
        return SlideRecorder(run, checkpoint=SHA256, streaming=StreamingConfig(**streaming))

    result = predictor.read(predictor.prepare(job.path, slide_id="a"))
    recorder().write(job, result, recorder().source(job))
    assert recorder().found(job) is not None
    assert recorder(max_bad_tiles=0.0).found(job) is not None, "none of its tiles was bad"
    assert recorder(decode="device").found(job) is None
    assert recorder(threads=1, batch=7).found(job) is not None
    recorder().write(job, replace(result, bad_tiles=("level 0 tile (1, 2)",)), recorder().source(job))
    assert recorder(max_bad_tiles=0.5).found(job) is not None
    assert recorder(max_bad_tiles=0.0).found(job) is None


def test_a_slide_that_fails_now_leaves_nothing_of_before(
    predictor: Predictor, jobs: list[SlideJob], tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "out")
    predict_slides(jobs[:1], predictor, run, draw=draw)
    gone = SlideJob(jobs[0].slide_id, tmp_path / "gone.tif")
    (row,) = predict_slides([gone], predictor, run, draw=draw, resume=True).rows
    assert row.status == "failed"
    assert not run.attention(gone.slide_id).exists()
    assert not run.overlay(gone.slide_id).exists()


def test_another_run_s_folder_is_refused_with_what_differs_or_replaced(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with hold(tmp_path):
        run.attention("a").parent.mkdir()
        run.attention("a").touch()
        (tmp_path / "notes.txt").touch()
    with hold(tmp_path, device="cuda"):
        assert run.attention("a").exists(), "a run may go on on another device"
    with (
        pytest.raises(ConfigError, match=r"checkpoint cccccccccccc there, dddddddddddd here.*--force"),
        hold(tmp_path, sha256="d" * 64),
    ):
        pass
    with (
        pytest.raises(ConfigError, match=r"slide_mpp None there, 0\.25 here"),
        hold(tmp_path, slide_mpp=0.25),
    ):
        pass
    assert json.loads(run.description.read_text())["checkpoint"]["sha256"] == SHA256
    with hold(tmp_path, slide_mpp=0.25, force=True):
        assert not run.attention("a").exists()
    assert (tmp_path / "notes.txt").exists(), "what is not a result stays"
    run.description.write_text("{")
    with pytest.raises(ConfigError, match=r"its run\.json cannot be read"), hold(tmp_path):
        pass


def _hold_until_killed(folder: str, ready: "multiprocessing.synchronize.Event") -> None:
    with hold(Path(folder)):
        ready.set()
        signal.pause()


@pytest.mark.slow
def test_a_folder_in_use_is_refused_and_a_dead_process_holds_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    other = context.Process(target=_hold_until_killed, args=(str(tmp_path), ready))
    other.start()
    assert ready.wait(180)  # it imports torch, on a machine that may be busy
    try:
        with pytest.raises(ResultsError, match="another run is writing into it"), hold(tmp_path):
            pass
    finally:
        assert other.pid is not None
        os.kill(other.pid, signal.SIGKILL)
        other.join()
    with hold(tmp_path):
        pass


def test_a_worker_that_outlives_its_run_touches_nothing_of_the_next(
    predictor: Predictor, jobs: list[SlideJob], tmp_path: Path
) -> None:
    """One that another machine's scheduler still keeps busy: the lock is the new run's by then."""
    run, job = RunFolder(tmp_path), jobs[0]
    result = predictor.read(predictor.prepare(job.path, slide_id=job.slide_id))
    with hold(tmp_path) as start:
        first = SlideRecorder(run, checkpoint=SHA256, start=start)
        assert first.write(job, result, first.source(job)).row.status == "ok"
    run.cases.touch()
    with hold(tmp_path) as start:
        assert not run.cases.exists(), "an earlier start's patients do not lie beside newer predictions"
        written = run.attention(job.slide_id).stat().st_mtime_ns
        with pytest.raises(ResultsError, match="belongs to another run by now"):
            first.write(job, result, first.source(job))
        assert first.failed(job, OSError("late")).row.status == "failed"
        assert run.attention(job.slide_id).stat().st_mtime_ns == written
        second = SlideRecorder(run, checkpoint=SHA256, start=start)
        assert second.found(job) is not None
        assert second.found(SlideJob(job.slide_id, job.path, Mpp(0.9))) is None, "read at another resolution"


def test_a_run_that_stops_early_leaves_nobody_running(jobs: list[SlideJob], tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    tables = RunTables(run, jobs, tasks=[TaskConfig()])
    tables.begun(jobs[0].slide_id, worker="w")
    tables.begun(jobs[1].slide_id, worker="w")
    tables.add(Done(PredictionRow.failed(jobs[1].slide_id, "gone")))
    tables.give_up()
    rows = [*read_slide_table(run.slides).values()]
    assert [row.status for row in rows] == ["waiting", "failed", "waiting"]
    assert [row.attempts for row in rows] == [1, 1, 0]
    later = RunTables(run, jobs, tasks=[TaskConfig()])
    later.close()
    assert [row.error for row in read_slide_table(run.slides).values()] == ["", "", ""]
