"""The folder of a prediction run: where things lie, whose run it is, and who writes into it now."""

import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from wsi_ips.errors import ConfigError, ResultsError
from wsi_ips.files import PARTIAL, whole_file
from wsi_ips.versions import versions

LARGEST_DESCRIPTION_BYTES = 10_000_000
DECIDES = ("slide_mpp", "mpp_csv", "from_coords")
"""Settings, beside the checkpoint, that change what is written. Where slides lie and how fast they are read
does not: a run may go on over more slides, or on another device."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where a prediction run keeps what it writes."""

    root: Path

    @property
    def predictions(self) -> Path:
        return self.root / "predictions.csv"

    @property
    def cases(self) -> Path:
        return self.root / "cases.csv"

    @property
    def slides(self) -> Path:
        return self.root / "slides.csv"

    @property
    def description(self) -> Path:
        return self.root / "run.json"

    def attention(self, slide_id: str) -> Path:
        return self.root / "attention" / f"{slide_id}.h5"

    def overlay(self, slide_id: str) -> Path:
        return self.root / "overlays" / f"{slide_id}.png"

    def forget(self, slide_id: str) -> None:
        """Remove what an earlier run left of this slide: no old picture beside a new failure."""
        for path in (self.attention(slide_id), self.overlay(slide_id)):
            path.unlink(missing_ok=True)


@contextmanager
def claimed(
    run: RunFolder, *, config: Mapping[str, Any], checkpoint: Path, sha256: str, force: bool = False
) -> Iterator[None]:
    """Hold the folder for the time of the ``with`` block, with a ``run.json`` that says what is run.

    A run of the same checkpoint and settings that was there before is gone on with. Raises
    :class:`ConfigError` where there was another one (``force`` removes what it wrote), :class:`ResultsError`
    while another process holds the folder; a process that died holds nothing.
    """
    there = run.root.exists()
    run.root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run.root / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ResultsError(
            run.root, "another run is writing into it", "wait for it, or write elsewhere"
        ) from None
    try:
        different = _difference(run, config, sha256)
        if different and not force:
            raise ConfigError(
                f"{run.root} holds a run with other settings ({different}); write elsewhere, or give --force "
                "to replace it"
            )
        if different:
            _clear(run)
        _sweep(run)
        describe_run(run, config=config, checkpoint=checkpoint, sha256=sha256)
        yield
    except BaseException:
        if not there and not any(run.root.glob("attention/*.h5")):
            _leave_nothing(run)
        raise
    finally:
        lock.release()


def describe_run(run: RunFolder, *, config: Mapping[str, Any], checkpoint: Path, sha256: str) -> None:
    """Write ``run.json``: what is run, with which checkpoint and versions, where and since when."""
    description = {
        "command": "predict",
        "config": config,
        "checkpoint": {"path": str(checkpoint), "sha256": sha256},
        "versions": versions(),
        "host": platform.node(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with whole_file(run.description) as partial:
        partial.write_text(json.dumps(description, indent=2) + "\n")


def _difference(run: RunFolder, config: Mapping[str, Any], sha256: str) -> str:
    """What sets the run that is there apart from this one, in words; empty if nothing does."""
    if not run.description.is_file():
        return ""
    try:
        if run.description.stat().st_size > LARGEST_DESCRIPTION_BYTES:
            raise ValueError("too large")
        there = json.loads(run.description.read_text(encoding="utf-8"))
        before, theirs = there["checkpoint"]["sha256"], there["config"]
        if before != sha256:
            return f"checkpoint {before[:12]} there, {sha256[:12]} here"
        for name in DECIDES:
            if theirs.get(name) != config.get(name):
                return f"{name} {theirs.get(name)} there, {config.get(name)} here"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "its run.json cannot be read"
    return ""


def _leave_nothing(run: RunFolder) -> None:
    """A run that ended before its first slide was done takes its new folder with it."""
    for path in (run.predictions, run.slides, run.cases, run.description, run.root / ".lock"):
        path.unlink(missing_ok=True)
    for folder in (run.root / "attention", run.root / "overlays", run.root):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _sweep(run: RunFolder) -> None:
    """Remove what killed writers left unfinished: the lock says that nobody writes now."""
    for folder in (run.root, run.root / "attention", run.root / "overlays"):
        for path in folder.glob(PARTIAL):
            path.unlink(missing_ok=True)


def _clear(run: RunFolder) -> None:
    """Remove the results that are there, and nothing else."""
    run.predictions.unlink(missing_ok=True)
    run.slides.unlink(missing_ok=True)
    run.cases.unlink(missing_ok=True)
    for path in [*run.root.glob("attention/*.h5"), *run.root.glob("overlays/*.png")]:
        path.unlink()
