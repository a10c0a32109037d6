"""Text on pictures, in the font that Pillow brings: with µ, which that font does not have.

Pillow's own font (Aileron, of which it holds 113 letters) has neither U+00B5 nor U+03BC. A µ is a u whose left
stem goes down as far as that of a p. :func:`write_text` draws it so: a u, and below it the stem that the font's
own p has in that size.
"""

import unicodedata
from math import ceil, floor

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from wsi_ips.units import Size

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
"""A font of Pillow's."""

MICRO = "µ"
"""U+00B5; U+03BC, the Greek letter, is written as it."""

STEM_FROM, STEM_AT = 0.155, 0.1
"""Where the stem begins above the baseline, and where below it a p has nothing but its stem; in font sizes."""


def write_text(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    ink: tuple[int, int, int],
    font: Font,
    anchor: str = "la",
) -> None:
    """Write a line of text, as ``ImageDraw.text`` does, with µ.

    ``anchor`` is Pillow's: ``la``, ``ma`` or ``ra`` for text whose upper left corner, upper middle or upper right
    corner is ``at``.
    """
    if MICRO not in text or not isinstance(font, ImageFont.FreeTypeFont):
        draw.text(at, text.replace(MICRO, "u"), ink, font, anchor)
        return
    x = at[0] - {"l": 0.0, "m": 0.5, "r": 1.0}[anchor[0]] * text_length(text, font)
    draw.text((x, at[1]), text.replace(MICRO, "u"), ink, font, "la")
    corner = floor(x), floor(at[1])
    stems = _stems(text, font, offset=(x - corner[0], at[1] - corner[1]))
    draw.bitmap(corner, Image.fromarray(stems), ink)


def text_length(text: str, font: Font) -> float:
    """How wide the text is in pixels."""
    return font.getlength(text.replace(MICRO, "u"))


def _stems(text: str, font: ImageFont.FreeTypeFont, *, offset: tuple[float, float]) -> NDArray[np.uint8]:
    """What the stems of all µ add to the text with u in their places, as opacities, (H, W) uint8.

    ``offset`` is where the text begins in this picture, less than a pixel from its upper left corner.
    """
    ascent, descent = font.getmetrics()
    size = ceil(text_length(text, font) + font.size), ascent + descent + 2
    baseline = ascent + floor(offset[1])
    from_row = baseline - round(STEM_FROM * font.size)
    row = baseline + max(1, round(STEM_AT * font.size))
    stems = np.zeros(size[::-1], np.uint8)
    for place in (number for number, letter in enumerate(text) if letter == MICRO):
        before = text[:place].replace(MICRO, "u")
        p = _drawn(before + "p", font, offset, size)
        p -= np.minimum(p, _drawn(before, font, offset, size))
        p[from_row:row] = p[row]
        p[:from_row] = 0
        np.maximum(stems, p, out=stems)
    plain = _drawn(text.replace(MICRO, "u"), font, offset, size).astype(np.float64)
    # Drawn over the u, this gives the larger of the two opacities.
    added = (np.maximum(stems, plain) - plain) / np.maximum(255 - plain, 1)
    return np.rint(255 * added).astype(np.uint8)


def _drawn(
    text: str, font: ImageFont.FreeTypeFont, offset: tuple[float, float], size: Size
) -> NDArray[np.uint8]:
    image = Image.new("L", size)
    ImageDraw.Draw(image).text(offset, text, 255, font)
    return np.array(image)


def printable(text: str) -> str:
    """The text in letters that :func:`write_text` can write: ASCII and µ.

    Accents are dropped, other letters become ``?``.
    """
    plain = unicodedata.normalize("NFKD", text)  # which also makes U+03BC of U+00B5
    letters = "".join(c for c in plain if not unicodedata.combining(c))
    greek = "\N{GREEK SMALL LETTER MU}"
    return MICRO.join(part.encode("ascii", "replace").decode() for part in letters.split(greek))


def fitting(text: str, font: Font, width: float) -> str:
    """The text, shortened in its middle if it does not fit: names differ at their ends."""
    if text_length(text, font) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        cut = text[: (kept + 1) // 2] + "..." + text[-(kept // 2) :]
        if text_length(cut, font) <= width:
            return cut
    return ""
