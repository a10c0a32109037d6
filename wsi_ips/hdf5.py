"""HDF5: our own files written whole, files of others believed after checks."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import h5py

from wsi_ips.errors import FileError
from wsi_ips.files import whole_file

NEVER_OPEN = "never open such a file"
MOST_VALUES = 4
"""In an attribute that is a number, a pair or a box."""


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
    file: Any, name: str, path: Path, *, error: type[FileError], mend: str = NEVER_OPEN
) -> h5py.Dataset:
    """The dataset ``name`` of an open file, if all of it lies in that file.

    A link, an external or a virtual dataset would be read from wherever it points to. Raises ``error`` for those
    and, with this ``mend``, for what is no dataset. Says nothing of its size.
    """
    if not isinstance(file.get(name, getlink=True), h5py.HardLink | None):
        raise error(path, f"keeps {name} in another file", NEVER_OPEN)
    dataset = file.get(name)
    if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
        raise error(path, f"{name} is not a plain dataset", mend)
    return dataset


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
