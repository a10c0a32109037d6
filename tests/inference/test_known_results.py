"""``known.jsonl``: a start opens no result that it knows, and believes nothing that may have changed."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import SmallData
from wsi_ips.config import StreamingConfig
from wsi_ips.inference import slide_work
from wsi_ips.inference.known_results import KnownResults, Stamps
from wsi_ips.inference.label import predict_slides
from wsi_ips.inference.predict import Predictor
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.inference.slide_work import SlideJob, SlideRecorder
from wsi_ips.models.checkpoint import load_checkpoint
from wsi_ips.storage.hdf5 import whole_hdf5
from wsi_ips.tiling.coords import put_coords
from wsi_ips.tiling.patches import StoredPatches
from wsi_ips.units import Mpp

SHA256 = "c" * 64


@pytest.fixture(autouse=True)
def _slides_are_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of tests were written a moment ago."""
    monkeypatch.setattr("wsi_ips.inference.known_results.SETTLED_NS", 0)


@pytest.fixture(scope="module")
def predictor(small_checkpoint: Path) -> Predictor:
    net, pipeline = load_checkpoint(small_checkpoint)
    streaming = StreamingConfig(batch=16)
    return Predictor(net, pipeline, streaming=streaming, device=torch.device("cpu"), checkpoint=SHA256)


@pytest.fixture
def jobs(small_data: SmallData, tmp_path: Path) -> list[SlideJob]:
    """Two slides of our own, which may be changed."""
    paths = [shutil.copy(path, tmp_path) for path in sorted(small_data.slides.glob("*.tif"))[:2]]
    return [SlideJob(path.stem, path) for path in map(Path, paths)]


@pytest.fixture
def run(jobs: list[SlideJob], predictor: Predictor, tmp_path: Path) -> RunFolder:
    """A finished run of both."""
    run = RunFolder(tmp_path / "run")
    assert [row.status for row in predict_slides(jobs, predictor, run).rows] == ["ok", "ok"]
    return run


def known(run: RunFolder, jobs: list[SlideJob], predictor: Predictor, **settings: Any) -> list[str]:
    """The slides that are known."""
    recorder = SlideRecorder(run, **({"checkpoint": SHA256} | settings))
    return [done.row.slide_id for done in recorder.known(jobs, predictor.pipeline.model.tasks)]


