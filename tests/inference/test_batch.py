"""Slides on the workers of a dask cluster: what comes out, and what becomes of slides whose workers die."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from distributed import Client, LocalCluster
from tifffile import TiffFile

from tests.clusters import two_workers
from tests.conftest import SMALL_MODEL, SmallData
from wsi_ips.config import BatchConfig, PipelineConfig, StreamingConfig
from wsi_ips.errors import CheckpointError, ClusterError, ResultsError, WsiIpsError
from wsi_ips.inference.batch import predict_on_workers
from wsi_ips.inference.checkpoints import Checkpoints
from wsi_ips.inference.in_hand import IN_HAND, SlidesInHand
from wsi_ips.inference.label import predict_in_turn
from wsi_ips.inference.results import SlideResult
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.inference.run_tables import RunTables
from wsi_ips.inference.slide_work import Done, SlideJob
from wsi_ips.inference.telemetry import SlideRow, read_slide_table
from wsi_ips.inference.worker import WorkerSetup
from wsi_ips.models.build import build_net
from wsi_ips.models.checkpoint import save_checkpoint
from wsi_ips.slides.folder import find_slides

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
    pytest.mark.usefixtures("same_threads"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network under the rule that can be cut into parts; it reads kept patches in four orientations."""
    return checkpoint_in(tmp_path_factory.mktemp("global"), patch_mpp=2.0)


def checkpoint_in(folder: Path, *, patch_mpp: float) -> Path:
    tiling = {**SMALL_MODEL["tiling"], "patch_mpp": patch_mpp}  # type: ignore[dict-item]
    selection = {"rule": "global", "m": 4, "i": 8, "turns": 4}
    pipeline = PipelineConfig.model_validate({**SMALL_MODEL, "tiling": tiling, "selection": selection})
    torch.manual_seed(0)
    save_checkpoint(folder / "model.safetensors", build_net(pipeline.model), pipeline)
    return folder / "model.safetensors"


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Two workers; a slide may cost two of them their lives."""
    import dask

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        two_workers() as cluster,
    ):
        yield cluster


@pytest.fixture(scope="module")
def in_threads() -> Iterator[LocalCluster]:
    """Two workers that are threads of this process, for what kills none of them: they have everything imported."""
    with two_workers(processes=False, protocol="tcp") as cluster:
        yield cluster


@pytest.fixture
def setup(checkpoint: Path, tmp_path: Path) -> WorkerSetup:
    return setup_in(tmp_path / "run", checkpoint)


def setup_in(folder: Path, checkpoint: Path) -> WorkerSetup:
    run = RunFolder(folder)
    run.root.mkdir()
    run.description.write_text("{}")
    return WorkerSetup(
        models=Checkpoints.of([checkpoint]),
        run=run,
        streaming=StreamingConfig(batch=8),
        device="cpu",
        threads=1,
    )


@pytest.fixture
def jobs(small_data: SmallData) -> list[SlideJob]:
    return [SlideJob(path.stem, path) for path in find_slides(small_data.slides)]


def tables_of(setup: WorkerSetup, jobs: list[SlideJob]) -> RunTables:
    return RunTables(setup.run, jobs, tasks=PipelineConfig.model_validate(SMALL_MODEL).model.tasks)


def on_workers(
    jobs: list[SlideJob],
    setup: WorkerSetup,
    cluster: LocalCluster,
    in_hand: SlidesInHand | None = None,
    **batch: object,
) -> dict[str, SlideRow]:
    tables = tables_of(setup, jobs)
    config = BatchConfig.model_validate({"scheduler": cluster.scheduler_address, **batch})
    predict_on_workers(jobs, setup, tables, config, in_hand=in_hand)
    tables.close()
    return read_slide_table(setup.run.slides)


def contents(run: RunFolder) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in [run.predictions, *sorted(run.root.glob("attention/*.h5"))]
    }


@pytest.fixture
def in_turn(checkpoint: Path, jobs: list[SlideJob], tmp_path: Path) -> dict[str, bytes]:
    """What this process alone makes of the slides."""
    setup = setup_in(tmp_path / "in_turn", checkpoint)
    predict_in_turn(jobs, setup.load(0), tables_of(setup, jobs))
    return contents(setup.run)


@pytest.mark.slow
def test_workers_write_what_one_process_writes(
    jobs: list[SlideJob], setup: WorkerSetup, cluster: LocalCluster, in_turn: dict[str, bytes]
) -> None:
    gone = SlideJob("gone", Path("gone.tif"))
    rows = on_workers([*jobs, gone], setup, cluster)
    found = contents(setup.run)
    header, *lines = found.pop("predictions.csv").splitlines()
    assert [header, *lines[:-1]] == in_turn["predictions.csv"].splitlines()
    assert lines[-1].startswith(b"gone,")
    assert found == {name: held for name, held in in_turn.items() if name != "predictions.csv"}
    assert [row.status for row in rows.values()] == ["ok"] * len(jobs) + ["failed"]
    assert all(row.attempts == 1 for row in rows.values())
    assert len({row.worker for row in rows.values()}) == 2, "both workers had something to do"


@pytest.mark.slow
def test_a_slide_scored_in_parts_is_the_slide_scored_by_one_worker(
    jobs: list[SlideJob], setup: WorkerSetup, cluster: LocalCluster, in_turn: dict[str, bytes]
) -> None:
    rows = on_workers(jobs, replace(setup, shard_patches=16), cluster)
    assert contents(setup.run) == in_turn
    assert max(row.telemetry.patches for row in rows.values()) > 16


def test_a_part_that_cannot_be_read_is_its_slide_s_failure_once(
    jobs: list[SlideJob], in_threads: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiles that patches are read from are zeros; tissue is found on a smaller level."""
    fine = replace(setup_in(tmp_path / "run", checkpoint_in(tmp_path, patch_mpp=0.5)), shard_patches=64)
    torn = tmp_path / "torn.tif"
    data = bytearray(Path(str(jobs[0].path)).read_bytes())
    with TiffFile(str(jobs[0].path)) as file:
        page = file.pages[0].aspage()
        for at, length in zip(page.dataoffsets, page.databytecounts, strict=True):
            data[at : at + length] = bytes(length)
    torn.write_bytes(data)
    added: list[str] = []
    add = RunTables.add

    def note(self: RunTables, done: Done) -> None:
        added.append(done.row.slide_id)
        add(self, done)

    monkeypatch.setattr(RunTables, "add", note)
    rows = on_workers([SlideJob("torn", torn), jobs[1]], fine, in_threads)
    assert sorted(added) == sorted(["torn", jobs[1].slide_id])
    assert rows["torn"].status == "failed"
    assert "tiles" in rows["torn"].error
    assert rows[jobs[1].slide_id].status == "ok"
    assert not fine.run.attention("torn").exists()


