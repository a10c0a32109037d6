"""The slide with its attention over it, and what the colours mean, as one PNG.

The picture's top left part is the slide at one scale, pixel for pixel: level-0 point (x, y) lies at pixel
(x / l0_per_px, y / l0_per_px). The legend stands below it and never on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from shapely import Polygon

from wsi_ips.files import whole_file
from wsi_ips.heatmaps.colours import colourise
from wsi_ips.heatmaps.legend import Legend, draw_legend
from wsi_ips.heatmaps.raster import percentile_ranks, rasterise
from wsi_ips.inference.results import SlideResult
from wsi_ips.slides.base import SlideReader
from wsi_ips.tiling.thumbnail import scale_down

Scale = Literal["percentile", "absolute"]
OUTLINE = (20, 20, 20)


@dataclass(frozen=True, slots=True)
class Overlay:
    """image: slide and legend. slide_px: (width, height) of the slide's part. l0_per_px: its scale."""

    image: Image.Image
    slide_px: tuple[int, int]
    l0_per_px: float


def attention_of_patches(result: SlideResult) -> NDArray[np.float64]:
    """(N,): mean over heads and queries of the attention; sums to 1 over the slide."""
    return np.asarray(result.attention_NHT.mean(axis=(1, 2), dtype=np.float64))


def draw_overlay(
    slide: SlideReader,
    result: SlideResult,
    *,
    side_px: int = 2048,
    alpha: float = 0.5,
    scale: Scale = "percentile",
    outlines: Sequence[Polygon] = (),
) -> Overlay:
    """Draw it in memory that grows with the picture, not with the slide.

    side_px: longest side of the slide's part. alpha: opacity of the heat. scale: colours by the rank of a value
    among the slide's patches, or between its smallest and largest. outlines: in level-0 pixels, drawn as lines.
    """
    l0_size = slide.info.l0_size
    l0_per_px = max(1.0, max(l0_size) / side_px)
    values_N = attention_of_patches(result)
    coords = result.coords
    shares_N = percentile_ranks(values_N) if scale == "percentile" else _between_extremes(values_N)
    shares_HW = rasterise(
        shares_N, coords.l0_exact_corners(), l0_patch=coords.l0_patch, l0_size=l0_size, l0_per_px=l0_per_px
    )
    height, width = shares_HW.shape
    # A whole pixel more than fits would stretch the slide by a fraction: its part beyond the edge is white.
    picture = _slide_at_scale(slide, (width, height), l0_per_px)
    patches = np.isfinite(shares_HW)
    heat = colourise(shares_HW[patches])
    picture[patches] = np.rint(picture[patches] * (1 - alpha) + heat * alpha).astype(np.uint8)
    image = Image.fromarray(picture)
    _draw_outlines(image, outlines, l0_per_px)
    legend = Legend(
        title=f"{coords.slide_id}: attention of {len(coords)} patches, mean over heads and queries",
        prediction="   ".join(
            f"{task}: " + ", ".join(f"{name} {chance:.3f}" for name, chance in chances.items())
            for task, chances in result.probabilities.items()
        ),
        values_N=values_N,
        scale=scale,
        mpp=coords.slide_mpp * l0_per_px,
    )
    return Overlay(draw_legend(image, legend), (width, height), l0_per_px)


def write_overlay(
    path: Path,
    slide: SlideReader,
    result: SlideResult,
    *,
    side_px: int = 2048,
    alpha: float = 0.5,
    scale: Scale = "percentile",
    outlines: Sequence[Polygon] = (),
) -> None:
    """Draw and write a PNG whose text chunks hold the scale, so that a pixel can be traced to the slide."""
    overlay = draw_overlay(slide, result, side_px=side_px, alpha=alpha, scale=scale, outlines=outlines)
    values_N = attention_of_patches(result)
    text = PngInfo()
    text.add_text("slide_id", result.coords.slide_id)
    text.add_text("l0_per_px", repr(overlay.l0_per_px))
    text.add_text("attention_min", repr(float(values_N.min())))
    text.add_text("attention_max", repr(float(values_N.max())))
    with whole_file(path) as partial:
        overlay.image.save(partial, pnginfo=text)


def _slide_at_scale(slide: SlideReader, size_px: tuple[int, int], l0_per_px: float) -> NDArray[np.uint8]:
    l0_width, l0_height = slide.info.l0_size
    exact = (max(1, int(l0_width / l0_per_px)), max(1, int(l0_height / l0_per_px)))
    picture = np.full((size_px[1], size_px[0], 3), 255, np.uint8)
    picture[: exact[1], : exact[0]] = scale_down(slide, exact)
    return picture


def _between_extremes(values_N: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = values_N.min(), values_N.max()
    return (values_N - low) / (high - low) if high > low else np.full(len(values_N), 0.5)


def _draw_outlines(image: Image.Image, outlines: Sequence[Polygon], l0_per_px: float) -> None:
    draw = ImageDraw.Draw(image)
    for polygon in outlines:
        for ring in (polygon.exterior, *polygon.interiors):
            points = [(x / l0_per_px - 0.5, y / l0_per_px - 0.5) for x, y in ring.coords]
            draw.line(points, fill=OUTLINE, width=max(2, round(max(image.size) / 700)), joint="curve")
