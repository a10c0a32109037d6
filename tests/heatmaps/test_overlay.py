"""Heat lies exactly on the patches it belongs to, and the image says what it shows."""

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely
from PIL import Image

from tests.heatmaps.test_legend import drawn_words
from wsi_ips.config import HeatOptions, TilingConfig
from wsi_ips.errors import ConfigError, ResultsError
from wsi_ips.heatmaps.display_scale import colour_table, scale_of, short
from wsi_ips.heatmaps.maps import attention_map, choose_heat, query_of_task, spread_in_words
from wsi_ips.heatmaps.overlay import draw_overlay, write_overlay
from wsi_ips.inference.results import PartOfCase, SlideResult
from wsi_ips.slides.base import RgbImage
from wsi_ips.slides.image_reader import MemoryReader
from wsi_ips.slides.registry import open_slide
from wsi_ips.tiling.grid import PatchCoords, PatchGrid
from wsi_ips.units import Mpp, Size

GREY = 200
SHARES = ["0", "25", "50", "75", "100"]
TABLE = colour_table("blue_yellow").astype(int)


def coords_of(
    l0_size: Size, *, patch_px: int, slide_mpp: float, keep: list[int] | None = None
) -> PatchCoords:
    """Patches of ``patch_px`` at 0.5 um; ``keep``: only those with these indices."""
    tiling = TilingConfig(patch_px=patch_px, patch_mpp=0.5)
    grid = PatchGrid.cover(l0_size, slide_mpp=Mpp(slide_mpp), tiling=tiling)
    ids = np.arange(grid.g_cols * grid.g_rows) if keep is None else np.array(keep)
    return PatchCoords(
        slide_id="slide_01",
        l0_size=l0_size,
        slide_mpp=Mpp(slide_mpp),
        patch_px=patch_px,
        patch_mpp=Mpp(0.5),
        overlap_px=0,
        l0_patch=grid.l0_patch,
        g_size=(grid.g_cols, grid.g_rows),
        ids_N=ids,
        l0_xy_N2=grid.l0_corners(ids),
        tissue_N=np.ones(len(ids), np.float32),
    )


def result_of(coords: PatchCoords, attention_NHT: np.ndarray) -> SlideResult:
    attention = attention_NHT.reshape(len(coords), *(attention_NHT.shape[1:] or (1, 1))).astype(np.float32)
    return SlideResult(
        slide_path="slide_01.svs",
        coords=coords,
        logits_NHT=np.zeros_like(attention),
        attention_NHT=attention,
        kept_ids_M=coords.ids_N[:1],
        kept_scores_M=np.zeros(1, np.float32),
        probabilities={"label": {"normal": 0.0713, "tumor": 0.9287}},
    )


def grey_slide(l0_size: Size) -> RgbImage:
    return np.full((l0_size[1], l0_size[0], 3), GREY, np.uint8)


def picture_of(overlay: object) -> np.ndarray:
    width, height = overlay.picture_px  # type: ignore[attr-defined]
    return np.asarray(overlay.image)[:height, :width].astype(int)  # type: ignore[attr-defined]


def test_a_4x4_grid_has_known_pixels() -> None:
    """16-px patches of a 64-px slide at full scale: every pixel of the picture is stated."""
    coords = coords_of((64, 64), patch_px=16, slide_mpp=0.5, keep=[k for k in range(16) if k != 5])
    values = np.arange(15) / 100
    overlay = draw_overlay(
        MemoryReader(grey_slide((64, 64))),
        result_of(coords, values),
        HeatOptions(scale="absolute", alpha=0.25),
    )
    expected = np.full((64, 64, 3), GREY)
    for value, (x, y) in zip(values, coords.l0_xy_N2, strict=True):
        colour = TABLE[round(value / 0.14 * 255)]
        expected[y : y + 16, x : x + 16] = np.rint(GREY * 0.75 + colour * 0.25)
    assert overlay.picture_px == (64, 64)
    assert np.abs(picture_of(overlay) - expected).max() <= 1
    assert (picture_of(overlay)[16:32, 16:32] == GREY).all(), "a patch that was left out has no heat"


