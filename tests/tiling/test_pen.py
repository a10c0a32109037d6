"""Pen is smooth and lies on glass or crosses tissue in strokes; a stain in its colours is no pen."""

import numpy as np
import pytest
from scipy import ndimage

from tests.tiling.stained import Mask, disc, draw, ring, strokes

INKS = {"blue": (30, 60, 190), "green": (20, 130, 70), "black": (20, 20, 22), "red": (225, 25, 30)}
MARKS = {
    "lines beside the tissue": strokes((20, 25, 580, 30), (25, 80, 25, 560), width=30),
    "a line across": strokes((20, 180, 580, 420)),
    "a ring around": ring(40, 40, 560, 560, 24),
    "a ring on the tissue's edge": ring(120, 10, 420, 310),
    "a blot": disc(45, (60, 60)),
}
THICK = strokes((20, 180, 580, 420))


@pytest.mark.parametrize(
    ("ink", "mark"),
    [(ink, mark) for i, ink in enumerate(INKS) for j, mark in enumerate(MARKS) if (i + j) % 2 == 0],
)
def test_pen_is_left_out_and_tissue_kept(ink: str, mark: str) -> None:
    slide = draw("h&e", marks=((MARKS[mark], INKS[ink]),))
    found = slide.found()
    assert found[slide.truth_HW].mean() > 0.95
    assert found[MARKS[mark]].mean() < 0.1
    assert found[~slide.truth_HW & ~_near(MARKS[mark])].mean() < 0.02
    if ink != "black":
        assert slide.found(drop_pen=False)[MARKS[mark]].mean() > 0.9


@pytest.mark.parametrize("ink", ["blue", "black"])
@pytest.mark.parametrize("stains", [("trichrome red", "trichrome blue"), ("gms",), ("dab", "at8 pale")])
def test_pen_across_stains_in_its_own_colours(stains: tuple[str, ...], ink: str) -> None:
    slide = draw(*stains, marks=((THICK, INKS[ink]),))
    found = slide.found()
    assert found[slide.truth_HW].mean() > 0.95
    assert found[THICK].mean() < 0.1


def test_blue_fibres_within_red_tissue_are_no_strokes() -> None:
    """Collagen of a trichrome stain: long, thin, as blue as ink, and grainy."""
    fibres = strokes((150, 200, 450, 260), (150, 300, 460, 330), width=10)
    red, blue = draw("trichrome red", shape=disc()), draw("trichrome as blue as ink", shape=disc())
    rgb_HWC = np.where(fibres[..., None], blue.rgb_HWC, red.rgb_HWC)
    found = type(red)(rgb_HWC, red.truth_HW).found()
    assert found[fibres].mean() > 0.95


def _near(mark: Mask) -> Mask:
    return np.asarray(ndimage.binary_dilation(mark, iterations=6))
