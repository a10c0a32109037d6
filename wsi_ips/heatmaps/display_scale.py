"""How a map is displayed: its colour scale, its colours, and the legend that explains them.

Start with :func:`scale_of` and :func:`colours_of`, which know the defaults, or :class:`DisplayScale`. All of
this is for display only: stored numbers stay raw.

Scales. The attention of a slide's N patches sums to 1, so that a patch with no more than its even share has 1 / N.
By default, colours stand for attention as a multiple of that share, on one logarithmic scale for all slides.
Where a slide was read as a part of its case, N counts the patches of the whole case, whose attention sums to 1.
Colours by rank would give half of the patches of every slide the warm half of the colours, even where attention is
flat. Contributions have a sign and a unit, logits; their scale has 0 in its middle and the same ends for all
slides. Gradient times input has the same sign and unit, and the same scale.

Colour maps are tables of 256 colours. ``blue_yellow`` grows ever brighter from deep blue over green to yellow:
hues that H&E does not have, in an order that survives greyscale and colour-blindness. ``blue_red`` passes through
grey in the middle (the diverging form of Moreland 2009, "Diverging Color Maps for Scientific Visualization"), as
users of CLAM know it; it is for contributions, which have a sign.

The legend (:func:`add_legend`) stands below the picture: what is shown, the prediction, the colour bar with its
numbers, a scale bar. All of it lies outside the picture, so that no mark hides tissue and no pixel of the slide
moves.

Shape suffix: N patches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, log10
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from wsi_ips.config import HeatOptions
from wsi_ips.config.heat import Colormap, MapKind
from wsi_ips.errors import ConfigError
from wsi_ips.heatmaps.lettering import fitting, printable, write_text
from wsi_ips.units import Size

Scale = Literal["even", "rank", "absolute", "signed"]
"""Kinds of colour scales.

- ``even``: multiples of the even share 1 / N.
- ``rank``: percentiles of the slide's own patches.
- ``absolute``: raw attention.
- ``signed``: contributions in logits, with 0 in the middle.
"""

EVEN_ENDS = (0.25, 64.0)
"""Ends of the scale ``even``, in multiples of the even share.

The share itself lies a quarter of the way up. A factor of 4 takes as much colour everywhere; a patch beyond 64
times the share looks like one at 64 times.
"""

SIGNED_END = 1.0
"""Logits at the ends of the scale of contributions.

One patch that adds as much multiplies the odds by 2.7 (those of a softmax task of two classes by 7.4).
"""

SIGNED_LINEAR = 0.01
"""Share of the end within which the scale of contributions is about linear; beyond it is about logarithmic.

A logit is the sum of as many as a hundred contributions, most of which would be invisible on a linear scale.
"""

FLAT_WITHIN = 1.5
"""Attention is called flat if every patch has between 1 / 1.5 and 1.5 times the even share."""


COLOURS = 256
"""Colours of a table."""

CLASS_COLOURS = ((64, 128, 160), (200, 60, 60), (70, 150, 70), (150, 90, 170), (200, 140, 40), (60, 60, 60))
"""One RGB colour per class, in the task's order."""

# Points of the path: lightness, chroma, hue in degrees (CIE LCh of CIELAB, D65), inside sRGB's gamut.
PATHS_LCH: dict[Colormap, list[tuple[float, float, float]]] = {
    "blue_yellow": [
        (22, 50, 298),
        (36, 38, 274),
        (48, 29, 235),
        (58, 31, 185),
        (72, 55, 142),
        (90, 82, 102),
    ],
    "blue_red": [(35, 70, 297), (62, 42, 285), (86, 0, 285), (86, 0, 40), (62, 52, 40), (40, 78, 36)],
}

INK, FAINT_INK, PAPER = (25, 25, 25), (90, 90, 90), (255, 255, 255)
"""Colours of text, of secondary text and of the background."""

LEAST_WIDTH_UNITS = 49
"""Width of a legend, at least, in heights of a line."""

