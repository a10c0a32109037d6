"""Ways to damage a file: blindly, by splicing two, and with knowledge of what its bytes mean.

Each takes a source of chance and the file's bytes, and returns other bytes; one that finds nothing to change
returns them as they are.
"""

import struct
from collections.abc import Callable, Sequence
from random import Random

from tests.fuzz.binary_mutators import (
    dicom_length,
    dicom_value,
    embedded_text,
    jpeg_marker,
    ndpi_field,
    tiff_field,
)
from tests.fuzz.odd_values import LONG_WORDS
from tests.fuzz.stored_mutators import hdf5_attribute, hdf5_dataset, safetensors_header
from tests.fuzz.text_mutators import json_value, lines_mixed, nesting, text_number, text_piece

Mutate = Callable[[Random, bytes], bytes]


def mutators_of(name: str, data: bytes, *, sound: bool) -> Sequence[Mutate]:
    """What suits a file of this name and beginning; what knows its format comes several times.

    sound: nothing was changed in it yet. HDF5's library, which crashes over damaged files, opens no others.
    """
    lower = name.lower()
    special: list[Mutate] = []
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        special = [ndpi_field if lower.endswith(".ndpi") else tiff_field] * 6 + [jpeg_marker, embedded_text]
    elif data[128:132] == b"DICM":
        special = [dicom_length, dicom_value, dicom_value, jpeg_marker]
    elif data[:2] == b"\xff\xd8":
        special = [jpeg_marker] * 3
    elif data[:4] == b"\x89HDF" and sound:
        special = [hdf5_attribute] * 3 + [hdf5_dataset] * 2
    elif lower.endswith(".safetensors"):
        special = [safetensors_header] * 4
    elif lower.endswith((".json", ".geojson", ".zattrs", ".zarray", ".zgroup")):
        special = [json_value] * 6 + [nesting]
    elif lower.endswith((".xml", ".csv", ".yaml", ".yml", ".ini", ".txt", ".md5")):
        return [text_number, text_number, text_number, text_piece, text_piece, nesting, lines_mixed, bit_flips,
                truncated]  # fmt: skip
    return [*special, bit_flips, words_set, words_set, bytes_set, truncated, grown, cut_out, repeated]


def bit_flips(chance: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5, 20)) if data else 0):
        changed[_place(chance, len(data))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def bytes_set(chance: Random, data: bytes) -> bytes:
    start = _place(chance, len(data) + 1)
    count = min(chance.choice((1, 2, 4, 16, 200)), len(data) - start)
    value = chance.choice((0, 0xFF, 0x20, 0x39, chance.randrange(256)))
    return data[:start] + bytes([value]) * count + data[start + count :]


def words_set(chance: Random, data: bytes) -> bytes:
    """A number at an even place, of two, four or eight bytes, in either order."""
    kind = chance.choice(["<H", ">H", "<I", "<I", ">I", "<Q", ">Q"])
    size = struct.calcsize(kind)
    if len(data) < size:
        return data
    at = _place(chance, len(data) - size + 1) // 2 * 2
    value = chance.choice(LONG_WORDS) & (1 << 8 * size) - 1
    return data[:at] + struct.pack(kind, value) + data[at + size :]


def truncated(chance: Random, data: bytes) -> bytes:
    return data[
        : chance.choice((0, 1, len(data) // 2, max(0, len(data) - 1), chance.randrange(len(data) + 1)))
    ]


def grown(chance: Random, data: bytes) -> bytes:
    return data + chance.choice((b"\0", b"\xff", b" ", data[:100])) * chance.choice((1, 7, 4096))


def cut_out(chance: Random, data: bytes) -> bytes:
    start = _place(chance, len(data) + 1)
    return data[:start] + data[start + chance.choice((1, 2, 8, 64, 1000)) :]


def repeated(chance: Random, data: bytes) -> bytes:
    start = _place(chance, len(data) + 1)
    piece = data[start : start + chance.choice((1, 4, 12, 64, 500))]
    return data[:start] + piece * chance.choice((2, 3, 50)) + data[start + len(piece) :]


def spliced(chance: Random, data: bytes, other: bytes) -> bytes:
    """The beginning of one file and the end of another, or a piece of the other in the midst of the first."""
    start, theirs = _place(chance, len(data) + 1), _place(chance, len(other) + 1)
    if chance.random() < 0.5:
        return data[:start] + other[theirs:]
    piece = other[theirs : theirs + chance.choice((8, 64, 1000, 10_000))]
    return data[:start] + piece + data[start + len(piece) :]


def _place(chance: Random, length: int) -> int:
    """A place in a file: headers more often than the rest."""
    within = chance.choice((64, 600, 4000, length, length))
    return chance.randrange(max(1, min(within, length)))
