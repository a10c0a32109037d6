"""Progress bars for Python: a notebook shows them by itself, a script only if it asks for them."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from time import monotonic
from typing import Any, Protocol

from wsi_ips.progress import Advance, Progress, silent

SECONDS_BETWEEN = 0.2
"""Least seconds between two redraws of a bar."""


class Shown(Protocol):
    """Something in the output of a notebook that can be changed (IPython's ``DisplayHandle``)."""

    def update(self, content: Any) -> None:
        """Show ``content`` in its place."""
        ...


@contextmanager
def shown_progress(wanted: bool | None) -> Iterator[Progress]:
    """Bars for the length of the ``with`` block. With ``wanted`` None, they are shown only in notebooks.

    In a notebook they are drawn into the output of the cell, in a script by rich on standard error.
    """
    notebook = in_notebook()
    if wanted is False or (wanted is None and not notebook):
        yield silent
    elif notebook:
        yield NotebookProgress(_display)
    else:
        from wsi_ips.commands.progress_bars import RichProgress

        with RichProgress() as bars:
            yield bars


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook (Jupyter, VS Code, Colab)."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


def _display(content: Any) -> Shown:
    from IPython.display import display

    shown: Shown = display(content, display_id=True)
    return shown


@dataclass(slots=True)
class _Bar:
    what: str
    total: int
    done: int = 0
    note: str = ""


class _Html:
    """HTML that IPython displays. IPython's own class is in a package that need not be installed."""

    def __init__(self, text: str) -> None:
        self.text = text

    def _repr_html_(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return ""


class NotebookProgress:
    """A :class:`wsi_ips.progress.Progress` whose bars are HTML in the output of a cell. No widgets are needed."""

    def __init__(self, display: Callable[[Any], Shown]) -> None:
        """Prepare to draw. ``display`` shows something and returns what can change it."""
        self._display = display
        self._shown: Shown | None = None
        self._bars: list[_Bar] = []
        self._drawn = 0.0

    @contextmanager
    def __call__(self, what: str, *, total: int) -> Iterator[Advance]:
        bar = _Bar(what, total)
        self._bars.append(bar)
        self._draw()

        def advance(note: str = "") -> None:
            bar.done, bar.note = bar.done + 1, note
            if monotonic() - self._drawn >= SECONDS_BETWEEN:
                self._draw()

        try:
            yield advance
        finally:
            if len(self._bars) > 1:  # the outermost bar stays visible in its final state
                self._bars.remove(bar)
            self._draw()
            if self._bars == [bar]:
                self._bars, self._shown = [], None

    def _draw(self) -> None:
        content = _Html("".join(map(_line, self._bars)))
        self._drawn = monotonic()
        if self._shown is None:
            self._shown = self._display(content)
        else:
            self._shown.update(content)


def _line(bar: _Bar) -> str:
    label = escape(f"{bar.what} {bar.done}/{bar.total} {bar.note}".rstrip())
    return (
        f'<div><progress value="{bar.done}" max="{max(1, bar.total)}"></progress> <code>{label}</code></div>'
    )
