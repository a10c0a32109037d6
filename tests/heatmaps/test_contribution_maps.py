"""Maps of contributions: which one is the default, its colours and legend, and what exports hold of it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray

from tests.heatmaps.maps_of_slides import GREY, drawn, telling
from wsi_ips.config import HeatOptions
from wsi_ips.datasets.annotations import lesion_area
from wsi_ips.errors import ConfigError, ResultsError
from wsi_ips.heatmaps.display_scale import DisplayScale, colour_table, colours_of, scale_of
from wsi_ips.heatmaps.maps import (
    Heat,
    choose_heat,
    choose_output,
    predictions_in_words,
    speaking_for,
    spread_of_gradients,
)
from wsi_ips.heatmaps.overlay import draw_overlay
from wsi_ips.heatmaps.patch_sheet import PatchSheet
from wsi_ips.heatmaps.pyramids import DeepZoom, OmeTiff, OmeZarr
from wsi_ips.heatmaps.regions import AsapRegions, QuPathGeoJson
from wsi_ips.inference.results import SlideResult, read_result, write_result

ADDED = {3: 2.5, 8: 0.0702, 20: -0.0702, 21: -0.5, 30: 1e-4}
DRAWN = drawn()
TELLS = telling(DRAWN.heat.result, ADDED)


def values_of(result: SlideResult) -> NDArray[np.float32]:
    values_N = np.zeros(len(result.coords), np.float32)
    values_N[list(ADDED)] = list(ADDED.values())
    return values_N


def test_the_default_picture_is_the_contribution_where_the_head_tells_it() -> None:
    heat = choose_heat(TELLS)
    assert (heat.kind, heat.output) == ("contribution", ("label", "tumor"))
    assert heat.shown == "Contribution to tumor, task label"
    np.testing.assert_array_equal(heat.values_N, values_of(TELLS))
    assert choose_heat(DRAWN.heat.result).kind == "attention"
    attention = choose_heat(TELLS, HeatOptions(map="attention"))
    np.testing.assert_array_equal(attention.values_N, DRAWN.heat.values_N)
    for choice in ({"query": 0}, {"head": 1}):
        assert choose_heat(TELLS, HeatOptions(**choice)).kind == "attention"


@pytest.mark.parametrize(
    ("probabilities", "choice", "output"),
    [
        ({"a": {"no": 0.9, "yes": 0.1}}, {}, ("a", "yes")),
        ({"a": {"yes": 0.1}}, {}, ("a", "yes")),
        ({"a": {"x": 0.2, "y": 0.5, "z": 0.3}}, {}, ("a", "y")),
        ({"a": {"x": 1}, "b": {"y": 1, "z": 0}}, {}, ("a", "x")),
        ({"a": {"risk": -0.4, "survival_6": 0.8, "survival_12": 0.5}}, {}, ("a", "risk")),
        ({"a": {"risk": 7.0, "survival_6": 0.1}}, {}, ("a", "risk")),
        ({"a": {"risk": 7.0, "survival_6": 0.1}}, {"class_name": "survival_6"}, ("a", "survival_6")),
        ({"a": {"x": 1}, "b": {"y": 1, "z": 0}}, {"task": "b"}, ("b", "z")),
        ({"a": {"x": 1}, "b": {"y": 1, "z": 0}}, {"class_name": "y"}, ("b", "y")),
        ({"a": {"x": 1, "y": 0}, "b": {"y": 1, "z": 0}}, {"class_name": "y"}, ("a", "y")),
        ({"a": {"x": 1, "y": 0}, "b": {"y": 1, "z": 0}}, {"class_name": "y", "task": "b"}, ("b", "y")),
    ],
)
def test_the_class_of_one_or_two_is_the_last_and_of_more_the_likeliest(
    probabilities: dict[str, dict[str, float]], choice: dict[str, str], output: tuple[str, str]
) -> None:
    result = replace(DRAWN.heat.result, probabilities=probabilities)
    assert choose_output(result, **choice) == output


SCORES = {"ages": {"low": 0.2, "middle": 0.7, "high": 0.5}}


def test_of_numbers_none_is_the_likeliest_and_the_first_is_drawn(tmp_path: Path) -> None:
    """Also of numbers between 0 and 1, which look like probabilities."""
    told = replace(DRAWN.heat.result, probabilities=SCORES, task_queries={"ages": 0}, number_tasks=("ages",))
    write_result(tmp_path / "told.h5", told)
    stored = read_result(tmp_path / "told.h5")
    assert stored.number_tasks == ("ages",)
    assert choose_output(stored) == ("ages", "low")
    assert choose_output(stored, class_name="high") == ("ages", "high")
    assert replace(DRAWN.heat, result=stored, task="ages").likeliest is None
    assert list(predictions_in_words(stored)) == ["Predicted ages: low 0.200, middle 0.700, high 0.500"]
    classes = replace(told, number_tasks=())
    assert choose_output(classes) == ("ages", "middle")
    write_result(tmp_path / "classes.h5", classes)
    assert read_result(tmp_path / "classes.h5").number_tasks == ()


def test_what_cannot_be_a_probability_is_a_number_in_results_of_earlier_versions_too() -> None:
    for outputs in ({"a": 0.2, "b": 61.0, "c": 0.1}, {"a": -0.3, "b": 0.5}):
        result = replace(DRAWN.heat.result, probabilities={"age": outputs}, task_queries={"age": 0})
        assert choose_output(result) == ("age", "a")


def test_survival_has_no_likeliest_class_and_its_risk_comes_first() -> None:
    probabilities = {"death": {"risk": -0.4, "survival_6": 0.8, "survival_12": 0.5}}
    result = replace(DRAWN.heat.result, probabilities=probabilities, task_queries={"death": 0})
    assert replace(DRAWN.heat, result=result, task="death").likeliest is None
    said = "Predicted death: risk -0.400, survival_6 0.800, survival_12 0.500"
    assert list(predictions_in_words(result)) == [said]


@pytest.mark.parametrize(
    ("tells", "choice", "problem"),
    [
        (
            False,
            {"map": "contribution"},
            "slide_01: this model's head does not tell .*; use --map attention",
        ),
        (False, {"class_name": "tumor"}, "does not tell"),
        (True, {"class_name": "lung"}, "class 'lung' is not there: slide_01 has normal, tumor"),
        (True, {"map": "contribution", "task": "grade"}, "task 'grade' is not there: slide_01 has label"),
        (True, {"map": "contribution", "head": 0}, "a query or a head chooses attention"),
        (True, {"map": "attention", "class_name": "tumor"}, "attention does not belong to a class"),
    ],
)
def test_what_cannot_be_shown_is_said(tells: bool, choice: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        choose_heat(TELLS if tells else DRAWN.heat.result, HeatOptions(**choice))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["attention", "contribution"])
def test_contributions_that_are_no_numbers_are_refused(kind: str) -> None:
    bad = telling(DRAWN.heat.result, {3: np.nan})
    with pytest.raises(ResultsError, match="slide_01: has a contribution that is not finite"):
        choose_heat(bad, HeatOptions(map=kind))  # type: ignore[arg-type]


def test_the_scale_has_0_in_its_middle_and_is_the_same_for_every_slide() -> None:
    few, many = (DisplayScale(np.array(values, np.float32), scale="signed") for values in ([0.1], [5, -3, 0]))
    places = np.linspace(0, 1, 257)
    np.testing.assert_array_equal(few.values_at(places), many.values_at(places))
    assert few(np.array([0.0, -1, 1, -7, 7])).tolist() == [0.5, 0, 1, 0, 1]
    np.testing.assert_allclose(few(few.values_at(places)), places, atol=1e-6)
    values = np.array([0.3, 0.01, 1e-5])
    np.testing.assert_allclose(few(values) - 0.5, 0.5 - few(-values), atol=1e-7)
    # Ten contributions of a tenth of the end are no paler than half of one of the end itself.
    assert few(np.array([0.1]))[0] > 0.75
    wide = DisplayScale(np.zeros(1), scale="signed", high=10)
    np.testing.assert_allclose(wide(10 * values), few(values), atol=1e-6)
    assert np.isnan(few(np.array([np.nan]))).all()


@pytest.mark.parametrize("ends", [{"high": 0}, {"high": -1}, {"low": -2, "high": 1}, {"low": 0}])
def test_ends_that_are_not_opposite_each_other_are_refused(ends: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="signed colour scale"):
        DisplayScale(np.zeros(1), scale="signed", **ends)


@pytest.mark.parametrize(
    ("colours", "kind"),
    [
        (HeatOptions(scale="even"), "contribution"),
        (HeatOptions(scale="rank"), "contribution"),
        (HeatOptions(colormap="blue_yellow"), "contribution"),
    ],
)
def test_a_map_has_no_colours_of_the_other_kind(colours: HeatOptions, kind: str) -> None:
    with pytest.raises(ConfigError):
        _ = scale_of(colours, np.zeros(2), kind), colours_of(colours, kind)  # type: ignore[arg-type]


def test_kept_patches_have_the_colours_that_the_legend_says_and_the_others_none() -> None:
    overlay = draw_overlay(DRAWN.slide, TELLS, HeatOptions(side_px=3000, alpha=0.5))
    width, height = overlay.picture_px
    picture = np.asarray(overlay.image)[:height, :width].astype(int)
    table = colour_table("blue_red").astype(int)
    # The ends are 1 logit; 0.0702 lies a quarter from each end, as the legend's ticks say.
    places = {3: 1, 8: 0.75, 20: 0.25, 30: 0.5}
    for row, corner in enumerate(DRAWN.l0_corners_N2):
        x, y = (corner + DRAWN.l0_patch / 2).astype(int)
        if not (x < width and y < height) or row == 21:
            continue
        if row not in ADDED:
            assert (picture[y, x] == GREY).all(), row
            continue
        wanted = (table[round(places[row] * 255)] + GREY) / 2
        assert np.abs(picture[y, x] - wanted).max() <= 3, row
    assert overlay.facts["map"] == "contribution"
    assert overlay.facts["scale"] == "signed -1.0 1.0"
    assert (overlay.facts["shown"], overlay.facts["colormap"]) == (
        "Contribution to tumor, task label",
        "blue_red",
    )


def test_the_legend_says_logits_how_many_add_and_their_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    text = "PIL.ImageDraw.ImageDraw.text"
    monkeypatch.setattr(text, lambda self, at, words, *rest, **more: said.append(words))
    draw_overlay(DRAWN.slide, TELLS)
    count = len(TELLS.coords)
    assert said[1] == "Contribution to tumor, task label"
    assert said[2].startswith(
        f"5 patches of {count} kept, 3 add 2.5 at most, 2 take 0.5 at most; together +2 logits"
    )
    assert "adds to logit" in said
    assert "times even share" not in said
    ticks = said[said.index("percentile") + 1 :]
    assert ticks[:10:2] == ["-1", "-0.0704", "0", "+0.0704", ">=+1"]


def test_flat_attention_is_said_beside_contributions() -> None:
    flat = replace(TELLS, attention_NHT=np.full_like(TELLS.attention_NHT, 1 / len(TELLS.coords)))
    assert choose_heat(flat).flat
    assert choose_heat(flat).spread.startswith("Flat attention: 5 patches")
    assert not choose_heat(TELLS).flat


def heat(**choice: str) -> Heat:
    return choose_heat(TELLS, HeatOptions(**choice))  # type: ignore[arg-type]


def test_files_of_several_maps_hold_contributions_beside_attention(tmp_path: Path) -> None:
    shown = {
        "Attention, task label, mean over 2 heads",
        *(f"Contribution to {c}, task label" for c in ("normal", "tumor")),
    }
    for kind in ("attention", "contribution"):
        QuPathGeoJson().write(tmp_path / "a.geojson", heat(map=kind), DRAWN.slide)
        features = json.loads((tmp_path / "a.geojson").read_text())["features"]
        measured = [feature["properties"]["measurements"] for feature in features]
        assert set(measured[0]) == shown | {f"{kind.capitalize()} percentile"}
        for row, value in ADDED.items():
            assert measured[row]["Contribution to tumor, task label"] == pytest.approx(value)
            assert measured[row]["Contribution to normal, task label"] == pytest.approx(-value)
        OmeZarr().write(tmp_path / "a.ome.zarr", heat(map=kind))
        group = zarr.open_group(tmp_path / "a.ome.zarr", mode="r")
        channels = [channel["label"] for channel in group.attrs["ome"]["omero"]["channels"]]  # type: ignore[index,call-overload]
        assert set(channels) == shown
        tumor = np.asarray(group["0"])[channels.index("Contribution to tumor, task label")]
        assert np.nanmax(tumor) == np.float32(2.5)
        assert np.nanmin(tumor) == np.float32(-0.5)


def test_the_raw_contribution_is_the_pixel_of_an_ome_tiff(tmp_path: Path) -> None:
    OmeTiff().write(tmp_path / "a.ome.tif", heat(class_name="normal"))
    values = tifffile.imread(tmp_path / "a.ome.tif")
    assert sorted(set(values[np.isfinite(values) & (values != 0)].tolist())) == pytest.approx(
        sorted(-value for value in ADDED.values())
    )


def test_the_largest_come_first_in_a_list_of_patches(tmp_path: Path) -> None:
    QuPathGeoJson(top=2).write(tmp_path / "a.geojson", heat(), DRAWN.slide)
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    said = [each["properties"]["measurements"]["Contribution to tumor, task label"] for each in features]
    assert said == pytest.approx([2.5, 0.0702])


def area(path: Path) -> float:
    return float(lesion_area(path).area) / DRAWN.l0_patch**2


@pytest.mark.parametrize(("options", "patches"), [({}, 1), ({"percentile": 0}, 3), ({"threshold": 0.05}, 2)])
def test_regions_hold_only_patches_that_add(tmp_path: Path, options: dict[str, float], patches: int) -> None:
    """Of 5 kept patches the 95th percentile is between the two largest; what adds nothing is in no region."""
    AsapRegions(**options).write(tmp_path / "a.xml", heat())
    assert area(tmp_path / "a.xml") == pytest.approx(patches, rel=0.05)


def test_tiles_without_the_slide_show_kept_patches_alone(tmp_path: Path) -> None:
    from PIL import Image

    DeepZoom(HeatOptions(alpha=1), heat_only=True).write(tmp_path / "a.dzi", heat())
    tiles = sorted((tmp_path / "a_files" / "11").glob("*.png"))
    opaque = sum(int((np.asarray(Image.open(tile))[1:-1, 1:-1, 3] > 0).sum()) for tile in tiles)
    assert opaque == pytest.approx(len(ADDED) * DRAWN.l0_patch**2, rel=0.05)
    with pytest.raises(ConfigError, match="blue_yellow has no middle"):
        DeepZoom(HeatOptions(colormap="blue_yellow")).write(tmp_path / "b.dzi", heat(), DRAWN.slide)


def test_a_sheet_is_of_what_adds_most_and_takes_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("PIL.ImageDraw.ImageDraw.text", lambda self, at, words, *rest: said.append(words))
    PatchSheet(top=1).write(tmp_path / "a.png", heat(), DRAWN.slide)
    assert "Adds most to tumor" in said
    assert "#1   +2.5" in said
    assert f"#{len(TELLS.coords)}   -0.5" in said


def test_gradients_are_titled_and_described_as_what_they_are() -> None:
    """They have no sum that would mean anything."""
    told = replace(TELLS, kept_gradients_MK=TELLS.kept_contributions_MK)
    heat = choose_heat(told, HeatOptions(map="gradient"))
    assert (heat.kind, heat.output) == ("gradient", ("label", "tumor"))
    np.testing.assert_array_equal(heat.values_N, values_of(TELLS))
    assert heat.shown == "Gradient times input for tumor, task label"
    assert heat.spread.endswith(
        f"5 patches of {len(heat.values_N)} kept, 3 for it, 2.5 at most, 2 against it, 0.5 at most; "
        "the others were not kept"
    )
    assert spread_of_gradients(np.zeros(0, np.float32), 0) == "no patch"
    assert "Contribution to tumor, task label" in heat.others
    assert "Gradient times input for normal, task label" in heat.others
    assert heat.shown not in heat.others
    assert speaking_for("gradient", "tumor") == "Largest gradient for tumor"
    assert choose_heat(told).kind == "contribution", "the default does not change"
    assert (
        scale_of(HeatOptions(), heat.values_N, "gradient").low,
        scale_of(HeatOptions(), heat.values_N, "gradient").high,
    ) == (-1, 1)
    with pytest.raises(ConfigError, match="scale rank is for attention, and gradients have one scale"):
        scale_of(HeatOptions(scale="rank"), heat.values_N, "gradient")


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    assert TELLS.kept_contributions_MK is not None
    told = replace(TELLS, kept_gradients_MK=np.full_like(TELLS.kept_contributions_MK, np.nan))
    for kind in ("gradient", "attention", "contribution"):
        with pytest.raises(ResultsError, match="a gradient that is not finite"):
            choose_heat(told, HeatOptions(map=kind))