def die_once(result: SlideResult, path: Path, fingerprint: str) -> None:
    mark = path.with_suffix(".died")
    if result.coords.slide_id.endswith("tumor") and not mark.exists():
        mark.parent.mkdir(exist_ok=True)
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def note_order(result: SlideResult, path: Path, fingerprint: str) -> None:
    with (path.parent.parent / "order").open("a") as file:
        file.write(f"{result.coords.slide_id}\n")


def die_of_the_first(result: SlideResult, path: Path, fingerprint: str) -> None:
    if result.coords.slide_id.startswith("test_000"):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_slide_whose_worker_is_killed_is_done_by_another(
    jobs: list[SlideJob], setup: WorkerSetup, cluster: LocalCluster, in_turn: dict[str, bytes]
) -> None:
    one = next(job for job in jobs if job.slide_id.endswith("tumor"))
    rows = on_workers([one], replace(setup, draw=die_once), cluster)
    assert (rows[one.slide_id].status, rows[one.slide_id].attempts) == ("ok", 2)
    name = f"{one.slide_id}.h5"
    assert contents(setup.run)[name] == in_turn[name]


@pytest.mark.slow
def test_a_slide_that_kills_every_worker_fails_and_the_others_finish(
    jobs: list[SlideJob], setup: WorkerSetup, cluster: LocalCluster
) -> None:
    SlidesInHand(setup.run.root).begin(jobs[1].slide_id)  # an earlier start without workers died
    in_hand, first = SlidesInHand(setup.run.root), jobs[0].slide_id
    rows = on_workers(jobs[:3], replace(setup, draw=die_of_the_first), cluster, in_hand)
    assert "2 workers in turn died while they read it alone" in rows[first].error
    assert [row.status for row in rows.values()] == ["failed", "ok", "ok"]
    assert not setup.run.attention(first).exists()
    assert in_hand.suspected(first), "a start without workers reads it in a process of its own"
    assert not in_hand.suspected(jobs[1].slide_id)


