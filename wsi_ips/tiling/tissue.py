"""Which parts of a slide are tissue: :func:`find_tissue` makes a mask on a thumbnail of some µm per pixel.

Bright-field slides are segmented in ``bright_field.py``, learned models run in ``segmenter.py``; fluorescence
(bright things on black) is segmented here. Nuclei on black are dots, and what lies between them is tissue too. So
is what is dimly lit beside bright things: the threshold is what the noise of the black background reaches, not a
level between dim and bright.

Shape suffixes: H rows, W columns, C channels.
"""

import math
from dataclasses import dataclass
from math import ceil
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from wsi_ips.config import TissueConfig
from wsi_ips.errors import SegmenterError, WsiIpsError, one_line
from wsi_ips.registry import Registry
from wsi_ips.slides.base import RgbImage, SlideReader
from wsi_ips.tiling.bright_field import (
    DARKEST,
    Found,
    bright_field_tissue,
    brightest_channel,
    darkest_channel,
    grown,
    shrunk,
)
from wsi_ips.tiling.outlines import without_small
from wsi_ips.tiling.picture import slide_picture
from wsi_ips.timeline import staged
from wsi_ips.units import Mpp, Size

Mask = NDArray[np.bool_]
"""(H, W) bool array."""

NEAR_SIGMA_PX = 3.0
"""Sigma, in thumbnail pixels, of the blur that gives the light around a pixel: a single lit pixel is noise."""

LEAST_LIGHT = 2.0
"""Grey levels above the background that the light around a pixel has in tissue, at least; less is the camera's
noise.
"""

LEAST_DOT = 4.0
"""Grey levels above the background that the pixel itself has in tissue, at least."""

ABOVE_NOISE = 5.0
"""How many times the spread of the background the light in tissue is, at least."""

GAP_PX = 11
"""Dots that are no further apart than this, in thumbnail pixels, are joined: 88 µm at 8 µm per pixel."""

EDGE = 0.4
"""Share of the light around it that a pixel at the edge of tissue has, at least."""

DARK = 64
"""Median grey level below which a thumbnail is taken for fluorescence: bright things on black."""

LEAST_WHITE = 0.05
"""Share of pixels as bright as glass from which on even a dark thumbnail is taken for bright-field."""

LARGEST_SIDE_PX = 8192
"""The longest side of the thumbnail, however large the slide or wrong its resolution."""

MOST_PX = 2**25
"""The most pixels of the thumbnail: a whole glass of 25x75 mm at 8 µm.

Segmenting it takes about 30 bytes a pixel.
"""

BLACK = 8
"""Grey level up to which a pixel of a bright slide is padding that the scanner left black."""


@dataclass(frozen=True, slots=True)
class TissueMask:
    """A mask of the slide's tissue.

    ``mask_HW``, (H, W) bool, is True where there is tissue. ``l0_per_px`` is the size of a mask pixel in level-0
    pixels along x and y. ``why_empty`` is set where our segmentation found no tissue: the problem and what to do
    about it, in words. ``note`` is what a user has to know of how the tissue was found.
    """

    mask_HW: Mask
    l0_per_px: tuple[float, float]
    why_empty: tuple[str, str] | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class TissueView:
    """A slide as a segmenter sees it, and the mask that is wanted of it.

    slide: the open reader; it is not closed. slide_mpp: µm per level-0 pixel. size_px: (width, height) of the
    mask. l0_per_px: level-0 pixels per pixel of the mask, which begins at the slide's corner. unread_HW: (height,
    width) bool; who reads pixels makes True what cannot be read. That counts as tissue in the end: whoever reads
    those patches finds the damage, counts it and names it.
    """

    slide: SlideReader
    slide_mpp: Mpp
    size_px: Size
    l0_per_px: float
    unread_HW: Mask

    def picture(self) -> RgbImage:
        """The slide in the mask's pixels, (height, width, 3) uint8, means of areas; white where it cannot be read,
        which is noted in ``unread_HW``."""
        return slide_picture(self.slide, self.size_px, l0_per_px=self.l0_per_px, unread_HW=self.unread_HW)


class Segmenter(Protocol):
    """Says what of a slide is tissue. A function is one."""

    def __call__(self, view: TissueView, config: TissueConfig) -> Found:
        """The tissue in ``view``: a mask of its size, without regard to the size of pieces and holes.

        config: the section ``tiling.tissue``, with the segmenter's own settings in ``config.options``. Raises
        :class:`ConfigError` for settings that cannot be, and :class:`SegmenterError` for a model that cannot be
        used.
        """
        ...