def test_a_finished_run_is_gone_on_with_without_opening_a_result(
    run: RunFolder, jobs: list[SlideJob], predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = [path.read_bytes() for path in (run.predictions, run.slides)]
    opened: list[Path] = []
    monkeypatch.setattr(slide_work, "read_result", opened.append)
    monkeypatch.setattr("wsi_ips.inference.made_from.files_fingerprint", opened.append)
    again = predict_slides(jobs, predictor, run, resume=True)
    assert opened == []
    assert again.measured == []
    assert [path.read_bytes() for path in (run.predictions, run.slides)] == tables


def test_what_is_known_is_what_a_result_says(
    run: RunFolder, jobs: list[SlideJob], predictor: Predictor
) -> None:
    recorder = SlideRecorder(run, checkpoint=SHA256)
    told = list(recorder.known(jobs, predictor.pipeline.model.tasks))
    assert told == [replace(found, known="") for job in jobs if (found := recorder.found(job))]


def rewritten(job: SlideJob, run: RunFolder) -> None:
    """Other bytes in a slide of the same size and time."""
    assert isinstance(job.path, Path)
    before, data = job.path.stat(), bytearray(job.path.read_bytes())
    data[-1] ^= 1
    job.path.write_bytes(data)
    os.utime(job.path, ns=(before.st_atime_ns, before.st_mtime_ns))


def stored_again(job: SlideJob, run: RunFolder) -> None:
    path = run.attention(job.slide_id)
    shutil.copy2(path, path.with_suffix(".copy"))
    path.with_suffix(".copy").replace(path)


CHANGES: dict[str, Callable[[SlideJob, RunFolder], None]] = {
    "the slide's content, at the same size and time": rewritten,
    "the slide is gone": lambda job, run: Path(str(job.path)).unlink(),
    "the result, by a copy of itself": stored_again,
    "the result is gone": lambda job, run: run.attention(job.slide_id).unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_file_is_looked_into(
    change: str, run: RunFolder, jobs: list[SlideJob], predictor: Predictor
) -> None:
    CHANGES[change](jobs[0], run)
    assert known(run, jobs, predictor) == [jobs[1].slide_id]


def test_other_settings_are_another_result(
    run: RunFolder, jobs: list[SlideJob], predictor: Predictor
) -> None:
    both = [job.slide_id for job in jobs]
    assert known(run, jobs, predictor) == both
    assert known(run, jobs, predictor, checkpoint="d" * 64) == []
    assert known(run, jobs, predictor, checkpoint="") == []
    assert known(run, jobs, predictor, embeddings=True) == []
    assert known(run, jobs, predictor, gradients=True) == []
    assert known(run, jobs, predictor, precision="bf16") == []
    assert known(run, jobs, predictor, streaming=StreamingConfig(decode="device")) == []
    assert known(run, jobs, predictor, streaming=StreamingConfig(max_bad_tiles=0.0)) == both  # there are none
    assert known(run, [replace(jobs[0], mpp=Mpp(0.5)), jobs[1]], predictor) == both[1:]
    assert known(run, [replace(jobs[0], path=Path("elsewhere.tif")), jobs[1]], predictor) == both[1:]


def test_a_slide_without_its_overlay_is_left(
    run: RunFolder, jobs: list[SlideJob], predictor: Predictor
) -> None:
    def draw(result: object, path: Path) -> None: ...

    assert known(run, jobs, predictor, draw=draw) == []
    run.overlay("x").parent.mkdir()
    run.overlay(jobs[0].slide_id).touch()
    assert known(run, jobs, predictor, draw=draw) == [jobs[0].slide_id]


def test_no_overlay_of_another_result_lies_beside_a_new_one(
    run: RunFolder, jobs: list[SlideJob], predictor: Predictor
) -> None:
    def draw(result: object, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        path.touch()

    predict_slides(jobs, predictor, run, draw=draw, resume=True)
    assert all(run.overlay(job.slide_id).exists() for job in jobs)
    rewritten(jobs[0], run)
    predict_slides(jobs, predictor, run, resume=True)  # draws none
    assert [run.overlay(job.slide_id).exists() for job in jobs] == [False, True]


def test_coordinates_that_were_written_anew_are_looked_into(
    run: RunFolder, jobs: list[SlideJob], predictor: Predictor, tmp_path: Path
) -> None:
    found = StoredPatches(tmp_path / "patches", predictor.pipeline.tiling)
    assert known(run, jobs, predictor, find_patches=found) == []  # they were found by segmentation
    coords = [predictor.prepare(job.path, slide_id=job.slide_id) for job in jobs]
    for each in coords:
        each.slide.close()
        with whole_hdf5(found.folder / f"{each.coords.slide_id}.h5") as file:
            put_coords(file, each.coords, layout="trident")
    recorder, from_coords = SlideRecorder(run, checkpoint=SHA256, find_patches=found), []
    reader = Predictor(
        predictor._net, predictor.pipeline, streaming=StreamingConfig(batch=16), device=predictor.device,
        checkpoint=SHA256, find_patches=found,
    )  # fmt: skip
    lines = KnownResults(run.known, run.root / "attention")
    for job in jobs:
        done = recorder.write(job, reader.predict(job.path, slide_id=job.slide_id))
        lines.add(done.known)
        from_coords.append(job.slide_id)
    assert known(run, jobs, predictor, find_patches=found) == from_coords
    assert known(run, jobs, predictor) == []
    (found.folder / f"{jobs[0].slide_id}.h5").touch()
    assert known(run, jobs, predictor, find_patches=found) == from_coords[1:]


BROKEN = [
    b"", b"{", b"[]", b"null", b"7", b'"' + b"x" * 2**21, b"[" * 100_000, b"\xff\xfe", b'{"slide_id": 3}',
]  # fmt: skip


@pytest.mark.parametrize("line", BROKEN, ids=lambda line: repr(line[:12]))
def test_a_line_that_cannot_be_read_is_left_out(
    line: bytes, run: RunFolder, jobs: list[SlideJob], predictor: Predictor
) -> None:
    run.known.write_bytes(line + b"\n" + run.known.read_bytes() + line)
    assert known(run, jobs, predictor) == [job.slide_id for job in jobs]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("probabilities", {"label": {"normal": 7.0, "tumor": -6.0}}),
        ("probabilities", {"label": {"tumor": 0.5, "normal": 0.5}}),
        ("probabilities", {"other": {"normal": 0.5, "tumor": 0.5}}),
        ("probabilities", {"label": {"normal": "0.5", "tumor": 0.5}}),
        ("probabilities", [0.5, 0.5]),
        ("spread", {"label": {"normal": -0.5, "tumor": 0.5}}),
        ("n_patches", -1),
        ("n_patches", "36"),
        ("made_from", None),
        ("made_from", {"slide": "x"}),
        ("made_from", {"slide": "x", "patches": "", "mpp_given": 10**400}),
        ("probabilities", {"label": {"normal": float("nan"), "tumor": 0.5}}),
        ("stamps", ["", "", ""]),
        ("holds", "all"),
        ("bad_tiles", 0),
    ],
)
def test_what_no_network_says_is_not_known(
    name: str, value: Any, run: RunFolder, jobs: list[SlideJob], predictor: Predictor
) -> None:
    first, *others = run.known.read_text().splitlines()
    run.known.write_text("\n".join([json.dumps({**json.loads(first), name: value}), *others]))
    assert known(run, jobs, predictor) == [jobs[1].slide_id]


def test_half_a_line_of_a_killed_start_costs_no_other(
    run: RunFolder, jobs: list[SlideJob], predictor: Predictor
) -> None:
    first, second = run.known.read_bytes().splitlines()
    run.known.write_bytes(first + b"\n" + second[:40])
    KnownResults(run.known, run.root / "attention").add(second.decode())
    assert known(run, jobs, predictor) == [job.slide_id for job in jobs]


def test_the_file_is_tidied(
    run: RunFolder, jobs: list[SlideJob], predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsi_ips.inference.known_results.SPARE_LINES", 3)
    lines = run.known.read_bytes()
    run.known.write_bytes(lines * 3)
    assert known(run, jobs, predictor) == [job.slide_id for job in jobs]
    assert run.known.read_bytes() == lines * 3
    run.known.write_bytes(lines * 5)
    assert known(run, jobs, predictor) == [job.slide_id for job in jobs]
    assert run.known.read_bytes() == lines


def test_a_slide_that_was_changed_just_now_has_no_stamp(
    jobs: list[SlideJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Stamps.of(jobs[0].path, ()).slide
    monkeypatch.setattr("wsi_ips.inference.known_results.SETTLED_NS", 10**12)
    assert not Stamps.of(jobs[0].path, ()).slide


@pytest.mark.parametrize("name", ["slide.mrxs", "folder.zarr"])
def test_a_slide_of_several_files_has_no_stamp(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if path.suffix == ".zarr":
        path.mkdir()
    else:
        path.write_bytes(b"x")
    assert not Stamps.of(path, ()).slide
    (tmp_path / "link.tif").symlink_to(path)
    assert bool(Stamps.of(tmp_path / "link.tif", ()).slide) == path.is_file()


def test_a_full_disk_costs_no_label(
    run: RunFolder, jobs: list[SlideJob], predictor: Predictor, caplog: pytest.LogCaptureFixture
) -> None:
    run.known.unlink()
    run.known.mkdir()
    KnownResults(run.known, run.root / "attention").add("{}")
    assert "is not written" in caplog.text
    assert known(run, jobs, predictor) == []
