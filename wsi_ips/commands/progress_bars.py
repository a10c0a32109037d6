"""Progress bars on a terminal; a quiet line per stage where there is none."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

from wsi_ips.progress import Advance


class _Rate(ProgressColumn):
    """Steps per second, or seconds per step where they are slow."""

    def render(self, task: Task) -> Text:
        if not task.speed:
            return Text("")
        return Text(f"{task.speed:.1f}/s" if task.speed >= 1 else f"{1 / task.speed:.1f} s each")


class RichProgress:
    """A :class:`wsi_ips.progress.Progress` that draws on standard error, so that output can be piped."""

    def __init__(self) -> None:
        self._console = Console(file=sys.stderr)
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            _Rate(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    @contextmanager
    def __call__(self, what: str, *, total: int) -> Iterator[Advance]:
        outermost = not self._bars.tasks
        if outermost and not self._console.is_terminal:
            self._console.print(f"{what} ({total}) ...", highlight=False)
        task = self._bars.add_task(what, total=total, note="")

        def advance(note: str = "") -> None:
            self._bars.update(task, advance=1, note=note)

        try:
            yield advance
        finally:
            self._bars.remove_task(task)
