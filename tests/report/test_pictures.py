"""Pictures lie where they belong at every size, and never take more than a slide's share of the page."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.report.reported_run import L0_SIZE, PATCH, SLIDE_MPP, Slide, result_of, stored
from tests.slides.tiff_files import tissue_like
from wsi_ips.heatmaps.display_scale import colour_table
from wsi_ips.heatmaps.maps import Heat, choose_heat
from wsi_ips.heatmaps.raster import canvas_size
from wsi_ips.report.cards import line_of, make_card
from wsi_ips.report.pictures import (
    LARGEST_REPORT_BYTES,
    LOOKS,
    Look,
    Picture,
    Pictures,
    Pixels,
    _drawn,
    _smaller,
    draw_pictures,
    read_pixels,
    share_of_a_slide,
    top_places,
    worth_trying,
)
from wsi_ips.slides.image_reader import MemoryReader
from wsi_ips.tiling.picture import slide_picture

TABLE = colour_table("blue_yellow").astype(int)
COLUMNS = 16
LAST = 16 * 11 - 1


def heat_of(**hot: float) -> Heat:
    return choose_heat(
        result_of(Slide("a", hot={int(place[1:]): value for place, value in hot.items()}), "a.tif")
    )


def noise() -> MemoryReader:
    """What JPEG packs worst."""
    rng = np.random.default_rng(0)
    return MemoryReader(rng.integers(0, 256, (L0_SIZE[1], L0_SIZE[0], 3), np.uint8), mpp=SLIDE_MPP)


def pixels_of(picture: Picture | None) -> np.ndarray:
    assert picture is not None
    kind, _, content = picture.uri.partition(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        assert image.size == (picture.width, picture.height)
        return np.asarray(image.convert("RGB")).astype(int)


def size_of(pictures: Pictures) -> int:
    whole = [picture for picture in (pictures.slide, pictures.overlay) if picture]
    return sum(len(picture.uri) for picture in (*whole, *(patch for _, patch in pictures.patches)))


@pytest.mark.parametrize("look", [Look(1024, 64, 95), Look(333, 64, 95), Look(100, 32, 95)])
def test_the_hottest_patch_is_yellow_where_it_lies_and_the_last_one_blue_at_the_far_corner(
    look: Look,
) -> None:
    """On white paper the heat is opaque: its colours are the table's. 1000 px are no multiple of 333 or 100."""
    heat = heat_of(p37=0.5, **{f"p{LAST}": 0.0})
    overlay = pixels_of(_drawn(Pixels(L0_SIZE, 1.0), heat, [], look).overlay)
    scale = L0_SIZE[0] / overlay.shape[1]

    def at(place: int) -> np.ndarray:
        row, column = divmod(place, COLUMNS)
        x, y = (column * PATCH + min(PATCH, L0_SIZE[0] - column * PATCH) / 2,
                row * PATCH + min(PATCH, L0_SIZE[1] - row * PATCH) / 2)  # fmt: skip
        return np.asarray(overlay[int(y / scale), int(x / scale)])

    assert np.abs(at(37) - TABLE[255]).max() < 40
    assert np.abs(at(LAST) - TABLE[0]).max() < 40


@pytest.mark.parametrize("side", [999, 500, 333, 77])
def test_a_smaller_picture_is_the_slide_at_that_scale(side: int) -> None:
    """Read once at the largest size: made smaller, it is what reading at that size would have been."""
    slide = MemoryReader(tissue_like(*L0_SIZE, seed=3), mpp=SLIDE_MPP)
    pixels = read_pixels(slide, [], l0_patch=None, share=10**6)
    l0_per_px = max(L0_SIZE) / side
    drawn = _smaller(pixels, l0_per_px)
    assert drawn is not None
    wanted = slide_picture(slide, canvas_size(L0_SIZE, l0_per_px), l0_per_px=l0_per_px)
    assert drawn.shape == wanted.shape
    assert np.abs(drawn.astype(int) - wanted).max() <= 1


