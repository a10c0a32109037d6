"""Damage to containers of pixels by one who knows them: TIFF, NDPI, JPEG, DICOM."""

import re
import struct
from random import Random

from tests.fuzz.odd_values import LONG_WORDS, NUMBERS, any_number, get, put
from tests.fuzz.text_mutators import text_number, text_piece

TAGS = (254, 256, 257, 258, 259, 262, 273, 277, 279, 284, 317, 322, 323, 324, 325, 330, 347, 530, 700, 34675)
MARKERS = (
    0xC0,
    0xC1,
    0xC2,
    0xC3,
    0xC4,
    0xC9,
    0xD0,
    0xD7,
    0xD8,
    0xD9,
    0xDA,
    0xDB,
    0xDC,
    0xDD,
    0xE0,
    0xEE,
    0xFE,
)
DICOM_KINDS = (b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OW PN SH SL SQ SS ST TM UC UI UL UN UR US UT UV"
               ).split()  # fmt: skip


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
        return put(data, at, order + "H", chance.choice((*TAGS, chance.randrange(65536))))
    if field == "type":
        return put(data, at + 2, order + "H", chance.randrange(20))
    if field == "count":
        return put(data, at + 4, order + number, any_number(chance, order + number))
    if field == "value":
        return put(data, at + offset_at, order + number, any_number(chance, order + number))
    (place,) = struct.unpack_from(order + number, data, at + offset_at)
    kind = order + chance.choice("HIQ")
    return put(data, place + chance.choice((0, 0, 4, 8)), kind, any_number(chance, kind))


def _directory_entries(data: bytes, order: str, *, big: bool) -> list[int]:
    """Where the entries of all directories begin, SubIFDs among them."""
    head, count, size, next_kind, many = (8, "Q", 20, "Q", 8) if big else (4, "H", 12, "I", 2)
    entries: list[int] = []
    waiting, seen = [get(data, head, order + next_kind)], set()
    while waiting and len(seen) < 50:
        at = waiting.pop()
        if at in seen or not 0 < at < len(data):
            continue
        seen.add(at)
        number = min(get(data, at, order + count), 100)
        for each in range(at + many, at + many + number * size, size):
            entries.append(each)
            if get(data, each, order + "H") == 330:  # SubIFDs, where one value alone is in the entry itself
                at_value = each + (12 if big else 8)
                place = get(data, at_value, order + next_kind)
                waiting += [place, *(get(data, place + step, order + next_kind) for step in range(0, 32, 8))]
        waiting.append(get(data, at + many + number * size, order + next_kind))
    return [each for each in entries if each + size <= len(data)]


def ndpi_field(chance: Random, data: bytes) -> bytes:
    """Hamamatsu's: entries as in classic TIFF, offsets of eight bytes."""
    entries, at, seen = [], get(data, 4, "<Q"), set()
    while 0 < at < len(data) and at not in seen:
        seen.add(at)
        number = min(get(data, at, "<H"), 100)
        entries += range(at + 2, at + 2 + 12 * number, 12)
        at = get(data, at + 2 + 12 * number, "<Q")
    if not entries:
        return data
    at = chance.choice(entries)
    field = chance.choice(("tag", "type", "count", "value", "value", "there", "there"))
    if field in ("tag", "type"):
        return put(
            data,
            at + 2 * (field == "type"),
            "<H",
            chance.choice((1, 2, 3, 4, 5, 9, 11, 256, 257, 273, 279, 65426)),
        )
    if field in ("count", "value"):
        return put(data, at + (4 if field == "count" else 8), "<I", any_number(chance, "<I"))
    return put(data, get(data, at + 8, "<I") + chance.choice((0, 4, 8)), "<I", any_number(chance, "<I"))


def embedded_text(chance: Random, data: bytes) -> bytes:
    """A number or a piece of the text or XML that a container holds, in as many bytes as before."""
    runs = list(re.finditer(rb"[\x20-\x7e]{24,}", data))
    if not runs:
        return data
    run = chance.choice(runs)
    text = text_number(chance, run[0]) if chance.random() < 0.7 else text_piece(chance, run[0])
    return data[: run.start()] + text[: len(run[0])].ljust(len(run[0])) + data[run.end() :]


def jpeg_marker(chance: Random, data: bytes) -> bytes:
    """One marker of one of the JPEGs in a file becomes another, or its length, size or tables change."""
    found = [match.start() for match in re.finditer(rb"\xff[\xc0-\xfe]", data)]
    if not found:
        return data
    at = chance.choice(found[: chance.choice((12, len(found)))])
    what = chance.choice(("marker", "length", "size", "content", "drop"))
    if what == "marker":
        return put(data, at + 1, "B", chance.choice(MARKERS))
    if what == "length":
        return put(data, at + 2, ">H", chance.choice((0, 1, 2, 3, 255, 65535)))
    if what == "size":
        return put(
            data, at + chance.choice((5, 7)), ">H", chance.choice((0, 1, 7, 65, 129, 257, 65500, 65535))
        )
    if what == "content":
        return put(
            data, at + chance.randrange(4, 20), "B", chance.choice((0, 1, 2, 4, 0x11, 0x22, 0x41, 0xFF))
        )
    return data[:at] + data[at + 2 :]


def dicom_length(chance: Random, data: bytes) -> bytes:
    """The length of one element, item or sequence."""
    places = _dicom_elements(data)
    items = [match.start() + 4 for match in re.finditer(rb"\xfe\xff(\x00\xe0|\x0d\xe0|\xdd\xe0)", data)]
    if not places or (items and chance.random() < 0.3):
        return put(data, chance.choice(items), "<I", any_number(chance, "<I")) if items else data
    at, long = chance.choice(places)
    kind, place = ("<I", at + 8) if long else ("<H", at + 6)
    return put(data, place, kind, any_number(chance, kind))


def dicom_value(chance: Random, data: bytes) -> bytes:
    """The value of one element, of the same length; or its VR or tag."""
    places = _dicom_elements(data)
    if not places:
        return data
    at, long = chance.choice(places)
    start, length = (at + 12, get(data, at + 8, "<I")) if long else (at + 8, get(data, at + 6, "<H"))
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
