"""Ways to damage a file: blindly, by splicing two, and with knowledge of what its bytes mean.

Each takes a source of chance and the file's bytes, and returns other bytes; one that finds nothing to change
returns them as they are.
"""

import io
import json
import re
import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import h5py
import numpy as np

Mutate = Callable[[Random, bytes], bytes]

WORDS = (0, 1, 2, 7, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
LONG_WORDS = (*WORDS, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1)
NUMBERS = ("0", "-1", "1", "-0", "0.0", "1e308", "1e-320", "1e999", "-1e999", "nan", "NaN", "Infinity", "inf",
           "2147483647", "4294967296", "9223372036854775808", "9" * 400, "0x10", "1_000", "٣", "½", "+5",
           "0.00001", "1.7976931348623157e308", "", " ", "abc", "true", "null", "~", "12:30:45", "0o17")  # fmt: skip
TEXTS = ("\0", "\x1b[2J", "\x1b]0;x\x07", "\r", "\n", "\u2028", "\u202e", "\ud800", "ÿ", "𝔘", "a" * 5000, "../x", "/",
         ".", "..", "C:\\x", "%00", "%s%n", "{0}", "http://127.0.0.1:9/x", "file:///etc/passwd", "'", '"', "`",
         "\ufeff", "\x7f", "\x85", "é" * 300)  # fmt: skip
DEPTHS = (50, 1500, 30_000)
DICOM_KINDS = (b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OW PN SH SL SQ SS ST TM UC UI UL UN UR US UT UV"
               ).split()  # fmt: skip
HDF5_TYPES = ("i1", "i4", "i8", "u8", "f2", "f4", "f8", "S1", "S300", "?", "c8")


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
    kind = chance.choice("<H >H <I <I >I <Q >Q".split())
    size = struct.calcsize(kind)
    if len(data) < size:
        return data
    at = _place(chance, len(data) - size + 1) // 2 * 2
    value = chance.choice(LONG_WORDS) & (1 << 8 * size) - 1
    return data[:at] + struct.pack(kind, value) + data[at + size :]


def truncated(chance: Random, data: bytes) -> bytes:
    return data[: chance.choice((0, 1, len(data) // 2, max(0, len(data) - 1), chance.randrange(len(data) + 1)))]


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


# -- TIFF ------------------------------------------------------------------------------------------------------


def tiff_field(chance: Random, data: bytes) -> bytes:
    """One entry of one directory gets another tag, type, count or value; or a value that it points to."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:3] == b"+" or data[3:4] == b"+"
    entries = _directory_entries(data, order, big=big)
    if not entries:
        return data
    at = chance.choice(entries)
    number, offset_at = ("Q", 12) if big else ("I", 8)
    field = chance.choice(("tag", "type", "count", "value", "value", "value", "there", "there"))
    if field == "tag":
        return _put(data, at, order + "H", chance.choice((254, 256, 257, 258, 259, 262, 273, 277, 279, 284, 317, 322,
                    323, 324, 325, 330, 347, 530, 700, 34675, chance.randrange(65536))))  # fmt: skip
    if field == "type":
        return _put(data, at + 2, order + "H", chance.randrange(20))
    if field == "count":
        return _put(data, at + 4, order + number, _number(chance, order + number))
    if field == "value":
        return _put(data, at + offset_at, order + number, _number(chance, order + number))
    (place,) = struct.unpack_from(order + number, data, at + offset_at)
    kind = order + chance.choice("HIQ")
    return _put(data, place + chance.choice((0, 0, 4, 8)), kind, _number(chance, kind))


def _directory_entries(data: bytes, order: str, *, big: bool) -> list[int]:
    """Where the entries of all directories begin, SubIFDs among them."""
    head, count, size, next_kind, many = (8, "Q", 20, "Q", 8) if big else (4, "H", 12, "I", 2)
    entries: list[int] = []
    waiting, seen = [_get(data, head, order + next_kind)], set()
    while waiting and len(seen) < 50:
        at = waiting.pop()
        if at in seen or not 0 < at < len(data):
            continue
        seen.add(at)
        number = min(_get(data, at, order + count), 100)
        for each in range(at + many, at + many + number * size, size):
            entries.append(each)
            if _get(data, each, order + "H") == 330:  # SubIFDs, where one value alone is in the entry itself
                at_value = each + (12 if big else 8)
                place = _get(data, at_value, order + next_kind)
                waiting += [place, *(_get(data, place + step, order + next_kind) for step in range(0, 32, 8))]
        waiting.append(_get(data, at + many + number * size, order + next_kind))
    return [each for each in entries if each + size <= len(data)]


def ndpi_field(chance: Random, data: bytes) -> bytes:
    """Hamamatsu's: entries as in classic TIFF, offsets of eight bytes."""
    entries, at, seen = [], _get(data, 4, "<Q"), set()
    while 0 < at < len(data) and at not in seen:
        seen.add(at)
        number = min(_get(data, at, "<H"), 100)
        entries += range(at + 2, at + 2 + 12 * number, 12)
        at = _get(data, at + 2 + 12 * number, "<Q")
    if not entries:
        return data
    at = chance.choice(entries)
    field = chance.choice(("tag", "type", "count", "value", "value", "there", "there"))
    if field in ("tag", "type"):
        return _put(data, at + 2 * (field == "type"), "<H", chance.choice((1, 2, 3, 4, 5, 9, 11, 256, 257, 273, 279, 65426)))
    if field in ("count", "value"):
        return _put(data, at + (4 if field == "count" else 8), "<I", _number(chance, "<I"))
    return _put(data, _get(data, at + 8, "<I") + chance.choice((0, 4, 8)), "<I", _number(chance, "<I"))


def embedded_text(chance: Random, data: bytes) -> bytes:
    """A number or a piece of the text or XML that a container holds, in as many bytes as before."""
    runs = list(re.finditer(rb"[\x20-\x7e]{24,}", data))
    if not runs:
        return data
    run = chance.choice(runs)
    text = text_number(chance, run[0]) if chance.random() < 0.7 else text_piece(chance, run[0])
    return data[: run.start()] + text[: len(run[0])].ljust(len(run[0])) + data[run.end() :]


def _number(chance: Random, kind: str) -> int:
    return chance.choice(LONG_WORDS) & (1 << 8 * struct.calcsize(kind)) - 1


def _get(data: bytes, at: int, kind: str) -> int:
    if not 0 <= at <= len(data) - struct.calcsize(kind):
        return 0
    return int(struct.unpack_from(kind, data, at)[0])


def _put(data: bytes, at: int, kind: str, value: int) -> bytes:
    size = struct.calcsize(kind)
    if not 0 <= at <= len(data) - size:
        return data
    return data[:at] + struct.pack(kind, value & (1 << 8 * size) - 1) + data[at + size :]


# -- JPEG, DICOM -----------------------------------------------------------------------------------------------


def jpeg_marker(chance: Random, data: bytes) -> bytes:
    """One marker of one of the JPEGs in a file becomes another, or its length, size or tables change."""
    found = [match.start() for match in re.finditer(rb"\xff[\xc0-\xfe]", data)]
    if not found:
        return data
    at = chance.choice(found[: chance.choice((12, len(found)))])
    what = chance.choice(("marker", "length", "size", "content", "drop"))
    if what == "marker":
        return _put(data, at + 1, "B", chance.choice((0xC0, 0xC1, 0xC2, 0xC3, 0xC4, 0xC9, 0xD0, 0xD7, 0xD8, 0xD9, 0xDA,
                    0xDB, 0xDC, 0xDD, 0xE0, 0xEE, 0xFE)))  # fmt: skip
    if what == "length":
        return _put(data, at + 2, ">H", chance.choice((0, 1, 2, 3, 255, 65535)))
    if what == "size":
        return _put(data, at + chance.choice((5, 7)), ">H", chance.choice((0, 1, 7, 65, 129, 257, 65500, 65535)))
    if what == "content":
        return _put(data, at + chance.randrange(4, 20), "B", chance.choice((0, 1, 2, 4, 0x11, 0x22, 0x41, 0xFF)))
    return data[:at] + data[at + 2 :]


def dicom_length(chance: Random, data: bytes) -> bytes:
    """The length of one element, item or sequence."""
    places = _dicom_elements(data)
    items = [match.start() + 4 for match in re.finditer(rb"\xfe\xff(\x00\xe0|\x0d\xe0|\xdd\xe0)", data)]
    if not places or (items and chance.random() < 0.3):
        return _put(data, chance.choice(items), "<I", _number(chance, "<I")) if items else data
    at, long = chance.choice(places)
    kind, place = ("<I", at + 8) if long else ("<H", at + 6)
    return _put(data, place, kind, _number(chance, kind))


def dicom_value(chance: Random, data: bytes) -> bytes:
    """The value of one element, of the same length; or its VR or tag."""
    places = _dicom_elements(data)
    if not places:
        return data
    at, long = chance.choice(places)
    start, length = (at + 12, _get(data, at + 8, "<I")) if long else (at + 8, _get(data, at + 6, "<H"))
    what = chance.choice(("number", "text", "kind", "tag"))
    if what == "kind":
        return data[: at + 4] + chance.choice(DICOM_KINDS) + data[at + 6 :]
    if what == "tag":
        other = chance.choice(places)[0]
        return data[:at] + data[other : other + 4] + data[at + 4 :]
    if not 0 < length < 300 or start + length > len(data):
        return data
    if what == "number":
        value = struct.pack("<Q", chance.choice(LONG_WORDS))[: min(length, 8)].ljust(length, b"\0")
    else:
        value = chance.choice(NUMBERS).encode()[:length].ljust(length)
    return data[:start] + value + data[start + length :]


def _dicom_elements(data: bytes) -> list[tuple[int, bool]]:
    """Where elements with an explicit VR begin, and whether their length has four bytes."""
    kinds = b"|".join(DICOM_KINDS)
    long = {b"OB", b"OD", b"OF", b"OL", b"OW", b"SQ", b"UC", b"UN", b"UR", b"UT", b"UV"}
    found = re.finditer(rb"[\x00-\x70]\x00..(" + kinds + rb")", data[:200_000], re.DOTALL)
    return [(match.start(), match[1] in long) for match in found]


# -- HDF5, safetensors -----------------------------------------------------------------------------------------


def hdf5_attribute(chance: Random, data: bytes) -> bytes:
    """One attribute becomes a number, text or array that it should not be; or goes, or a new one comes."""

    def change(file: Any) -> None:
        holders = [file, *(file[name] for name in file)]
        holder = chance.choice([each for each in holders if len(each.attrs)] or holders)
        name = chance.choice([*holder.attrs, "patch_size"])
        if chance.random() < 0.15:
            holder.attrs.pop(name, None)
            return
        kind = chance.choice(HDF5_TYPES)
        value = chance.choice((0, 1, -1, 3, 2.5, 1e308, 2**31, 2**62, float("nan"), float("inf")))
        shape = chance.choice(((), (), (1,), (2,), (3,), (2, 2), (0,), (3000,)))
        if chance.random() < 0.2:
            holder.attrs[name] = chance.choice([*TEXTS[:3], "abc", "5", ""])
            return
        holder.attrs[name] = _values(value, kind, shape)

    return _with_hdf5(data, change)


def hdf5_dataset(chance: Random, data: bytes) -> bytes:
    """One dataset gets another type, shape or content; or becomes a group, a link or nothing."""

    def change(file: Any) -> None:
        names = list(file)
        if not names:
            return
        name = chance.choice(names)
        held = file[name]
        attributes = dict(held.attrs)
        shape = getattr(held, "shape", ())
        what = chance.choice(("type", "shape", "values", "gone", "group", "soft", "claims", "text"))
        del file[name]
        if what == "group":
            file.create_group(name)
        elif what == "soft":
            file[name] = h5py.SoftLink(chance.choice(("/", f"/{name}", "/nothing", "/" + chance.choice(names))))
        elif what == "claims":
            many = (chance.choice((10**6, 10**8, 2**40)), *shape[1:])
            file.create_dataset(name, many, "i8", chunks=(16, *shape[1:]) if shape else None)
        elif what == "text":
            file[name] = np.bytes_(chance.choice([b"{}", b"[]", b"[" * 3000, b"{", b'{"slide_id": NaN}', b"\xff"]))
        elif what != "gone":
            value = chance.choice((0, 1, -1, 2**31, 2**62, 1e300, float("nan"), float("-inf")))
            other = chance.choice(((), (0,), (1,), (5,), (5, 2), (5, 5), (0, 2), (2, 2, 2), (*shape, 1)))
            kind = chance.choice(HDF5_TYPES)
            file[name] = _values(value, kind, shape if what == "type" else other)
        if name in file and what in ("type", "shape", "claims", "values"):
            file[name].attrs.update(attributes)

    return _with_hdf5(data, change)


def _values(value: float, kind: str, shape: tuple[int, ...]) -> Any:
    with np.errstate(all="ignore"):
        if kind[0] == "S":
            return np.full(shape, str(value).encode(), kind)
        return np.full(shape, value, np.float64).astype(kind)


def _with_hdf5(data: bytes, change: Callable[[Any], None]) -> bytes:
    held = io.BytesIO(data)
    try:
        with h5py.File(held, "r+") as file:
            change(file)
    except Exception:  # an input that was damaged before, or what HDF5 does not take
        return data
    return held.getvalue()


def safetensors_header(chance: Random, data: bytes) -> bytes:
    """The JSON in front, or the eight bytes that say how long it is."""
    length = _get(data, 0, "<Q")
    if chance.random() < 0.2 or length > len(data):
        return _put(data, 0, "<Q", _number(chance, "<Q"))
    header = json_value(chance, data[8 : 8 + length])
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


# -- text ------------------------------------------------------------------------------------------------------


def json_value(chance: Random, data: bytes) -> bytes:
    """One value of a JSON document becomes another one, is doubled, goes, or is wrapped."""
    try:
        whole = json.loads(data)
    except ValueError:
        return text_number(chance, data)
    places = list(_json_places(whole))
    if not places:
        return data
    holder, key = chance.choice(places)
    old = holder[key]
    odd: list[Any] = [0, 1, -1, 2**31, 2**53 + 1, 2**64, 1.5, 1e308, float("nan"), float("inf"), None, True, "", [],
                      {}, [[]], [old, old], {"a": old}, str(old)[:2000], "9" * 5000, chance.choice(TEXTS)]  # fmt: skip
    if isinstance(old, list) and old and chance.random() < 0.3:
        holder[key] = chance.choice((old[:-1], old * 2, old * 3000 if len(old) < 5 else old[::-1]))
    elif isinstance(holder, dict) and chance.random() < 0.15:
        del holder[key]
    elif isinstance(old, str) and len(old) > 20 and old[:1] in "{[":
        holder[key] = json_value(chance, old.encode()).decode("utf-8", "replace")  # JSON within JSON
    else:
        holder[key] = chance.choice(odd)
    return json.dumps(whole).encode("utf-8", "surrogatepass")


def _json_places(value: Any, depth: int = 0) -> Any:
    if isinstance(value, dict | list) and depth < 30:
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _json_places(value[key], depth + 1)


def text_number(chance: Random, data: bytes) -> bytes:
    """One number of a text."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?", data))
    if not found:
        return text_piece(chance, data)
    match = chance.choice(found)
    other = chance.choice(NUMBERS).encode()
    return data[: match.start()] + other + data[match.end() :]


def text_piece(chance: Random, data: bytes) -> bytes:
    """Something comes between two words, or instead of one."""
    found = list(re.finditer(rb"[\w.-]+", data))
    piece = chance.choice((*TEXTS, *NUMBERS)).encode("utf-8", "surrogatepass")
    if not found:
        return data + piece
    match = chance.choice(found)
    start = chance.choice((match.start(), match.end()))
    return data[:start] + piece + data[match.end() :]


def nesting(chance: Random, data: bytes) -> bytes:
    """Lists in lists, elements in elements, aliases of aliases, a cell without end."""
    depth = chance.choice(DEPTHS)
    bomb = b"".join(b"a%d: &a%d [%s]\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 9) if i else b"x") for i in range(9))
    deep = chance.choice((
        b"[" * depth, b"[" * depth + b"]" * depth, b'{"a":' * depth, b"<a>" * depth, b"<a>" * depth + b"</a>" * depth,
        b"(" * depth, b"- " * depth, b"x" * 140_000, b'"' + b"y" * 200_000 + b'"', bomb, b"? " * depth, b"!!python/object:os.system x",
        b'<!DOCTYPE a [<!ENTITY b "' + b"c" * 1000 + b'">]><a>' + b"&b;" * 1000 + b"</a>", b"&a *a", b"\n" * 5000,
    ))  # fmt: skip
    found = list(re.finditer(rb"[\w.-]+", data))
    if not found or chance.random() < 0.2:
        return deep
    match = chance.choice(found)
    return data[: match.start()] + deep + data[match.end() :]


def lines_mixed(chance: Random, data: bytes) -> bytes:
    """A line goes, is doubled, swapped or given another number of cells."""
    lines = data.splitlines(keepends=True)
    if not lines:
        return data
    at, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    what = chance.choice(("gone", "twice", "swap", "cells", "fewer", "ends", "many"))
    if what == "gone":
        del lines[at]
    elif what == "twice":
        lines.insert(other, lines[at])
    elif what == "swap":
        lines[at], lines[other] = lines[other], lines[at]
    elif what == "cells":
        lines[at] = lines[at].rstrip(b"\n") + chance.choice((b",", b",x,y", b',"', b";", b"\t")) + b"\n"
    elif what == "fewer":
        lines[at] = lines[at].rpartition(b",")[0] + b"\n"
    elif what == "ends":
        return data.replace(b"\n", chance.choice((b"\r\n", b"\r", b"\n\n", b"\0\n")))
    elif len(lines[at]) < 1000:
        lines[at] = lines[at] * 2000
    return b"".join(lines)