ROWS: Mapping[MapKind, Sequence[str]] = MappingProxyType(
    {
        "attention": ("times even share", "attention", "percentile"),
        "contribution": ("adds to logit", "percentile"),
        "gradient": ("gradient x input", "percentile"),
    }
)
"""Names of the numbers below the colour bar, row by row."""

BAR_UNITS = 24
"""Length of the colour bar, in heights of a line."""

LONGEST_SCALE_BAR = 0.25
"""Length of the scale bar, at most, as a share of the picture's width."""


class DisplayScale:
    """Maps the raw values of one slide to places on the colour scale, 0 to 1.

    ``values_N`` are the slide's values. ``low`` and ``high`` are the scale's ends; their meaning depends on the
    scale:

    - ``even``: logarithmic between ``low`` and ``high`` times ``even_share``, which is 1 / N unless given. By
      default the ends are :data:`EVEN_ENDS`, which are the same for every slide.
    - ``rank``: by rank among ``values_N`` (0 the smallest, 1 the largest; ties share their mean rank, values in
      between are interpolated); the ends are percentiles, 0 to 100.
    - ``absolute``: linear between raw values, by default the smallest and the largest of ``values_N``.
    - ``signed``: from ``-high`` to ``high`` logits, by default :data:`SIGNED_END`, with 0 at exactly 0.5, by the
      inverse hyperbolic sine: linear near 0 (:data:`SIGNED_LINEAR`), logarithmic beyond.

    If all values are equal, they lie at 0.5 of the scales ``rank`` and ``absolute``. Raises :class:`ConfigError`
    for ends that the scale cannot have (:func:`scale_ends`).
    """

    def __init__(
        self,
        values_N: NDArray[np.floating],
        *,
        scale: Scale = "even",
        low: float | None = None,
        high: float | None = None,
        even_share: float | None = None,
    ) -> None:
        self.scale = scale
        self.low, self.high = scale_ends(values_N, scale=scale, low=low, high=high)
        self.even_share = 1 / max(1, len(values_N)) if even_share is None else even_share
        self._ranked, self._percentiles = _percentiles(values_N)

    def __call__(self, values: NDArray[np.floating]) -> NDArray[np.float32]:
        """Places on the scale for values of any shape, float32 in 0..1; NaN stays NaN."""
        shown = values.astype(np.float64)
        if self.scale == "even":
            low, high = np.log2([self.low, self.high])
            times = (shown / self.even_share).clip(self.low, self.high)  # clipped first: log2(0) is no number
            return np.asarray((np.log2(times) - low) / (high - low), np.float32)
        if self.scale == "signed":
            bent = np.arcsinh(shown.clip(self.low, self.high) / (SIGNED_LINEAR * self.high))
            return np.asarray(0.5 + 0.5 * bent / np.arcsinh(1 / SIGNED_LINEAR), np.float32)
        if self.scale == "rank" and len(self._ranked):
            shown = np.interp(shown, self._ranked, self._percentiles)
        if self.high == self.low:
            return np.where(np.isnan(shown), np.nan, 0.5).astype(np.float32)
        return ((shown - self.low) / (self.high - self.low)).clip(0, 1).astype(np.float32)

    def values_at(self, places: NDArray[np.floating]) -> NDArray[np.float64]:
        """Raw values, float64, at places on the scale (0 to 1): the inverse of a call between the scale's ends."""
        if self.scale == "even":
            return np.asarray(self.low * (self.high / self.low) ** places * self.even_share, np.float64)
        if self.scale == "signed":
            bent = (2 * places.astype(np.float64) - 1) * np.arcsinh(1 / SIGNED_LINEAR)
            return np.asarray(np.sinh(bent) * SIGNED_LINEAR * self.high, np.float64)
        along = self.low + places * (self.high - self.low)
        if self.scale == "rank":
            return np.asarray(np.interp(along, self._percentiles, self._ranked), np.float64)
        return np.asarray(along, np.float64)

    def coloured(self, values: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Which of the values get a colour, of the same shape.

        These are all but NaN, where there is no patch. On the signed scale, 0 has no colour either: patches that
        were not kept add exactly nothing, and the slide is shown unchanged there.
        """
        held: NDArray[np.bool_] = np.isfinite(values)
        return held & (values != 0) if self.scale == "signed" else held


def colours_of(options: HeatOptions, kind: MapKind) -> NDArray[np.uint8]:
    """The colours of a map, (256, 3) uint8.

    Raises :class:`ConfigError` for a colour map that this kind of map cannot have.
    """
    return colour_table(colormap_of(options, kind))


def colormap_of(options: HeatOptions, kind: MapKind) -> Colormap:
    """The name of the colour map: ``blue_yellow`` for attention unless another is chosen, ``blue_red`` for
    contributions and gradients.

    Raises :class:`ConfigError` for one that this kind of map cannot have.
    """
    if kind == "attention":
        return options.colormap or "blue_yellow"
    if options.colormap not in (None, "blue_red"):
        raise ConfigError(
            f"{options.colormap} has no middle: {kind}s have a sign and are drawn in blue_red; "
            "leave the colour map out, or choose the attention map"
        )
    return "blue_red"


def scale_of(
    options: HeatOptions,
    values_N: NDArray[np.floating],
    kind: MapKind,
    *,
    even_share: float | None = None,
) -> DisplayScale:
    """The scale for a slide's values: ``even`` for attention unless another is chosen, ``signed`` for
    contributions and gradients. ``even_share`` is 1 / N unless given.

    Raises :class:`ConfigError` for a scale of attention where contributions are shown, and for ends that the scale
    cannot have.
    """
    if kind == "attention":
        return DisplayScale(
            values_N, scale=options.scale or "even", low=options.low, high=options.high, even_share=even_share
        )
    if options.scale is not None:
        raise ConfigError(
            f"scale {options.scale} is for attention, and {kind}s have one scale of their own: "
            "leave the scale out"
        )
    return DisplayScale(values_N, scale="signed", low=options.low, high=options.high)


def display_values(
    values_N: NDArray[np.floating],
    *,
    scale: Scale = "even",
    low: float | None = None,
    high: float | None = None,
) -> NDArray[np.float32]:
    """Where each value lies on the colour scale of its slide, (N,) float32 in 0..1.

    :class:`DisplayScale` explains the arguments and raises the same errors.
    """
    return DisplayScale(values_N, scale=scale, low=low, high=high)(values_N)


def scale_ends(
    values_N: NDArray[np.floating], *, scale: Scale, low: float | None, high: float | None
) -> tuple[float, float]:
    """What the two ends of a colour scale stand for.

    They are multiples of the even share, percentiles, raw values or logits.

    Raises :class:`ConfigError` if the low end is above the high one, a percentile is not 0 to 100, a multiple is
    not above 0, or the ends of a signed scale do not lie opposite each other.
    """
    if scale == "even":
        ends = EVEN_ENDS[0] if low is None else float(low), EVEN_ENDS[1] if high is None else float(high)
        valid = 0 < ends[0] < ends[1] < np.inf
    elif scale == "rank":
        ends = 0.0 if low is None else float(low), 100.0 if high is None else float(high)
        valid = 0 <= ends[0] < ends[1] <= 100
    elif scale == "signed":
        end = SIGNED_END if high is None else float(high)
        ends = -end if low is None else float(low), end
        valid = 0 < end < np.inf and ends[0] == -end
    else:
        smallest, largest = (float(values_N.min()), float(values_N.max())) if len(values_N) else (0.0, 0.0)
        ends = smallest if low is None else float(low), largest if high is None else float(high)
        valid = ends[0] <= ends[1]
    if not valid:
        raise ConfigError(f"the {scale} colour scale cannot go from {ends[0]:g} to {ends[1]:g}")
    return ends


def _percentiles(values_N: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The distinct values, ascending, and their percentiles, 0 to 100: the inverse of ``np.percentile``.

    A single value is its own median.
    """
    distinct, counts = np.unique(values_N.astype(np.float64), return_counts=True)
    if len(values_N) < 2:
        return distinct, np.full(len(distinct), 50.0)
    mean_ranks = counts.cumsum() - (counts + 1) / 2
    return distinct, mean_ranks / (len(values_N) - 1) * 100


def is_flat(values_N: NDArray[np.floating], even_share: float) -> bool:
    """Whether no patch stands out from the even share by :data:`FLAT_WITHIN`; False without patches."""
    times_N = values_N.astype(np.float64) / even_share
    # float32 holds seven digits: a patch of exactly 1.5 times counts as within.
    within_N = (times_N <= FLAT_WITHIN * (1 + 1e-6)) & (times_N >= (1 - 1e-6) / FLAT_WITHIN)
    return bool(len(values_N)) and bool(within_N.all())


def colour_table(name: Colormap) -> NDArray[np.uint8]:
    """The colours of a map from low to high, (256, 3) uint8 RGB. Neighbours are equally far apart in CIELAB."""
    path = np.array(PATHS_LCH[name])
    places = np.linspace(0, len(path) - 1, 16 * COLOURS)
    lightness, chroma, hue = (np.interp(places, np.arange(len(path)), path[:, part]) for part in range(3))
    angle = np.deg2rad(hue)
    lab = np.stack([lightness, chroma * np.cos(angle), chroma * np.sin(angle)], axis=-1)
    walked = np.cumsum([0.0, *np.linalg.norm(np.diff(lab, axis=0), axis=1)])
    at = np.linspace(0, walked[-1], COLOURS)
    even = np.stack([np.interp(at, walked, lab[:, part]) for part in range(3)], axis=-1)
    from skimage.color import lab2rgb

    return np.asarray(np.rint(lab2rgb(even).clip(0, 1) * 255), np.uint8)


def colourise(shares: NDArray[np.floating], table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Colours for places on the scale: (...,) in 0..1 to RGB (..., 3) uint8."""
    return np.asarray(table[np.rint(shares * (len(table) - 1)).astype(np.intp)])


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark of the colour bar.

    ``at`` is its place, 0 to 1, and ``value`` its raw value. ``percentile`` is the share of patches up to that
    value in percent, ``times_even`` the value in multiples of the even share. ``beyond`` is ``<=`` or ``>=`` at an
    end that values go beyond, else empty.
    """

    at: float
    value: float
    percentile: float
    times_even: float
    beyond: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Legend:
    """What a legend says.

    ``title`` is one line in larger letters, ``lines`` stand below it. ``ticks`` and ``table`` (the colours, (256,
    3) uint8) make the colour bar, ``rows`` names the numbers below it (one of :data:`ROWS`). ``mpp`` is µm per
    pixel of the picture.
    """

    title: str
    lines: Sequence[str]
    ticks: Sequence[Tick]
    table: NDArray[np.uint8]
    mpp: float
    rows: Sequence[str] = ROWS["attention"]


@dataclass(frozen=True, slots=True)
class ScaleBar:
    """A scale bar of a round length. ``length_px`` is rounded to whole pixels, ``length_um`` is exact."""

    length_um: float
    length_px: int

    @classmethod
    def fitting(cls, mpp: float, most_px: float) -> "ScaleBar":
        """The longest bar of 1, 2 or 5 times a power of ten of µm that fits ``most_px`` pixels of ``mpp`` µm."""
        most_um = mpp * most_px
        power = 10.0 ** floor(log10(most_um))
        length_um = max(
            step * factor for factor in (power / 10, power) for step in (1, 2, 5) if step * factor <= most_um
        )
        return cls(length_um, max(1, round(length_um / mpp)))

    @property
    def label(self) -> str:
        """The length with its unit."""
        return f"{self.length_um / 1000:g} mm" if self.length_um >= 1000 else f"{self.length_um:g} µm"


def add_legend(picture: Image.Image, legend: Legend) -> Image.Image:
    """The picture, unchanged, with the legend below it."""
    below = draw_legend(picture.size, legend)
    image = Image.new("RGB", (below.width, picture.height + below.height), PAPER)
    image.paste(picture, (0, 0))
    image.paste(below, (0, picture.height))
    if below.width > picture.width:
        ImageDraw.Draw(image).line([(picture.width, 0), (picture.width, picture.height)], FAINT_INK)
    return image


def legend_width(picture_px: Size) -> int:
    """Width of the picture with its legend: a narrow picture gets empty space to its right."""
    return max(picture_px[0], LEAST_WIDTH_UNITS * _unit(picture_px))


def draw_legend(picture_px: Size, legend: Legend) -> Image.Image:
    """The legend for a picture of this size (width, height); its width is :func:`legend_width`."""
    unit, width = _unit(picture_px), legend_width(picture_px)
    lines = [legend.title, *legend.lines]
    image = Image.new("RGB", (width, round((3.2 + 1.6 * len(lines) + 5.9) * unit)), PAPER)
    draw = ImageDraw.Draw(image)
    draw.line([(0, 0), (picture_px[0], 0)], FAINT_INK)
    y = unit
    for index, line in enumerate(lines):
        font = ImageFont.load_default(size=1.35 * unit if index == 0 else unit)
        write_text(draw, (unit, y), fitting(printable(line), font, width - 2 * unit), INK, font)
        y += round((2.1 if index == 0 else 1.6) * unit)
    y += round(0.5 * unit)
    _draw_colour_bar(image, legend, y, unit)
    bar = ScaleBar.fitting(legend.mpp, min(LONGEST_SCALE_BAR * picture_px[0], width - 39 * unit))
    _draw_scale_bar(draw, bar, width - unit, y, unit)
    return image


def _unit(picture_px: Size) -> int:
    """Height of a line of text."""
    return min(40, max(12, round(max(picture_px) / 85)))


def _draw_colour_bar(image: Image.Image, legend: Legend, top: int, unit: int) -> None:
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=unit)
    left = round(2.5 * unit + max(font.getlength(name) for name in legend.rows) + unit)
    length = BAR_UNITS * unit
    strip = legend.table[np.arange(length) * len(legend.table) // length]
    image.paste(Image.fromarray(np.repeat(strip[None], unit, axis=0)), (left, top))
    draw.rectangle([left - 1, top - 1, left + length, top + unit], outline=INK)
    rows = [top + round((1.6 + 1.3 * number) * unit) for number in range(len(legend.rows))]
    for name, row in zip(legend.rows, rows, strict=True):
        draw.text((unit, row), name, FAINT_INK, font)
    for tick in legend.ticks:
        x = left + round(tick.at * (length - 1))
        draw.line([(x, top + unit), (x, top + round(1.4 * unit))], INK)
        said = {
            "times even share": tick.beyond + short(tick.times_even),
            "attention": short(tick.value) if tick.value <= 1 else "",  # a share: there is none above 1
            "adds to logit": tick.beyond + signed(tick.value),
            "gradient x input": tick.beyond + signed(tick.value),
            "percentile": _percent(tick.percentile),
        }
        for name, row in zip(legend.rows, rows, strict=True):
            draw.text((x, row), said[name], INK, font, "ma")


def _draw_scale_bar(draw: ImageDraw.ImageDraw, bar: ScaleBar, right: int, top: int, unit: int) -> None:
    left = right - bar.length_px
    thick = max(2, unit // 4)
    # Pillow's rectangles include their last pixel.
    draw.rectangle([left, top + unit - thick, right - 1, top + unit - 1], fill=INK)
    font = ImageFont.load_default(size=unit)
    write_text(draw, (right, top + round(1.6 * unit)), bar.label, INK, font, "ra")


def short(value: float) -> str:
    """Three significant digits: ``0.25``, ``8.10e-4``."""
    if value == 0 or 0.01 <= abs(value) < 1000:
        return f"{value:.3g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def signed(value: float) -> str:
    """Three significant digits with a plus if the number is positive: ``+0.25``, ``-8.10e-4``."""
    return f"+{short(value)}" if value > 0 else short(value)


def _percent(percentile: float) -> str:
    """A percentage, rounded down to one decimal: only all patches are ``100``."""
    return f"{floor(percentile * 10) / 10:g}"