SEGMENTERS: Registry[Segmenter] = Registry(
    "tissue segmenter",
    {
        "rules": "wsi_ips.tiling.tissue:tissue_by_rules",
        "bright_field": "wsi_ips.tiling.tissue:tissue_of_bright_field",
        "dark_field": "wsi_ips.tiling.tissue:tissue_of_dark_field",
        "model": "wsi_ips.tiling.segmenter:learned_tissue",
    },
    group="wsi_ips.segmenters",
    problem=lambda member: "" if callable(member) else "it is no function of a view and a configuration",
)
"""What finds tissue, by :attr:`TissueConfig.segmenter`. Another package adds a :class:`Segmenter` under the entry
point group ``wsi_ips.segmenters``."""


@staged("tissue")
def find_tissue(slide: SlideReader, config: TissueConfig, *, mpp: Mpp | None = None) -> TissueMask:
    """Segment the slide's tissue. ``mpp`` (µm per pixel) is used instead of the file's own resolution.

    On bright-field slides, tissue is what takes more light away than the slide's own glass does
    (:mod:`wsi_ips.tiling.bright_field`), without felt pen and black padding. On a dark background (fluorescence),
    it is what is brighter than that. With ``config.model``, it is what that segmenter says. Afterwards, small
    objects are removed and small holes filled, both by their area in µm². A slide without tissue gives an empty
    mask. Parts that cannot be read at any level count as tissue, so that the damage is found, counted and named
    when their patches are read.

    Raises :class:`MissingResolution` where neither ``mpp`` nor the file gives a resolution, and
    :class:`SegmenterError` for a model, or a segmenter of another package, that cannot be used.
    """
    slide_mpp = mpp or slide.info.known_mpp()
    l0_size = slide.info.l0_size
    l0_per_px = thumbnail_scale(l0_size, slide_mpp=slide_mpp, thumbnail_mpp=config.thumbnail_mpp)
    if config.model is not None:  # no finer than what the model sees
        l0_per_px = max(l0_per_px, config.model.mpp / slide_mpp)
    size_px = (ceil(l0_size[0] / l0_per_px), ceil(l0_size[1] / l0_per_px))
    view = TissueView(slide, slide_mpp, size_px, l0_per_px, np.zeros((size_px[1], size_px[0]), bool))
    found = _found(view, config)
    um2_per_px = (l0_per_px * slide_mpp) ** 2
    mask = without_small(
        found.mask_HW,
        object_px=_pixels(config.min_object_um2, um2_per_px),
        hole_px=_pixels(config.min_hole_um2, um2_per_px),
    )
    mask |= view.unread_HW
    why_empty = None if mask.any() else _why_empty(found, config, um2_per_px)
    return TissueMask(mask, (l0_per_px, l0_per_px), why_empty, found.note)


def _found(view: TissueView, config: TissueConfig) -> Found:
    """What the segmenter finds. Whatever another package's code raises or returns ends no run and is no mask."""
    name = config.segmenter
    segmenter = SEGMENTERS.load(name)
    if name in SEGMENTERS.members:
        return segmenter(view, config)
    path, wrong = view.slide.info.path, f"tissue segmenter {name} (tiling.tissue.method)"
    try:
        found = segmenter(view, config)
    except WsiIpsError:
        raise
    except Exception as error:
        reason = one_line(f"{type(error).__name__}: {error}", most=200)
        raise SegmenterError(
            path, f"{wrong} does not run on it ({reason})", "report it to its authors"
        ) from error
    if (
        isinstance(found, Found)
        and _is_mask(found.mask_HW, view)
        and (found.pen_HW is None or _is_mask(found.pen_HW, view))
    ):
        return found
    shape = view.unread_HW.shape
    raise SegmenterError(
        path, f"{wrong} returns no Found with a bool mask of shape {shape}", "report it to its authors"
    )


def _is_mask(mask_HW: object, view: TissueView) -> bool:
    return isinstance(mask_HW, np.ndarray) and mask_HW.dtype == bool and mask_HW.shape == view.unread_HW.shape


TAKEN_FOR_DARK = (
    "the background is dark: taken for fluorescence (dark field), which models of stained slides do not know"
)
"""Note of a slide that nobody said was dark-field."""


def thumbnail_scale(l0_size: Size, *, slide_mpp: Mpp, thumbnail_mpp: float) -> float:
    """Level-0 pixels per pixel of a mask of ``thumbnail_mpp``, or of the finest mask that fits in memory."""
    by_area = math.sqrt(l0_size[0] * l0_size[1] / MOST_PX)
    return max(1.0, thumbnail_mpp / slide_mpp, max(l0_size) / LARGEST_SIDE_PX, by_area)


def tissue_by_rules(view: TissueView, config: TissueConfig) -> Found:
    """Bright-field or dark-field tissue, as the slide's own brightness says. See :class:`Segmenter`."""
    rgb_HWC = view.picture()
    padding_HW = brightest_channel(rgb_HWC) <= BLACK
    if padding_HW.all():
        return Found(np.zeros_like(padding_HW))
    grey = np.asarray(Image.fromarray(rgb_HWC).convert("L"))
    is_dark = np.median(grey) < DARK and np.median(grey[~padding_HW]) < 2 * DARK
    # Melanin may fill most of a bright slide; fluorescence is hardly ever white.
    if is_dark and (darkest_channel(rgb_HWC) >= DARKEST).mean() < LEAST_WHITE:
        return Found(dark_field_tissue(rgb_HWC), note=TAKEN_FOR_DARK)
    return bright_field_tissue(rgb_HWC, padding_HW, drop_pen=config.drop_pen)


