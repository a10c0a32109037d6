"""HDF5 files: those of wsi_ips are written whole, and those of others are checked before they are believed.

:func:`whole_hdf5` and :func:`streamed_hdf5` write, :func:`opened_hdf5` reads. Nothing that a file claims about
itself may cost memory or lead to another file: take datasets from :func:`plain_dataset` and pass them through
:func:`check_stored` before reading them.
"""

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
"""The fix for a file that looks hostile."""

MOST_VALUES = 4
"""The most values of an attribute that is a number, a pair or a box."""

ABOUT = "about"
"""Name of the dataset that describes a file, as JSON."""

LARGEST_TEXT_BYTES = 2**24
"""The longest text that is read."""

ALWAYS_BELIEVED_BYTES = 2**20
"""A dataset that claims no more than this needs no check of its size."""

MOST_INFLATION = 256
"""How many times larger than in the file a dataset may be in memory.

The corners of a regular grid, shuffled and zipped, shrink to as little as a 200th.
"""


def opened_hdf5(path: Path) -> h5py.File:
    """Open an HDF5 file for reading, without HDF5's lock.

    Network file systems may have no locks. A reader's lock would also keep out somebody who writes to the file, or
    fail because of them. Files of wsi_ips need none, because they are renamed into place when they are complete.

    Raises ``OSError`` with the number of the system's error if the file cannot be opened at all (no permission,
    too many open files), and whatever h5py raises for a file that is not HDF5.
    """
    with path.open("rb"):  # h5py's own error does not always keep the number
        pass
    return h5py.File(path, "r", locking=False)


@contextmanager
def streamed_hdf5(path: Path) -> Iterator[h5py.File]:
    """Yield an HDF5 file to write to piece by piece. It becomes ``path`` when the block ends without an error.

    HDF5's lock is not used, since nobody else knows the temporary name. Raises ``OSError`` that names ``path`` if
    the disk is full.
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
    """A file for HDF5 to write to that never raises. After the first failure nothing more is written.

    HDF5 keeps a file open that it could not write to the end, and crashes later over what is left of it. The
    caller raises ``failure`` once the file is closed.
    """

    def __init__(self, disk: FileIO) -> None:
        self._disk = disk
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of ``data``, and return its length. A disk that is nearly full first takes a part."""
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
        """Set the size of the file, unless writing has failed."""
        return self._disk.truncate(size) if self.failure is None else size or 0

    def readinto(self, into: Any) -> int:
        """Read into a buffer and return how many bytes were read."""
        return self._disk.readinto(into) or 0

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move the position, and return it."""
        return self._disk.seek(offset, whence)

    def tell(self) -> int:
        """The position in the file."""
        return self._disk.tell()


@contextmanager
def whole_hdf5(path: Path) -> Iterator[h5py.File]:
    """Yield an HDF5 file in memory. It is written to ``path``, whole, when the block ends without an error.

    Use it for files that fit into memory. When HDF5 itself writes to a full disk, it raises ``RuntimeError``,
    again for every object that is freed later, and keeps the file open. This function raises ``OSError``.
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

    A soft or external link, an external dataset and a virtual dataset would be read from wherever they point to.
    The size of the dataset is not checked, see :func:`check_stored`.

    Args:
        file: An open ``h5py.File`` or group.
        name: Name of the dataset.
        path: Path of the file, for the message.
        error: The class of error to raise.
        fix: What the message tells the user to do if ``name`` is missing or not a plain dataset.

    Raises ``error`` if the dataset is missing, is not a dataset, or lies elsewhere.
    """
    if not isinstance(file.get(name, getlink=True), h5py.HardLink | None):
        raise error(path, f"keeps {name} in another file", NEVER_OPEN)
    dataset = file.get(name)
    if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
        raise error(path, f"{name} is not a plain dataset", fix)
    return dataset


def check_stored(dataset: Any, path: Path, *, error: type[FileError], fix: str = NEVER_OPEN) -> None:
    """Refuse a dataset whose values are not all in the file, or that claims far more than the file holds.

    HDF5 returns zeros for values that were never written, so a file of a few kilobytes may claim millions of
    patches.

    Args:
        dataset: An open ``h5py.Dataset``.
        path: Path of the file, for the message.
        error: The class of error to raise.
        fix: What the message tells the user to do.

    Raises ``error`` before anything of the claimed size is allocated.
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
    """Read those of the named attributes that are there. Each has to be a number or a few numbers.

    The type is checked before the value is read: an attribute may claim any size, and the HDF5 library crashes
    over damaged text. Raises ``ValueError`` for an attribute of another type or of more than four values.
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
    """Text as UTF-8 of a fixed length, which :func:`stated_text` reads back.

    HDF5 keeps text of variable length elsewhere in the file, and crashes if that place is damaged.
    """
    return np.bytes_(text.encode("utf-8", "surrogateescape"))


def stated_text(attributes: Any, name: str) -> str | None:
    """The text of an attribute that was written with :func:`fixed_text`.

    Returns None if there is no such attribute, or if it is something else, such as text of variable length.
    """
    if name not in attributes:
        return None
    held = attributes.get_id(name)
    if held.dtype.kind != "S" or held.shape != () or held.dtype.itemsize > LARGEST_TEXT_BYTES:
        return None
    return bytes(attributes[name]).decode("utf-8", "surrogateescape")


def put_about(file: Any, about: Mapping[str, Any]) -> None:
    """Write the description of a file, as JSON, into its scalar dataset ``about``."""
    file[ABOUT] = fixed_text(json.dumps(about))


def take_about(file: Any, path: Path, *, error: type[FileError], fix: str) -> Mapping[str, Any]:
    """Read the description that :func:`put_about` wrote into an open file.

    ``path`` and ``fix`` are for the message. Raises ``error`` if the dataset is missing or is not a text, and
    ``ValueError`` if it is not a JSON object.
    """
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
