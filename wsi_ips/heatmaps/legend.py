"""What stands below an overlay: title, prediction, colour bar with raw values, scale bar."""

from dataclasses import dataclass
from math import floor, log10
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from wsi_ips.heatmaps.colours import colourise

INK, PAPER = (25, 25, 25), (255, 255, 255)
TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)
LEAST_WIDTH_PX = 560


@dataclass(frozen=True, slots=True)
class Legend:
    """values_N: the raw values that the colours stand for. mpp: µm per pixel of the picture."""

    title: str
    prediction: str
    values_N: NDArray[np.float64]
    scale: Literal["percentile", "absolute"]
    mpp: float


def draw_legend(picture: Image.Image, legend: Legend) -> Image.Image:
    """``picture`` with the legend below it; a narrow picture gets white to its right, never a new scale."""
    width = max(picture.width, LEAST_WIDTH_PX)
    unit = max(12, round(width / 75))  # height of a line of text
    font = ImageFont.load_default(size=unit)
    image = Image.new("RGB", (width, picture.height + 9 * unit), PAPER)
    image.paste(picture, (0, 0))
    draw = ImageDraw.Draw(image)
    top = picture.height
    draw.line([(0, top), (width, top)], fill=INK)
    draw.text((unit, top + unit), _fitting(legend.title, font, width - 2 * unit), INK, font)
    draw.text((unit, top + 2.5 * unit), _fitting(legend.prediction, font, width - 2 * unit), INK, font)
    _draw_colour_bar(image, legend, (unit, top + round(4.3 * unit)), round(width * 0.55), unit, font)
    _draw_scale_bar(draw, legend.mpp, width, top + round(4.3 * unit), unit, font)
    return image


def scale_bar_um(mpp: float, longest_px: float) -> float:
    """The longest 1, 2 or 5 times a power of ten of µm that fits."""
    most = mpp * longest_px
    power = 10.0 ** floor(log10(most))
    return max(step * power for step in (1, 2, 5) if step * power <= most)


def _draw_colour_bar(
    image: Image.Image,
    legend: Legend,
    at: tuple[int, int],
    length: int,
    unit: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    draw = ImageDraw.Draw(image)
    strip = colourise(np.linspace(0, 1, length))[None].repeat(unit, 0)
    image.paste(Image.fromarray(strip), at)
    draw.rectangle([at[0] - 1, at[1] - 1, at[0] + length, at[1] + unit], outline=INK)
    for tick in TICKS:
        x = at[0] + tick * (length - 1)
        draw.line([(x, at[1] + unit), (x, at[1] + 1.4 * unit)], fill=INK)
        anchor = {0.0: "la", 1.0: "ra"}.get(tick, "ma")
        draw.text((x, at[1] + 1.5 * unit), f"{_raw_value(legend, tick):.2e}", INK, font, anchor)
    meaning = (
        "attention (raw values); colour by percentile of the slide's patches"
        if legend.scale == "percentile"
        else "attention (raw values); colour from smallest to largest"
    )
    draw.text((at[0], at[1] + 2.8 * unit), _fitting(meaning, font, length), INK, font)


def _raw_value(legend: Legend, share: float) -> float:
    if legend.scale == "percentile":
        return float(np.quantile(legend.values_N, share))
    low, high = legend.values_N.min(), legend.values_N.max()
    return float(low + share * (high - low))


def _draw_scale_bar(
    draw: ImageDraw.ImageDraw,
    mpp: float,
    width: int,
    top: int,
    unit: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    length_um = scale_bar_um(mpp, width * 0.25)
    right = width - unit - 1
    left = right - round(length_um / mpp) + 1
    draw.rectangle([left, top + unit // 3, right, top + 2 * unit // 3], fill=INK)
    label = f"{length_um / 1000:g} mm"  # Pillow's own font has no µ
    draw.text(((left + right) / 2, top + 1.5 * unit), label, INK, font, "ma")


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """The text, cut with dots where it does not fit."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
