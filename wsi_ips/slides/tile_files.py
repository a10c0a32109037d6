"""Bytes of a slide's open files, from any thread."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_ips.slides.tile_layout import TileLayout

LARGEST_GAP = 16 << 10
"""Bytes between two tiles that are read along rather than skipped."""

LARGEST_READ = 4 << 20


class TileFile:
    """An open file that is read by position. It closes when nobody holds it any more.

    Not ``with``: a thread may still read while another closes the reader, and a file descriptor that was
    closed under it could by then be another file's.
    """

    def __init__(self, path: Path) -> None:
        self._close = os.close  # kept: at the interpreter's end the module may be gone first
        self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    @property
    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def read(self, offset: int, count: int) -> bytes:
        """``count`` bytes from ``offset``, or fewer where the file ends."""
        data = os.pread(self._fd, count, offset)
        while len(data) < count:  # a single read stops at 2 GiB, and may be interrupted
            more = os.pread(self._fd, count - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def read_parts(self, parts: Sequence[tuple[int, int]]) -> list[memoryview]:
        """The bytes of each (offset, count), in the order given; neighbours in the file are read at once.

        Shorter than asked where the file ends.
        """
        data: list[memoryview] = []
        for run in _runs(parts):
            start = run[0][0]
            span = memoryview(self.read(start, sum(run[-1]) - start))
            data += [span[offset - start : offset - start + count] for offset, count in run]
        return data

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            self._close(self._fd)


def read_tiles(files: Sequence[TileFile], layout: TileLayout, numbers: NDArray[np.int64]) -> list[memoryview]:
    """The stored bytes of these tiles of a level; those of a tile with several parts one after the other.

    Shorter than stated where a file ends.
    """
    offsets, counts = layout.offsets[numbers], layout.byte_counts[numbers]
    in_files = [0] if layout.files is None else np.unique(layout.files[numbers]).tolist()
    if len(in_files) == 1 and offsets.ndim == 1:
        return files[in_files[0]].read_parts(list(zip(offsets.tolist(), counts.tolist(), strict=True)))
    if layout.files is None and (offsets[:, :-1] + counts[:, :-1] == offsets[:, 1:]).all():
        # Each tile's parts lie one after the other.
        return files[0].read_parts(
            list(zip(offsets[:, 0].tolist(), counts.sum(axis=1).tolist(), strict=True))
        )
    n_parts = 1 if offsets.ndim == 1 else offsets.shape[1]
    places = np.zeros(len(numbers), np.int32) if layout.files is None else layout.files[numbers]
    of_parts, offsets, counts = np.repeat(places, n_parts), offsets.ravel(), counts.ravel()
    data: list[memoryview] = [memoryview(b"")] * len(offsets)
    for place in np.unique(of_parts).tolist():
        here = np.flatnonzero((of_parts == place) & (counts > 0))
        here = here[np.argsort(offsets[here], kind="stable")]  # what lies together is read at once
        parts = list(zip(offsets[here].tolist(), counts[here].tolist(), strict=True))
        for index, part in zip(here.tolist(), files[place].read_parts(parts), strict=True):
            data[index] = part
    if n_parts == 1:
        return data
    return [memoryview(b"".join(data[at : at + n_parts])) for at in range(0, len(data), n_parts)]


def _runs(parts: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Cut ``parts`` where the next one lies before the last one's end, or far behind it."""
    run: list[tuple[int, int]] = []
    for offset, count in parts:
        if run and (
            not 0 <= offset - sum(run[-1]) <= LARGEST_GAP or offset + count - run[0][0] > LARGEST_READ
        ):
            yield run
            run = []
        run.append((offset, count))
    if run:
        yield run
