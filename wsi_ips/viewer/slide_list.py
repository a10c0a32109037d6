"""The list of a run's slides, a page at a time: found by words, in an order (:class:`SlideList`).

A run may have 100,000 slides. A browser that is given all of them at once takes half a minute to draw them, so it
asks for the page that it shows.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from wsi_ips.config import TaskConfig
from wsi_ips.errors import ConfigError
from wsi_ips.viewer.viewed_run import ListedSlide

PAGE = 200
"""Slides of a page, unless the query says otherwise."""
MOST = 500
"""The most slides of a page."""
LONGEST_QUERY = 1000
"""Characters of the words that are searched for."""
ORDERS = ("run", "name", "sure", "patches")
"""In the run's order; by name, numbers in it as numbers; by the probability of the first task's last class, and by
the number of patches, the largest first."""
_NUMBER = re.compile(r"([0-9]+)")


@dataclass(frozen=True, slots=True)
class ListPage:
    """A page of the list.

    ``first`` is the place of its first slide among the ``found`` ones, from 0; the run has ``total`` slides.
    """

    slides: Sequence[ListedSlide]
    first: int
    found: int
    total: int


@dataclass(frozen=True)
class SlideList:
    """Slides of a run with what a manifest says of them. What a search needs is made once, and kept.

    ``labels`` maps slide ids to {task: the manifest's cell}, ``splits`` slide ids to splits.
    """

    slides: Sequence[ListedSlide]
    tasks: Sequence[TaskConfig]
    labels: Mapping[str, Mapping[str, str]]
    splits: Mapping[str, str]

    def page(self, asked: Mapping[str, str]) -> ListPage:
        """The page that a query asks for.

        ``q`` are words, all of which have to be in the slide's name, status, split, error, prediction or label;
        "wrong" finds slides whose label says something else. ``order`` is one of :data:`ORDERS`. ``first`` is the
        place of the page's first slide, ``count`` how many it has. ``at`` is the id of a slide: the page, of those
        that begin at multiples of ``count``, that it is on; without such a slide ``first`` counts.

        Raises :class:`ConfigError` for an order or a number that is not possible.
        """
        count = _number(asked, "count", PAGE, least=1, most=MOST)
        first = _number(asked, "first", 0, least=0, most=10**9)
        order = asked.get("order", "run")
        if order not in ORDERS:
            raise ConfigError(f"order {order[:20]!r} must be one of {', '.join(ORDERS)}")
        found = self._ordered(order)
        if words := asked.get("q", "")[:LONGEST_QUERY].lower().split():
            texts = self._texts
            found = [place for place in found if all(word in texts[place] for word in words)]
        wanted = self._places.get(asked["at"]) if "at" in asked else None
        if wanted is not None and wanted in found:
            first = found.index(wanted) // count * count
        first = min(first, max(0, (len(found) - 1) // count * count))
        slides = [self.slides[place] for place in found[first : first + count]]
        return ListPage(slides, first, len(found), len(self.slides))

    def is_wrong(self, slide: ListedSlide) -> bool:
        """Whether the manifest's label says something else than the prediction."""
        labels = self.labels.get(slide.slide_id, {})
        return any(
            _in_order(said, "|") != ([] if label == "none" else _in_order(label, ";"))
            for task in self.tasks
            if task.activation != "linear"
            and (label := labels.get(task.name))
            and (said := slide.predicted.get(task.name)) is not None
        )

    @cached_property
    def unfinished(self) -> bool:
        """Whether a slide is waiting or being read, so that the list will change."""
        return any(slide.status in ("waiting", "running") for slide in self.slides)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {slide.slide_id: place for place, slide in enumerate(self.slides)}

    @cached_property
    def _texts(self) -> list[str]:
        return [self._text(slide).lower() for slide in self.slides]

    def _text(self, slide: ListedSlide) -> str:
        parts = [slide.slide_id, slide.status, self.splits.get(slide.slide_id, ""), slide.error]
        parts += [*slide.predicted.values(), *self.labels.get(slide.slide_id, {}).values()]
        return " ".join([*parts, "wrong" if self.is_wrong(slide) else ""])

    @cached_property
    def _by_order(self) -> dict[str, Sequence[int]]:
        return {"run": range(len(self.slides))}

    def _ordered(self, order: str) -> Sequence[int]:
        """The places of all slides in an order."""
        if order not in self._by_order:
            places = range(len(self.slides))
            if order == "name":
                found = sorted(places, key=lambda place: _by_name(self.slides[place].slide_id))
            else:
                rank = self._patches if order == "patches" else self._sure
                found = sorted(places, key=lambda place: -rank(self.slides[place]))
            self._by_order[order] = found
        return self._by_order[order]

    def _sure(self, slide: ListedSlide) -> float:
        if not self.tasks:
            return -1
        task = self.tasks[0]
        value = slide.probabilities.get(task.name, {}).get(task.classes[-1], -1.0)
        return value if math.isfinite(value) else -1

    def _patches(self, slide: ListedSlide) -> float:
        return -1 if slide.n_patches is None else slide.n_patches


def described(page: ListPage) -> dict[str, Any]:
    """Where the page lies, as JSON."""
    return {"first": page.first, "found": page.found, "total": page.total}


def _number(asked: Mapping[str, str], name: str, usual: int, *, least: int, most: int) -> int:
    text = asked.get(name, str(usual))
    if not (text.isascii() and text.isdigit() and least <= int(text[:12]) <= most):
        raise ConfigError(f"{name} {text[:20]!r} must be {least} to {most}")
    return int(text[:12])


def _in_order(text: str, between: str) -> list[str]:
    """The words of a cell in an order of their own; none of an empty cell."""
    return sorted(word.strip() for word in text.split(between)) if text else []


def _by_name(name: str) -> list[tuple[int, int, str]]:
    """A key by which names are sorted as people do, ``slide_9`` before ``slide_10``."""
    parts = _NUMBER.split(name.casefold())
    return [
        (0, int(part[:18]), part) if part.isdigit() and part.isascii() else (1, 0, part) for part in parts
    ]
