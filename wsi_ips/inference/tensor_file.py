"""A tensor as ``torch.save`` writes it, row by row: the whole of it is never in memory.

Such a file is a ZIP archive whose parts are not compressed. PyTorch lays it out with a hole where the numbers
belong (``torch.serialization.skip_data``); they are filled in, and the part's checksum with them.
"""

import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO
from zipfile import ZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from wsi_ips.files import whole_file

_LOCAL_HEADER_BYTES, _CENTRAL_HEADER_BYTES = 30, 46
_DESCRIPTOR, _CENTRAL = b"PK\x07\x08", b"PK\x01\x02"


def save_rows(
    path: Path, blocks: Iterable[NDArray[np.floating]], *, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    """Write a tensor whose rows come in blocks, whole or not at all; ``torch.load`` reads it.

    Raises ``ValueError`` for rows that are not of this shape and type.
    """
    rows, width = shape
    with whole_file(path) as partial:
        with partial.open("wb") as file, torch.serialization.skip_data():
            # Memory that nobody touches is never there.
            torch.save(torch.empty(shape, dtype=dtype), file)
        with partial.open("r+b") as file:
            begin, size, central = _place_of_numbers(partial, file)
            file.seek(begin)
            checksum, left = 0, rows
            for block in blocks:
                if block.shape[1:] != (width,) or block.dtype != torch.empty(0, dtype=dtype).numpy().dtype:
                    raise ValueError(f"{block.dtype} rows of shape {block.shape[1:]}")
                left -= len(block)
                data = np.ascontiguousarray(block).tobytes()
                if left < 0:
                    break
                file.write(data)
                checksum = zlib.crc32(data, checksum)
            if left:
                raise ValueError(f"{rows - left} rows, not {rows}")
            _write_checksum(file, begin + size, _DESCRIPTOR, 4, checksum)
            _write_checksum(file, central, _CENTRAL, 16, checksum)


def _place_of_numbers(path: Path, file: BinaryIO) -> tuple[int, int, int]:
    """Where the numbers begin, how many bytes they are, and where the archive's index describes them."""
    with ZipFile(path) as archive:
        parts = archive.infolist()
        number = next(n for n, part in enumerate(parts) if part.filename.endswith("/data/0"))
        index = archive.start_dir
    part = parts[number]
    name, extra = _lengths(file, part.header_offset + 26, "<HH")
    begin = part.header_offset + _LOCAL_HEADER_BYTES + name + extra
    for _ in range(number):
        index += _CENTRAL_HEADER_BYTES + sum(_lengths(file, index + 28, "<HHH"))
    return begin, part.file_size, index


def _lengths(file: BinaryIO, place: int, layout: str) -> tuple[int, ...]:
    file.seek(place)
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


def _write_checksum(file: BinaryIO, record: int, signature: bytes, after: int, checksum: int) -> None:
    file.seek(record)
    if file.read(len(signature)) != signature:
        raise ValueError("this PyTorch lays its files out in another way")
    file.seek(record + after)
    file.write(struct.pack("<I", checksum))