@pytest.mark.parametrize("side_px", [1511, 640, 301, 100])
@pytest.mark.parametrize("levels", [(1,), (1, 2, 4)])
def test_a_hot_patch_at_the_far_corner_lies_where_the_slide_shows_it(
    side_px: int, levels: tuple[int, ...]
) -> None:
    """The slide (a multiple of nothing) has that patch painted green: heat and paint must be the same pixels.

    A patch has 61.73 level-0 pixels; a stride rounded to 62 would be 7 level-0 pixels off.
    """
    l0_size, slide_mpp = (1511, 997), 0.243
    coords = coords_of(l0_size, patch_px=30, slide_mpp=slide_mpp)
    image = grey_slide(l0_size)
    left, top = coords.l0_exact_corners()[-1]
    assert (left, top) == pytest.approx((1481.48, 987.65), abs=0.01)
    image[round(top) :, round(left) :] = (0, 255, 0)
    values = np.zeros(len(coords))
    values[-1] = 1.0
    slide = MemoryReader(image, levels=levels)
    plain = picture_of(draw_overlay(slide, result_of(coords, values), HeatOptions(side_px=side_px, alpha=0)))
    hot = picture_of(
        draw_overlay(
            slide, result_of(coords, values), HeatOptions(side_px=side_px, alpha=1, scale="absolute")
        )
    )
    l0_per_px = 1511 / side_px
    xs, ys = ((np.arange(n) + 0.5) * l0_per_px for n in (hot.shape[1], hot.shape[0]))
    expected = ((ys >= top) & (ys < 997))[:, None] & ((xs >= left) & (xs < 1511))[None]
    heat = (hot == TABLE[255]).all(axis=-1)
    assert expected.any()
    np.testing.assert_array_equal(heat, expected)
    # A pixel is mostly green where its centre is: heat on grey, or green without heat, would be a shift.
    # Half a level-0 pixel (the rounded paint) and half a pixel of the level that was read are allowed.
    margin = 0.5 + 0.5 * max(level for level in levels if level <= l0_per_px * 1.01)
    certain = (np.abs(xs - left) > margin)[None] & (np.abs(ys - top) > margin)[:, None]
    certain &= (xs < 1511)[None] & (ys < 997)[:, None]
    green = (plain[..., 1] - plain[..., 0]) > 255 / 2
    np.testing.assert_array_equal(green[certain], expected[certain])


def test_outside_the_patches_not_a_pixel_changes() -> None:
    l0_size = (403, 301)
    image = np.random.default_rng(0).integers(0, 256, (301, 403, 3), np.uint8)
    coords = coords_of(l0_size, patch_px=50, slide_mpp=0.5, keep=[9, 10])
    overlay = draw_overlay(MemoryReader(image), result_of(coords, np.array([0.1, 0.9])))
    changed = (picture_of(overlay) != image).any(axis=-1)
    rows, columns = np.nonzero(changed)
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (0, 99, 50, 99)


def test_small_slides_are_not_enlarged() -> None:
    coords = coords_of((40, 30), patch_px=10, slide_mpp=0.5)
    overlay = draw_overlay(MemoryReader(grey_slide((40, 30))), result_of(coords, np.arange(12.0)))
    assert overlay.picture_px == (40, 30)
    assert overlay.l0_per_px == 1


def test_the_legend_says_what_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    words = drawn_words(monkeypatch)
    coords = coords_of((2000, 1000), patch_px=100, slide_mpp=0.5)
    values = np.arange(200.0) ** 2
    values /= values.sum()
    draw_overlay(
        MemoryReader(grey_slide((2000, 1000)), mpp=Mpp(9.9)),
        result_of(coords, values),
        HeatOptions(side_px=1000, scale="rank"),
    )
    assert words[:4] == [
        "slide_01",
        "Attention, task label",
        "200 patches, 0 to 2.99 times the even share of 5.00e-3",
        "Predicted label: tumor 0.929, normal 0.071",
    ]
    ticks = [np.percentile(values, share) for share in (0, 25, 50, 75, 100)]
    assert words[4:7] == ["times even share", "attention", "percentile"]
    said = [[short(tick * 200), short(tick), share] for tick, share in zip(ticks, SHARES, strict=True)]
    assert words[7:] == [*(word for tick in said for word in tick), "200 um"]