def test_patches_are_those_with_the_most_attention_first() -> None:
    heat = heat_of(p5=0.5, p20=0.9, p100=0.7)
    places = top_places(heat, 3)
    assert [(place.rank, place.l0_x // PATCH + place.l0_y // PATCH * COLUMNS) for place in places] == [
        (1, 20), (2, 100), (3, 5),
    ]  # fmt: skip
    assert [round(place.value, 3) for place in places] == [0.9, 0.7, 0.5]
    image = np.full((L0_SIZE[1], L0_SIZE[0], 3), 255, np.uint8)
    image[PATCH : 2 * PATCH, 4 * PATCH : 5 * PATCH] = (200, 30, 90)  # patch 20
    pixels = read_pixels(
        MemoryReader(image, mpp=SLIDE_MPP), places, l0_patch=heat.coords.l0_patch, share=10**6
    )
    drawn = draw_pictures(pixels, heat, places, share=10**6)
    assert np.abs(pixels_of(drawn.patches[0][1]) - (200, 30, 90)).max() < 12
    assert pixels_of(drawn.patches[1][1]).min() > 240


@settings(max_examples=12)
@given(share=st.integers(0, 400_000), top=st.integers(0, 30))
def test_no_slide_takes_more_than_its_share(share: int, top: int) -> None:
    heat = heat_of(p3=0.5)
    places = top_places(heat, top)
    pixels = read_pixels(noise(), places, l0_patch=heat.coords.l0_patch, share=share)
    drawn = draw_pictures(pixels, heat, places, share=share)
    assert size_of(drawn) <= share
    assert len(drawn.patches) + drawn.left_out == top


def test_the_first_look_that_fits_is_taken_and_what_tells_most_is_kept_last() -> None:
    heat = heat_of(p3=0.5)
    places = top_places(heat, 4)
    pixels = read_pixels(noise(), places, l0_patch=heat.coords.l0_patch, share=10**6)
    sizes = {look: size_of(_drawn(pixels, heat, places, look)) for look in LOOKS[-4:]}
    for look, size in sizes.items():
        drawn = draw_pictures(pixels, heat, places, share=size)
        assert drawn.slide is not None
        assert drawn.slide.width == look.side_px
        assert drawn.left_out == 0
    smallest = _drawn(pixels, heat, places, LOOKS[-1])
    assert smallest.overlay is not None
    only = draw_pictures(pixels, heat, places, share=len(smallest.overlay.uri))
    assert (only.overlay, only.slide, only.patches, only.left_out) == (smallest.overlay, None, [], 4)


def test_shares_add_up_to_a_file_that_can_be_mailed() -> None:
    assert share_of_a_slide(100) > 80_000
    for slides in (1, 10, 100, 500, 800):
        assert slides * share_of_a_slide(slides) < LARGEST_REPORT_BYTES
    assert share_of_a_slide(1) == share_of_a_slide(10) == 700_000
    assert share_of_a_slide(1000) == share_of_a_slide(10_000) == 0
    assert worth_trying(0) == LOOKS[-1:]
    assert worth_trying(700_000) == LOOKS


def test_a_flat_slide_s_card_says_so_and_has_the_colour_of_the_even_share(tmp_path: Path) -> None:
    even = dict.fromkeys(range(176), 1 / 176)
    run = stored(tmp_path, [Slide("flat", hot=even), Slide("hot", hot={**even, 3: 0.5})])
    cards = {
        card.line.slide.slide_id: card
        for card in (
            make_card(run, line_of(run, slide, {}), elsewhere=None, top=1, share=200_000)
            for slide in run.slides
        )
    }
    said = {name: card.legend for name, card in cards.items()}
    assert said["flat"] is not None
    assert said["hot"] is not None
    assert "; Flat: 176 patches" in said["flat"].shown
    assert "Flat" not in said["hot"].shown
    for legend in (said["flat"], said["hot"]):
        assert [tick.strip("≤≥ ×") for tick in legend.ticks] == ["0.25", "1", "4", "16", "64"]
