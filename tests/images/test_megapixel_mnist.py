"""Megapixel MNIST: what is drawn obeys the rules of the paper's generator, and survives the disk."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.images.small_mnist import write_small_mnist
from wsi_ips.config import TaskConfig, TilingConfig
from wsi_ips.errors import ConfigError, DatasetError
from wsi_ips.images.config import MegapixelMnistConfig
from wsi_ips.images.megapixel_mnist import (
    CLASSES,
    DIGIT_PX,
    DigitPool,
    Plan,
    draw_plan,
    image_bags,
    labels_of,
    make_megapixel_mnist,
    mnist_digits,
    paint,
    read_split,
)

CLASS_POOL = np.repeat(np.arange(10), 7)


def pool() -> DigitPool:
    """Seven squares of each class, their middle of one brightness, their corners black."""
    images = np.zeros((70, 28, 28), np.uint8)
    images[:, 4:24, 4:24] = np.arange(150, 220)[:, None, None]
    return DigitPool(images, CLASS_POOL)


def plan(*, images: int = 200, side_px: int = 180, noise: int = 6, seed: int = 1) -> Plan:
    return draw_plan(CLASS_POOL, images=images, side_px=side_px, noise=noise, seed=seed)


@given(seed=st.integers(0, 2**31), side_px=st.integers(140, 400))
def test_three_digits_are_of_the_target_class_two_are_not_and_none_overlap(seed: int, side_px: int) -> None:
    drawn = plan(images=8, side_px=side_px, noise=2, seed=seed)
    class_nd = CLASS_POOL[drawn.digit_nd]
    assert ((class_nd == drawn.target_n[:, None]).sum(axis=1) == 3).all()
    assert (class_nd[:, :3] == drawn.target_n[:, None]).all()
    assert drawn.place_nd2.min() >= 0
    assert drawn.place_nd2.max() <= side_px - DIGIT_PX
    for place_d2 in drawn.place_nd2:
        apart = np.abs(place_d2[:, None] - place_d2[None]).max(axis=2)
        assert (apart[~np.eye(5, dtype=bool)] >= DIGIT_PX).all()


def test_the_random_numbers_are_drawn_in_the_reference_s_order() -> None:
    """Digits of all images, then their places, then the noise; written down here call by call."""
    drawn = plan(images=3, side_px=150, noise=4, seed=5)
    rng = np.random.RandomState(5)
    for number in range(3):
        target = int(rng.rand() * 10)
        same = rng.choice(np.arange(70)[target == CLASS_POOL], 3)
        others = rng.choice(np.arange(70)[target != CLASS_POOL], 2)
        assert drawn.digit_nd[number].tolist() == [*same, *others]
    for number in range(3):
        places: list[list[int]] = []
        while len(places) < 5:
            row, column = (int(value) for value in np.round(rng.rand(2) * 122))
            if all(abs(row - r) >= 28 or abs(column - c) >= 28 for r, c in places):
                places.append([row, column])
        assert drawn.place_nd2[number].tolist() == places
    slopes = np.tan(rng.rand(4) * np.pi / 2.5)
    rng.shuffle(np.zeros((4, 28, 28)))
    rng.rand(4), rng.rand(4)
    brightness = rng.rand(4, 28, 28) * 0.2 + 0.8
    assert (drawn.noise_place_nw2 == (rng.rand(3, 4, 2) * 94 + 28).astype(int)).all()
    assert (drawn.noise_kind_nw == (rng.rand(3, 4) * 4).astype(int)).all()
    for pattern, slope, bright in zip(drawn.pattern_w28, slopes, brightness, strict=True):
        x = np.linspace(0, min(27.49, 27.49 / slope), 56)
        line = np.round(x).astype(int), np.round(slope * x).astype(int)
        assert np.allclose(pattern[line], bright[line])


def test_what_is_drawn_is_distributed_as_it_should_be() -> None:
    drawn = plan(images=4000, side_px=500, noise=50)
    assert np.allclose(np.bincount(drawn.target_n, minlength=10) / 4000, 0.1, atol=0.025)
    labels = labels_of(drawn, CLASS_POOL)
    # Each of the three is topmost as often as each of the two.
    assert (labels.top_n == labels.majority_n).mean() == pytest.approx(0.6, abs=0.04)
    # Three classes unless the two others agree: 1 in 9.
    assert labels.multi_n10.sum(axis=1).mean() == pytest.approx(3 - 1 / 9, abs=0.03)
    assert drawn.place_nd2.mean() == pytest.approx((500 - 28) / 2, abs=5)
    assert drawn.noise_place_nw2.min() >= 28
    assert drawn.noise_place_nw2.max() < 500 - 28
    lit = drawn.pattern_w28[drawn.pattern_w28 > 0]
    assert 0.8 <= lit.min() < 0.82
    assert 0.98 < lit.max() <= 1
    # Two lines, which may coincide: 28 to 2 * 28 lit pixels, a few more where steep.
    assert 28 <= (drawn.pattern_w28 > 0).sum(axis=(1, 2)).mean() <= 70


def test_labels_say_what_the_image_shows() -> None:
    drawn, squares = plan(), pool()
    labels = labels_of(drawn, CLASS_POOL)
    for number in range(50):
        image = paint(drawn, number, squares).dense()
        # Every digit lies where it should, whole: noise is below.
        for row, (top, left) in zip(drawn.digit_nd[number], drawn.place_nd2[number], strict=True):
            assert (image[top : top + 28, left : left + 28] == squares.images_n28[row]).all()
        classes = CLASS_POOL[drawn.digit_nd[number]]
        tops = drawn.place_nd2[number, :, 0]
        assert labels.top_n[number] == classes[np.flatnonzero(tops == tops.min())[0]]
        assert labels.max_n[number] == classes.max()
        assert np.flatnonzero(labels.multi_n10[number]).tolist() == sorted(set(classes.tolist()))
        assert np.bincount(classes).argmax() == labels.majority_n[number] == drawn.target_n[number]


def test_noise_is_truncated_to_whole_grey_levels_and_covered_by_digits() -> None:
    drawn = plan(images=30, noise=20)
    for number in range(30):
        image = paint(drawn, number, pool())
        expected = np.zeros((180, 180), np.uint8)
        for kind, (top, left) in zip(drawn.noise_kind_nw[number], drawn.noise_place_nw2[number], strict=True):
            expected[top : top + 28, left : left + 28] = np.trunc(255 * drawn.pattern_w28[kind])
        for top, left in drawn.place_nd2[number]:
            expected[top : top + 28, left : left + 28] = 0
            image_part = image.dense()[top : top + 28, left : left + 28]
            expected[top : top + 28, left : left + 28] = image_part
        assert (image.dense() == expected).all()
        assert (image.value_p > 0).all()


def test_too_small_an_image_and_a_pool_without_a_class_are_refused() -> None:
    with pytest.raises(ValueError, match="five digits might not fit"):
        plan(side_px=139)
    with pytest.raises(ValueError, match="no digit 9"):
        draw_plan(CLASS_POOL[CLASS_POOL < 9], images=1, side_px=200, noise=1, seed=0)


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_mnist(tmp_path_factory.mktemp("mnist"), train=400, test=100)


def config(mnist: Path, **settings: int) -> MegapixelMnistConfig:
    return MegapixelMnistConfig.model_validate(
        {"mnist": mnist, "side_px": 150, "train": 12, "val": 4, "test": 5, "noise": 3, **settings}
    )


def test_files_give_back_the_images_and_labels_that_were_drawn(mnist: Path, tmp_path: Path) -> None:
    make_megapixel_mnist(tmp_path, config(mnist))
    digits = mnist_digits(mnist, train=True)
    # The reference's seed: 0 for test, 1 for train.
    drawn = draw_plan(digits.class_n, images=12, side_px=150, noise=3, seed=1)
    split = read_split(tmp_path / "train.h5")
    assert len(split) == 12
    labels = labels_of(drawn, digits.class_n)
    for number in range(12):
        assert (split.image(number).dense() == paint(drawn, number, digits).dense()).all()
    assert (split.labels.majority_n == labels.majority_n).all()
    assert (split.labels.top_n == labels.top_n).all()
    assert (split.labels.max_n == labels.max_n).all()
    assert (split.labels.multi_n10 == labels.multi_n10).all()
    before = (tmp_path / "train.h5").stat().st_mtime_ns
    make_megapixel_mnist(tmp_path, config(mnist))
    assert (tmp_path / "train.h5").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="drawn with other settings"):
        make_megapixel_mnist(tmp_path, config(mnist, noise=4))


def test_validation_images_show_no_digit_of_a_training_image(mnist: Path, tmp_path: Path) -> None:
    make_megapixel_mnist(tmp_path, config(mnist))
    shown = {}
    for name in ("train", "val"):
        split = read_split(tmp_path / f"{name}.h5")
        shown[name] = {
            split.image(number).dense()[top : top + 28, left : left + 28].tobytes()
            for number in range(len(split))
            for top, left in split.place_nd2[number]
        }
    assert len(shown["val"]) > 10
    assert not shown["train"] & shown["val"]


def test_bags_carry_the_targets_of_the_tasks_and_the_patches_of_the_image(
    mnist: Path, tmp_path: Path
) -> None:
    make_megapixel_mnist(tmp_path, config(mnist))
    split = read_split(tmp_path / "test.h5")
    tasks = [
        TaskConfig(name="most", column="majority", classes=CLASSES),
        TaskConfig(name="multi", classes=CLASSES, activation="sigmoid"),
    ]
    bags = image_bags(split, tasks=tasks, tiling=TilingConfig(patch_px=50, overlap_px=25))
    assert [bag.targets["most"] for bag in bags] == split.labels.majority_n.tolist()
    assert bags[3].targets["multi"] == tuple(split.labels.multi_n10[3].astype(float))
    assert (bags[3].load(None)[..., 0] == split.image(3).dense()).all()
    assert len(bags[3]) == 25
    with pytest.raises(ConfigError, match="has no 'label'"):
        image_bags(split, tasks=[TaskConfig()], tiling=TilingConfig(patch_px=50))
    with pytest.raises(ConfigError, match="task max: unknown max"):
        image_bags(split, tasks=[TaskConfig(name="max")], tiling=TilingConfig(patch_px=50))


def test_files_that_lie_are_refused_before_memory_is_given(mnist: Path, tmp_path: Path) -> None:
    make_megapixel_mnist(tmp_path, config(mnist))
    path = tmp_path / "test.h5"
    with h5py.File(path, "a") as file:
        file["index"][-1] = 150 * 150
    with pytest.raises(DatasetError, match="pixels outside"):
        read_split(path)
    with h5py.File(path, "a") as file:
        del file["value"]
        file.create_dataset("value", (10**12,), "u1", chunks=True)
    with pytest.raises(DatasetError, match=r"do not fit together \(value\)"):
        read_split(path)
    path.write_bytes(b"\x93NUMPY pickled")
    with pytest.raises(DatasetError, match="cannot be read"):
        read_split(path)
    with pytest.raises(DatasetError, match="no such split"):
        read_split(tmp_path / "absent.h5")
    with pytest.raises(DatasetError, match=r"holds no MNIST.*data\.download=true"):
        mnist_digits(tmp_path / "nowhere", train=True)


def test_the_paper_s_size_from_real_mnist(real_data: Path) -> None:
    digits = mnist_digits(real_data / "mnist", train=True)
    assert digits.images_n28.shape == (60_000, 28, 28)
    drawn = draw_plan(digits.class_n, images=20, side_px=1500, noise=50, seed=1)
    filled = np.array([len(paint(drawn, number, digits).index_p) for number in range(20)])
    # Fifty patterns and five digits: about 0.2 % of 2.25 million pixels.
    assert filled.min() > 2_000
    assert filled.max() < 6_000
    labels = labels_of(drawn, digits.class_n)
    assert all(np.bincount(digits.class_n[d], minlength=10).max() >= 3 for d in drawn.digit_nd)
    assert (labels.multi_n10.sum(axis=1) >= 2).all()
