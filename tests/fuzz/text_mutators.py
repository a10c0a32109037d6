"""Damage to text: numbers, words and lines, nesting without end, and values of JSON."""

import json
import re
from random import Random
from typing import Any

from tests.fuzz.odd_values import NUMBERS, TEXTS

DEPTHS = (50, 1500, 30_000)


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
    numbers = [0, 1, -1, 2**31, 2**53 + 1, 2**64, 1.5, 1e308, float("nan"), float("inf"), "9" * 5000]
    others = [None, True, "", [], {}, [[]], [old, old], {"a": old}, str(old)[:2000], chance.choice(TEXTS)]
    if isinstance(old, list) and old and chance.random() < 0.3:
        holder[key] = chance.choice((old[:-1], old * 2, old * 3000 if len(old) < 5 else old[::-1]))
    elif isinstance(holder, dict) and chance.random() < 0.15:
        del holder[key]
    elif isinstance(old, str) and len(old) > 20 and old[:1] in "{[":
        holder[key] = json_value(chance, old.encode()).decode("utf-8", "replace")  # JSON within JSON
    else:
        holder[key] = chance.choice([*numbers, *others])
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
    bomb = b"".join(
        b"a%d: &a%d [%s]\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 9) if i else b"x") for i in range(9)
    )
    entities = b'<!DOCTYPE a [<!ENTITY b "' + b"c" * 1000 + b'">]><a>' + b"&b;" * 1000 + b"</a>"
    opened = chance.choice((b"[", b'{"a":', b"<a>", b"(", b"- ", b"? "))
    closed = chance.choice((b"[" * depth + b"]" * depth, b"<a>" * depth + b"</a>" * depth))
    long = chance.choice((b"x" * 140_000, b'"' + b"y" * 200_000 + b'"', b"\n" * 5000))
    deep = chance.choice(
        (
            opened * depth,
            opened * depth,
            closed,
            long,
            bomb,
            entities,
            b"&a *a",
            b"!!python/object:os.system x",
        )
    )
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
