"""What a worker does with its first slide: its patches are found while the network is loaded."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import SmallData
from wsi_ips.config import StreamingConfig
from wsi_ips.errors import CheckpointError
from wsi_ips.inference.checkpoints import Checkpoints
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.inference.slide_work import Done, SlideJob, SlideWork
from wsi_ips.inference.worker import SlideWorker, WorkerSetup
from wsi_ips.slides.folder import find_slides
from wsi_ips.slides.registry import open_slide
from wsi_ips.tiling.patches import FindPatches


def setup_in(folder: Path, checkpoint: Path) -> WorkerSetup:
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    return WorkerSetup(
        models=Checkpoints.of([checkpoint]),
        run=RunFolder(folder),
        streaming=StreamingConfig(batch=8),
        device="cpu",
    )


@pytest.fixture
def jobs(small_data: SmallData) -> list[SlideJob]:
    return [SlideJob(path.stem, path) for path in find_slides(small_data.slides)[:2]]


def test_patches_are_found_while_the_network_is_loaded_and_the_result_is_the_same(
    jobs: list[SlideJob], small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading ends only once the slide has been opened, so one after the other would never end."""
    alone = setup_in(tmp_path / "alone", small_checkpoint)
    work = alone.load(0)
    for job in jobs:
        work.label(job)
    opened, load = threading.Event(), WorkerSetup.load

    def slow_load(setup: WorkerSetup, place: int) -> SlideWork:
        assert opened.wait(30), "the slide was not opened while the network was loaded"
        return load(setup, place)

    def noted(path: Path) -> object:
        opened.set()
        return open_slide(path)

    monkeypatch.setattr(WorkerSetup, "load", slow_load)
    monkeypatch.setattr("wsi_ips.inference.in_hand.open_slide", noted)
    setup = setup_in(tmp_path / "worker", small_checkpoint)
    worker = SlideWorker(setup, 0)
    for job in jobs:
        done = worker.work(job)
        assert isinstance(done, Done)
        assert done.row.status == "ok"
        assert (
            setup.run.attention(job.slide_id).read_bytes() == alone.run.attention(job.slide_id).read_bytes()
        )


def test_a_first_slide_that_cannot_be_read_is_a_failed_slide_and_the_next_is_labelled(
    jobs: list[SlideJob], small_checkpoint: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.tif"
    broken.write_bytes(b"II*\0" + bytes(100))
    worker = SlideWorker(setup_in(tmp_path / "run", small_checkpoint), 0)
    first, second = worker.work(SlideJob("broken", broken)), worker.work(jobs[0])
    assert isinstance(first, Done)
    assert isinstance(second, Done)
    assert first.row.status == "failed"
    assert "broken.tif" in first.row.error
    assert second.row.status == "ok"


def test_a_network_that_cannot_be_loaded_ends_the_work(
    jobs: list[SlideJob], small_checkpoint: Path, tmp_path: Path
) -> None:
    setup = setup_in(tmp_path / "run", small_checkpoint)
    other = replace(setup.models.files[0], sha256="0" * 64)
    with pytest.raises(CheckpointError):
        SlideWorker(replace(setup, models=Checkpoints((other,))), 0).work(jobs[0])


def test_nothing_is_loaded_for_a_slide_that_is_done(
    jobs: list[SlideJob], small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = setup_in(tmp_path / "run", small_checkpoint)
    SlideWorker(setup, 0).work(jobs[0])
    monkeypatch.setattr(WorkerSetup, "load", None)
    found = SlideWorker(setup, 0).work(jobs[0])
    assert isinstance(found, Done)
    assert found.row.status == "ok"


def test_the_patches_are_those_that_the_network_would_find(
    jobs: list[SlideJob], small_checkpoint: Path, tmp_path: Path
) -> None:
    setup = setup_in(tmp_path / "run", small_checkpoint)
    finder = setup.patch_finder()
    assert finder == setup.load(0).predictor.find_patches
    asked: FindPatches | None = finder
    assert replace(setup, find_patches=asked).patch_finder() is asked
