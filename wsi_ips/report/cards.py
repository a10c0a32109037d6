"""One slide of a report: its row in the table (:func:`line_of`) and its card (:func:`make_card`).

A slide that cannot be read costs only its pictures.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from wsi_ips.config import HeatOptions, TaskConfig
from wsi_ips.config.heat import MapKind
from wsi_ips.errors import ResultsError, SlideNotFound, WsiIpsError, count
from wsi_ips.evaluation.task_scores import kind_of, positive_class
from wsi_ips.heatmaps.display_scale import ScaleBar, Tick, colours_of, short, signed
from wsi_ips.heatmaps.maps import Heat, check_same_slide, choose_heat, speaking_for
from wsi_ips.heatmaps.overlay import legend_ticks
from wsi_ips.inference.results import read_result
from wsi_ips.inference.run_folder import stored_location
from wsi_ips.report.pictures import COLOURS, Pictures, Pixels, Place, draw_pictures, read_pixels, top_places
from wsi_ips.report.stored_run import Judged, StoredRun, StoredSlide, attention_file
from wsi_ips.report.summary import Part, answer, class_colour, duration, figure, millimetres, shortened
from wsi_ips.slides.registry import open_slide
from wsi_ips.storage.location import Location

logger = logging.getLogger(__name__)

BEYOND = {"<=": "≤ ", ">=": "≥ ", "": ""}
"""Signs at the ends of a colour bar that values go beyond."""

GRADIENT_STOPS = 13
"""Colours of a gradient: an odd number, so that the colour in the middle is one of them."""

MOST_BARS = 4
"""Classes of a task that are shown on a card, the likeliest first."""

SCALE_BAR = 0.25
"""Length of the scale bar, at most, as a share of the picture's width."""

