"""Numbers as people read them."""

import math

from wsi_ips.config import TaskConfig
from wsi_ips.errors import one_line
from wsi_ips.heatmaps.legend import short

LONGEST_TEXT = 600
"""Letters of an untrusted text, an error or a path, that are shown."""


def duration(seconds: float) -> str:
    """``0.42 s``, ``38 s``, ``12 min 5 s``, ``3 h 20 min``."""
    if seconds < 10:
        return f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def count(number: int, thing: str, things: str | None = None) -> str:
    """``1 slide``, ``1,024 slides``."""
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"


def figure(value: float | None) -> str:
    """Three digits after the point for a share, three in all for other numbers; a dash for none."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.3f}" if abs(value) < 10 else short(value)


def raw(value: float) -> str:
    """Three digits of raw attention, ``8.10e-4``."""
    return short(value)


def millimetres(l0_length: float, mpp: float) -> str:
    """A length of the slide, in mm."""
    return f"{l0_length * mpp / 1000:.3g}"


def shortened(text: str) -> str:
    """A text in one line that cannot fill the page: its middle goes, names differ at their ends."""
    line = one_line(text)
    if len(line) <= LONGEST_TEXT:
        return line
    half = LONGEST_TEXT // 2
    return f"{line[:half]} … {line[-half:]}"


def answer(task: TaskConfig, outputs: dict[str, float]) -> str:
    """What a slide was called in one task: as ``pred`` in ``predictions.csv``, for people."""
    if task.activation == "linear":
        return ", ".join(f"{outputs[name]:.4g}" for name in task.classes)
    if task.activation == "sigmoid":
        return ", ".join(name for name in task.classes if outputs[name] >= 0.5) or "none"
    return max(task.classes, key=lambda name: outputs[name])
