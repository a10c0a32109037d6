"""How many bytes a slide's pictures may take, and how large they can be drawn for that.

A report is to be mailed: it stays below :data:`LARGEST_REPORT_BYTES` for as long as there is room for a row of
text a slide. Every slide has the same share, so that the last one's pictures are not the poorest.
"""

from dataclasses import dataclass

LARGEST_REPORT_BYTES = 10_000_000
FRAME_BYTES = 200_000
"""Styles, script, settings, figures of an evaluation."""
LARGEST_PLOTS_BYTES = 600_000
"""Of all plots together, as they stand in the file."""
TEXT_BYTES = 5_000
"""A slide's words and numbers, in the table and on its card; measured: 3 to 4 kB with twelve patches."""
MOST_FOR_A_SLIDE = 700_000
"""Where there are few slides: more pixels than a screen shows are for the viewer."""

LEAST_FOR_A_SLIDE = 6_000
"""An overlay of 160 pixels: with less, no slide is opened."""

LEAST_BYTES_PER_PIXEL = 0.06
"""Of a JPEG of tissue on much white glass: a look that needs more than its share even so is not tried."""
SURELY_TOO_LARGE = 1.3
"""By how much a look may be guessed to pass the share and is tried all the same."""


@dataclass(frozen=True, slots=True)
class Look:
    """How a slide is shown. side_px: longest side of its picture, patch_px: side of a patch. quality: of JPEG."""

    side_px: int
    patch_px: int
    quality: int

    def weight(self, patches: int) -> float:
        """What its bytes grow with, about: pixels, and JPEG's quality (measured on slides from 50 to 85)."""
        pixels = 2 * self.side_px**2 + patches * self.patch_px**2
        return float(pixels / (100 - self.quality) ** 0.7)


LOOKS = (
    Look(1024, 224, 85), Look(896, 192, 83), Look(768, 176, 82), Look(640, 160, 80), Look(560, 144, 78),
    Look(480, 128, 76), Look(416, 112, 74), Look(352, 104, 72), Look(304, 96, 68), Look(256, 80, 64),
    Look(208, 72, 58), Look(160, 64, 50),
)  # fmt: skip
"""From the largest to the smallest; a slide has the first that fits its share."""


def share_of_a_slide(slides: int) -> int:
    """Bytes of the file, base64 included, that the pictures of one of so many slides may take; 0: none."""
    room = LARGEST_REPORT_BYTES - FRAME_BYTES - LARGEST_PLOTS_BYTES
    share = min(MOST_FOR_A_SLIDE, room // max(1, slides) - TEXT_BYTES)
    return share if share >= LEAST_FOR_A_SLIDE else 0


def worth_trying(share: int) -> tuple[Look, ...]:
    """The looks that may fit, largest first; always the smallest."""
    fitting = [look for look in LOOKS if 2 * look.side_px**2 * LEAST_BYTES_PER_PIXEL <= share]
    return tuple(fitting) or LOOKS[-1:]