def test_the_legend_says_that_attention_is_flat_and_has_one_scale_for_all_slides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = drawn_words(monkeypatch)
    coords = coords_of((2000, 1000), patch_px=100, slide_mpp=0.5)
    slide = MemoryReader(grey_slide((2000, 1000)))
    flat = np.linspace(0.9, 1.1, 200) / 200
    peaked = np.full(200, 0.1 / 199)
    peaked[7] = 0.9
    draw_overlay(slide, result_of(coords, flat))
    assert words[2] == "Flat: 200 patches, 0.9 to 1.1 times the even share of 5.00e-3"
    assert words[7::3][:5] == ["0.25", "1", "4", "16", "64"]
    words.clear()
    draw_overlay(slide, result_of(coords, peaked))
    assert words[2] == "200 patches, 0.101 to 180 times the even share of 5.00e-3"
    assert words[7::3][:5] == ["<=0.25", "1", "4", "16", ">=64"]


def test_flat_attention_has_the_colour_of_the_even_share() -> None:
    coords = coords_of((400, 300), patch_px=100, slide_mpp=0.5)
    values = np.linspace(0.98, 1.02, 12) / 12
    drawn = picture_of(
        draw_overlay(MemoryReader(grey_slide((400, 300))), result_of(coords, values), HeatOptions(alpha=1))
    )
    even = colour_table("blue_yellow")[64].astype(int)
    assert np.abs(drawn.astype(int) - even).max() <= 6


def test_absolute_ticks_are_evenly_spaced_raw_values(monkeypatch: pytest.MonkeyPatch) -> None:
    words = drawn_words(monkeypatch)
    coords = coords_of((200, 100), patch_px=50, slide_mpp=0.5)
    values = np.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.2, 0.3, 0.5])
    draw_overlay(
        MemoryReader(grey_slide((200, 100))), result_of(coords, values), HeatOptions(scale="absolute")
    )
    at = words.index("percentile")
    assert words[at + 1 : at + 16] == [
        "0.8", "0.1", "62.5", "1.6", "0.2", "75", "2.4", "0.3", "87.5", "3.2", "0.4", "87.5", "4", "0.5", "100",
    ]  # fmt: skip


def test_a_slide_of_a_case_counts_in_even_shares_of_the_case() -> None:
    """Ten patches of a case of 40 that have 1/40 each have just their even share."""
    coords = coords_of((320, 32), patch_px=32, slide_mpp=0.5)
    result = result_of(coords, np.full((10, 1, 1), 1 / 40, np.float32))
    part = PartOfCase("p1", ("a", "b"), 0.25, 40)
    of_case = choose_heat(replace(result, case=part))
    assert of_case.even_share == 1 / 40
    assert of_case.flat
    assert of_case.spread == "Flat: 10 patches of 40 in case p1, 1 to 1 times the even share of 0.025"
    display = scale_of(HeatOptions(), of_case.values_N, "attention", even_share=of_case.even_share)
    np.testing.assert_allclose(
        display(of_case.values_N), 0.25, atol=1e-6
    )  # once the even share, on every slide
    cold = replace(of_case, values_N=of_case.values_N / 100)
    assert not cold.flat
    unknown = choose_heat(
        replace(result, case=replace(part, patches=0))
    )  # of a result that holds no such number
    assert (unknown.even_share, unknown.flat) == (pytest.approx(1 / 40), True)
    assert unknown.spread.startswith("Flat: 10 patches, 1 to 1 times")


