"""Slides of many stains, drawn with their truth: pale beside strong, on any glass, with pen or dirt on it."""

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from wsi_ips.config import TissueConfig
from wsi_ips.slides.base import RgbImage
from wsi_ips.slides.image_reader import MemoryReader
from wsi_ips.tiling.tissue import find_tissue
from wsi_ips.units import Mpp

SIDE = 600
MPP = Mpp(4.0)
Mask = NDArray[np.bool_]
Rgb = tuple[int, int, int]

# Ground colour, colour of the nuclei or grains, and how much of the tissue these are.
STAINS: dict[str, tuple[Rgb, Rgb, float]] = {
    "h&e": ((222, 150, 190), (110, 70, 150), 0.2),
    "h&e strong": ((196, 88, 149), (90, 40, 120), 0.2),
    "h&e pale": ((234, 212, 226), (190, 170, 210), 0.15),
    "dab": ((120, 72, 42), (80, 40, 20), 0.2),
    "ihc pale": ((231, 226, 225), (200, 205, 220), 0.1),
    "at8 pale": ((209, 208, 228), (150, 155, 200), 0.15),
    "trichrome red": ((166, 39, 69), (90, 30, 60), 0.2),
    "trichrome blue": ((79, 116, 186), (50, 70, 140), 0.2),
    "trichrome as blue as ink": ((30, 60, 190), (20, 30, 120), 0.2),
    "alcian": ((119, 182, 203), (80, 120, 180), 0.2),
    "pas": ((205, 110, 170), (130, 40, 120), 0.2),
    "pas pale": ((236, 220, 232), (190, 150, 190), 0.15),
    "gms": ((147, 174, 160), (40, 42, 40), 0.15),
    "gms strong": ((80, 160, 110), (30, 35, 30), 0.15),
    "melanin": ((60, 40, 30), (25, 18, 14), 0.4),
    "melanin black": ((35, 30, 30), (15, 12, 12), 0.4),
    "congo red": ((226, 150, 140), (120, 90, 160), 0.2),
    "oil red": ((225, 60, 50), (110, 90, 170), 0.2),
    "silver": ((215, 190, 130), (40, 30, 20), 0.2),
    "elastin": ((225, 205, 140), (30, 25, 30), 0.3),
    "perls": ((235, 180, 190), (40, 90, 190), 0.15),
    "methyl green": ((150, 205, 190), (80, 160, 140), 0.2),
    "giemsa": ((150, 160, 210), (80, 80, 160), 0.2),
    "grey pale": ((228, 228, 231), (190, 190, 195), 0.15),
    "sudan black": ((120, 120, 125), (40, 40, 45), 0.3),
    "yellow": ((240, 228, 190), (200, 170, 110), 0.15),
}
USUAL: Rgb = (243, 242, 245)


@dataclass(frozen=True)
class Stained:
    """rgb_HWC: the slide at ``MPP``. truth_HW: its tissue."""

    rgb_HWC: RgbImage
    truth_HW: Mask

    def found(self, *, drop_pen: bool = True) -> Mask:
        """What our segmentation calls tissue, at the slide's own scale."""
        config = TissueConfig(drop_pen=drop_pen)
        mask = find_tissue(MemoryReader(self.rgb_HWC, mpp=MPP), config)
        assert mask.l0_per_px == (2.0, 2.0)
        return mask.mask_HW.repeat(2, 0).repeat(2, 1)

    def shares(self) -> tuple[float, float]:
        """Of the tissue and of the glass: what is called tissue."""
        found = self.found()
        glass = found[~self.truth_HW]
        return (
            float(found[self.truth_HW].mean()) if self.truth_HW.any() else 1.0,
            float(glass.mean()) if glass.size else 0.0,
        )


def disc(radius: float = 210, centre: tuple[float, float] = (300, 300)) -> Mask:
    y, x = np.mgrid[:SIDE, :SIDE]
    return np.asarray((x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2)


def biopsies() -> Mask:
    return disc(35, (150, 150)) | disc(25, (400, 250)) | disc(30, (250, 450))


def needle_core() -> Mask:
    y, x = np.mgrid[:SIDE, :SIDE]
    return np.asarray((np.abs(y - 300 - 20 * np.sin(x / 75)) < 18) & (x > 75) & (x < 525))


def micro_array() -> Mask:
    return np.logical_or.reduce(
        [disc(50, (x, y)) for x in range(75, SIDE, 150) for y in range(75, SIDE, 150)]
    )


def strokes(*lines: tuple[int, int, int, int], width: int = 44) -> Mask:
    picture = Image.new("L", (SIDE, SIDE))
    for line in lines:
        ImageDraw.Draw(picture).line(line, 255, width)
    return np.asarray(picture) > 0


def ring(left: int, top: int, right: int, bottom: int, width: int = 44) -> Mask:
    picture = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(picture).ellipse((left, top, right, bottom), outline=255, width=width)
    return np.asarray(picture) > 0


def draw(
    *stains: str,
    shape: Mask | None = None,
    glass: Rgb = USUAL,
    marks: tuple[tuple[Mask, Rgb], ...] = (),
    light: float = 0,
    vignette: float = 0,
    noise: float = 1.5,
    jpeg: int | None = None,
) -> Stained:
    """Tissue of ``shape``, its stains side by side. ``marks`` lie on top, and under them is no truth.

    light: how much darker the left side is. vignette: how much darker the corners are. noise: grey levels of a
    pixel, of which four make one of the thumbnail.
    """
    rng = np.random.default_rng(0)
    truth = disc() if shape is None else shape
    image = np.full((SIDE, SIDE, 3), glass, np.float32)
    columns = np.flatnonzero(truth.any(axis=0)) if truth.any() else np.arange(SIDE)
    edges = np.linspace(columns[0], columns[-1] + 1, len(stains) + 1).round().astype(int)
    for stain, left, right in zip(stains, edges, edges[1:], strict=False):
        part = truth.copy()
        part[:, :left] = part[:, right:] = False
        soft = ndimage.gaussian_filter(part.astype(np.float32), 1)[..., None]
        image = image * (1 - soft) + _tissue(rng, stain) * (np.array(glass) / USUAL) * soft
    for mark, colour in marks:
        soft = ndimage.gaussian_filter(mark.astype(np.float32), 1.2)[..., None]
        # Ink lets a little of what is below it through.
        image = image * (1 - soft) + soft * (np.array(colour) * (0.7 + 0.3 * image / 255))
        truth = truth & ~ndimage.binary_dilation(mark, iterations=6)
    image *= np.linspace(1 - light, 1, SIDE)[None, :, None]
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    image *= (1 - vignette * (x * x + y * y) / 2)[..., None]
    rgb_HWC = (image + rng.normal(0, noise, image.shape)).clip(0, 255).astype(np.uint8)
    if jpeg is not None:
        held = io.BytesIO()
        Image.fromarray(rgb_HWC).save(held, "JPEG", quality=jpeg)
        rgb_HWC = np.asarray(Image.open(held))
    return Stained(rgb_HWC, truth)


def _tissue(rng: np.random.Generator, stain: str) -> NDArray[np.float32]:
    ground, grains, share = STAINS[stain]
    colours = np.full((SIDE, SIDE, 3), ground, np.float32)
    colours[(rng.random((SIDE // 2, SIDE // 2)) < share).repeat(2, 0).repeat(2, 1)] = grains
    return np.asarray(colours + rng.normal(0, 6, colours.shape), np.float32)
