"""µ is a letter of its own, at every size, in every place, and no other letter changes."""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from wsi_ips.heatmaps.lettering import fitting, printable, text_length, write_text

INK = (25, 25, 25)
SIZES = [12, 13.5, 14, 16, 20, 30, 40, 54]


def drawn(
    text: str, size: float, *, at: tuple[float, float] = (8, 8), anchor: str = "la"
) -> NDArray[np.int16]:
    """How dark each pixel is, 0 to 230."""
    image = Image.new("RGB", (round(14 * size), round(3 * size)), "white")
    write_text(ImageDraw.Draw(image), at, text, INK, ImageFont.load_default(size=size), anchor)
    assert (np.ptp(np.asarray(image).astype(int), axis=2) == 0).all()
    return 255 - np.asarray(image)[..., 0].astype(np.int16)


@pytest.mark.parametrize("size", SIZES)
def test_it_is_a_u_with_the_stem_of_a_p(size: float) -> None:
    ascent, _ = ImageFont.load_default(size=size).getmetrics()
    baseline = 8 + ascent
    u, mu, p = (drawn(letter, size) for letter in "uµp")
    below = np.s_[baseline + max(1, round(0.1 * size)) :]
    np.testing.assert_array_equal(mu[below], p[below])  # as deep, as wide, and in the same place
    assert mu[below].max() > 0.6 * 230
    assert not u[below].any()
    assert (mu >= u - 1).all()
    right = np.flatnonzero(p[below].any(axis=0)).max() + 1
    np.testing.assert_array_equal(mu[:, right:], u[:, right:])
    np.testing.assert_array_equal(mu[: baseline - round(0.2 * size)], u[: baseline - round(0.2 * size)])
    assert mu.max() <= 230


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("at", "anchor"), [((8, 8), "la"), ((8.6, 8), "la"), ((150, 8), "ra"), ((90, 8), "ma")]
)
def test_its_stem_is_where_it_stands_in_a_text(size: float, at: tuple[float, float], anchor: str) -> None:
    """Behind letters of any width and at a fraction of a pixel, each µ is the one that stands there alone."""
    at = (at[0] * size / 12, at[1])
    font = ImageFont.load_default(size=size)
    below = 8 + font.getmetrics()[0] + max(1, round(0.1 * size))
    columns = np.flatnonzero(drawn("µm 0.5 µm", size, at=at, anchor=anchor)[below:].max(axis=0) > 40)
    first, *others = np.split(columns, np.flatnonzero(np.diff(columns) > 2) + 1)
    assert len(others) == 1
    assert others[0].min() - first.min() == pytest.approx(text_length("µm 0.5 ", font), abs=1.5)
    assert max(len(first), len(others[0])) <= np.ceil(0.086 * size) + 1  # a stem is 86 thousandths wide


@pytest.mark.parametrize("anchor", ["la", "ma", "ra"])
def test_a_text_without_it_is_drawn_as_pillow_does(anchor: str) -> None:
    image = Image.new("RGB", (600, 90), "white")
    font = ImageFont.load_default(size=30)
    ImageDraw.Draw(image).text((200.4, 8), "slide_01, 2 mm", INK, font, anchor)
    ours = drawn("slide_01, 2 mm", 30, at=(200.4, 8), anchor=anchor)[:, :420]
    np.testing.assert_array_equal(ours, 255 - np.asarray(image)[:, :420, 0].astype(np.int16))


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("0.5 \N{MICRO SIGN}m", "0.5 µm"),
        ("0.5 \N{GREEK SMALL LETTER MU}m", "0.5 µm"),
        ("Müller é", "Muller e"),
        ("肿瘤", "??"),
        ("a…b", "a...b"),
        ("", ""),
    ],
)
def test_other_letters_are_told_in_those_of_the_font(text: str, printed: str) -> None:
    assert printable(text) == printed


def test_a_text_is_shortened_in_its_middle() -> None:
    font = ImageFont.load_default(size=20)
    cut = fitting("µm" * 40, font, 100)
    assert text_length(cut, font) <= 100
    assert cut.startswith("µ")
    assert cut.endswith("m")
    assert "..." in cut