@pytest.mark.slow
def test_suspects_are_read_last_and_when_nobody_else_is_at_work(
    jobs: list[SlideJob], setup: WorkerSetup, cluster: LocalCluster
) -> None:
    SlidesInHand(setup.run.root).begin(jobs[0].slide_id)
    in_hand = SlidesInHand(setup.run.root)
    on_workers(jobs[:3], replace(setup, draw=note_order), cluster, in_hand)
    order = (setup.run.root / "order").read_text().split()
    assert order[-1] == jobs[0].slide_id
    assert sorted(order) == [job.slide_id for job in jobs[:3]]
    assert not (setup.run.root / IN_HAND).exists()


def test_stop_ends_with_the_first_failure_once_the_others_in_flight_are_done(
    jobs: list[SlideJob], setup: WorkerSetup, in_threads: LocalCluster
) -> None:
    gone = SlideJob("gone", Path("gone.tif"))
    with pytest.raises(WsiIpsError, match=r"gone\.tif: no such file"):
        on_workers([gone, *jobs], setup, in_threads, on_error="stop")
    rows = read_slide_table(setup.run.slides)
    assert rows["gone"].status == "failed"
    assert not [row for row in rows.values() if row.status == "running"]
    assert [row for row in rows.values() if row.status == "waiting"], "nothing new was begun"


def test_what_would_befall_every_slide_ends_the_run(
    jobs: list[SlideJob], setup: WorkerSetup, in_threads: LocalCluster, tmp_path: Path
) -> None:
    (file,) = setup.models.files
    gone = Checkpoints((replace(file, path=tmp_path / "gone.safetensors"),))
    with pytest.raises(CheckpointError, match="keep it where all workers can read it"):
        on_workers(jobs, replace(setup, models=gone), in_threads)
    setup.run.description.unlink()
    with pytest.raises(ResultsError, match="a folder that all workers share"):
        on_workers(jobs, setup, in_threads)


def test_a_scheduler_that_is_not_there_or_has_no_workers(
    jobs: list[SlideJob], setup: WorkerSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsi_ips.inference.cluster.ANSWERS_S", 0.2)
    with pytest.raises(ClusterError, match=r"no dask scheduler answers at tcp://127\.0\.0\.1:9"):
        predict_on_workers(jobs, setup, tables_of(setup, jobs), BatchConfig(scheduler="tcp://127.0.0.1:9"))
    monkeypatch.setattr("wsi_ips.inference.cluster.ANSWERS_S", 2.0)  # this one answers, on a busy machine too
    with (
        LocalCluster(
            n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=50
        ) as empty,
        pytest.raises(ClusterError, match="has no workers"),
    ):
        on_workers(jobs, setup, empty)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def dask_command(*arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "dask", *arguments]
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def sleep_first(result: SlideResult, path: Path, fingerprint: str) -> None:
    (path.parent.parent / "drawing").touch()
    time.sleep(60)


@pytest.mark.slow
def test_a_cluster_that_was_started_elsewhere_and_is_lost(
    jobs: list[SlideJob], setup: WorkerSetup, in_turn: dict[str, bytes], tmp_path: Path, checkpoint: Path
) -> None:
    """``dask scheduler`` and two ``dask worker``, as on a cluster; then the scheduler dies in mid-run."""
    address = f"tcp://127.0.0.1:{free_port()}"
    started = [dask_command("scheduler", "--host", address, "--no-dashboard")]
    try:
        started += [
            dask_command(
                "worker", address, "--nthreads", "1", "--no-dashboard", "--local-directory", str(tmp_path)
            )
            for _ in range(2)
        ]
        with Client(address, timeout=60, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=120)
        tables = tables_of(setup, jobs)
        predict_on_workers(jobs, setup, tables, BatchConfig(scheduler=address))
        assert contents(setup.run) == in_turn
        lost = replace(setup_in(tmp_path / "lost", checkpoint), draw=sleep_first)
        pid = os.fork()
        if pid == 0:
            while not (lost.run.root / "drawing").exists():
                time.sleep(0.1)
            os.kill(started[0].pid, signal.SIGKILL)
            os._exit(0)
        with pytest.raises(ClusterError, match="start the same command again"):
            predict_on_workers(jobs, lost, tables_of(lost, jobs), BatchConfig(scheduler=address))
        os.waitpid(pid, 0)
    finally:
        for process in started:
            process.kill()
            process.wait()