LEAST_RING = 0.025
"""Side of the square that marks a patch, at least, as a share of the slide's longest side: smaller ones are
invisible.
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a slide was predicted to be in one task.

    ``order`` is the number by which rows are sorted and ``p`` the same as text: for a yes-or-no task the positive
    class's probability (unsure slides lie in the middle), for several classes the likeliest one's; empty for
    numeric outputs. ``bars`` are the likeliest classes. ``judged`` is the verdict, if the slide was evaluated.
    """

    task: str
    called: str
    order: float = 0.0
    p: str = ""
    bars: Sequence[Part] = ()
    judged: Judged | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A slide's row in the table.

    ``answers`` has one answer per task, none if the slide has no prediction. ``seconds`` is its time in words,
    ``order`` the same as a number.
    """

    slide: StoredSlide
    answers: Sequence[Answer]
    seconds: str
    order: float
    has_card: bool


@dataclass(frozen=True, slots=True)
class Ring:
    """Where a patch lies: corner and side of its square in level-0 pixels, enlarged if it would be invisible."""

    rank: int
    l0_x: float
    l0_y: float
    l0_side: float


@dataclass(frozen=True, slots=True)
class Legend:
    """The legend of a card's map.

    ``shown`` is the map's title and spread. ``ticks`` are the marks of the colours from low to high, in multiples
    of the even share or in logits. ``gradient`` is the colours for CSS. ``most`` is the heading of the patches
    below. ``bar`` is the scale bar's label and its share of the picture's width.
    """

    kind: MapKind
    shown: str
    ticks: Sequence[str]
    gradient: str
    most: str
    bar: tuple[str, float] | None


@dataclass(frozen=True, slots=True)
class Card:
    """A slide's card.

    ``facts`` describe the slide in words. ``problem`` says why some or all pictures are missing; empty if none is.
    """

    line: Line
    facts: Sequence[str]
    pictures: Pictures = field(default_factory=Pictures)
    l0_size: tuple[int, int] = (1, 1)
    rings: Sequence[Ring] = ()
    legend: Legend | None = None
    problem: str = ""


def line_of(run: StoredRun, slide: StoredSlide, judged: Mapping[str, Judged]) -> Line:
    """The row of a slide. ``judged`` maps tasks to verdicts; it is empty if the slide was not evaluated."""
    answers: list[Answer] = []
    if slide.probabilities is not None:
        for task in run.tasks:
            answers.append(
                replace(_answer(task, dict(slide.probabilities[task.name])), judged=judged.get(task.name))
            )
    seconds = slide.telemetry.seconds if slide.telemetry else 0.0
    return Line(slide, answers, duration(seconds) if seconds else "", seconds, slide.status != "unfinished")


def _answer(task: TaskConfig, outputs: dict[str, float]) -> Answer:
    called = answer(task, outputs)
    if task.activation == "linear":
        return Answer(task.name, called, order=outputs[task.classes[0]])
    likeliest = sorted(enumerate(task.classes), key=lambda item: -outputs[item[1]])[:MOST_BARS]
    bars = [
        Part(name, figure(outputs[name]), min(1.0, max(0.0, outputs[name])), class_colour(place))
        for place, name in likeliest
    ]
    positive = positive_class(task) if kind_of(task) == "binary" else None
    order = outputs[positive] if positive else max(outputs.values())
    return Answer(task.name, called, order, figure(order), bars)


def make_card(
    run: StoredRun,
    line: Line,
    *,
    elsewhere: Mapping[str, Location] | None,
    top: int,
    share: int,
    open_urls: bool = False,
    kind: MapKind | None = None,
) -> Card:
    """A slide's card with pictures of at most ``share`` bytes. It never raises for what a slide or a result holds.

    ``elsewhere`` maps slide ids to where the slides are now; without it they are read where predict read them, at
    URLs only with ``open_urls``. ``top`` is how many patches are shown, ``kind`` which map. If the slide is
    gone, its map is drawn on white. The pixels of one slide at a time are in memory.
    """
    card = Card(line, facts=_facts(line.slide))
    if not share:
        return card
    try:
        heat = _stored_heat(run, line.slide, kind) if line.slide.status == "ok" else None
    except (WsiIpsError, OSError, ValueError) as error:
        return replace(card, problem=f"its attention cannot be shown: {_why(error)}")
    places = top_places(heat, top) if heat else []
    pixels, problem = _pixels(
        run, line.slide, heat, places, elsewhere=elsewhere, share=share, open_urls=open_urls
    )
    if line.slide.status == "failed":
        problem = ""  # the row has its reason; a picture helps to see it, where there can be one
    if pixels is None:
        return replace(card, problem=problem)
    try:
        pictures = draw_pictures(pixels, heat, places, share=share)
    except Exception as error:
        logger.error("slide %s is not drawn", line.slide.slide_id, exc_info=error)
        return replace(card, problem=f"it cannot be drawn: {_why(error)}")
    if heat is None:
        return replace(card, pictures=pictures, l0_size=pixels.l0_size, problem=problem)
    return replace(
        card,
        facts=[*card.facts, *_geometry(heat)],
        pictures=pictures,
        l0_size=heat.coords.l0_size,
        rings=_rings(heat, places[: len(pictures.patches)]),
        legend=_legend(heat, pictures),
        problem=problem,
    )


def _stored_heat(run: StoredRun, slide: StoredSlide, kind: MapKind | None) -> Heat:
    path = attention_file(run, slide.slide_id)
    if path is None:
        raise ResultsError(run.folder.predictions, f"{slide.slide_id!r} is no file name", "predict again")
    return choose_heat(read_result(path), HeatOptions(map=kind))


def _pixels(
    run: StoredRun,
    slide: StoredSlide,
    heat: Heat | None,
    places: Sequence[Place],
    *,
    elsewhere: Mapping[str, Location] | None,
    share: int,
    open_urls: bool,
) -> tuple[Pixels | None, str]:
    """The pixels of the slide, and why it could not be read, if so.

    Without the slide: white of its size for its map.
    """
    paper = None
    if heat is not None:
        paper = Pixels(heat.coords.l0_size, max(1.0, max(heat.coords.l0_size) / 2048))
    try:
        at = _location(run, slide, heat, elsewhere, open_urls=open_urls)
        if at is None:
            return paper, ""
        with open_slide(at) as reader:
            if heat is not None:
                check_same_slide(reader, heat.result)
            l0_patch = heat.coords.l0_patch if heat else None
            return read_pixels(reader, places, l0_patch=l0_patch, share=share), ""
    except SlideNotFound as error:
        return paper, f"the slide is gone: {_why(error)}"
    except Exception as error:
        if not isinstance(error, WsiIpsError | OSError) and slide.status == "ok":
            logger.error("slide %s cannot be read", slide.slide_id, exc_info=error)
        return paper, f"the slide cannot be shown: {_why(error)}"


def _location(
    run: StoredRun,
    slide: StoredSlide,
    heat: Heat | None,
    elsewhere: Mapping[str, Location] | None,
    *,
    open_urls: bool,
) -> Location | None:
    """Where the slide is, or None if there is none to open.

    Raises :class:`SlideNotFound` if it is not among ``elsewhere``, and the errors of :func:`stored_location` for a
    URL that may not be opened.
    """
    if elsewhere is not None:
        if slide.slide_id not in elsewhere:
            raise SlideNotFound(slide.slide_id, "is not in the folder that --slides names")
        return elsewhere[slide.slide_id]
    path = heat.result.slide_path if heat else slide.path
    return None if run.of_features or not path else stored_location(path, open_urls=open_urls)


def _why(error: Exception) -> str:
    if isinstance(error, WsiIpsError):
        return shortened(str(error))
    if isinstance(error, OSError) and error.strerror:
        return shortened(f"{error.filename or 'reading'}: {error.strerror}")
    return shortened(f"{type(error).__name__}: {error}")


def _facts(slide: StoredSlide) -> list[str]:
    facts = []
    if slide.n_patches is not None:
        facts.append(count(slide.n_patches, "patch", "patches"))
    if slide.telemetry is not None:
        facts.append(duration(slide.telemetry.seconds))
    return facts


def _geometry(heat: Heat) -> list[str]:
    coords = heat.coords
    width, height = coords.l0_size
    mpp = coords.slide_mpp
    return [
        f"{width:,} × {height:,} px",
        f"{millimetres(width, mpp)} × {millimetres(height, mpp)} mm",
        f"{mpp:.4g} µm per pixel",
        f"patches of {coords.l0_patch * mpp:.4g} µm",
    ]


def _rings(heat: Heat, places: Sequence[Place]) -> list[Ring]:
    l0_patch = heat.coords.l0_patch
    l0_side = max(l0_patch, LEAST_RING * max(heat.coords.l0_size))
    shift = (l0_patch - l0_side) / 2
    return [Ring(place.rank, place.l0_x + shift, place.l0_y + shift, l0_side) for place in places]


def _legend(heat: Heat, pictures: Pictures) -> Legend | None:
    if pictures.overlay is None or not len(heat.values_N):
        return None
    said, most = _times_even, "Most attention"
    if heat.output is not None:
        said, most = _logits, f"{speaking_for(heat.kind, heat.output[1])}, in logits"
    ticks = [said(tick) for tick in legend_ticks(heat.values_N, heat.scale(COLOURS))]
    width = pictures.overlay.width
    mpp = heat.coords.slide_mpp * heat.coords.l0_size[0] / width
    bar = ScaleBar.fitting(mpp, SCALE_BAR * width)
    return Legend(
        heat.kind,
        f"{heat.shown}; {heat.spread}",
        ticks,
        gradient(colours_of(COLOURS, heat.kind)),
        most,
        (bar.label, bar.length_um / (mpp * width)),
    )


def _times_even(tick: Tick) -> str:
    return BEYOND[tick.beyond] + short(tick.times_even) + " ×"


def _logits(tick: Tick) -> str:
    return BEYOND[tick.beyond] + signed(tick.value).replace("-", "−", 1)


def gradient(table: NDArray[np.uint8]) -> str:
    """The colours of a table, (n, 3) uint8, from low to high, for CSS."""
    stops = [table[round(place * (len(table) - 1) / (GRADIENT_STOPS - 1))] for place in range(GRADIENT_STOPS)]
    return ", ".join("#{:02x}{:02x}{:02x}".format(*stop.tolist()) for stop in stops)
