from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.color import hed2rgb, rgb2hed

from wsi_ips.config import AugmentConfig
from wsi_ips.training.augment import augment, quarter_turns_and_flips

EVERYTHING: dict[str, Any] = {
    "stain": 0.3, "stain_offset": 0.05, "brightness": 0.2, "contrast": 0.2, "saturation": 0.3, "hue": 0.05,
}  # fmt: skip
COLOURS = list(EVERYTHING)


def patches(n: int) -> torch.Tensor:
    return torch.arange(n * 3 * 4 * 4, dtype=torch.float32).reshape(n, 3, 4, 4)


@given(st.permutations(range(12)), st.integers(1, 11))
def test_a_patch_is_turned_the_same_way_whatever_chunk_it_comes_in(order: list[int], cut: int) -> None:
    ids, pixels = torch.arange(12) * 1000, patches(12)
    together = quarter_turns_and_flips(pixels, ids, key="0/3/slide")
    rows = torch.tensor(order)
    parts = [quarter_turns_and_flips(pixels[r], ids[r], key="0/3/slide") for r in (rows[:cut], rows[cut:])]
    assert torch.equal(torch.cat(parts), together[rows])


def test_another_epoch_turns_patches_another_way() -> None:
    ids, pixels = torch.arange(64), patches(64)
    first = quarter_turns_and_flips(pixels, ids, key="0/0/slide")
    assert not torch.equal(first, quarter_turns_and_flips(pixels, ids, key="0/1/slide"))


def test_all_eight_symmetries_occur_about_equally_often() -> None:
    corner = torch.zeros(8000, 3, 2, 2)
    corner[:, :, 0, 0], corner[:, :, 0, 1] = 1, 2
    turned = quarter_turns_and_flips(corner, torch.arange(8000), key="0/0/slide")
    kinds, counts = turned[:, 0].flatten(1).unique(dim=0, return_counts=True)
    assert len(kinds) == 8
    assert counts.min() > 850


def test_no_pixel_is_lost() -> None:
    pixels = patches(10)
    turned = quarter_turns_and_flips(pixels, torch.arange(10), key="k")
    assert torch.equal(turned.flatten(1).sort().values, pixels.flatten(1).sort().values)


def coloured(n: int, *, side: int = 9, seed: int = 0) -> torch.Tensor:
    """(n, 3, side, side) uint8, channels last in memory as streams give them."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, side, side, 3), generator=generator, dtype=torch.uint8)
    return pixels.permute(0, 3, 1, 2)


def changed(pixels: torch.Tensor, key: str = "0/0/slide", **strengths: Any) -> torch.Tensor:
    ids = torch.arange(len(pixels)) * 17
    return augment(pixels, ids, key=key, config=AugmentConfig(**strengths), flips=False)


@given(st.permutations(range(10)), st.integers(1, 9), st.sampled_from(["slide", "patch"]), st.booleans())
def test_a_patch_looks_the_same_whatever_chunk_it_comes_in(
    order: list[int], cut: int, per: Any, flips: bool
) -> None:
    ids, pixels, config = torch.arange(10) * 1000, coloured(10), AugmentConfig(per=per, **EVERYTHING)
    together = augment(pixels, ids, key="0/3/slide", config=config, flips=flips)
    rows = torch.tensor(order)
    parts = [
        augment(pixels[r], ids[r], key="0/3/slide", config=config, flips=flips)
        for r in (rows[:cut], rows[cut:])
    ]
    assert torch.equal(torch.cat(parts), together[rows])
    assert together.dtype == torch.uint8
    assert together.stride() == pixels.stride()


def test_strength_zero_and_stored_features_come_back_to_the_byte() -> None:
    pixels = coloured(4)
    assert torch.equal(changed(pixels), pixels)
    features = torch.rand(5, 16)
    config = AugmentConfig(**EVERYTHING)
    assert torch.equal(augment(features, torch.arange(5), key="k", config=config, flips=True), features)


@pytest.mark.parametrize("name", COLOURS)
def test_a_strength_of_nearly_nothing_changes_no_byte(name: str) -> None:
    """The way there and back (logarithms, stains, YIQ) is exact to a quarter of a grey level."""
    every = torch.arange(256, dtype=torch.uint8)
    greys = every.repeat(3, 1).view(1, 3, 16, 16)
    pixels = torch.cat([coloured(20, side=16), greys])
    assert torch.equal(changed(pixels, **{name: 1e-9}), pixels)


@pytest.mark.parametrize("name", COLOURS)
def test_every_strength_changes_something_and_keys_differ(name: str) -> None:
    pixels = coloured(3)
    first = changed(pixels, **{name: EVERYTHING[name]})
    assert not torch.equal(first, pixels)
    assert not torch.equal(first, changed(pixels, key="0/1/slide", **{name: EVERYTHING[name]}))


def test_a_slide_s_draw_is_that_of_all_its_patches_and_a_patch_s_its_own() -> None:
    same = coloured(1).repeat(6, 1, 1, 1)
    by_slide = changed(same, per="slide", **EVERYTHING)
    assert all(torch.equal(patch, by_slide[0]) for patch in by_slide)
    by_patch = changed(same, per="patch", **EVERYTHING)
    assert len(by_patch.flatten(1).unique(dim=0)) == 6


@given(st.floats(0.1, 1), st.floats(0.1, 1), st.integers(0, 1000))
def test_stains_are_those_of_ruifrok_and_johnston(haematoxylin: float, eosin: float, key: int) -> None:
    """A mixture of two stains, changed: scikit-image finds as much more of each as was drawn, and no third."""
    hed = np.array([haematoxylin, eosin, 0.0]) / 30  # scikit-image's unit is the density of a millionth
    pixel = (hed2rgb(hed[None, None]) * 255).round().astype(np.uint8)
    patch = torch.from_numpy(pixel).permute(2, 0, 1)[None].repeat(1, 1, 8, 8)
    stained = changed(patch, key=str(key), stain=0.3)
    assert len(stained.flatten(2).unique(dim=2).flatten()) == 3
    before = rgb2hed(pixel)[0, 0]
    after = rgb2hed(stained[0, :, 0, 0].numpy()[None, None])[0, 0]
    for stain in range(2):
        assert 0.65 < (after[stain] + 1e-3) / (before[stain] + 1e-3) < 1.35
    assert after[2] < before.max() * 0.25


def test_an_offset_moves_optical_density_by_itself() -> None:
    """White has no density: offsets alone colour it, by at most the sum of three stains' offsets."""
    white = torch.full((40, 3, 4, 4), 255, dtype=torch.uint8)
    assert torch.equal(changed(white, stain=1.0), white)
    moved = changed(white, stain_offset=0.05, per="patch")[:, :, 0, 0]
    assert (moved < 255).any()
    assert moved.min() >= 256 * 10 ** (-0.05 * 1.7) - 1


