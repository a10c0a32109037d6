"""``known.jsonl``: a start opens no result that it knows, and believes nothing that may have changed."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import SmallData
from tests.inference.conftest import SHA256
from tests.slides.zarr_files import write_zarr
from wsi_ips.commands.predict import draw_overlay
from wsi_ips.config import StreamingConfig
from wsi_ips.inference import slide_work
from wsi_ips.inference.case_predict import case_jobs, label_cases_here, take_known
from wsi_ips.inference.known_results import KnownResults
from wsi_ips.inference.label import predict_in_turn, predict_slides
from wsi_ips.inference.predict import Predictor, PreparedSlide
from wsi_ips.inference.results import SlideResult
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.inference.run_tables import RunTables
from wsi_ips.inference.slide_stamps import Stamps
from wsi_ips.inference.slide_work import SlideJob, SlideRecorder, SlideWork
from wsi_ips.storage.fingerprint import files_fingerprint
from wsi_ips.storage.hdf5 import whole_hdf5
from wsi_ips.tiling.coords import put_coords
from wsi_ips.tiling.patches import StoredPatches
from wsi_ips.units import Mpp


@pytest.fixture(autouse=True)
def _slides_are_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of tests were written a moment ago."""
    monkeypatch.setattr("wsi_ips.inference.slide_stamps.SETTLED_NS", 0)


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
    def draw(result: object, path: Path, fingerprint: str) -> None: ...

    assert known(run, jobs, predictor, draw=draw) == []
    run.overlay("x").parent.mkdir()
    run.overlay(jobs[0].slide_id).touch()
    assert known(run, jobs, predictor, draw=draw) == [jobs[0].slide_id]


def test_no_overlay_of_another_result_lies_beside_a_new_one(
    run: RunFolder, jobs: list[SlideJob], predictor: Predictor
) -> None:
    def draw(result: object, path: Path, fingerprint: str) -> None:
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
        source = recorder.source(job)
        done = recorder.write(job, reader.predict(job.path, slide_id=job.slide_id), source)
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


def test_a_slide_that_was_changed_just_now_is_not_known(
    jobs: list[SlideJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Stamps.of(jobs[0].path, ()).settled
    monkeypatch.setattr("wsi_ips.inference.slide_stamps.SETTLED_NS", 10**12)
    assert not Stamps.of(jobs[0].path, ()).settled


def test_a_case_is_known_if_all_of_its_slides_are(
    jobs: list[SlideJob], predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, tasks = RunFolder(tmp_path / "run"), predictor.pipeline.model.tasks
    recorder = SlideRecorder(run, checkpoint=SHA256)
    cases = case_jobs(jobs, {job.slide_id: "of both" for job in jobs})
    first, second = (RunTables(run, jobs, tasks=tasks, by_case=True) for _ in range(2))
    label_cases_here(cases, SlideWork(predictor, recorder), first)
    first.close()
    with monkeypatch.context() as closed:
        closed.setattr(slide_work, "read_result", None)
        closed.setattr("wsi_ips.inference.made_from.files_fingerprint", None)
        assert take_known(cases, recorder, second) == []
    assert second.rows == first.rows
    assert all(row.case is not None and row.case.slides == tuple(map(slide_id, jobs)) for row in second.rows)
    fewer = case_jobs(jobs[:1], {jobs[0].slide_id: "of both"})
    assert take_known(fewer, recorder, second) == fewer, "it was read together with another slide"
    rewritten(jobs[1], run)
    assert take_known(cases, recorder, second) == cases


def slide_id(job: SlideJob) -> str:
    return job.slide_id


def test_a_slide_of_several_files_is_known(predictor: Predictor, tmp_path: Path) -> None:
    image = np.full((512, 512, 3), 240, np.uint8)
    image[128:384, 128:384] = (180, 80, 140)
    write_zarr(tmp_path / "slides" / "s.zarr", image, mpp=2.0)
    job, run = SlideJob("s", tmp_path / "slides" / "s.zarr"), RunFolder(tmp_path / "run")
    assert [row.status for row in predict_slides([job], predictor, run).rows] == ["ok"]
    assert known(run, [job], predictor) == ["s"]
    next(path for path in (tmp_path / "slides").rglob("*") if path.is_file()).touch()
    assert known(run, [job], predictor) == []


@pytest.mark.parametrize("ahead", [False, True])
def test_a_slide_that_is_replaced_while_it_is_read_fails(
    ahead: bool, jobs: list[SlideJob], predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pixels may be those of two slides, and the next start would take the result for that of the new one."""
    run, read = RunFolder(tmp_path / "run"), Predictor.read
    work = SlideWork(predictor, SlideRecorder(run, checkpoint=SHA256))

    def replaced(self: Predictor, prepared: PreparedSlide, **how: Any) -> SlideResult:
        result = read(self, prepared, **how)
        (rewritten if prepared.coords.slide_id == jobs[0].slide_id else stored_elsewhere)(
            next(job for job in jobs if job.slide_id == prepared.coords.slide_id), run
        )
        return result

    monkeypatch.setattr(Predictor, "read", replaced)
    monkeypatch.setattr("wsi_ips.inference.in_hand.alone", lambda work, task: work(task))
    tables = RunTables(run, jobs, tasks=predictor.pipeline.model.tasks)
    predict_in_turn(list(reversed(jobs)), work, tables, ahead=ahead)
    changed, copied = tables.rows
    assert changed.status == "failed"
    assert "was replaced while it was read (the slide's file has changed)" in changed.error
    assert not run.attention(jobs[0].slide_id).exists()
    assert copied.status == "ok", "another copy of the same file is the same slide"
    assert known(run, jobs, predictor) == []


def stored_elsewhere(job: SlideJob, run: RunFolder) -> None:
    """The slide, by a copy of itself."""
    path = Path(str(job.path))
    shutil.copy(path, path.with_suffix(".copy"))
    path.with_suffix(".copy").replace(path)


def test_a_slide_is_fingerprinted_once_before_it_is_read(
    jobs: list[SlideJob], predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not once more for its overlay."""
    done: list[str] = []
    opened = Predictor.prepare

    def fingerprint(files: Any) -> str:
        done.append("fingerprint")
        return files_fingerprint(files)

    def prepare(self: Predictor, *args: Any, **how: Any) -> PreparedSlide:
        done.append("open")
        return opened(self, *args, **how)

    for module in ("inference.made_from", "heatmaps.maps"):
        monkeypatch.setattr(f"wsi_ips.{module}.files_fingerprint", fingerprint)
    monkeypatch.setattr(Predictor, "prepare", prepare)
    run = RunFolder(tmp_path / "run")
    rows = predict_slides(jobs[:1], predictor, run, draw=draw_overlay).rows
    assert [(row.status, row.error) for row in rows] == [("ok", "")]
    assert run.overlay(jobs[0].slide_id).exists()
    assert done == ["fingerprint", "open"]
