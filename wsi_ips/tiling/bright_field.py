"""The bare glass of a bright-field slide: its colour, how its light varies over the slide, and its noise.

Whatever lies on glass takes light away. Tissue is therefore measured in optical density against the glass of the
slide itself: lamps are tinted, light is uneven, and a scanner's noise decides how pale a tissue can still be told.

Tissue on bright glass: whatever takes light away, is no pen, and is not a mark that the glass itself has.

Tissue is measured against the glass of the same slide, not against other tissue: one threshold between "much
stain" and "little stain" loses pale tissue that lies beside strong tissue. The threshold is what the glass's own
noise and unevenness reach, with a floor.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy import ndimage

from wsi_ips.slides.base import RgbImage
from wsi_ips.tiling.neighbourhood import box_sum, brightest_channel, darkest_channel, highest, lowest, shrunk
from wsi_ips.tiling.pen import find_pen

Floats = NDArray[np.float32]

WINDOW_PX = 5
"""Side of the neighbourhood that is asked whether it is even: 40 µm at 8 µm per pixel, a few nuclei of tissue."""

EVEN = 16
"""Grey levels that even noisy glass varies within the window, at most. 99 % of H&E tissue varies by 35 or more."""

LEAST_EVEN = 0.25
"""Share of the pixels of the glass's colour that are even. Tissue of that colour is even in a few places only."""

DARKEST = 140
"""Grey level that bare glass has at least."""

STRONGEST_TINT = 0.16
"""Saturation of the strongest tint that is still taken for glass."""

LEAST_STAIN = 0.04
"""Haematoxylin and eosin take more green than red or blue, by this share of the brightest channel or more."""

WHITE = 250
"""Where every channel has this level there is little to learn: padding, or an overexposed picture."""

LEAST_SHARE = 0.01
"""Share of the picture that is even ground; less than this may be a vessel or a drop of mucin in the tissue."""

BRIGHTEST = 0.9
"""Quantile of the even ground's grey levels at which its brightest part, the glass, is looked for."""

SAME_GLASS = 12
"""Grey levels around that quantile that are the same glass."""

SIDE_PX = 1024
"""Side of the picture, about, that colours are looked at in. The largest pictures are thinned out to it."""

MOST_POINTS = 20_000
"""Pixels of the ground, about, that the surface is fitted to."""

STRONGEST_SLOPE = 0.12
"""Optical density, at most, that uneven light adds or takes away from the glass's typical colour."""

LEAST_SPREAD = 0.002
"""Optical density of half a grey level at 243: a picture in whole grey levels is not more exact."""

UNTINTED = np.full(3, 255.0, np.float32)


@dataclass(frozen=True, slots=True)
class Glass:
    """How bright the bare glass is at each place.

    colour_3: R, G and B in 0..255. seen: False where the picture shows no glass, and ``colour_3`` is white.
    terms_63: log10 of the glass's levels as a polynomial of the second degree in x and y, which run from -1 to 1
    over the picture; one column a channel. range_23: the lowest and highest log10 per channel that were seen.
    grey_noise, colour_noise: optical density that the glass itself reaches, on average over the channels and
    between them; 0 where no glass is seen.
    """

    colour_3: Floats
    seen: bool
    terms_63: Floats
    range_23: Floats
    grey_noise: float
    colour_noise: float

    def log_levels(self, channel: int, rows: slice, size_px: tuple[int, int]) -> Floats:
        """log10 of the glass's levels in a channel, (rows, width), for these rows of a picture (width, height)."""
        y = _places(size_px[1])[rows, None]
        x = _places(size_px[0])
        c = self.terms_63[:, channel]
        surface = (c[0] + c[1] * x + c[3] * x * x) + (c[2] * y + c[5] * y * y)
        if c[4]:
            surface += (c[4] * y) * x
        return np.asarray(surface.clip(*self.range_23[:, channel]), np.float32)


def log_of_levels() -> Floats:
    """(256,) float32: log10 of each grey level, of 0 that of 1."""
    return np.log10(np.maximum(np.arange(256), 1)).astype(np.float32)


