"""How long work says how far it is, without knowing who shows it.

``with progress("Tiling", total=12) as advance: ... advance("slide_03")``. The library reports; only the
command line draws bars.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    def __call__(self, note: str = "") -> None:
        """One step is done; ``note`` is shown beside the bar."""


class Progress(Protocol):
    def __call__(self, what: str, *, total: int) -> AbstractContextManager[Advance]:
        """A bar of ``total`` steps for the time of a ``with`` block. Blocks may nest."""


@contextmanager
def silent(what: str, *, total: int) -> Iterator[Advance]:
    """Show nothing."""

    def advance(note: str = "") -> None:
        pass

    yield advance
