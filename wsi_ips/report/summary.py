"""The top of a report (:func:`summarise`): how many slides, what they were predicted to be, where the time went.

:func:`duration`, :func:`count`, :func:`figure` and their neighbours write numbers as people read them.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import median

from wsi_ips.config import TaskConfig
from wsi_ips.errors import count, one_line
from wsi_ips.heatmaps.display_scale import CLASS_COLOURS, short
from wsi_ips.inference.telemetry import SlideTelemetry
from wsi_ips.report.stored_run import StoredRun, StoredSlide

LONGEST_TEXT = 600
"""Characters of an untrusted text (an error or a path) that are shown, at most."""

BINS = 20
"""Bins of a histogram."""

GREY = "#7d8791"
"""Colour of a histogram that belongs to no class."""

STAGES = {"open_s": "opening and tissue", "waited_s": "waiting for patches", "copy_s": "to the device",
          "encode_s": "encoding", "select_s": "selecting"}  # fmt: skip
"""Parts of a slide's time, by their field in the telemetry."""

STAGE_COLOURS = ("#8a7fb5", "#d39b46", "#8f9aa6", "#4080a0", "#5e9c6a", "#b9b4ab")
"""Colours of these parts and of the rest."""


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a bar: its share of the whole (0 to 1), and its colour for CSS."""

    name: str
    shown: str
    share: float
    colour: str


@dataclass(frozen=True, slots=True)
class Histogram:
    """A histogram of probabilities in bins of equal width from 0 to 1.

    ``of`` says whose probability it is; ``colours`` has one colour per bin, for CSS.
    """

    of: str
    counts: Sequence[int]
    colours: Sequence[str]

    @property
    def most(self) -> int:
        """The count of the fullest bin."""
        return max(self.counts)


@dataclass(frozen=True, slots=True)
class TaskSummary:
    """What the slides were predicted to be in one task.

    ``parts`` has one piece per class; for classes that are independent of each other (``stacked`` False), each is
    a share of all slides, and they do not add up. ``histogram`` shows the last of two classes, or the predicted
    one of several. ``numbers`` describes numeric outputs.
    """

    name: str
    parts: Sequence[Part]
    stacked: bool
    histogram: Histogram | None
    numbers: str = ""


@dataclass(frozen=True, slots=True)
class TimeSummary:
    """Where the time went, over the slides whose time was recorded."""

    total: str
    slides: int
    median: str
    slowest: str
    slowest_number: int
    per_second: str
    parts: Sequence[Part]
    peak_memory: str


@dataclass(frozen=True, slots=True)
class Summary:
    """The top of a report. ``counts`` maps each status to its number of slides."""

    counts: dict[str, int]
    patches: int
    tasks: Sequence[TaskSummary]
    time: TimeSummary | None


def summarise(run: StoredRun) -> Summary:
    """Sum up a run from its tables alone: no slide and no attention is opened."""
    labelled = [slide for slide in run.slides if slide.probabilities is not None]
    counts = dict.fromkeys(("ok", "failed", "unfinished"), 0) | Counter(slide.status for slide in run.slides)
    return Summary(
        counts=counts,
        patches=sum(slide.n_patches or 0 for slide in labelled),
        tasks=[summarise_task(task, labelled) for task in run.tasks] if labelled else [],
        time=summarise_time(run.slides),
    )


def summarise_task(task: TaskConfig, slides: Sequence[StoredSlide]) -> TaskSummary:
    """Sum up one task over the slides that have predictions; there has to be at least one."""
    outputs = [dict(slide.probabilities[task.name]) for slide in slides if slide.probabilities is not None]
    if task.activation == "linear":
        return TaskSummary(task.name, (), False, None, "; ".join(_spread(outputs, n) for n in task.classes))
    if task.activation == "sigmoid":
        called = Counter(name for one in outputs for name in task.classes if one[name] >= 0.5)
    else:
        called = Counter(answer(task, one) for one in outputs)
    parts = [
        Part(name, f"{called[name]:,}", called[name] / len(outputs), class_colour(place))
        for place, name in enumerate(task.classes)
    ]
    return TaskSummary(task.name, parts, task.activation == "softmax", _histogram(task, outputs))


def _spread(outputs: Sequence[dict[str, float]], name: str) -> str:
    values = [one[name] for one in outputs if isfinite(one[name])]
    if not values:
        return f"{name}: no number"
    return f"{name}: median {median(values):.4g}, from {min(values):.4g} to {max(values):.4g}"


def _histogram(task: TaskConfig, outputs: Sequence[dict[str, float]]) -> Histogram | None:
    if task.activation == "sigmoid" and len(task.classes) > 1:
        return None
    if len(task.classes) <= 2:
        values, of = [one[task.classes[-1]] for one in outputs], f"probability of {task.classes[-1]}"
        # Left of the middle it is the other class that is called.
        last = [int(len(task.classes) == 2 and 2 * place >= BINS) for place in range(BINS)]
        colours = [class_colour(place) for place in last]
    else:
        values, of = [max(one.values()) for one in outputs], "probability of the called class"
        colours = [GREY] * BINS
    bins = [min(BINS - 1, int(value * BINS)) for value in values if isfinite(value) and 0 <= value <= 1]
    filled = Counter(bins)
    return Histogram(of, [filled[place] for place in range(BINS)], colours) if bins else None


def class_colour(place: int) -> str:
    """The colour of a task's class, for CSS."""
    return "#{:02x}{:02x}{:02x}".format(*CLASS_COLOURS[place % len(CLASS_COLOURS)])


