"""HDF5: our own files written whole, files of others believed after checks."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import FileIO, RawIOBase
from pathlib import Path
from typing import Any
from uuid import uuid4

import h5py
import numpy as np

from wsi_ips.errors import FileError
from wsi_ips.storage.files import whole_file

NEVER_OPEN = "never open such a file"
MOST_VALUES = 4
"""In an attribute that is a number, a pair or a box."""
ABOUT = "about"
"""The dataset that holds what is known of a file, as JSON."""
LARGEST_TEXT_BYTES = 2**24
ALWAYS_BELIEVED_BYTES = 2**20
MOST_INFLATION = 256
"""Corners of a regular grid, shuffled and zipped, take up to 200 times less room than in memory."""


def opened_hdf5(path: Path) -> h5py.File:
    """Open a file to read from, without HDF5's lock.

    Network file systems may have no locks, and a reader's lock would keep out, or fail because of, somebody who
    has the file open to write. Files of ours are renamed into place when they are whole. Raises ``OSError`` with
    the system's error number where the file cannot be opened at all (no permission, too many open files), and
    whatever h5py raises for what is no HDF5.
    """
    with path.open("rb"):  # h5py's own error does not always keep the number
        pass
    return h5py.File(path, "r", locking=False)


@contextmanager
def streamed_hdf5(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file to write to piece by piece, whole or not there when the block ends.

    Without HDF5's lock: nobody else knows its name before. Raises ``OSError`` naming ``path`` where there is no
    room.
    """
    with whole_file(path) as partial, partial.open("w+b", buffering=0) as disk:
        written = _UntilItFails(disk)
        try:
            with h5py.File(written, "w") as file:
                yield file
        finally:
            if written.failure is not None:
                raise written.failure


class _UntilItFails(RawIOBase):
    """A file for HDF5 to write to that never fails: from the first failure on, nothing is written any more.

    HDF5 keeps a file open that cannot be written to its end, and crashes over what is left of it later. Whoever
    holds this raises ``failure`` once the file is closed.
    """

    def __init__(self, disk: FileIO) -> None:
        self._disk = disk
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        """All of it: a disk that is nearly full takes a part first."""
        left = memoryview(data).cast("B")
        size = len(left)
        if self.failure is None:
            try:
                while left:
                    left = left[self._disk.write(left) :]
            except OSError as error:
                self.failure = error
        return size

    def truncate(self, size: int | None = None) -> int:
        """As of a file."""
        return self._disk.truncate(size) if self.failure is None else size or 0

    def readinto(self, into: Any) -> int:
        """As of a file."""
        return self._disk.readinto(into) or 0

    def seek(self, offset: int, whence: int = 0) -> int:
        """As of a file."""
        return self._disk.seek(offset, whence)

    def tell(self) -> int:
        """As of a file."""
        return self._disk.tell()


@contextmanager
def whole_hdf5(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file to write to, made in memory, and written whole or not at all when the block ends.

    For files that memory holds anyway. Written to a disk that is full, HDF5 says so in a ``RuntimeError``, again
    for every object that is freed later, and keeps the file open; this raises :class:`OSError`.
    """
    with h5py.File(f"{uuid4().hex}.h5", "w", driver="core", backing_store=False) as file:
        yield file
        file.flush()
        image = file.id.get_file_image()
    with whole_file(path) as partial:
        partial.write_bytes(image)


def plain_dataset(
    file: Any, name: str, path: Path, *, error: type[FileError], fix: str = NEVER_OPEN
) -> h5py.Dataset:
    """The dataset ``name`` of an open file, if all of it lies in that file.

    A link, an external or a virtual dataset would be read from wherever it points to. Raises ``error`` for those
    and, with this ``fix``, for what is no dataset. Says nothing of its size.
    """
    if not isinstance(file.get(name, getlink=True), h5py.HardLink | None):
        raise error(path, f"keeps {name} in another file", NEVER_OPEN)
    dataset = file.get(name)
    if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
        raise error(path, f"{name} is not a plain dataset", fix)
    return dataset


def check_stored(dataset: Any, path: Path, *, error: type[FileError], fix: str = NEVER_OPEN) -> None:
    """Refuse a dataset whose values are not all in the file, or that is far larger than what the file holds.

    HDF5 gives zeros for what was never written, so a file of a few kilobytes may claim millions of patches. Raises
    ``error`` before anything of that size is allocated. fix: what the message tells the user to do.
    """
    name = dataset.name.lstrip("/")
    claimed, held = math.prod(dataset.shape) * dataset.dtype.itemsize, dataset.id.get_storage_size()
    if claimed > max(ALWAYS_BELIEVED_BYTES, MOST_INFLATION * held):
        raise error(path, f"{name} claims {claimed:,} bytes, of which the file holds {held:,}", fix)
    if dataset.chunks is None:
        whole = claimed == 0 or held > 0
    else:
        blocks = math.prod(
            -(-side // block) for side, block in zip(dataset.shape, dataset.chunks, strict=True)
        )
        whole = dataset.id.get_num_chunks() >= blocks
    if not whole:
        raise error(path, f"{name} was not written to its end", fix)


def small_numbers(attributes: Any, names: Iterable[str]) -> dict[str, Any]:
    """Those of these attributes that are there: numbers, a few each.

    Their type is looked at before they are read: an attribute may claim any size, and HDF5's library crashes over
    damaged text. Raises ``ValueError`` for one that is anything else.
    """
    found = {}
    for name in names:
        if name in attributes:
            held = attributes.get_id(name)
            if held.dtype.kind not in "iuf" or math.prod(held.shape) > MOST_VALUES:
                raise ValueError(f"{name} is {held.dtype} of shape {held.shape}, not a number")
            found[name] = attributes[name]
    return found


def fixed_text(text: str) -> np.bytes_:
    """UTF-8 in bytes of a fixed number: what :func:`stated_text` reads.

    Text of variable length lies elsewhere in the file, and HDF5's library crashes over a damaged place of it.
    """
    return np.bytes_(text.encode("utf-8", "surrogateescape"))


def stated_text(attributes: Any, name: str) -> str | None:
    """An attribute that :func:`fixed_text` made; None where there is none, or text of variable length."""
    if name not in attributes:
        return None
    held = attributes.get_id(name)
    if held.dtype.kind != "S" or held.shape != () or held.dtype.itemsize > LARGEST_TEXT_BYTES:
        return None
    return bytes(attributes[name]).decode("utf-8", "surrogateescape")


def put_about(file: Any, about: Mapping[str, Any]) -> None:
    """What is known of an open file, as JSON in the scalar dataset ``about``."""
    file[ABOUT] = fixed_text(json.dumps(about))


def take_about(file: Any, path: Path, *, error: type[FileError], fix: str) -> Mapping[str, Any]:
    """What :func:`put_about` wrote. Raises ``error``, or ``ValueError`` for JSON that is broken."""
    dataset = plain_dataset(file, ABOUT, path, error=error, fix=fix)
    size = dataset.dtype.itemsize
    if dataset.dtype.kind != "S" or dataset.shape != () or size > LARGEST_TEXT_BYTES:
        raise error(path, f"{ABOUT} is {dataset.dtype} of shape {dataset.shape}, not a text", fix)
    try:
        held = json.loads(bytes(dataset[()]).decode("utf-8", "surrogateescape"))
    except RecursionError:
        raise ValueError(f"{ABOUT} is nested too deep") from None
    if not isinstance(held, dict):
        raise ValueError(f"{ABOUT} is no JSON object")
    return held
