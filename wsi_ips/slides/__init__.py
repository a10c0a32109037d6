"""Whole-slide images: what they are, which reader opens them, which lie in a folder.

Nothing heavy is imported here; a reader's libraries load when it is first asked for.
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