def tissue_of_bright_field(view: TissueView, config: TissueConfig) -> Found:
    """Bright-field tissue, however dark the slide is. See :class:`Segmenter`."""
    rgb_HWC = view.picture()
    padding_HW = brightest_channel(rgb_HWC) <= BLACK
    if padding_HW.all():
        return Found(np.zeros_like(padding_HW))
    return bright_field_tissue(rgb_HWC, padding_HW, drop_pen=config.drop_pen)


def tissue_of_dark_field(view: TissueView, config: TissueConfig) -> Found:
    """Dark-field (fluorescence) tissue, however bright the slide is. See :class:`Segmenter`."""
    return Found(dark_field_tissue(view.picture()))


def _pixels(um2: float, um2_per_px: float) -> int:
    """The largest number of pixels whose area is still smaller than ``um2``."""
    return max(0, int(np.ceil(um2 / um2_per_px)) - 1)


def _in_python(setting: str, value: str) -> str:
    """How a setting of ``tiling.tissue`` is given to the functions of the Python interface."""
    return f"in Python: tiling=wi.TilingConfig(tissue={{'{setting}': {value}}})"


def _why_empty(found: Found, config: TissueConfig, um2_per_px: float) -> tuple[str, str]:
    """What left out everything, as problem and fix.

    Pen is named before specks, for the remains of a pen stroke are specks.
    """
    pen_px = 0 if found.pen_HW is None else int(found.pen_HW.sum())
    found_px = int(found.mask_HW.sum())
    if pen_px > found_px:
        return (
            f"no tissue was found: {pen_px * um2_per_px / 1e6:.3g} mm² of stain were all left out as felt pen",
            f"if they are tissue, set tiling.tissue.drop_pen=false ({_in_python('drop_pen', 'False')})",
        )
    if found_px:
        largest = int(np.bincount(ndimage.label(found.mask_HW)[0].ravel())[1:].max())
        return (
            f"no tissue was found: its largest piece has {largest * um2_per_px:.3g} µm², "
            f"tiling.tissue.min_object_um2 asks for {config.min_object_um2:g}",
            f"lower tiling.tissue.min_object_um2 ({_in_python('min_object_um2', '0')}), or leave the slide out",
        )
    if config.segmenter not in SEGMENTERS.members:
        return (
            f"no tissue was found: the segmenter {config.segmenter} (tiling.tissue.method) sees none",
            "check its settings, tiling.tissue.options, or leave the slide out",
        )
    if config.model is not None:
        return (
            f"no tissue was found: {config.model.file.name} (tiling.tissue.model) says {config.model.threshold:g} "
            "or more nowhere",
            "check its description's mpp, mean, std, channel and threshold, or leave the slide out",
        )
    return (
        "no tissue was found: nothing on it differs from the bare glass",
        "see its picture in previews/ of wsi-ips tile; outline its tissue (--contours), or leave the slide out",
    )


def dark_field_tissue(rgb_HWC: RgbImage) -> Mask:
    """Tissue in a picture (H, W, 3) uint8 that is bright on black, (H, W) bool.

    All False where there is only background.
    """
    light_HW = brightest_channel(rgb_HWC)
    near_HW = ndimage.gaussian_filter(light_HW, NEAR_SIGMA_PX, output=np.float32)
    level, spread = _background(light_HW, least=0.5)
    near_level, near_spread = _background(near_HW, least=0.1)
    near_HW -= near_level
    bright_HW = near_HW > max(LEAST_LIGHT, ABOVE_NOISE * near_spread)
    dots_HW = (light_HW > level + max(LEAST_DOT, ABOVE_NOISE * spread)) & bright_HW
    # A mixed pixel at the edge is dimmer than what lies around it within the tissue.
    edge_HW = dots_HW & ~shrunk(dots_HW, 3)
    dots_HW &= ~(edge_HW & (light_HW - level < EDGE * near_HW))
    return np.asarray(shrunk(grown(dots_HW, GAP_PX), GAP_PX) & bright_HW)


def _background(light_HW: NDArray[np.float32] | NDArray[np.uint8], *, least: float) -> tuple[float, float]:
    """The most common of the darker levels, and how far the levels below it spread, which is at least
    ``least``.
    """
    counts, edges = np.histogram(light_HW, bins=256, range=(0, 256))
    level = float(edges[counts[:64].argmax()])
    below = level - light_HW[light_HW < level].astype(np.float32)
    return level, max(least, float(np.quantile(below, 0.68))) if below.size else least
