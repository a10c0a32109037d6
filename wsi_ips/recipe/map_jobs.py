"""Jobs on the maps that a run stored: ``overlay`` and ``export``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    FiniteFloat,
    JsonValue,
    NonNegativeInt,
    PositiveInt,
    field_validator,
    model_validator,
)

from wsi_ips.config import LARGEST_OVERLAY_PX, Fraction, Section
from wsi_ips.recipe.given_slides import Slides
from wsi_ips.registry import check_known


def _scale_by_its_name(scale: object) -> object:
    """Recipes of earlier versions call ``rank`` ``percentile``."""
    return "rank" if scale == "percentile" else scale


class _MapJob(Section):
    """Which of a run's stored maps is shown; no model."""

    run: Path
    """The folder that ``predict`` wrote."""
    slides: Slides | None = None
    """Where the slides are now; none: where ``predict`` read them."""
    open_urls: bool = False
    """Open slides at URLs that the run names, too: without ``slides``, a run folder decides no requests."""
    map: Literal["attention", "contribution"] | None = None
    """What is shown: where the network looked, or what each patch adds to a class. None: as the command has it."""
    task: str | None = None
    """Attention: that of the query which this task reads; none: the mean over all queries. Contributions: to this
    task's logits; none: the first task that has the class."""
    class_name: str | None = None
    """Contributions to this class; none: of one or two classes the last, of more the likeliest of the slide."""
    query: NonNegativeInt | None = None
    """Attention of a query, by its index."""
    head: NonNegativeInt | None = None
    """Of this attention head; none: the mean over all heads."""
    alpha: Fraction = 0.5
    """Opacity of the heat."""
    colormap: Literal["blue_yellow", "blue_red"] | None = None
    """Of attention (none: blue_yellow); contributions have a sign and are always blue_red."""
    scale: Annotated[Literal["even", "rank", "absolute"] | None, BeforeValidator(_scale_by_its_name)] = None
    """Colours by attention in times the even share 1/N (the same for every slide; none means this), by a patch's
    rank in its slide, or by the raw value. ``percentile`` is the earlier name of ``rank``. Contributions have one
    scale, the same for every slide: logits, 0 in the middle, logarithmic away from it."""
    low: FiniteFloat | None = None
    """What the low end of the colours stands for: so many times the even share (none: 0.25), a percentile (none:
    0) or a raw value (none: the slide's smallest)."""
    high: FiniteFloat | None = None
    """The high end (none: 64 times the even share, 100, or the slide's largest value); of a map of contributions
    the logits at both ends of the colours (none: 1)."""

    @property
    def map_kind(self) -> Literal["attention", "contribution"] | None:
        """The kind of map that is asked for, by name or by what only one of them has; None: neither was."""
        if self.map is not None or self.class_name is not None:
            return self.map or "contribution"
        of_attention = (self.query, self.head, self.colormap, self.scale, self.low, self.high)
        return None if all(choice is None for choice in of_attention) else "attention"

    @model_validator(mode="after")
    def _choices_can_be(self) -> Self:
        if self.task is not None and self.query is not None:
            raise ValueError("task and query name the same thing: give one of them")
        if self.map == "attention" and self.class_name is not None:
            raise ValueError("class_name goes with map contribution: attention is of no class")
        if self.map_kind == "contribution":
            return self._of_contributions()
        low, high = self.low, self.high
        if self.scale in (None, "even"):
            low, high = 0.25 if low is None else low, 64 if high is None else high
            if low <= 0:
                raise ValueError(f"low {low:g} must be above 0: it is a multiple of the even share")
        if self.scale == "rank":
            low, high = 0 if low is None else low, 100 if high is None else high
            if low < 0 or high > 100:
                raise ValueError(f"low and high are percentiles, 0 to 100, not {low:g} and {high:g}")
        if low is not None and high is not None and low >= high:
            raise ValueError(f"low {low:g} must be below high {high:g}")
        return self

    def _of_contributions(self) -> Self:
        for name in ("query", "head", "scale", "low"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name} goes with map attention: contributions have none")
        if self.colormap == "blue_yellow":
            raise ValueError("contributions have a sign: their colours are blue_red, which has a middle")
        if self.high is not None and self.high <= 0:
            raise ValueError(f"high {self.high:g} must be above 0: the colours go from -high to high")
        return self


class OverlayJob(_MapJob):
    """Draw overlays from what is stored: contributions where the head tells them, else attention.

    Whoever asks for what only attention has (a query, a head, a colour map, a scale or its ends) gets attention.
    """

    command: Literal["overlay"] = "overlay"
    out: Path | None = None
    """None: ``overlays/`` in ``run``."""
    side_px: Annotated[PositiveInt, Field(le=LARGEST_OVERLAY_PX)] = 2048
    """Longest side of the slide's picture; a smaller slide is not enlarged."""


_ON_COLOURS = ("alpha", "colormap", "scale", "low", "high", "side_px", "heat_only")
EXPORT_OPTIONS: Mapping[str, Sequence[str]] = {
    "ome-tiff": ("um_per_px",), "ome-zarr": ("um_per_px",), "geojson": ("top",), "deepzoom": _ON_COLOURS,
    "sheet": ("top",), "asap": ("threshold", "percentile"),
}  # fmt: skip
"""Which of :class:`ExportJob`'s settings a format of wsi_ips has; whose attention is shown is every format's."""


class ExportJob(_MapJob):
    """Write stored attention for other programs; with ``map: contribution`` contributions.

    Formats that hold several maps (geojson, ome-zarr) have the contributions to every class beside the attention.
    """

    command: Literal["export"] = "export"
    format: str
    """One of :data:`EXPORT_OPTIONS`, or the name of another package's export."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Options of another package's export, by the names of its fields."""
    out: Path | None = None
    """None: ``exports/<format>/`` in ``run``."""
    um_per_px: Annotated[FiniteFloat, Field(gt=0)] | None = None
    """µm a pixel; none: a pixel a patch, or as fine as overlaps need it."""
    side_px: PositiveInt | None = None
    """Longest side of the finest level; none: the slide's own."""
    heat_only: bool = False
    """Transparent tiles without the slide."""
    top: PositiveInt | None = None
    """How many patches with the largest values; geojson (none: all), sheet: and with the smallest (none: 10)."""
    threshold: FiniteFloat | None = None
    """Raw attention, or contribution, from which on a place is in a region."""
    percentile: Annotated[float, Field(ge=0, le=100)] | None = None
    """The same as a percentile of the slide's patches, of contributions of its kept ones; neither: 95."""

    @property
    def map_kind(self) -> Literal["attention", "contribution"]:
        """Attention, unless contributions are asked for: numbers mean what they meant in earlier versions."""
        return "contribution" if self.map == "contribution" or self.class_name is not None else "attention"

    @field_validator("format")
    @classmethod
    def _format_is_known(cls, name: str) -> str:
        return check_known("export", name, tuple(EXPORT_OPTIONS), group="wsi_ips.exporters")

    @model_validator(mode="after")
    def _options_are_the_format_s(self) -> Self:
        known = EXPORT_OPTIONS.get(self.format, ())
        others = {option for options in EXPORT_OPTIONS.values() for option in options if option not in known}
        for option in sorted(others & self.model_fields_set):
            has = ", ".join(known) or "its own: give them under options"
            raise ValueError(f"{option} is no option of {self.format}, which has {has}")
        if self.options and known:
            raise ValueError(f"options are another package's export's; {self.format} has {', '.join(known)}")
        if self.threshold is not None and self.percentile is not None:
            raise ValueError("threshold and percentile say the same thing: give one of them")
        return self