def summarise_time(slides: Sequence[StoredSlide]) -> TimeSummary | None:
    """Sum up where the time went; None if no slide's time was recorded."""
    measured = [(slide, slide.telemetry) for slide in slides if slide.telemetry is not None]
    if not measured:
        return None
    total = SlideTelemetry.total(telemetry for _, telemetry in measured)
    stages = {name: getattr(total, name) for name in STAGES}
    names = {**STAGES, "rest": "the rest"}
    stages["rest"] = max(0.0, total.seconds - sum(stages.values()))
    whole = sum(stages.values())
    slowest, its = max(measured, key=lambda pair: pair[1].seconds)
    return TimeSummary(
        total=duration(total.seconds),
        slides=len(measured),
        median=duration(median(telemetry.seconds for _, telemetry in measured)),
        slowest=f"{duration(its.seconds)}, {count(int(its.patches), 'patch', 'patches')}",
        slowest_number=slowest.number,
        per_second=f"{total.patches / total.seconds:,.0f}" if total.seconds else "–",
        parts=[
            Part(names[name], duration(seconds), seconds / whole, colour)
            for (name, seconds), colour in zip(stages.items(), STAGE_COLOURS, strict=True)
            if whole and seconds / whole >= 0.001
        ],
        peak_memory=f"{total.peak_rss_mb:,.0f} MB" if total.peak_rss_mb else "–",
    )


def answer(task: TaskConfig, outputs: dict[str, float]) -> str:
    """What a slide was predicted to be in one task, in words.

    ``outputs`` maps classes to probabilities or numbers.
    """
    if task.survival is not None:
        return f"risk {outputs['risk']:.4g}"
    if task.activation == "linear":
        return ", ".join(f"{outputs[name]:.4g}" for name in task.classes)
    if task.activation == "sigmoid":
        return ", ".join(name for name in task.classes if outputs[name] >= 0.5) or "none"
    return max(task.classes, key=lambda name: outputs[name])


def duration(seconds: float) -> str:
    """Seconds in words: ``0.42 s``, ``38 s``, ``12 min 5 s``, ``3 h 20 min``."""
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


def figure(value: float | None) -> str:
    """Three decimals for a number below 10, three significant digits for larger ones, a dash for None or NaN."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.3f}" if abs(value) < 10 else short(value)


def raw(value: float) -> str:
    """A raw value with three significant digits: ``8.10e-4``."""
    return short(value)


def millimetres(l0_length: float, mpp: float) -> str:
    """A length of ``l0_length`` level-0 pixels at ``mpp`` µm per pixel, in mm."""
    return f"{l0_length * mpp / 1000:.3g}"


def shortened(text: str) -> str:
    """The text in one line, without its middle if it is long: names differ at their ends."""
    line = one_line(text)
    if len(line) <= LONGEST_TEXT:
        return line
    half = LONGEST_TEXT // 2
    return f"{line[:half]} … {line[-half:]}"
