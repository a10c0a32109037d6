"""Attention sampling's variants of the image data sets: order of painting, small views, brightness, colours."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.images.small_mnist import write_small_mnist
from wsi_ips.config import StreamingConfig, TaskConfig, TilingConfig
from wsi_ips.errors import ConfigError, DatasetError
from wsi_ips.images.config import MegapixelMnistConfig
from wsi_ips.images.megapixel_mnist import (
    DIGIT_PX,
    DigitPool,
    draw_plan,
    image_bags,
    make_megapixel_mnist,
    paint,
    paint_small,
    read_split,
)
from wsi_ips.images.traffic_signs import brightened_and_shifted, seen_small

DIGITS = [str(digit) for digit in range(10)]
CPU = torch.device("cpu")


@pytest.fixture
def pool() -> DigitPool:
    rng = np.random.default_rng(0)
    return DigitPool(rng.integers(1, 256, (40, 28, 28)).astype(np.uint8), np.arange(40) % 10)


def test_noise_lies_over_the_digits_or_under_them(pool: DigitPool) -> None:
    """Both on the same place: the upper one is seen whole, its black pixels too."""
    plan = draw_plan(pool.class_n, images=1, side_px=150, noise=1, seed=0)
    plan = replace(plan, noise_place_nw2=plan.place_nd2[:, :1])
    top, left = plan.place_nd2[0, 0]
    there = (slice(top, top + DIGIT_PX), slice(left, left + DIGIT_PX))
    noise = (np.float32(255) * plan.pattern_w28[plan.noise_kind_nw[0, 0]]).astype(np.uint8)
    assert np.array_equal(paint(plan, 0, pool, noise_over=True).dense()[there], noise)
    assert np.array_equal(paint(plan, 0, pool).dense()[there], pool.images_n28[plan.digit_nd[0, 0]])


def test_the_small_view_is_pasted_square_by_square(pool: DigitPool) -> None:
    plan = draw_plan(pool.class_n, images=1, side_px=1500, noise=3, seed=0)
    small = paint_small(plan, 0, pool, scale=0.12)
    assert small.shape == (180, 180)
    expected = np.zeros((180, 180), np.uint8)
    noise = (np.float32(255) * plan.pattern_w28).astype(np.uint8)
    squares = [*pool.images_n28[plan.digit_nd[0]], *noise[plan.noise_kind_nw[0]]]
    for square, (row, column) in zip(squares, [*plan.place_nd2[0], *plan.noise_place_nw2[0]], strict=True):
        row, column = int(row * 0.12), int(column * 0.12)
        shrunk = np.asarray(Image.fromarray(square).resize((3, 3), Image.Resampling.BILINEAR))
        expected[row : row + 3, column : column + 3] = shrunk[: 180 - row, : 180 - column]
    assert np.array_equal(small, expected)


def test_a_drawn_set_keeps_its_small_views_and_its_bags_show_them(tmp_path: Path) -> None:
    config = MegapixelMnistConfig(
        mnist=write_small_mnist(tmp_path / "mnist", train=100, test=100),
        side_px=140, train=3, val=0, test=2, noise=2, small_scale=0.12,
    )  # fmt: skip
    make_megapixel_mnist(tmp_path / "data", config)
    split = read_split(tmp_path / "data" / "train.h5")
    assert split.small_nSS is not None
    assert split.small_nSS.shape == (3, 17, 17)
    bags = image_bags(
        split, tasks=[TaskConfig(name="majority", classes=tuple(DIGITS))], tiling=TilingConfig(patch_px=32)
    )
    with bags[1].open(StreamingConfig(), CPU) as source:
        assert np.array_equal(source.small[0], split.small_nSS[1])
        assert np.array_equal(source.image[0], split.image(1).dense())
    plain = config.model_copy(update={"small_scale": None})
    with pytest.raises(ConfigError, match="drawn with other settings"):
        make_megapixel_mnist(tmp_path / "data", plain)
    make_megapixel_mnist(tmp_path / "plain", plain)
    bags = image_bags(read_split(tmp_path / "plain" / "train.h5"), tasks=[], tiling=TilingConfig(patch_px=32))
    with (
        bags[0].open(StreamingConfig(), CPU) as source,
        pytest.raises(ConfigError, match=r"data\.small_scale"),
    ):
        source.small  # noqa: B018


def test_small_views_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    import h5py

    config = MegapixelMnistConfig(
        mnist=write_small_mnist(tmp_path / "mnist", train=100, test=100),
        side_px=140, train=3, val=0, test=2, noise=2, small_scale=0.12,
    )  # fmt: skip
    make_megapixel_mnist(tmp_path / "data", config)
    path = tmp_path / "data" / "train.h5"
    with h5py.File(path, "a") as file:
        del file["small"]
        file["small"] = np.zeros((2, 17, 17), np.uint8)
    with pytest.raises(DatasetError, match="do not fit together"):
        read_split(path)


def test_photographs_are_brightened_and_moved_as_their_key_says() -> None:
    photo = np.full((60, 80, 3), 100, np.uint8)
    photo[20:40, 30:50] = 180
    seen = [brightened_and_shifted(photo, key=str(key), most_shift_px=10) for key in range(60)]
    assert np.array_equal(seen[3], brightened_and_shifted(photo, key="3", most_shift_px=10))
    colours = {tuple(np.unique(each[each > 0])) for each in seen}
    assert (100, 180) in colours
    assert len(colours) > 20
    for each in seen:
        low, high = np.unique(each[each > 0])
        # a * 100 + b and a * 180 + b
        factor = (int(high) - int(low)) / 80
        assert 0.78 < factor < 1.22
        assert abs(int(low) - 100 * factor) < 28
    moved = [tuple(np.argwhere(each == each.max())[0][:2]) for each in seen]
    assert 3 < sum(place == (20, 30) for place in moved) < 30
    assert max(abs(row - 20) for row, _ in moved) <= 10


def test_a_photograph_seen_small_is_resampled_at_pixel_centres() -> None:
    ramp = np.repeat(np.arange(0, 200, 2, dtype=np.uint8)[None, :, None], 30, axis=0).repeat(3, axis=2)
    small = seen_small(ramp, 0.3)
    assert small.shape == (9, 30, 3)
    expected = 2 * ((np.arange(30) + 0.5) / 0.3 - 0.5)
    np.testing.assert_allclose(small[4, :, 0], expected, atol=1)
