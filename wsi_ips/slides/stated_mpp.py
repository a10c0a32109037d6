"""What a file says of its resolution, where that can be believed."""

import math

from wsi_ips.units import Mpp

SMALLEST, LARGEST = 0.01, 100.0
"""Exclusive limits, in µm per pixel. 72 dpi, what image editors write, is 353."""

MICRONS_PER = {"centimeter": 10_000.0, "inch": 25_400.0}

PRINT_DPI = (72.0, 75.0, 96.0, 100.0, 120.0, 144.0, 150.0, 200.0, 240.0, 254.0, 300.0, 360.0, 400.0, 600.0, 720.0,
             1200.0, 1440.0, 2400.0)  # fmt: skip
"""Dots per inch that image programs write by default or for print; no slide scanner's resolution is one of them
(2,400 dpi is 10.6 µm)."""

PRINT_TOLERANCE = 0.002
"""118.11 pixels per centimetre are 299.9994 dpi, and programs round to 118."""


def believable(mpp: float | None) -> Mpp | None:
    """``mpp`` where it may be the resolution of a slide, else None."""
    if mpp is None or not math.isfinite(mpp) or not SMALLEST < mpp < LARGEST:
        return None
    return Mpp(mpp)


def believable_xy(x: float | None, y: float | None) -> tuple[Mpp, Mpp] | None:
    """µm per pixel along x and y, or None where one of them is no resolution of a slide.

    An axis that is not stated (None) is taken to be like the other one.
    """
    mpp_x, mpp_y = (believable(y if axis is None else axis) for axis, y in ((x, y), (y, x)))
    return None if mpp_x is None or mpp_y is None else (mpp_x, mpp_y)


def mpp_of_resolution(pixels_per_unit: float | None, unit: str) -> float | None:
    """µm per pixel from TIFF's XResolution and ResolutionUnit (TIFF 6.0, page 18).

    None where there is no unit. NaN, which is not believable along the other axis either, for the resolutions that
    image programs write for print (300 dpi would be 85 µm).
    """
    if pixels_per_unit is None or not pixels_per_unit > 0 or unit not in MICRONS_PER:
        return None
    mpp = MICRONS_PER[unit] / pixels_per_unit
    dpi = MICRONS_PER["inch"] / mpp
    for_print = any(abs(dpi / print_dpi - 1) < PRINT_TOLERANCE for print_dpi in PRINT_DPI)
    return math.nan if for_print else mpp


def number(text: str | None) -> float | None:
    """``text`` as a number, a decimal comma allowed as OpenSlide does; None where it is none."""
    try:
        return None if text is None else float(text.strip().replace(",", "."))
    except ValueError:
        return None
