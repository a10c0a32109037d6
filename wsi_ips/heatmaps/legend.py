"""What stands below an overlay: what is shown, the prediction, the colour bar with its numbers, a scale bar.

All of it lies outside the picture, so that no mark hides tissue and no pixel of the slide moves.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, log10
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from wsi_ips.heatmaps.colours import MapKind
from wsi_ips.units import Size

INK, FAINT_INK, PAPER = (25, 25, 25), (90, 90, 90), (255, 255, 255)

LEAST_WIDTH_UNITS = 49
ROWS: Mapping[MapKind, Sequence[str]] = MappingProxyType(
    {
        "attention": ("times even share", "attention", "percentile"),
        "contribution": ("adds to logit", "percentile"),
    }
)
"""What is said below the colour bar, row by row."""
BAR_UNITS = 24
LONGEST_SCALE_BAR = 0.25
"""Of the picture's width."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark of the colour bar: where (0 to 1), its raw value, the share of patches up to it in percent, and how
    many times the even share it is. beyond: ``<=`` or ``>=`` at an end that values go beyond, else empty."""

    at: float
    value: float
    percentile: float
    times_even: float
    beyond: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Legend:
    """title: one line, larger. lines: below it. table: (256, 3) uint8, the colours. mpp: µm a picture pixel. rows:
    names of the numbers below the colour bar, one of :data:`ROWS`."""

    title: str
    lines: Sequence[str]
    ticks: Sequence[Tick]
    table: NDArray[np.uint8]
    mpp: float
    rows: Sequence[str] = ROWS["attention"]


@dataclass(frozen=True, slots=True)
class ScaleBar:
    """A bar of a round length. length_px is rounded to whole pixels; length_um is exact."""

    length_um: float
    length_px: int

    @classmethod
    def fitting(cls, mpp: float, most_px: float) -> "ScaleBar":
        """The longest 1, 2 or 5 times a power of ten of µm that is no longer than ``most_px``."""
        most_um = mpp * most_px
        power = 10.0 ** floor(log10(most_um))
        length_um = max(
            step * factor for factor in (power / 10, power) for step in (1, 2, 5) if step * factor <= most_um
        )
        return cls(length_um, max(1, round(length_um / mpp)))

    @property
    def label(self) -> str:
        # "um": Pillow's own font has neither U+00B5 nor U+03BC.
        return f"{self.length_um / 1000:g} mm" if self.length_um >= 1000 else f"{self.length_um:g} um"


def legend_width(picture_px: Size) -> int:
    """Width of the image that a picture becomes with its legend: a narrow one gets paper to its right."""
    return max(picture_px[0], LEAST_WIDTH_UNITS * _unit(picture_px))


def add_legend(picture: Image.Image, legend: Legend) -> Image.Image:
    """``picture`` at the top left, unchanged, with :func:`draw_legend` below."""
    below = draw_legend(picture.size, legend)
    image = Image.new("RGB", (below.width, picture.height + below.height), PAPER)
    image.paste(picture, (0, 0))
    image.paste(below, (0, picture.height))
    if below.width > picture.width:
        ImageDraw.Draw(image).line([(picture.width, 0), (picture.width, picture.height)], FAINT_INK)
    return image


def draw_legend(picture_px: Size, legend: Legend) -> Image.Image:
    """What stands below a picture of this size, as wide as :func:`legend_width`."""
    unit, width = _unit(picture_px), legend_width(picture_px)
    lines = [legend.title, *legend.lines]
    image = Image.new("RGB", (width, round((3.2 + 1.6 * len(lines) + 5.9) * unit)), PAPER)
    draw = ImageDraw.Draw(image)
    draw.line([(0, 0), (picture_px[0], 0)], FAINT_INK)
    y = unit
    for index, line in enumerate(lines):
        font = ImageFont.load_default(size=1.35 * unit if index == 0 else unit)
        draw.text((unit, y), _fitting(printable(line), font, width - 2 * unit), INK, font)
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
            "attention": short(tick.value),
            "adds to logit": tick.beyond + signed(tick.value),
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
    draw.text((right, top + round(1.6 * unit)), bar.label, INK, font, "ra")


def short(value: float) -> str:
    """Three digits: ``0.25``, ``8.10e-4``."""
    if value == 0 or 0.01 <= abs(value) < 1000:
        return f"{value:.3g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def signed(value: float) -> str:
    """The same with a plus where it is positive: ``+0.25``, ``-8.10e-4``."""
    return f"+{short(value)}" if value > 0 else short(value)


def _percent(percentile: float) -> str:
    """One digit after the point where it says something: ``100`` is said of all patches only."""
    return f"{floor(percentile * 10) / 10:g}"


def printable(text: str) -> str:
    """Pillow's own font has the letters of ASCII: others lose their accents or become question marks."""
    plain = unicodedata.normalize("NFKD", text.replace("µ", "u"))
    return "".join(c for c in plain if not unicodedata.combining(c)).encode("ascii", "replace").decode()


def _fitting(text: str, font: Font, width: float) -> str:
    """The text, cut in its middle where it does not fit: names differ at their ends."""
    if font.getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        cut = text[: (kept + 1) // 2] + "..." + text[-(kept // 2) :]
        if font.getlength(cut) <= width:
            return cut
    return ""
