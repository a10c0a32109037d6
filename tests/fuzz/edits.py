"""Files as bytes, and the changes that turn one set of them into another, as data that JSON can hold."""

import base64
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Files = Mapping[str, bytes]
"""{path relative to the input's folder: content}. The first path's first part is what the program is given."""

SHORT = 64
"""Bytes that are written as hexadecimal digits; more of them are compressed."""
FEW_RUNS = 32


@dataclass(frozen=True, slots=True)
class Edit:
    """In ``file`` the ``removed`` bytes from ``at`` on give way to ``inserted``."""

    file: str
    at: int
    removed: int
    inserted: bytes

    def to_json(self) -> list[Any]:
        return [self.file, self.at, self.removed, packed(self.inserted)]

    @classmethod
    def from_json(cls, held: Sequence[Any]) -> "Edit":
        return cls(held[0], held[1], held[2], unpacked(held[3]))


def apply(files: Files, edits: Iterable[Edit]) -> dict[str, bytes]:
    """The files after one edit upon the other."""
    changed = dict(files)
    for edit in edits:
        data = changed.get(edit.file, b"")
        changed[edit.file] = data[: edit.at] + edit.inserted + data[edit.at + edit.removed :]
    return changed


def edits_between(file: str, before: bytes, after: bytes) -> list[Edit]:
    """What turns ``before`` into ``after``: an edit for each run of other bytes, or one from the first difference
    to the last."""
    if len(before) == len(after):
        runs = _runs(before, after)
        if len(runs) <= FEW_RUNS:
            return [Edit(file, start, end - start, after[start:end]) for start, end in runs]
    shorter = min(len(before), len(after))
    head = _same(before[:shorter], after[:shorter])
    tail = _same(before[head:][::-1][: shorter - head], after[head:][::-1][: shorter - head])
    return [Edit(file, head, len(before) - tail - head, after[head : len(after) - tail])]


def _same(one: bytes, other: bytes) -> int:
    """How many bytes are the same before the first that is not; both have the same length."""
    different = np.flatnonzero(np.frombuffer(one, np.uint8) != np.frombuffer(other, np.uint8))
    return int(different[0]) if len(different) else len(one)


def _runs(before: bytes, after: bytes) -> list[tuple[int, int]]:
    """From and up to where the bytes differ; both have the same length."""
    different = np.flatnonzero(np.frombuffer(before, np.uint8) != np.frombuffer(after, np.uint8))
    pieces = np.split(different, np.flatnonzero(np.diff(different) > 1) + 1) if len(different) else []
    return [(int(piece[0]), int(piece[-1]) + 1) for piece in pieces]


def packed(data: bytes) -> str:
    """Bytes as text: hexadecimal digits, or ``z:`` and base64 of what zlib makes of them."""
    if len(data) <= SHORT:
        return data.hex()
    return "z:" + base64.b64encode(zlib.compress(data, 9)).decode()


def unpacked(text: str) -> bytes:
    """What :func:`packed` was given."""
    return zlib.decompress(base64.b64decode(text[2:])) if text.startswith("z:") else bytes.fromhex(text)


def write_files(folder: Path, files: Files) -> Path:
    """Write the files below ``folder``. Returns what the program is to be given."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder / next(iter(files)).partition("/")[0]


def read_files(folder: Path, first: str = "") -> dict[str, bytes]:
    """All files below a folder, those that lie at or below ``first`` before the others."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = sorted(
        (str(path.relative_to(folder)) for path in paths), key=lambda name: not name.startswith(first)
    )
    return {name: (folder / name).read_bytes() for name in names}
