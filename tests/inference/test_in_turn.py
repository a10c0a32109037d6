"""A folder of slides: what is read ahead, what is measured, what a damaged tile costs."""

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import SmallData
from tests.test_timeline import spans
from wsi_ips.config import StreamingConfig
from wsi_ips.errors import WsiIpsError
from wsi_ips.inference.in_hand import IN_HAND, Died, NotStarted, SlidesInHand, alone
from wsi_ips.inference.label import predict_in_turn, predict_slides
from wsi_ips.inference.predict import Predictor, PreparedSlide
from wsi_ips.inference.results import SlideResult, read_result
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.inference.run_tables import RunTables
from wsi_ips.inference.slide_work import SlideJob, SlideRecorder, SlideWork
from wsi_ips.inference.telemetry import SlideTelemetry, read_slide_table
from wsi_ips.models.checkpoint import load_checkpoint
from wsi_ips.slides.folder import find_slides
from wsi_ips.timeline import TIMELINE_NAME, read_timeline, recording


@pytest.fixture
def predictor(small_checkpoint: Path) -> Predictor:
    net, pipeline = load_checkpoint(small_checkpoint)
    return Predictor(net, pipeline, streaming=StreamingConfig(batch=16), device=torch.device("cpu"))


def jobs_of(small_data: SmallData, n: int) -> list[SlideJob]:
    return [SlideJob(path.stem, path) for path in find_slides(small_data.slides)[:n]]