def test_brightness_contrast_saturation_and_hue_do_what_their_names_say() -> None:
    grey = torch.full((64, 3, 2, 2), 100, dtype=torch.uint8)
    brighter = changed(grey, per="patch", brightness=0.5)[:, 0, 0, 0].float()
    assert 50 <= brighter.min() < 60
    assert 140 < brighter.max() <= 150
    middle = torch.tensor([[127], [128]], dtype=torch.uint8).repeat(1, 3)[:, :, None, None]
    assert torch.equal(changed(middle, contrast=1.0), middle)
    for name in ("saturation", "hue"):
        assert torch.equal(changed(grey, per="patch", **{name: 0.5}), grey)
    red = torch.tensor([180, 90, 90], dtype=torch.uint8).view(1, 3, 1, 1).repeat(200, 1, 1, 1)
    luma = torch.tensor([0.299, 0.587, 0.114])
    for name in ("saturation", "hue"):
        turned = changed(red, per="patch", **{name: 0.5})[:, :, 0, 0].float()
        assert (turned @ luma - red[0, :, 0, 0].float() @ luma).abs().max() < 2
        assert (turned.max(dim=1).values - turned.min(dim=1).values).std() > 1
    assert (changed(red, per="patch", hue=0.5)[:, :, 0, 0].argmax(dim=1).bincount(minlength=3) > 20).all()


def test_draws_are_spread_evenly_over_their_range() -> None:
    grey = torch.full((4000, 3, 1, 1), 100, dtype=torch.uint8)
    values = changed(grey, per="patch", brightness=0.5)[:, 0, 0, 0].float()
    counts = torch.histc(values, bins=10, min=50, max=150)
    assert counts.min() > 300


def test_colours_of_real_tissue_stay_plausible(real_data: Any) -> None:
    """The H&E of a real slide stays pink and violet on white, a little lighter or darker."""
    import openslide

    with openslide.OpenSlide(real_data / "slides" / "CMU-1-Small-Region.svs") as slide:
        patch = np.asarray(slide.read_region((1000, 1000), 0, (256, 256)).convert("RGB"))
    pixels = torch.from_numpy(patch.copy()).permute(2, 0, 1)[None].repeat(16, 1, 1, 1)
    usual = {"stain": 0.2, "stain_offset": 0.02, "brightness": 0.1, "contrast": 0.1, "saturation": 0.1}
    means = changed(pixels, per="patch", hue=0.02, **usual).float().mean(dim=(2, 3))
    original = pixels[0].float().mean(dim=(1, 2))
    assert (means - original).abs().max() < 60
    assert means.std(dim=0).min() > 3
    assert (means[:, 1] < means[:, 0]).all()
