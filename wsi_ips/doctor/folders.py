"""Folders that slides are read from or results are written to: locks, HDF5, free space and speed."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from wsi_ips.doctor.findings import Check, Finding
from wsi_ips.errors import ResultsError
from wsi_ips.storage.system import forget_cached

LEAST_FREE_GIB = 5.0
"""GiB of free space below which a warning is given; features of a hundred slides take about as much."""

NO_SPACE_GIB = 0.1
"""GiB of free space below which nothing can be written any more."""

TRIED_MIB = 64
"""MiB that are written and read back to see how fast the folder is."""

SLOW_MIB_S = 30.0
"""MiB per second below which reading slides is slower than decoding them."""

PROBE = ".wsi-ips-doctor-"
"""Beginning of the name of the folder in which things are tried; it is removed again."""


def folder_checks(folders: Sequence[Path], *, quick: bool) -> list[Check]:
    """The checks of these folders. ``quick`` leaves out how fast they are."""
    checks = []
    for folder in folders:
        checks.append(Check(f"folder {folder}", folder_of_slides_or_results, {"folder": folder}))
        if not quick:
            checks.append(Check(f"speed of {folder}", speed, {"folder": folder}))
    return checks


def folder_of_slides_or_results(folder: Path) -> list[Finding]:
    """Whether the folder is there and can be written to, whether its locks work, HDF5's too, and its space."""
    name = f"folder {folder}"
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        return [Finding(name, "fault", what, "make it with mkdir, or name another with --folder")]
    if not os.access(folder, os.R_OK | os.X_OK):
        return [Finding(name, "fault", "may not be read", "ask its owner for the permission")]
    usage = shutil.disk_usage(folder)
    free = f"{usage.free / 2**30:.1f} of {usage.total / 2**30:.1f} GiB are free"
    try:
        with _probe(folder) as inside:
            problems = [*_locks(name, inside), *_hdf5(name, inside)]
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        fix = "slides may lie there; write results to another folder"
        return [Finding(name, "warning", f"can be read, not written to ({why}); {free}", fix)]
    if usage.free / 2**30 < NO_SPACE_GIB:
        problems.append(Finding(name, "fault", f"is full: {free}", "free some space"))
    elif usage.free / 2**30 < LEAST_FREE_GIB:
        problems.append(Finding(name, "warning", free, "free some space: features and overlays may not fit"))
    return problems or [Finding(name, "ok", f"can be written to, locks work, HDF5's too; {free}")]


@contextmanager
def _probe(folder: Path) -> Iterator[Path]:
    """A new folder in ``folder``, which is removed again. Raises ``OSError`` if nothing can be made there."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=PROBE, ignore_cleanup_errors=True) as inside:
        yield Path(inside)


def _locks(name: str, inside: Path) -> list[Finding]:
    """Take the lock of a run's folder, and see that it cannot be taken twice."""
    from wsi_ips.storage.held_folder import HOLDER, Holder, locked

    with locked(inside):
        by_system = Holder.from_json((inside / HOLDER).read_text()).by_system
        try:
            with locked(inside):
                pass
        except ResultsError:
            pass
        else:
            return [
                Finding(
                    name,
                    "fault",
                    "its locks do not keep a second run out",
                    "do not write into it from two runs",
                )
            ]
    if not by_system:
        fix = "mount it with locks; until then see that no two runs write into one folder"
        return [
            Finding(name, "warning", f"has no file locks: only the file {HOLDER} keeps other runs out", fix)
        ]
    return []


def _hdf5(name: str, inside: Path) -> list[Finding]:
    """Write an HDF5 file as results are written, read it back, and see whether HDF5's own locks work."""
    import h5py
    import numpy as np

    from wsi_ips.storage.hdf5 import opened_hdf5, whole_hdf5

    path, values = inside / "tried.h5", np.arange(4096, dtype=np.int64)
    with whole_hdf5(path) as file:
        file["values"] = values
    with opened_hdf5(path) as file:
        if not np.array_equal(file["values"][()], values):
            return [
                Finding(name, "fault", "an HDF5 file comes back with other numbers", "do not use this drive")
            ]
    try:
        with h5py.File(path, "a", locking=True) as file:
            file["more"] = 1
    except OSError:
        fix = "wsi-ips needs none of them; for other programs set HDF5_USE_FILE_LOCKING=FALSE"
        return [Finding(name, "warning", "HDF5's own file locks do not work", fix)]
    return []


def speed(folder: Path) -> Finding | list[Finding]:
    """How fast the folder is written and read, in MiB per second, without what the system has cached as far as
    it can be asked to forget that. Nothing is said of a folder that is not there: the check before says so.
    """
    name = f"speed of {folder}"
    if not folder.is_dir():
        return []
    if not os.access(folder, os.W_OK):
        return Finding(name, "ok", "not measured: nothing can be written there")
    if shutil.disk_usage(folder).free < 8 * TRIED_MIB * 2**20:
        return Finding(name, "ok", "not measured: there is too little space")
    block = os.urandom(2**20)
    try:
        with _probe(folder) as inside:
            path = inside / "tried"
            start = time.perf_counter()
            with path.open("wb") as file:
                for _ in range(TRIED_MIB):
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
            written = TRIED_MIB / (time.perf_counter() - start)
            start = time.perf_counter()
            cached = _read_again(path)
            read = TRIED_MIB / (time.perf_counter() - start)
    except OSError as error:
        return Finding(name, "ok", f"not measured: {(error.strerror or str(error)).lower()}")
    told = f"{written:,.0f} MiB/s written, {read:,.0f} MiB/s read" + (" (from the cache)" if cached else "")
    if min(written, read) < SLOW_MIB_S:
        return Finding(name, "warning", told, "copy the slides to a local drive before a training")
    return Finding(name, "ok", told)


def _read_again(path: Path) -> bool:
    """Read the file. Returns whether the system could not be asked to forget it before."""
    with path.open("rb", buffering=0) as file:
        forgets = forget_cached(file.fileno())
        while file.read(2**20):
            pass
    return not forgets