def test_a_single_query_or_head_can_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    words = drawn_words(monkeypatch)
    coords = coords_of((64, 64), patch_px=32, slide_mpp=0.5)
    attention = np.random.default_rng(0).random((4, 3, 2)).astype(np.float32)
    result = result_of(coords, attention)
    np.testing.assert_allclose(attention_map(result), attention.mean(axis=(1, 2)), rtol=1e-6)
    np.testing.assert_allclose(attention_map(result, query=1), attention[:, :, 1].mean(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(attention_map(result, query=1, head=2), attention[:, 2, 1])
    draw_overlay(MemoryReader(grey_slide((64, 64))), result, HeatOptions(query=1, head=2))
    assert words[1:3] == ["Attention, query 1, head 2", spread_in_words(attention[:, 2, 1], result)]
    words.clear()
    draw_overlay(MemoryReader(grey_slide((64, 64))), result)
    assert words[1] == "Attention, mean over queries, mean over 3 heads"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_attention_that_is_no_number_is_refused(bad: float) -> None:
    attention = np.ones((4, 1, 2), np.float32)
    attention[2, 0, 1] = bad
    result = result_of(coords_of((64, 64), patch_px=32, slide_mpp=0.5), attention)
    for show in (choose_heat, lambda each: draw_overlay(MemoryReader(grey_slide((64, 64))), each)):
        with pytest.raises(
            ResultsError, match="slide_01: has attention that is not finite; predict it again"
        ):
            show(result)
    draw_overlay(MemoryReader(grey_slide((64, 64))), result, HeatOptions(query=0))
    with pytest.raises(ResultsError, match="not finite"):
        choose_heat(result, HeatOptions(query=0))  # whose other maps go into files of numbers


def test_a_task_s_attention_is_that_of_the_query_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    words = drawn_words(monkeypatch)
    attention = np.random.default_rng(0).random((4, 1, 2)).astype(np.float32)
    result = replace(
        result_of(coords_of((64, 64), patch_px=32, slide_mpp=0.5), attention),
        probabilities={"grade": {"a": 1.0}, "label": {"b": 1.0}},
    )
    swapped = replace(result, task_queries={"grade": 1, "label": 0})
    assert [query_of_task(swapped, task) for task in ("grade", "label")] == [1, 0]
    draw_overlay(MemoryReader(grey_slide((64, 64))), swapped, HeatOptions(query=1))
    assert words[1] == "Attention, task grade"
    assert [query_of_task(result, task) for task in ("grade", "label")] == [0, 1], "in order, where unsaid"
    with pytest.raises(ConfigError, match="task 'x' is not there: slide_01 has grade, label"):
        query_of_task(result, "x")


def test_tasks_may_share_a_query(monkeypatch: pytest.MonkeyPatch) -> None:
    words = drawn_words(monkeypatch)
    coords = coords_of((64, 64), patch_px=32, slide_mpp=0.5)
    two = {"grade": {"a": 1.0}, "label": {"b": 1.0}}
    result = replace(result_of(coords, np.ones(4)), probabilities=two)
    assert [query_of_task(result, task) for task in two] == [0, 0]
    draw_overlay(MemoryReader(grey_slide((64, 64))), result)
    assert words[1] == "Attention, task grade and label"
    three_queries = replace(result_of(coords, np.ones((4, 1, 3))), probabilities=two)
    with pytest.raises(ConfigError, match="does not say which query"):
        query_of_task(three_queries, "label")


def test_outlines_are_drawn_named_and_stay_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    words = drawn_words(monkeypatch)
    coords = coords_of((400, 300), patch_px=100, slide_mpp=0.5, keep=[0])
    ring = shapely.box(150, 120, 250, 220).difference(shapely.box(190, 160, 210, 180))
    huge = shapely.box(-1e12, -1e12, 1e12, 280)
    picture = picture_of(
        draw_overlay(
            MemoryReader(grey_slide((400, 300))), result_of(coords, np.ones(1)), outlines=[ring, huge]
        )
    )
    dark = (picture < 60).all(axis=-1)
    assert dark[120:221, [150, 250]].mean() > 0.95
    assert dark[160:181, 190].mean() > 0.9, "holes too"
    assert dark[280, 5:-5].mean() > 0.95, "what lies beyond the slide is cut off, and quickly"
    assert not dark[130:150, 160:240].any()
    assert "Black line: annotated lesion" in words
    words.clear()
    draw_overlay(MemoryReader(grey_slide((400, 300))), result_of(coords, np.ones(1)))
    assert not [line for line in words if line.startswith("Black line")]


@pytest.mark.parametrize("narrow", [True, False])
def test_the_file_is_the_picture_and_bands_do_not_show(
    narrow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outlines across bands and beyond the slide; the paper beside a narrow picture."""
    size = (400, 900) if narrow else (1400, 300)
    image = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    coords = coords_of(size, patch_px=61, slide_mpp=0.43)
    result = result_of(coords, np.random.default_rng(1).random(len(coords)))
    rings = shapely.Point(200, 150).buffer(140).difference(shapely.Point(210, 140).buffer(60))
    outlines = [rings, shapely.box(-50, 100, 2000, 260)]
    whole = np.asarray(draw_overlay(MemoryReader(image), result, outlines=outlines).image)
    monkeypatch.setattr("wsi_ips.heatmaps.overlay.MOST_BAND_ROWS", 13)
    write_overlay(tmp_path / "a.png", MemoryReader(image), result, outlines=outlines)
    with Image.open(tmp_path / "a.png") as found:
        np.testing.assert_array_equal(np.asarray(found), whole)


def test_a_large_picture_is_never_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """48 MB of pixels, in less than half of that."""
    size = (4000, 4000)
    coords = coords_of(size, patch_px=300, slide_mpp=0.5)
    slide = MemoryReader(np.full((size[1], size[0], 3), GREY, np.uint8))
    result = result_of(coords, np.arange(float(len(coords))))
    monkeypatch.setattr("wsi_ips.heatmaps.overlay.MOST_BAND_ROWS", 32)
    tracemalloc.start()
    try:
        write_overlay(tmp_path / "a.png", slide, result, HeatOptions(side_px=4000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20e6


def test_the_png_tells_the_scale_and_the_raw_values(tmp_path: Path) -> None:
    coords = coords_of((400, 300), patch_px=100, slide_mpp=0.25)
    values = np.linspace(0.01, 0.2, len(coords))
    path = tmp_path / "overlays" / "slide_01.png"
    write_overlay(
        path, MemoryReader(grey_slide((400, 300))), result_of(coords, values), HeatOptions(side_px=200)
    )
    with Image.open(path) as image:
        facts = image.text  # type: ignore[attr-defined]
        assert image.size > (200, 150)
    assert facts["slide_id"] == "slide_01"
    assert facts["picture_px"] == "200x150"
    assert float(facts["l0_per_px"]) == 2
    assert float(facts["slide_mpp"]) == 0.25
    assert float(facts["value_min"]) == pytest.approx(0.01)
    assert float(facts["value_max"]) == pytest.approx(0.2)
    assert facts["scale"] == "even 0.25 64.0"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "options",
    [{"alpha": 1.1}, {"alpha": float("nan")}, {"side_px": 0}, {"side_px": 10**6}, {"query": 1}, {"head": -1}],
)
def test_options_out_of_range_are_refused(options: dict[str, int]) -> None:
    coords = coords_of((64, 64), patch_px=32, slide_mpp=0.5)
    with pytest.raises(ConfigError):
        draw_overlay(
            MemoryReader(grey_slide((64, 64))),
            result_of(coords, np.ones(4)),
            HeatOptions.model_construct(**options),
        )  # type: ignore[arg-type]


def test_another_slide_of_that_name_is_refused() -> None:
    coords = coords_of((64, 64), patch_px=32, slide_mpp=0.5)
    with pytest.raises(ResultsError, match=r"is 64x65 pixels, but slide_01 was 64x64"):
        draw_overlay(MemoryReader(grey_slide((64, 65))), result_of(coords, np.ones(4)))


def test_on_a_real_slide_the_picture_is_the_slide(real_data: Path) -> None:
    """Far corner included: at full scale and without heat, pixel for pixel."""
    with open_slide(real_data / "slides" / "CMU-1-Small-Region.svs") as slide:
        coords = coords_of(slide.info.l0_size, patch_px=256, slide_mpp=0.499, keep=[0])
        overlay = draw_overlay(slide, result_of(coords, np.ones(1)), HeatOptions(alpha=0, side_px=4000))
        picture = picture_of(overlay)
        corner = slide.read((2220 - 300, 2967 - 200), level=0, size_px=(300, 200))
    assert picture.shape == (2967, 2220, 3)
    np.testing.assert_array_equal(picture[-200:, -300:], corner)
