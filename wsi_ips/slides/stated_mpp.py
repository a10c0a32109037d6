"""What a file says of its resolution, where that can be believed."""

import math

from wsi_ips.units import Mpp

SMALLEST, LARGEST = 0.01, 100.0
"""Exclusive limits, in µm per pixel. 72 dpi, what image editors write, is 353."""

MICRONS_PER = {"centimeter": 10_000.0, "inch": 25_400.0}


def believable(*axes: float | None) -> Mpp | None:
    """The mean of the axes that are given, or None where one of them is no resolution of a slide."""
    given = [axis for axis in axes if axis is not None]
    if not given or not all(math.isfinite(axis) and SMALLEST < axis < LARGEST for axis in given):
        return None
    return Mpp(sum(given) / len(given))


def mpp_of_resolution(pixels_per_unit: float | None, unit: str) -> float | None:
    """µm per pixel from TIFF's XResolution and ResolutionUnit (TIFF 6.0, page 18); None for no unit."""
    if pixels_per_unit is None or not pixels_per_unit > 0 or unit not in MICRONS_PER:
        return None
    return MICRONS_PER[unit] / pixels_per_unit


def number(text: str | None) -> float | None:
    """``text`` as a number, a decimal comma allowed as OpenSlide does; None where it is none."""
    try:
        return None if text is None else float(text.strip().replace(",", "."))
    except ValueError:
        return None
