"""``predict`` with workers, strange names, and kills, as from a command line."""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands.console import Console
from tests.conftest import SmallData
from wsi_ips.errors import ClusterError

ROOT = Path(__file__).resolve().parents[2]
STRANGE = ("Case A 1.tif", "case a 1.tif", "Präparat é.tif", "slide.v2.final.tif", "-dash.tif", "50%.tif")


def table(path: Path, key: str = "slide_id") -> dict[str, dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return {row[key]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize("on", [(), pytest.param(("--workers", "2"), marks=pytest.mark.slow)])
def test_names_with_spaces_accents_and_of_another_case(
    console: Console, small_data: SmallData, small_checkpoint: Path, tmp_path: Path, on: tuple[str, ...]
) -> None:
    """With patients, here and on two workers; nothing is lost, nothing is mixed up."""
    slides, sources = tmp_path / "in put", sorted(small_data.slides.iterdir())
    slides.mkdir()
    for name, source in zip(STRANGE, sources, strict=True):
        (slides / name).symlink_to(source)
    (tmp_path / "cases.csv").write_text(
        "slide_id,case_id\n" + "".join(f"{Path(name).stem},P{at // 2}\n" for at, name in enumerate(STRANGE))
    )
    out = tmp_path / "out put"
    said = console(
        "predict", slides, "--checkpoint", small_checkpoint, "--out", out, *on, "--embeddings",
        "--cases", tmp_path / "cases.csv", "--pool", "mean",
    )  # fmt: skip
    assert said.code == 0, said
    assert "6 of 6 slides labelled" in said.out
    stems = {Path(name).stem for name in STRANGE}
    assert set(table(out / "predictions.csv")) == set(table(out / "slides.csv")) == stems
    assert {path.stem for path in (out / "attention").iterdir()} == stems
    assert {path.stem for path in (out / "overlays").iterdir()} == stems
    assert {row["n_slides"] for row in table(out / "cases.csv", "case_id").values()} == {"2"}


def test_a_start_says_what_was_done_before_and_which_slides_its_tables_lose(
    console: Console,
    small_data: SmallData,
    small_checkpoint: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, second = sorted(small_data.slides.iterdir())[:2]
    how = ("--checkpoint", small_checkpoint, "--out", tmp_path, "--no-overlays")
    assert "labelled already" not in console("predict", first, *how).out
    said = console("predict", first, *how)
    assert "1 of 1 slide was labelled already, from the same files and settings" in said.out
    assert "lists the slides of this start only" not in caplog.text
    assert "labelled already" not in console("predict", second, *how).out
    assert list(table(tmp_path / "predictions.csv")) == [second.stem]
    assert f"lists the slides of this start only, no longer {first.stem}, which" in caplog.text


def test_two_slides_of_one_name_are_refused_before_anything_is_done(
    console: Console, small_data: SmallData, small_checkpoint: Path, tmp_path: Path
) -> None:
    source = sorted(small_data.slides.iterdir())[0]
    for folder in ("a", "b"):
        (tmp_path / "slides" / folder).mkdir(parents=True)
        (tmp_path / "slides" / folder / "one.tif").symlink_to(source)
    said = console(
        "predict", tmp_path / "slides", "--checkpoint", small_checkpoint, "--out", tmp_path / "out"
    )
    assert said.code == 2
    assert "two slides share the id one" in said.complaint
    assert "a/one.tif" in said.complaint
    assert "b/one.tif" in said.complaint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--scheduler", "tcp://127.0.0.1:9"), "no dask scheduler answers at tcp://127.0.0.1:9"),
        (("--set", "batch.shard_patches=100"), "selection.rule: global"),
        (("--workers", "0"), "batch.workers: Input should be greater than 0"),
        (("--on-error", "ignore"), "batch.on_error: Input should be 'report' or 'stop'"),
        (("--cases", "gone.csv"), "gone.csv: does not exist"),
    ],
)
def test_what_cannot_be_is_said_before_the_first_slide(
    console: Console,
    small_data: SmallData,
    small_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    why: str,
) -> None:
    monkeypatch.setattr("wsi_ips.inference.cluster.ANSWERS_S", 0.2)
    out = tmp_path / "out"
    said = console("predict", small_data.slides, "--checkpoint", small_checkpoint, "--out", out, *options)
    assert said.code == 2
    assert why in said.complaint
    assert not out.exists()


def test_a_scheduler_that_is_lost_ends_the_command_with_what_is_done(
    console: Console,
    small_data: SmallData,
    small_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """(The real loss of one: tests/inference/test_batch.py.)"""

    def lost(*_: object, **__: object) -> None:
        raise ClusterError("the connection to the dask scheduler was lost")

    out = tmp_path / "out"
    one = sorted(small_data.slides.iterdir())[0]
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / one.name).symlink_to(one)
    arguments = ("predict", tmp_path / "slides", "--checkpoint", small_checkpoint, "--out", out)
    assert console(*arguments).code == 0
    second = sorted(small_data.slides.iterdir())[1]
    (tmp_path / "slides" / second.name).symlink_to(second)
    monkeypatch.setattr("wsi_ips.inference.batch.predict_on_workers", lost)
    said = console(*arguments, "--workers", "2")
    assert said.code == 2
    assert "was lost" in said.complaint
    assert set(table(out / "predictions.csv")) == {one.stem}
    assert table(out / "slides.csv")[second.stem]["status"] == "waiting"


@pytest.mark.slow
@pytest.mark.parametrize("way", [(), ("--workers", "2")])
def test_a_run_that_is_killed_again_and_again_ends_as_any_other(
    small_data: SmallData, small_checkpoint: Path, tmp_path: Path, way: tuple[str, ...]
) -> None:
    """Twenty kills are in benchmarks/batch.py."""

    def start(out: Path) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [
                sys.executable, "-m", "wsi_ips.cli", "predict", str(small_data.slides), "--checkpoint",
                str(small_checkpoint), "--out", str(out), "--threads", "1", "--device", "cpu", *way,
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip

    def contents(run: Path) -> dict[str, bytes]:
        files = [run / "predictions.csv", *run.glob("attention/*"), *run.glob("overlays/*")]
        return {path.name: path.read_bytes() for path in files}

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    started = time.perf_counter()
    assert start(whole).wait() == 0
    lasts, moments = time.perf_counter() - started, random.Random(0)
    for _ in range(4):
        process = start(killed)
        try:
            process.wait(timeout=moments.uniform(0.3, 1) * lasts)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
    assert start(killed).wait() == 0
    assert contents(killed) == contents(whole)
