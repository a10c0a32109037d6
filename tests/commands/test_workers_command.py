"""``features`` and ``tile`` on workers: of our own, on several devices, and of a dask scheduler."""

import csv
import gc
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed import LocalCluster

from tests.clusters import two_workers
from tests.commands.console import Console
from tests.commands.deadly import features, install, rows, start, write_deadly
from tests.conftest import SmallData
from wsi_ips.commands.features import FeaturesJob, FeaturesTask
from wsi_ips.commands.recipe import make_job
from wsi_ips.config import WorkersConfig
from wsi_ips.errors import ResultsError
from wsi_ips.inference.slide_tasks import workers_wanted
from wsi_ips.streaming.device import device_of_worker

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
    pytest.mark.usefixtures("same_threads"),
]

PATCHES = ("--patch-px", "32", "--patch-mpp", "2.0", "--set", "tiling.min_tissue=0.2")


@pytest.fixture(scope="module")
def threads() -> Iterator[LocalCluster]:
    """Workers that are threads of this process, which has everything imported."""
    with two_workers(processes=False, protocol="tcp") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def processes() -> Iterator[LocalCluster]:
    with two_workers(processes=True, protocol="tcp") as cluster:
        yield cluster


CLUSTERS = ["threads", pytest.param("processes", marks=pytest.mark.slow)]


@pytest.fixture(params=CLUSTERS)
def cluster(request: pytest.FixtureRequest) -> LocalCluster:
    found: LocalCluster = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def slides(small_data: SmallData, tmp_path: Path) -> Path:
    """Three good slides and one that is none."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for path in sorted(small_data.slides.glob("*.tif"))[:3]:
        (folder / path.name).symlink_to(path)
    (folder / "zz.tif").write_bytes(b"II*\0 and no more")
    return folder


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def contents(out: Path, *patterns: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for pattern in patterns for path in out.glob(pattern)}


STORED = ("h5_files/*.h5", "pt_files/*.pt", "features.csv")


@pytest.mark.parametrize("by", [*CLUSTERS, pytest.param("workers", marks=pytest.mark.slow)])
def test_features_of_workers_are_those_of_one_process(
    console: Console,
    slides: Path,
    small_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    by: str,
) -> None:
    """By workers of our own or of a scheduler; what is stored is not done again, or sent to anybody."""
    arguments = ("features", slides, "--checkpoint", small_checkpoint, "--threads", "1", "--out")
    one, out = tmp_path / "one", tmp_path / "out"
    workers = ("--workers", "2")
    if by != "workers":
        workers = ("--scheduler", request.getfixturevalue(by).scheduler_address)
    said = console(*arguments, one)
    assert said.code == 3
    assert [row["status"] for row in table(one / "features.csv")] == ["ok"] * 3 + ["failed"]
    shared = console(*arguments, out, *workers)
    assert (shared.code, shared.out) == (3, said.out.replace(str(one), str(out)))
    assert contents(out, *STORED) == contents(one, *STORED)
    (slides / "zz.tif").unlink()
    before = {path: path.stat().st_mtime_ns for path in out.glob("h5_files/*")}
    monkeypatch.setattr("wsi_ips.inference.cluster.shared_on_cluster", None)
    assert console(*arguments, out, "--workers", "2").code == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("h5_files/*")} == before


def test_tiles_of_a_scheduler_are_those_of_one_process(
    console: Console, slides: Path, tmp_path: Path, cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the workers run elsewhere
    assert console("tile", "slides", "--out", "one", *PATCHES).code == 3
    said = console("tile", "slides", "--out", "two", *PATCHES, "--scheduler", cluster.scheduler_address)
    assert said.code == 3
    assert "3 slides" in said.out
    patterns = ("patches/*.h5", "contours_geojson/*", "previews/*")
    assert contents(Path("two"), *patterns) == contents(Path("one"), *patterns)
    one, two = (table(Path(out) / "tiles.csv") for out in ("one", "two"))
    assert [{**row, "error": ""} for row in two] == [{**row, "error": ""} for row in one]
    assert [bool(row["error"]) for row in two] == [False, False, False, True]
    said = console("tile", "slides", "--out", "two", *PATCHES, "--scheduler", cluster.scheduler_address)
    assert "3 slides were tiled already" in said.out


def test_a_slide_given_by_itself_raises_its_error(
    console: Console, slides: Path, small_checkpoint: Path, tmp_path: Path, cluster: LocalCluster
) -> None:
    by = ("--scheduler", cluster.scheduler_address)
    for command in (("features", slides / "zz.tif", "--checkpoint", small_checkpoint),
                    ("tile", slides / "zz.tif")):  # fmt: skip
        here = console(*command, "--out", tmp_path / "here")
        there = console(*command, "--out", tmp_path / "there", *by)
        assert (there.code, there.complaint) == (2, here.complaint)


@pytest.mark.parametrize("command", ["features", "tile"])
def test_the_connection_is_closed_where_the_command_fails(
    console: Console,
    slides: Path,
    small_checkpoint: Path,
    tmp_path: Path,
    threads: LocalCluster,
    command: str,
) -> None:
    """And not by the garbage collector, in whichever thread it runs: in one of dask's it would wait forever."""
    model = ("--checkpoint", small_checkpoint) if command == "features" else ()
    gc.disable()
    try:
        said = console(command, slides / "zz.tif", *model, "--out", tmp_path / "out",
                       "--scheduler", threads.scheduler_address)  # fmt: skip
        assert said.code == 2
        connected = [name for name in threads.scheduler.clients if name.startswith("Client-")]
    finally:
        gc.enable()
    assert connected == []


