"""Whole-slide images: what a slide is, which reader opens it, and which slides lie in a folder.

Start with :func:`open_slide`, which returns a :class:`SlideReader`. Importing this package is fast: the libraries
of a reader are imported when a slide is first opened with it.
"""

from wsi_ips.slides.base import Bounds, Level, RgbImage, SlideInfo, SlideReader
from wsi_ips.slides.folder import find_slides, slide_id, unique_slide_ids
from wsi_ips.slides.registry import READERS, open_slide

__all__ = [
    "READERS",
    "Bounds",
    "Level",
    "RgbImage",
    "SlideInfo",
    "SlideReader",
    "find_slides",
    "open_slide",
    "slide_id",
    "unique_slide_ids",
]
