"""A part of a slide as JPEG, straight from the reader. Colours are the file's own: no ICC profile is applied."""

from math import ceil, floor

import numpy as np
import simplejpeg
from PIL import Image

from wsi_ips.slides.base import RgbImage, SlideReader
from wsi_ips.tiling.picture import slide_window
from wsi_ips.units import Size
from wsi_ips.viewer.tile_pyramid import Window

JPEG_QUALITY = 88
MOST_READ_PX = 16_000_000
"""Pixels that one tile reads at once; where a slide has no level that is coarse enough, it reads block by
block."""


def slide_tile(slide: SlideReader, window: Window) -> bytes:
    """The window as JPEG. Raises the reader's :class:`SlideReadError`."""
    return encode_jpeg(slide_pixels(slide, window))


def encode_jpeg(pixels: RgbImage) -> bytes:
    """Without subsampling: the edges of nuclei are what is looked at."""
    return bytes(
        simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), JPEG_QUALITY, "RGB", colorsubsampling="444")
    )


def slide_pixels(slide: SlideReader, window: Window) -> RgbImage:
    """(height, width, 3) uint8: each pixel the mean of the area that it covers, white beyond the slide.

    As :func:`slide_window`, several times faster: Pillow averages instead of sums of floats.
    """
    l0_per_px = window.l0_per_px
    level = slide.info.level_for(l0_per_px)
    edges = [
        (at * l0_per_px * lv_length / l0_length, (at + pixels) * l0_per_px * lv_length / l0_length)
        for at, pixels, l0_length, lv_length in zip(
            window.at_px, window.size_px, slide.info.l0_size, slide.info.levels[level].size, strict=True
        )
    ]
    starts = [floor(start + 1e-6) for start, _ in edges]
    read_px = (ceil(edges[0][1] - 1e-6) - starts[0], ceil(edges[1][1] - 1e-6) - starts[1])
    if read_px[0] * read_px[1] > MOST_READ_PX:
        return slide_window(slide, window.at_px, window.size_px, l0_per_px=l0_per_px)
    downsample = slide.info.levels[level].downsample
    l0_at = (round(starts[0] * downsample), round(starts[1] * downsample))
    pixels = slide.read(l0_at, level=level, size_px=read_px)
    if read_px == window.size_px and all(abs(edge[0] - at) < 0.01 for edge, at in zip(edges, starts)):
        return pixels
    return _resized(pixels, window.size_px, starts, edges)


def _resized(
    pixels: RgbImage, size_px: Size, starts: list[int], edges: list[tuple[float, float]]
) -> RgbImage:
    height, width = pixels.shape[:2]
    (x0, x1), (y0, y1) = (
        (max(0.0, start - at), end - at) for at, (start, end) in zip(starts, edges, strict=True)
    )
    box = (x0, y0, min(x1, width), min(y1, height))
    smaller = box[2] - box[0] >= size_px[0]
    # For the eye alone, where Pillow's BOX (whole pixels, not their parts) will do.
    rule = Image.Resampling.BOX if smaller else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(pixels).resize(size_px, rule, box=box))