def find_glass(rgb_HWC: RgbImage, allowed_HW: NDArray[np.bool_]) -> Glass:
    """The slide's glass. ``allowed_HW`` leaves out pens and padding.

    Glass is what is even (tissue has nuclei and fibres), bright, at most slightly tinted, not in the stains'
    colours, and of all that the brightest. From there on a surface is fitted to it, time and again without what is
    darker than it: pale even tissue does not pull the surface down, as nothing makes glass brighter.
    """
    step = max(1, max(rgb_HWC.shape[:2]) // SIDE_PX)
    part = (slice(None, None, step), slice(None, None, step))
    thin_HWC = rgb_HWC[part]
    levels, even = _even(rgb_HWC, part)
    ground = even & allowed_HW[part] & (levels >= DARKEST) & ~_coloured(thin_HWC)
    darker = ground & (darkest_channel(thin_HWC) < WHITE)
    if darker.mean() < LEAST_SHARE and not (allowed_HW[part] & even & ~ground).any():
        # An overexposed slide: its glass is white everywhere.
        darker = ground
    if darker.mean() < LEAST_SHARE:
        return _white_glass()
    brightest = np.quantile(levels[darker], BRIGHTEST)
    same = allowed_HW[part] & (np.abs(levels - brightest) <= SAME_GLASS) & ~_coloured(thin_HWC)
    glass = darker & same
    if glass.sum() < LEAST_EVEN * same.sum():
        return _white_glass()
    colour_3 = np.median(thin_HWC[glass], axis=0).astype(np.float32)
    return _fitted(thin_HWC, darker, colour_3)


def glass_colour(rgb_HWC: RgbImage, allowed: NDArray[np.bool_]) -> Floats:
    """The glass's R, G and B, (3,) float32 in 0..255; ``UNTINTED`` where no glass is to be seen."""
    return find_glass(rgb_HWC, allowed).colour_3


def _white_glass() -> Glass:
    terms_63 = np.zeros((6, 3), np.float32)
    terms_63[0] = np.log10(UNTINTED)
    return Glass(UNTINTED, False, terms_63, np.stack([terms_63[0]] * 2), 0.0, 0.0)


def _even(rgb_HWC: RgbImage, part: tuple[slice, slice]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Grey levels, and whether they hardly differ from their neighbours'."""
    grey_HW = np.asarray(Image.fromarray(rgb_HWC).convert("L"))
    varies_HW = highest(grey_HW, WINDOW_PX) - lowest(grey_HW, WINDOW_PX)
    return grey_HW[part], varies_HW[part] <= EVEN


def _coloured(rgb_HWC: RgbImage) -> NDArray[np.bool_]:
    red, green, blue = (rgb_HWC[..., channel].astype(np.int16) for channel in range(3))
    top, bottom = brightest_channel(rgb_HWC).astype(np.int16), darkest_channel(rgb_HWC)
    return np.asarray(
        (top - bottom > STRONGEST_TINT * top) | (np.minimum(red, blue) - green > LEAST_STAIN * top)
    )


def _fitted(rgb_HWC: RgbImage, ground: NDArray[np.bool_], colour_3: Floats) -> Glass:
    rows_N, columns_N = np.nonzero(ground)
    every = max(1, len(rows_N) // MOST_POINTS)
    rows_N, columns_N = rows_N[::every], columns_N[::every]
    log_N3 = log_of_levels()[rgb_HWC[rows_N, columns_N]]
    y_N, x_N = _places(ground.shape[0])[rows_N], _places(ground.shape[1])[columns_N]
    design_N6 = np.stack([np.ones_like(x_N), x_N, y_N, x_N * x_N, x_N * y_N, y_N * y_N], axis=1)
    centre_3 = np.log10(colour_3)
    density_N3 = centre_3 - log_N3
    kept = np.asarray((np.abs(density_N3) < STRONGEST_SLOPE / 5).all(axis=1))
    terms_63 = np.zeros((6, 3), np.float32)
    terms_63[0] = centre_3
    # A plane first: it reaches from the brighter half of a slide to the darker one without bending away.
    for terms in (3, 3, 6, 6):
        if kept.sum() < 100:
            break
        terms_63 = np.zeros((6, 3), np.float32)
        terms_63[:terms] = np.linalg.lstsq(design_N6[kept, :terms], log_N3[kept], rcond=None)[0]
        density_N3 = design_N6 @ terms_63 - log_N3
        kept = _inliers(density_N3)
    seen_N3 = design_N6[kept] @ terms_63 if kept.any() else centre_3[None]
    range_23 = np.stack([seen_N3.min(axis=0), seen_N3.max(axis=0)])
    range_23 = range_23.clip(centre_3 - STRONGEST_SLOPE, centre_3 + STRONGEST_SLOPE).astype(np.float32)
    grey_noise, colour_noise = _noise(density_N3, kept)
    return Glass(colour_3, True, terms_63.astype(np.float32), range_23, grey_noise, colour_noise)


def _inliers(density_N3: Floats) -> NDArray[np.bool_]:
    """What is not much darker than the surface, judged by how much brighter the glass gets."""
    grey_N = density_N3.mean(axis=1)
    brighter = grey_N[grey_N < 0]
    spread = max(LEAST_SPREAD, float(np.quantile(-brighter, 0.68))) if brighter.size else LEAST_SPREAD
    return np.asarray(np.abs(grey_N) < 3 * spread)


def _noise(density_N3: Floats, kept: NDArray[np.bool_]) -> tuple[float, float]:
    """Optical densities that bare glass has: grey from its brighter side, where there is no tissue."""
    grey_N = density_N3.mean(axis=1)
    brighter = -grey_N[grey_N < 0]
    grey = float(np.quantile(brighter, 0.99)) if brighter.size else 0.0
    colour_N = density_N3[kept].max(axis=1) - density_N3[kept].min(axis=1)
    return grey, float(np.quantile(colour_N, 0.9)) if colour_N.size else 0.0


def _places(length: int) -> Floats:
    return np.linspace(-1, 1, length, dtype=np.float32)


Mask = NDArray[np.bool_]
Bytes = NDArray[np.uint8]

LEAST_GREY = 0.012
"""Mean optical density of the three channels that is no more glass: 3 % of the light. H&E tissue has 0.1 to 1."""

LEAST_COLOUR = 0.010
"""Difference of optical density between channels that is no more glass."""

ABOVE_NOISE = 2.0
"""How many times the densities that the glass itself reaches."""

PER_OD = 500
"""Optical densities are kept as bytes in steps of 0.002, up to 0.51."""

EDGE = (2, 5)
"""Share, as a fraction, of its tissue's density that a pixel at the edge has, at least: less is mostly glass."""

EDGE_PX = 2
"""Pixels at the edge of tissue that are asked for it: a mixed one, and one that the scanner's optics or JPEG
spoil."""

BAND_ROWS = 256

SMOOTH = 2.0
"""Mean difference, in grey levels, between neighbouring pixels; tissue has 6 to 40, glass 0.2 to 1.5."""

LINE_PX = 9
"""Width of a line, at most, for a coverslip's edge or a scratch: 72 µm at 8 µm per pixel."""

LINE_LENGTH = 12
"""How many times longer than wide a line is."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a segmenter finds: two bool arrays (height, width) for the picture that it was given.

    mask_HW: True where tissue. pen_HW: True where tissue was left out as felt pen; None: nowhere.
    """

    mask_HW: Mask
    pen_HW: Mask | None = None


def bright_field_tissue(rgb_HWC: RgbImage, padding_HW: Mask, *, drop_pen: bool) -> Found:
    """Tissue of a picture (H, W, 3) uint8 of a bright-field slide; ``padding_HW`` is what was not scanned."""
    # A 3x3 median: single noisy pixels would raise the density of glass. It keeps edges where they are.
    smooth_HWC = np.asarray(Image.fromarray(rgb_HWC).filter(ImageFilter.MedianFilter(3)))
    glass = find_glass(rgb_HWC, ~padding_HW)
    texture_HW = _texture(rgb_HWC)
    grey_HW, colour_HW = _densities(smooth_HWC, glass)
    least_grey = max(LEAST_GREY, ABOVE_NOISE * glass.grey_noise) * PER_OD
    least_colour = max(LEAST_COLOUR, ABOVE_NOISE * glass.colour_noise) * PER_OD
    stained_HW = (grey_HW >= least_grey) | ((colour_HW >= least_colour) & (grey_HW > 0))
    stained_HW &= ~padding_HW
    pen_HW = np.zeros_like(stained_HW)
    if drop_pen:
        pen_HW = find_pen(smooth_HWC, stained_HW, texture_HW, glass.colour_3)
        stained_HW &= ~pen_HW
    if not glass.seen:
        return Found(stained_HW, pen_HW)
    mask_HW = _without_edges(stained_HW, grey_HW)
    mask_HW &= ~_marks_on_glass(mask_HW, grey_HW, colour_HW, texture_HW, least_colour)
    return Found(mask_HW, pen_HW)


def _densities(rgb_HWC: RgbImage, glass: Glass) -> tuple[Bytes, Bytes]:
    """Optical density against the glass, mean over the channels and the channels' range, in ``1 / PER_OD``."""
    height, width = rgb_HWC.shape[:2]
    logs = log_of_levels()
    grey_HW, colour_HW = np.empty((height, width), np.uint8), np.empty((height, width), np.uint8)
    for top in range(0, height, BAND_ROWS):
        rows = slice(top, min(height, top + BAND_ROWS))
        red, green, blue = (
            glass.log_levels(channel, rows, (width, height)) - logs[rgb_HWC[rows, :, channel]]
            for channel in range(3)
        )
        grey_HW[rows] = ((red + green + blue) * (PER_OD / 3)).clip(0, 255)
        most, least = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
        colour_HW[rows] = ((most - least) * PER_OD).clip(0, 255)
    return grey_HW, colour_HW


def _texture(rgb_HWC: RgbImage) -> Bytes:
    """How much a pixel differs from the next one and from the one below, mean of both and of the channels.

    In eighths of a grey level. Channel by channel: red grains on blue may be as bright as the blue.
    """
    height, width = rgb_HWC.shape[:2]
    texture_HW = np.zeros((height, width), np.uint8)
    for top in range(0, height - 1, BAND_ROWS):
        bottom = min(height - 1, top + BAND_ROWS)
        total = np.zeros((bottom - top, width - 1), np.uint16)
        for channel in range(3):
            here = rgb_HWC[top:bottom, :-1, channel]
            for other in (rgb_HWC[top:bottom, 1:, channel], rgb_HWC[top + 1 : bottom + 1, :-1, channel]):
                total += np.maximum(here, other) - np.minimum(here, other)
        texture_HW[top:bottom, :-1] = np.minimum(total * 8 // 6, 255)
    return texture_HW


def _without_edges(mask_HW: Mask, grey_HW: Bytes) -> Mask:
    """Without the pixels at the outer edge that are mostly glass, judged by the tissue beside them.

    The threshold lies far below the density of most tissue: a pixel that holds 5 % of it, or the halo that a lens
    or JPEG's blocks leave around it, would count as tissue.
    """
    left = mask_HW
    for _ in range(EDGE_PX):
        inner = shrunk(left, 3)
        # The tissue's own level, from what is not edge within two pixels; whole numbers below 2**16.
        count = box_sum(inner, 5)
        level = box_sum(np.where(inner, grey_HW, 0), 5)
        mostly_glass = (grey_HW * count) * EDGE[1] < level * EDGE[0]
        left = left & (inner | (count == 0) | ~mostly_glass)
    return left


def _marks_on_glass(
    mask_HW: Mask, grey_HW: Bytes, colour_HW: Bytes, texture_HW: Bytes, least_colour: float
) -> Mask:
    """Regions without colour that are even, or a line: bubbles, shadows, coverslip edges, dirt out of focus."""
    labels_HW, count = ndimage.label(mask_HW, np.ones((3, 3)))
    if not count:
        return np.zeros_like(mask_HW)
    labels_N = labels_HW[mask_HW]
    area_K = np.bincount(labels_N, minlength=count + 1)
    grey_K, colour_K, texture_K = (
        np.bincount(labels_N, weights=values[mask_HW], minlength=count + 1) / np.maximum(1, area_K)
        for values in (grey_HW, colour_HW, texture_HW)
    )
    neutral_K = colour_K < np.maximum(least_colour, 0.2 * grey_K)
    even_K = neutral_K & (texture_K < 8 * SMOOTH)
    wide_K = np.zeros(count + 1, bool)
    wide_K[labels_HW[shrunk(mask_HW, LINE_PX)]] = True
    lines_K = neutral_K & ~wide_K & (area_K > LINE_LENGTH * LINE_PX)
    drop_K = even_K | lines_K
    drop_K[0] = False
    return np.asarray(drop_K[labels_HW])
