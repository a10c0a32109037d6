"""Which of a slide's stored maps is shown, and in which colours: the same options wherever a map is drawn."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, FiniteFloat, NonNegativeInt, PositiveInt

from wsi_ips.config.section import Fraction, Section

MapKind = Literal["attention", "contribution", "gradient"]
"""Kinds of maps. ``gradient`` is gradient times input, which is only there where ``predict`` was asked for it."""
Colormap = Literal["blue_yellow", "blue_red"]


def _scale_by_its_name(scale: object) -> object:
    """Recipes of earlier versions call ``rank`` ``percentile``."""
    return "rank" if scale == "percentile" else scale


class HeatOptions(Section):
    """Options of a drawn map: jobs, overlays, exports, the viewer and :func:`wsi_ips.overlay` all have these.

    Bounds are those of each option alone. Whether options go together depends on the kind of map, which a slide's
    result may decide: :func:`wsi_ips.heatmaps.maps.choose_heat` checks it, and so do the jobs of ``overlay`` and
    ``export``.
    """

    map: MapKind | None = None
    """What is shown: where the network looked, what each patch adds to a class, or gradient times input. None:
    contributions where the head tells them and neither a query nor a head is named, else attention."""
    task: str | None = None
    """Attention: that of the query which this task reads; none: the mean over all queries. Contributions and
    gradients: to this task's logits; none: the first task that has the class."""
    class_name: str | None = None
    """Contributions or gradients to this class; none: of one or two classes the last, of more the likeliest of the
    slide, of survival the risk, of numbers the first."""
    query: NonNegativeInt | None = None
    """Attention of a query, by its index."""
    head: NonNegativeInt | None = None
    """Of this attention head; none: the mean over all heads."""
    alpha: Fraction = 0.5
    """Opacity of the heat."""
    colormap: Colormap | None = None
    """Of attention (none: blue_yellow); contributions and gradients have a sign and are always blue_red."""
    scale: Annotated[Literal["even", "rank", "absolute"] | None, BeforeValidator(_scale_by_its_name)] = None
    """Colours by attention in times the even share 1/N (the same for every slide; none means this), by a patch's
    rank in its slide, or by the raw value. ``percentile`` is the earlier name of ``rank``. Contributions and
    gradients have one scale, the same for every slide: logits, 0 in the middle, logarithmic away from it."""
    low: FiniteFloat | None = None
    """What the low end of the colours stands for: so many times the even share (none: 0.25), a percentile (none:
    0) or a raw value (none: the slide's smallest)."""
    high: FiniteFloat | None = None
    """The high end (none: 64 times the even share, 100, or the slide's largest value); of a map of contributions
    or gradients the logits at both ends of the colours (none: 1)."""
    side_px: PositiveInt | None = None
    """Longest side of the picture; a smaller slide is not enlarged. None: 2048 of an overlay, the slide's own of
    Deep Zoom tiles."""

    def in_default_colours(self) -> "HeatOptions":
        """The same map in the colours that its kind has by default."""
        return self.model_copy(update={"colormap": None, "scale": None, "low": None, "high": None})


DEFAULT_HEAT = HeatOptions()
"""The map that a result has by default, in its default colours."""
