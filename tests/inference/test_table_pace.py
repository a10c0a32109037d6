"""Tables of many slides are not rewritten for every slide, and are whole and complete at the end all the same."""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from wsi_ips.config import TaskConfig
from wsi_ips.inference import predictions, slide_rows, telemetry
from wsi_ips.inference.predictions import PredictionRow, read_predictions
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.inference.run_tables import RunTables
from wsi_ips.inference.slide_rows import SlideRows
from wsi_ips.inference.slide_work import Done, SlideJob
from wsi_ips.inference.telemetry import SlideTelemetry, read_slide_table
from wsi_ips.storage.files import whole_table

SLIDES = 1000
SECONDS_A_SLIDE, SECONDS_A_WRITE = 2.0, 1.0


class Clock:
    """Time that passes when the test says so, and while a table is written; counts writes and their rows."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.writes = self.rows = 0

    @contextmanager
    def whole_table(self, path: Path) -> Iterator[Any]:
        with whole_table(path) as writer:
            yield writer
        self.now += SECONDS_A_WRITE
        self.writes += 1
        self.rows += path.read_bytes().count(b"\n") - 1

    @property
    def seconds(self) -> float:
        return self.now - 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(slide_rows.time, "monotonic", lambda: clock.now)
    for module in (slide_rows, predictions, telemetry):
        monkeypatch.setattr(module, "whole_table", clock.whole_table)
    return clock


def done(slide_id: str) -> Done:
    row = PredictionRow(
        slide_id=slide_id, status="ok", probabilities={"label": {"normal": 0.25, "tumor": 0.75}}, n_patches=3
    )
    return Done(row, SlideTelemetry(seconds=1.5, patches=3))


def test_a_run_of_many_slides_writes_its_tables_seldom_and_whole(clock: Clock, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    jobs = [SlideJob(f"slide_{number:04d}", tmp_path / f"{number}.tif") for number in range(SLIDES)]
    tables = RunTables(run, jobs, tasks=[TaskConfig()])
    for job in jobs:
        tables.begun(job.slide_id)
        clock.now += SECONDS_A_SLIDE
        tables.add(done(job.slide_id))
    # A table for every slide, each time it changes, would be 4,000 writes of up to 1,000 rows.
    assert clock.writes * SECONDS_A_WRITE < 0.03 * clock.seconds
    assert clock.rows < 60 * SLIDES
    some = read_slide_table(run.slides)
    assert len(some) == SLIDES
    assert sum(row.status == "ok" for row in some.values()) > 0.9 * SLIDES
    tables.close()
    assert [row.slide_id for row in read_predictions(run.predictions, tasks=[TaskConfig()])] == [
        job.slide_id for job in jobs
    ]
    assert all(row.status == "ok" for row in read_slide_table(run.slides).values())


def test_a_run_of_few_slides_writes_its_tables_each_time(clock: Clock, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    tables = RunTables(run, [SlideJob("a", tmp_path / "a.tif")], tasks=[TaskConfig()])
    tables.begun("a")
    assert read_slide_table(run.slides)["a"].status == "running"
    tables.add(done("a"))
    assert read_slide_table(run.slides)["a"].status == "ok"


def test_tables_that_hold_everything_are_not_written_again(clock: Clock, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    tables = RunTables(run, [SlideJob("a", tmp_path / "a.tif")], tasks=[TaskConfig()])
    tables.add(done("a"))
    tables.close()
    before = clock.writes
    tables.close()
    assert clock.writes == before
    run.slides.unlink()
    tables.close()
    assert read_slide_table(run.slides)["a"].status == "ok"


def test_a_run_that_ends_early_writes_what_it_knows(clock: Clock, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    jobs = [SlideJob(f"slide_{number:04d}", tmp_path / f"{number}.tif") for number in range(SLIDES)]
    tables = RunTables(run, jobs, tasks=[TaskConfig()])
    for job in jobs[:7]:
        tables.begun(job.slide_id)
        tables.add(done(job.slide_id))
    tables.begun(jobs[7].slide_id)
    tables.give_up()
    statuses = [row.status for row in read_slide_table(run.slides).values()]
    assert statuses == ["ok"] * 7 + ["waiting"] * (SLIDES - 7)


@pytest.mark.parametrize("ends", ["well", "with an error"])
def test_a_table_of_slides_is_written_seldom_and_whole(ends: str, clock: Clock, tmp_path: Path) -> None:
    path, names = tmp_path / "tiles.csv", [f"slide_{number:04d}" for number in range(SLIDES)]
    try:
        with SlideRows(path, ["n_patches"], names) as table:
            for number, name in enumerate(reversed(names)):
                clock.now += SECONDS_A_SLIDE
                table.add(name, [number])
            if ends == "with an error":
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert clock.writes * SECONDS_A_WRITE < 0.03 * clock.seconds
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["slide_id", "n_patches"]
    assert rows == [[name, str(SLIDES - 1 - number)] for number, name in enumerate(names)]
