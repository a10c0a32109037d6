"""A disk that runs full while a run writes: on a small tmpfs, for real."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.conftest import SmallData
from tests.small_disk import small_disk
from wsi_ips.config import StreamingConfig
from wsi_ips.errors import SlideFailed
from wsi_ips.inference.label import predict_slides
from wsi_ips.inference.predict import Predictor
from wsi_ips.inference.predictions import read_predictions
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.inference.slide_work import SlideJob
from wsi_ips.models.checkpoint import checkpoint_sha256, load_checkpoint
from wsi_ips.slides.folder import find_slides

ROOM_KB = 64
"""Tables, and two or three of the six slides' results of 14 KB each."""


@pytest.fixture
def disk() -> Iterator[Path]:
    with small_disk(kilobytes=ROOM_KB) as folder:
        yield folder


@pytest.fixture
def predictor(small_checkpoint: Path) -> Predictor:
    net, pipeline = load_checkpoint(small_checkpoint)
    sha256 = checkpoint_sha256(small_checkpoint)
    return Predictor(
        net, pipeline, streaming=StreamingConfig(batch=16), device=torch.device("cpu"), checkpoint=sha256
    )


@pytest.fixture
def jobs(small_data: SmallData) -> list[SlideJob]:
    return [SlideJob(path.stem, path) for path in find_slides(small_data.slides)]


def test_slides_fail_with_the_reason_nothing_is_half_written_and_the_run_can_go_on(
    predictor: Predictor, jobs: list[SlideJob], disk: Path
) -> None:
    run = RunFolder(disk)
    tables = predict_slides(jobs, predictor, run)
    failed = [row for row in tables.rows if row.status == "failed"]
    assert 1 <= len(failed) < len(jobs)
    assert all("no space left on device" in row.error for row in failed)
    assert read_predictions(run.predictions, tasks=predictor.pipeline.model.tasks) == tables.rows
    written = {path.stem for path in (disk / "attention").iterdir()}
    assert written == {row.slide_id for row in tables.rows if row.status == "ok"}
    subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
    again = predict_slides(jobs, predictor, run, resume=True)
    assert [row.status for row in again.rows] == ["ok"] * len(jobs)
    assert len(again.measured) == len(failed), "what was written was not done again"


def test_with_stop_the_first_slide_without_room_ends_the_run(
    predictor: Predictor, jobs: list[SlideJob], disk: Path
) -> None:
    with pytest.raises(SlideFailed, match="no space left on device where the results are written"):
        predict_slides(jobs, predictor, RunFolder(disk), on_error="stop")
    assert not [path for path in disk.rglob("*") if "partial" in path.name]


def test_a_run_that_ends_without_its_tables_says_so(
    predictor: Predictor, jobs: list[SlideJob], disk: Path
) -> None:
    filler = disk / "filler"
    fill(filler, leave_kb=4)
    with pytest.raises(OSError, match="No space left on device"):
        predict_slides(jobs[:1], predictor, RunFolder(disk))
    assert not [path for path in disk.rglob("*") if "partial" in path.name]
    filler.unlink()
    tables = predict_slides(jobs[:1], predictor, RunFolder(disk), resume=True)
    assert [row.status for row in tables.rows] == ["ok"]


def fill(path: Path, *, leave_kb: int) -> None:
    free = os.statvfs(path.parent).f_bavail * os.statvfs(path.parent).f_bsize
    path.write_bytes(bytes(free - leave_kb * 1024))
