"""Bounds that a setting has and the code that obeys it checks again."""

LARGEST_OVERLAY_PX = 16_384
"""Longest side of an overlay: a gigabyte of pixels, and the most that viewers open."""
