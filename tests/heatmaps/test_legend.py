"""The legend says what is true, and never touches the picture."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.color import rgb2lab

from wsi_ips.heatmaps.display_scale import Legend, ScaleBar, Tick, add_legend, colour_table, colourise, short

TABLE = colour_table("blue_yellow")


def legend(*, title: str = "slide_01", mpp: float = 4.0) -> Legend:
    ticks = [Tick(0, 0.001, 0, 0.25, "<="), Tick(1, 0.5, 100, 64)]
    return Legend(title=title, lines=["Attention"], ticks=ticks, table=TABLE, mpp=mpp)


@pytest.mark.parametrize(
    ("mpp", "most_px", "length_um", "length_px", "label"),
    [
        (0.5, 450, 200, 400, "200 µm"),
        (0.5 * 97.66, 512, 20_000, 410, "20 mm"),
        (7.324, 512, 2_000, 273, "2 mm"),
        (0.25, 399, 50, 200, "50 µm"),
        (1.0, 1000, 1000, 1000, "1 mm"),
        (0.01, 30, 0.2, 20, "0.2 µm"),
    ],
)
def test_scale_bars_are_round(
    mpp: float, most_px: float, length_um: float, length_px: int, label: str
) -> None:
    bar = ScaleBar.fitting(mpp, most_px)
    assert (bar.length_um, bar.length_px, bar.label) == (length_um, length_px, label)


@settings(deadline=None)
@given(mpp=st.floats(0.01, 1000), most_px=st.floats(10, 4000))
def test_scale_bars_are_as_long_as_they_say(mpp: float, most_px: float) -> None:
    bar = ScaleBar.fitting(mpp, most_px)
    assert abs(bar.length_px - bar.length_um / mpp) <= 1
    assert most_px * 0.39 - 0.5 < bar.length_px <= most_px + 1  # rounded
    assert f"{bar.length_um:e}"[0] in "125"
    assert float(f"{bar.length_um:.0e}") == pytest.approx(bar.length_um)


@pytest.mark.parametrize("size", [(2048, 1500), (100, 900), (1, 1), (900, 20)])
def test_the_picture_is_left_alone(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = np.asarray(add_legend(Image.fromarray(pixels), legend()))
    np.testing.assert_array_equal(image[: size[1], : size[0]], pixels)
    assert (image[: size[1], size[0] + 1 :] == 255).all(), "beside it is paper"
    assert (image[-1] == 255).all(), "no line is cut at the bottom"
    assert (image[size[1] + 1 :, [0, -1]] == 255).all(), "nor at the sides"


def test_the_scale_bar_is_drawn_at_its_length() -> None:
    """2048 px at 4 um: the longest of 1-2-5 within 512 px is 2000 um, 500 px."""
    image = np.asarray(add_legend(Image.new("RGB", (2048, 1000), "white"), legend(mpp=4.0)))
    right = image[1001:, 1400:]
    dark = (right < 60).all(axis=-1)
    runs = dark.sum(axis=1)
    assert runs.max() == 500
    solid = np.nonzero(dark[runs.argmax()])[0]
    assert solid[-1] - solid[0] == 499


def test_the_colour_bar_runs_from_low_to_high() -> None:
    image = np.asarray(add_legend(Image.new("RGB", (2048, 1000), "white"), legend()))
    coloured = (image == TABLE[128]).all(axis=-1)
    row = np.nonzero(coloured.any(axis=1))[0][0] + 2
    in_bar = [int(np.nonzero((image[row] == TABLE[k]).all(axis=-1))[0][0]) for k in (0, 64, 128, 192, 255)]
    steps = np.diff(in_bar)
    assert (abs(steps - steps.mean()) <= 3).all()


def test_letters_that_the_font_lacks_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    words = drawn_words(monkeypatch)
    add_legend(Image.new("RGB", (800, 600)), legend(title="Präparat_é 5µm 胃"))
    assert "Praparat_e 5um ?" in words


def test_a_long_name_is_cut_in_its_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    words = drawn_words(monkeypatch)
    add_legend(Image.new("RGB", (600, 600)), legend(title="begin" + "x" * 300 + "end"))
    assert words[0].startswith("beginx")
    assert "..." in words[0]
    assert words[0].endswith("xend")


def drawn_words(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that will be drawn, in order, with u for µ, whose stem is drawn apart."""
    from PIL.ImageDraw import ImageDraw

    words: list[str] = []
    draw_text = ImageDraw.text

    def listen(self: ImageDraw, xy: tuple[float, float], text: str, *rest: object, **more: object) -> None:
        if self.mode != "L":  # where stems are measured
            words.append(text)
        draw_text(self, xy, text, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageDraw, "text", listen)
    return words


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (0.000812, "8.12e-4"), (0.0099, "9.90e-3"), (1, "1"), (-12345, "-1.23e4")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text


@pytest.mark.parametrize("name", ["blue_yellow", "blue_red"])
def test_colours_are_evenly_apart_to_the_eye(name: str) -> None:
    lab = rgb2lab(colour_table(name) / 255)  # type: ignore[arg-type]
    apart = np.linalg.norm(lab[8:] - lab[:-8], axis=1)
    assert apart.max() / apart.min() < 1.5


def test_blue_yellow_keeps_its_order_in_grey() -> None:
    lightness = rgb2lab(TABLE / 255)[:, 0]
    assert (lightness[4:] > lightness[:-4]).all()


def test_values_get_the_table_s_colours() -> None:
    np.testing.assert_array_equal(colourise(np.array([0.0, 0.5, 1.0]), TABLE), TABLE[[0, 128, 255]])
