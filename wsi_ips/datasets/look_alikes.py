"""Names that are the same to people and not to a program, such as ``P1`` and ``p1``, or ``001`` and ``1``.

Tables lose such differences: a spreadsheet takes ``001`` for the number 1, and one that a program made of columns
with gaps has ``1.0``; names come with blanks, or with an ``ü`` that is one letter or two. Two such names of one
patient put slides of the patient into two splits, and nobody sees it.
"""

import re
from collections.abc import Iterable
from unicodedata import normalize

_NUMBER = re.compile(r"0*(\d+)(?:\.0+)?")


def first_look_alikes(names: Iterable[str]) -> tuple[str, str] | None:
    """The first two names that differ only in capitals, blanks, the way that accents are written, zeros in front
    of a number or a ``.0`` behind it. None if there are none.
    """
    seen: dict[str, str] = {}
    for name in dict.fromkeys(names):
        if (first := seen.setdefault(_seen(name), name)) != name:
            return first, name
    return None


def _seen(name: str) -> str:
    number = _NUMBER.fullmatch(name)
    return number[1] if number else " ".join(normalize("NFC", name).casefold().split())
