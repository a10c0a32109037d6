"""Every stain's tissue is kept, pale beside strong, and the glass is not; on shared cases and on drawn slides."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tiling.stained import (
    STAINS,
    Mask,
    Stained,
    biopsies,
    disc,
    draw,
    micro_array,
    needle_core,
    strokes,
)
from wsi_ips.config import TissueConfig
from wsi_ips.slides.image_reader import MemoryReader
from wsi_ips.slides.registry import open_slide
from wsi_ips.tiling.tissue import find_tissue
from wsi_ips.units import Mpp

CASES = [
    "real_strong_vs_pale10", "stains2_alcian_blue", "stains2_at8_mid_fifth", "stains2_tma_yellow",
    "stains3_he_strong_pale", "stains_fluorescence", "stains_gms_green", "stains_ihc_at8", "stains_pen_marks",
    "stains_trichrome",
]  # fmt: skip
PAIRS = [
    ("dab", "ihc pale"), ("dab", "at8 pale"), ("h&e strong", "h&e pale"), ("trichrome red", "trichrome blue"),
    ("h&e", "trichrome as blue as ink"), ("h&e", "alcian"), ("pas", "pas pale"), ("melanin", "h&e pale"),
    ("melanin black", "h&e"), ("oil red", "grey pale"), ("trichrome as blue as ink", "gms", "h&e pale"),
    ("gms strong", "grey pale"),
]  # fmt: skip
GLASS = {
    "white": (255, 255, 255), "yellow": (223, 215, 200), "grey": (200, 203, 201), "warm": (238, 233, 222),
    "bluish": (225, 232, 245),
}  # fmt: skip


def mask_at(mask_HW: Mask, l0_per_px: float, shape: tuple[int, ...], step: int) -> Mask:
    """The mask at the centres of squares of ``step`` level-0 pixels."""
    rows, columns = (
        np.minimum(((np.arange(count) + 0.5) * step / l0_per_px).astype(int), length - 1)
        for count, length in zip(shape, mask_HW.shape, strict=True)
    )
    return np.asarray(mask_HW[np.ix_(rows, columns)])


@pytest.mark.parametrize("case", CASES)
def test_shared_cases(cases_folder: Path, case: str) -> None:
    folder = cases_folder / "tissue"
    if not (folder / f"{case}.tif").is_file():
        pytest.skip(f"no {case}.tif in {folder}")
    truth = np.asarray(Image.open(folder / f"{case}.truth.png").convert("L")) > 127
    with open_slide(folder / f"{case}.tif") as slide:
        mask = find_tissue(slide, TissueConfig())
    found = mask_at(mask.mask_HW, mask.l0_per_px[0], truth.shape, 4)
    assert found[truth].mean() >= (0.75 if case.startswith("real_") else 0.95)
    assert found[~truth].mean() <= 0.02


def test_a_coarser_thumbnail_has_less_texture_and_keeps_the_same_stain(cases_folder: Path) -> None:
    path = cases_folder / "tissue" / "stains2_alcian_blue.tif"
    if not path.is_file():
        pytest.skip(f"no {path}")
    with open_slide(path) as slide:
        fine, coarse = (
            find_tissue(slide, TissueConfig(thumbnail_mpp=mpp)).mask_HW.mean() for mpp in (8.0, 16.0)
        )
    assert coarse == pytest.approx(fine, rel=0.05)


def assert_found(slide: Stained) -> None:
    kept, glass = slide.shares()
    assert kept >= 0.95
    assert glass <= 0.02


@pytest.mark.parametrize("stain", STAINS)
def test_every_stain_alone(stain: str) -> None:
    assert_found(draw(stain))


@pytest.mark.parametrize("stains", PAIRS, ids=" beside ".join)
def test_stains_side_by_side(stains: tuple[str, ...]) -> None:
    assert_found(draw(*stains))


@pytest.mark.parametrize("glass", GLASS)
@pytest.mark.parametrize(
    "stains", [("dab", "ihc pale"), ("h&e strong", "h&e pale"), ("gms",), ("grey pale",)]
)
def test_any_glass(stains: tuple[str, ...], glass: str) -> None:
    assert_found(draw(*stains, glass=GLASS[glass]))


@pytest.mark.parametrize(
    "stains", [("dab", "ihc pale"), ("h&e strong", "h&e pale"), ("trichrome blue", "gms")]
)
@pytest.mark.parametrize(
    "scan", [{"light": 0.15}, {"vignette": 0.12}, {"noise": 8}, {"noise": 4, "jpeg": 30}], ids=str
)
def test_uneven_light_noise_and_jpeg(stains: tuple[str, ...], scan: dict[str, float]) -> None:
    assert_found(draw(*stains, **scan))  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [biopsies, needle_core, micro_array])
@pytest.mark.parametrize("stains", [("ihc pale",), ("trichrome blue", "gms")])
def test_tiny_biopsies_cores_and_arrays(stains: tuple[str, ...], shape: object) -> None:
    assert callable(shape)
    assert_found(draw(*stains, shape=shape()))


@pytest.mark.parametrize(
    "stains", [("h&e",), ("dab", "at8 pale"), ("gms",), ("alcian", "pas pale"), ("ihc pale",)]
)
def test_tissue_that_fills_the_slide(stains: tuple[str, ...]) -> None:
    assert_found(draw(*stains, shape=np.ones((600, 600), bool)))


@pytest.mark.parametrize(
    "scan",
    [
        {},
        {"light": 0.15},
        {"vignette": 0.12},
        {"noise": 8},
        {"noise": 4, "jpeg": 30},
        {"glass": GLASS["yellow"]},
    ],
    ids=str,
)
def test_nothing_on_the_slide(scan: dict[str, object]) -> None:
    assert not draw(shape=np.zeros((600, 600), bool), **scan).found().any()  # type: ignore[arg-type]


def test_a_coverslip_s_edge_dust_and_a_shadow_are_no_tissue() -> None:
    edge = strokes((20, 40, 590, 55), width=8)
    dust = disc(6, (60, 300)) | disc(8, (540, 540))
    shadow = disc(50, (70, 530))
    slide = draw("h&e", marks=((edge, (150, 150, 152)), (dust, (90, 90, 92)), (shadow, (232, 231, 234))))
    found = slide.found()
    for mark in (edge, dust, shadow):
        assert found[mark].mean() < 0.02
    assert found[slide.truth_HW].mean() > 0.95


def test_white_and_black_borders_are_no_tissue() -> None:
    slide = draw("h&e strong", "h&e pale")
    for level in (255, 0, 12):
        framed = np.full((760, 800, 3), level, np.uint8)
        framed[80:680, 100:700] = slide.rgb_HWC
        mask = find_tissue(MemoryReader(framed, mpp=Mpp(4.0)), TissueConfig()).mask_HW
        inside = mask[40:340, 50:350].repeat(2, 0).repeat(2, 1)
        assert inside[slide.truth_HW].mean() > 0.95
        assert mask.sum() - mask[40:340, 50:350].sum() < 0.02 * mask.size


def test_dark_tissue_on_most_of_the_slide_is_not_taken_for_fluorescence() -> None:
    assert_found(draw("melanin black", shape=disc(285)))


def test_a_stain_has_pixels_in_ink_s_colours_and_is_kept_because_it_is_grainy() -> None:
    """The same colours painted evenly are pen."""
    assert_found(draw("trichrome as blue as ink"))
    assert not draw(shape=np.zeros((600, 600), bool), marks=((disc(), (30, 60, 190)),)).found().any()