@pytest.mark.parametrize("command", ["features", "tile"])
def test_a_scheduler_that_is_not_there_is_said_in_one_line(
    console: Console,
    small_data: SmallData,
    small_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    monkeypatch.setattr("wsi_ips.inference.cluster.ANSWERS_S", 0.2)
    model = ("--checkpoint", small_checkpoint) if command == "features" else ()
    said = console(command, small_data.slides, *model, "--out", tmp_path / "out",
                   "--scheduler", "tcp://127.0.0.1:9")  # fmt: skip
    assert said.code == 2
    assert "no dask scheduler answers at tcp://127.0.0.1:9" in said.complaint
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_slide_that_kills_its_workers_is_a_row(
    small_data: SmallData, small_checkpoint: Path, tmp_path: Path
) -> None:
    """b kills whoever opens it, c killed the first who did; the others are done all the same, in one start."""
    install(tmp_path / "installed")
    slides = tmp_path / "slides"
    slides.mkdir()
    good = sorted(small_data.slides.glob("*.tif"))[:3]
    shutil.copy(good[0], slides / "a.tif")
    write_deadly(slides / "b.tif", "SIGSEGV", good[1])
    write_deadly(slides / "c.tif", "once", good[1])
    shutil.copy(good[2], slides / "d.tif")
    said = (*features(slides, small_checkpoint, slides), "--workers", "2", "--set", "batch.retries=1")
    code, printed = start(tmp_path / "installed", *said, "--out", tmp_path / "out")
    assert code == 3, printed
    found = rows(tmp_path / "out" / "features.csv")
    assert {name: row["status"] for name, row in found.items()} == {
        "a": "ok", "b": "failed", "c": "ok", "d": "ok"
    }  # fmt: skip
    assert "workers in turn died while they read it alone" in found["b"]["error"]


def test_workers_take_turns_on_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with three cards, which are not there."""
    assert [str(device_of_worker("auto", place)) for place in (0, 5)] == ["cpu", "cpu"]
    assert [str(device_of_worker("cpu, meta", place)) for place in range(4)] == ["cpu", "meta"] * 2
    assert workers_wanted(WorkersConfig(), "auto") is None
    assert workers_wanted(WorkersConfig(), "cpu") is None
    assert workers_wanted(WorkersConfig(workers=1), "auto") == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    for name in ("auto", "cuda"):
        assert [str(device_of_worker(name, place)) for place in range(5)] == [
            "cuda:0", "cuda:1", "cuda:2", "cuda:0", "cuda:1"
        ]  # fmt: skip
        assert workers_wanted(WorkersConfig(), name) == 3
    assert workers_wanted(WorkersConfig(), "cuda:0,cuda:2") == 2
    assert workers_wanted(WorkersConfig(workers=7), "auto") == 7
    assert workers_wanted(WorkersConfig(), "cuda:1") is None


@pytest.mark.slow
def test_a_worker_loads_the_encoder_on_its_own_device(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that does not see the folder of the run writes nothing into one of its own."""
    asked: list[tuple[str, int]] = []

    def of_worker(name: str, place: int) -> torch.device:
        asked.append((name, place))
        return torch.device("meta")

    monkeypatch.setattr("wsi_ips.streaming.device.device_of_worker", of_worker)
    out = tmp_path / "out"
    values: dict[str, Any] = {"slides": tmp_path, "out": out, "checkpoint": small_checkpoint}
    job = make_job({"command": "features", "device": "cuda:0,cuda:1", **values}, source="test")
    assert isinstance(job, FeaturesJob)
    task = FeaturesTask(job, threads=None)
    with pytest.raises(ResultsError, match="where a worker runs"):
        task.on_worker(1)
    out.mkdir()
    (out / "run.json").write_text("{}")
    storing = task.on_worker(3).storing
    assert asked == [("cuda:0,cuda:1", 1), ("cuda:0,cuda:1", 3)]
    assert {str(weight.device) for weight in storing.export.encoder.parameters()} == {"meta"}
    assert str(storing.device) == "meta"
