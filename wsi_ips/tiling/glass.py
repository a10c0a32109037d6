"""The bare glass of a bright-field slide: its colour, how its light varies over the slide, and its noise.

Whatever lies on glass takes light away. Tissue is therefore measured in optical density against the glass of the
slide itself: lamps are tinted, light is uneven, and a scanner's noise decides how pale a tissue can still be told.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_ips.slides.base import RgbImage
from wsi_ips.tiling.neighbourhood import brightest_channel, darkest_channel, highest, lowest

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