@pytest.mark.slow
def test_the_next_slide_s_patches_are_found_by_another_process_meanwhile(
    small_data: SmallData, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the results are those of one process alone. A slide that cannot be opened is its own failure."""
    good = jobs_of(small_data, 3)
    jobs = [*good[:2], SlideJob("gone", tmp_path / "gone.tif"), good[2]]
    predict_slides(jobs, predictor, RunFolder(tmp_path / "alone"))
    found = {job.slide_id: threading.Event() for job in jobs}
    in_hand, opened, read = SlidesInHand(tmp_path), [], predictor.read

    def watched(work: Callable[[Any], Any], task: Any) -> Any:
        try:
            return alone(work, task)
        finally:
            found[task[2]].set()

    def watched_read(slide: PreparedSlide, **options: Any) -> SlideResult:
        following = jobs.index(next(job for job in jobs if job.slide_id == slide.coords.slide_id)) + 1
        if following < len(jobs):
            assert found[jobs[following].slide_id].wait(60), "the next slide waits for this one's end"
        opened.append(list(json.loads((tmp_path / IN_HAND).read_text())["slides"]))
        return read(slide, **options)

    monkeypatch.setattr("wsi_ips.inference.in_hand.alone", watched)
    monkeypatch.setattr(predictor, "read", watched_read)
    tables, run = in_turn(jobs, predictor, tmp_path / "ahead", in_hand)
    assert [row.status for row in tables.rows] == ["ok", "ok", "failed", "ok"]
    assert tables.rows[2].error == f"{tmp_path / 'gone.tif'}: no such file; check the path"
    assert opened == [[job.slide_id] for job in good], "this process touches one slide at a time"
    for job in good:
        assert run.attention(job.slide_id).read_bytes() == (
            RunFolder(tmp_path / "alone").attention(job.slide_id).read_bytes()
        )


def test_a_slide_that_kills_who_looks_ahead_is_left_and_the_others_are_labelled(
    small_data: SmallData, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = jobs_of(small_data, 3)

    def dying(work: object, task: Any) -> Any:
        raise Died(-9) if task[2] == jobs[1].slide_id else NotStarted("no process any more")

    monkeypatch.setattr("wsi_ips.inference.in_hand.alone", dying)
    run = RunFolder(tmp_path)
    tables = RunTables(run, jobs, tasks=predictor.pipeline.model.tasks)
    work = SlideWork(predictor, SlideRecorder(run, checkpoint=""))
    assert list(predict_in_turn(jobs, work, tables, ahead=True)) == [jobs[1]]
    assert [(row.slide_id, row.status) for row in tables.rows] == [
        (jobs[0].slide_id, "ok"),
        (jobs[2].slide_id, "ok"),
    ]


def in_turn(
    jobs: Sequence[SlideJob], predictor: Predictor, out: Path, in_hand: SlidesInHand
) -> tuple[RunTables, RunFolder]:
    """As on a GPU."""
    run = RunFolder(out)
    tables = RunTables(run, jobs, tasks=predictor.pipeline.model.tasks)
    work = SlideWork(predictor, SlideRecorder(run, checkpoint=predictor.checkpoint))
    assert predict_in_turn(jobs, work, tables, in_hand=in_hand, ahead=True) == []
    return tables, run


def test_on_the_cpu_a_slide_is_opened_once_the_one_before_it_is_stored(
    small_data: SmallData, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slide that kills the process then costs no other one."""
    jobs, run, prepare = jobs_of(small_data, 3), RunFolder(tmp_path), predictor.prepare
    stored: list[list[bool]] = []

    def watched(path: Path, *, slide_id: str, mpp: None) -> PreparedSlide:
        stored.append([run.attention(job.slide_id).exists() for job in jobs])
        return prepare(path, slide_id=slide_id, mpp=mpp)

    monkeypatch.setattr(predictor, "prepare", watched)
    predict_slides(jobs, predictor, run)
    assert stored == [[False, False, False], [True, False, False], [True, True, False]]


def test_a_bad_slide_in_the_middle_is_its_own_failure(
    small_data: SmallData, predictor: Predictor, tmp_path: Path
) -> None:
    first, last = jobs_of(small_data, 2)
    gone = SlideJob("gone", tmp_path / "gone.tif")
    rows = predict_slides([first, gone, last], predictor, RunFolder(tmp_path / "out")).rows
    assert [row.status for row in rows] == ["ok", "failed", "ok"]
    assert "gone.tif: no such file" in rows[1].error


def test_a_run_that_is_given_up_leaves_no_slide_open_and_no_thread(
    small_data: SmallData, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[PreparedSlide] = []
    prepare = predictor.prepare
    monkeypatch.setattr(
        predictor, "prepare", lambda *a, **k: (opened.append(prepare(*a, **k)), opened[-1])[1]
    )
    first, following, _ = jobs_of(small_data, 3)
    gone = SlideJob("gone", tmp_path / "gone.tif")
    before = set(threading.enumerate())
    with pytest.raises(WsiIpsError, match=r"gone\.tif"):
        predict_slides([first, gone, following], predictor, RunFolder(tmp_path / "out"), on_error="stop")
    for slide in opened:
        with pytest.raises(WsiIpsError, match="closed"):
            slide.slide.read((0, 0), level=0, size_px=(8, 8))
    assert not [each for each in set(threading.enumerate()) - before if each.name.startswith("wsi_ips")]


def test_where_the_time_went_is_kept_with_the_result(
    small_data: SmallData, predictor: Predictor, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path)
    (job,) = jobs_of(small_data, 1)
    (telemetry,) = predict_slides([job], predictor, run).measured
    stored = read_slide_table(run.slides)[job.slide_id].telemetry
    assert stored.encode_s == pytest.approx(telemetry.encode_s, rel=1e-4)
    assert stored.patches == telemetry.patches == len(read_result(run.attention(job.slide_id)).coords)
    for stage in ("open_s", "decode_s", "encode_s", "select_s", "peak_rss_mb"):
        assert getattr(telemetry, stage) > 0, stage
    parts = telemetry.open_s + telemetry.encode_s + telemetry.select_s + telemetry.waited_s + telemetry.copy_s
    assert parts <= telemetry.seconds


def test_the_table_names_the_slowest_stage() -> None:
    two = SlideTelemetry(threads=2, patches=100, decode_s=3.0, encode_s=2.0, waited_s=0.5)
    assert two.table()[-1] == "slowest: encode"  # three seconds of two threads are one and a half
    assert SlideTelemetry(threads=1, patches=100, decode_s=3.0, encode_s=2.0).table()[-1] == "slowest: decode"
    together = SlideTelemetry.total([two, two])
    assert (together.patches, together.encode_s, together.threads) == (200, 4.0, 2)
    assert together.waited == pytest.approx(0.2)


@pytest.mark.parametrize("value", [[], {"decode_s": "x"}, "3"])
def test_telemetry_of_a_strange_file_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="telemetry"):
        SlideTelemetry.from_json(value)


@pytest.mark.usefixtures("torn_tile")
def test_an_unreadable_tile_is_white_and_told(
    small_data: SmallData, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The label stands; the row, the result and so the exit code say that not everything was seen."""
    monkeypatch.setattr(predictor, "_streaming", StreamingConfig(batch=16, max_bad_tiles=0.5))
    (job,) = jobs_of(small_data, 1)
    run = RunFolder(tmp_path)
    (row,) = predict_slides([job], predictor, run).rows
    assert row.status == "ok"
    assert "1 tile unreadable, read as white: level" in row.error
    assert len(read_result(run.attention(job.slide_id)).bad_tiles) == 1


def test_slides_that_are_prepared_ahead_are_so_in_the_timeline(
    small_data: SmallData, predictor: Predictor, tmp_path: Path
) -> None:
    jobs = jobs_of(small_data, 3)
    with recording(tmp_path, command="predict", on=True):
        in_turn(jobs, predictor, tmp_path / "run", SlidesInHand(tmp_path))
    events = spans(tmp_path)
    found = {event["args"]["slide"]: event["cat"] for event in events if event["name"] == "tissue"}
    first, *others = (job.slide_id for job in jobs)
    assert found == {first: "main", **dict.fromkeys(others, "ahead")}
    ahead = {event["pid"] for event in events if event["cat"] == "ahead"}
    assert ahead.isdisjoint({event["pid"] for event in events if event["cat"] == "main"})
    assert read_timeline(tmp_path / TIMELINE_NAME).slides == len(jobs)
