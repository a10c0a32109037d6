"""A disk with little room, for tests of what happens when it is full: a tmpfs, where this process may mount one.

It is mounted outside pytest's temporary folders. A mount that a killed run left within them makes every later run
fail, because pytest removes the folders of earlier runs and cannot remove a mount.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

PREFIX = "wsi_ips_small_disk_"


@contextmanager
def small_disk(*, kilobytes: int) -> Iterator[Path]:
    """The folder of a disk of that size, which is gone afterwards; skips where mounting is not allowed."""
    remove_abandoned()
    disk = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}_"))
    words = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)]
    mounted = subprocess.run(words, capture_output=True, check=False)
    try:
        if mounted.returncode:
            pytest.skip(f"no small disk: {mounted.stderr.decode().strip()}")
        yield disk
    finally:
        _remove(disk)


def remove_abandoned() -> None:
    """Unmount the disks of test processes that were killed."""
    for disk in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if not Path("/proc", disk.name.removeprefix(PREFIX).split("_")[0]).exists():
            _remove(disk)


def _remove(disk: Path) -> None:
    if disk.is_mount():
        subprocess.run(["umount", "--lazy", str(disk)], check=False)
    # Of two test processes that remove an abandoned disk one comes too late.
    with suppress(FileNotFoundError):
        shutil.rmtree(disk)
