"""Traffic signs: which images are kept and as what, how they are augmented, and what is refused."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wsi_ips.config import StreamingConfig, TaskConfig, TilingConfig
from wsi_ips.errors import ConfigError, DatasetError
from wsi_ips.images import traffic_signs
from wsi_ips.images.config import TrafficSignsConfig
from wsi_ips.images.traffic_signs import (
    CLASSES,
    Sign,
    image_bags,
    jitter_and_shift,
    label_of,
    make_signs,
    read_annotations,
    read_photo,
    read_split,
    shifted,
)

SIGN = TaskConfig(name="sign", classes=CLASSES)
BOX = (0.0, 0.0, 10.0, 10.0)
LARGER = (0.0, 0.0, 11.0, 10.0)


def config(root: Path, **settings: object) -> TrafficSignsConfig:
    return TrafficSignsConfig.model_validate(
        {"root": root, "verify": False, "height_px": 120, "width_px": 160, **settings}
    )


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_signs(tmp_path_factory.mktemp("sts"), train=10, test=5)


def test_the_published_lines_are_read_with_their_quirks(tmp_path: Path) -> None:
    path = tmp_path / "annotations.txt"
    path.write_text(
        "a.jpg:VISIBLE, 891.0, 330.5, 860.0, 299.0, PROHIBITORY, 70_SIGN;MISC_SIGNS;\n"
        "b.jpg:\n"
        "\n"
        "c.jpg:MISC_SIGNS;BLURRED, 20.0e, 30.x1, 10.0, 5., WARNING, URDBL;\n"
        "d.jpg: OCCLUDED, 3,4,1,2, INFORMATION, PRIORITY_ROAD ; \n"
    )
    images = dict(read_annotations(path))
    assert list(images) == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert images["a.jpg"] == [Sign("VISIBLE", "70_SIGN", (860.0, 299.0, 891.0, 330.5))]
    assert images["b.jpg"] == []
    assert images["c.jpg"] == [Sign("BLURRED", "URDBL", (10.0, 5.0, 20.0, 30.0))]
    assert images["d.jpg"] == [Sign("OCCLUDED", "PRIORITY_ROAD", (1, 2, 3, 4))]


@pytest.mark.parametrize(
    ("signs", "label"),
    [
        ([], "EMPTY"),
        ([Sign("VISIBLE", "STOP", BOX)], None),
        ([Sign("VISIBLE", "50_SIGN", BOX)], "50_SIGN"),
        ([Sign("BLURRED", "50_SIGN", BOX)], None),
        ([Sign("OCCLUDED", "50_SIGN", LARGER), Sign("VISIBLE", "80_SIGN", BOX)], "80_SIGN"),
        ([Sign("VISIBLE", "50_SIGN", BOX), Sign("VISIBLE", "70_SIGN", LARGER)], "70_SIGN"),
        ([Sign("VISIBLE", "50_SIGN", BOX), Sign("VISIBLE", "70_SIGN", BOX)], "50_SIGN"),
        ([Sign("VISIBLE", "100_SIGN", LARGER), Sign("SIDE_ROAD", "80_SIGN", BOX)], None),
    ],
)
def test_an_image_shows_its_best_visible_limit_or_is_left_out(signs: list[Sign], label: str | None) -> None:
    assert label_of(signs) == label


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("no colon", "is no image followed by a colon"),
        ("../up.jpg:", "is no image followed by a colon"),
        ("a.jpg:VISIBLE, 1, 2", "is not 'visibility"),
        ("a.jpg:SEEN, 1, 2, 3, 4, T, N", "is not 'visibility"),
        ("a.jpg:VISIBLE, x, 2, 3, 4, T, N", "'x' is no number"),
    ],
)
def test_lines_that_mean_nothing_are_named(tmp_path: Path, line: str, problem: str) -> None:
    (tmp_path / "annotations.txt").write_text(f"fine.jpg:\n{line}\n")
    with pytest.raises(DatasetError, match=rf"line 2: .*{problem}"):
        read_annotations(tmp_path / "annotations.txt")


def test_the_drawn_set_has_the_public_layout_and_hidden_signs_are_left_out(drawn: Path) -> None:
    train, test = (read_split(config(drawn), split) for split in ("train", "test"))
    assert [image.label for image in train] == [CLASSES[i % 4] for i in range(10) if i % 5 != 4]
    assert len(test) == 4
    assert {image.path.parent.name for image in train} == {"Set1"}


def test_only_the_published_annotations_are_taken_for_them(
    drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DatasetError, match="MD5 differs"):
        read_split(config(drawn, verify=True), "train")
    digest = hashlib.md5((drawn / "Set1" / "annotations.txt").read_bytes()).hexdigest()
    monkeypatch.setitem(traffic_signs.ANNOTATIONS_MD5, "Set1", digest)
    assert read_split(config(drawn, verify=True), "train")


def test_a_missing_image_or_annotation_is_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such annotations; download them from"):
        read_split(config(tmp_path), "train")
    make_signs(tmp_path, train=4, test=1)
    (tmp_path / "Set1" / "0000000001.jpg").unlink()
    with pytest.raises(DatasetError, match=r"01.jpg: no such image \(and 0 more of 4\); unpack .*Set1Part0"):
        read_split(config(tmp_path), "train")


def test_a_bag_shows_the_photograph_and_augments_it_in_training_only(drawn: Path) -> None:
    settings = config(drawn)
    tiling = TilingConfig(patch_px=40)
    images = read_split(settings, "train")
    bags = image_bags(images, settings, split="train", tasks=[SIGN], tiling=tiling)
    assert [bag.targets["sign"] for bag in bags] == [CLASSES.index(image.label) for image in images]
    assert len(bags[0]) == 12
    plain = read_photo(images[1].path, height_px=120, width_px=160)
    assert (bags[1].load(None) == plain).all()
    once, again, other = (bags[1].load(key) for key in ("0/1/b", "0/1/b", "0/2/b"))
    assert (once == again).all()
    assert not (once == plain).all()
    assert not (once == other).all()
    tests = image_bags(read_split(settings, "test"), settings, split="test", tasks=[SIGN], tiling=tiling)
    assert (tests[1].load("0/1/b") == tests[1].load(None)).all()
    with bags[1].open(StreamingConfig(), torch.device("cpu")) as source:
        assert torch.equal(source.read(torch.tensor([5])).pixels_n3PP[0].permute(1, 2, 0),
                           torch.from_numpy(plain[40:80, 40:80]))  # fmt: skip
    with pytest.raises(ConfigError, match="traffic signs are EMPTY, 50_SIGN"):
        image_bags(images, settings, split="train", tasks=[TaskConfig()], tiling=tiling)


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"not an image")
    with pytest.raises(DatasetError, match=r"a.jpg: cannot be read as an image"):
        read_photo(path, height_px=10, width_px=10)
    Image.new("1", (9000, 9000)).save(tmp_path / "huge.png")
    with pytest.raises(DatasetError, match="9000 x 9000"):
        read_photo(tmp_path / "huge.png", height_px=10, width_px=10)


def test_shifts_are_uniform_and_jitter_stays_within_its_range() -> None:
    marked = np.zeros((60, 80, 3), np.uint8)
    marked[30, 40] = 255
    places = []
    for draw in range(200):
        seen = jitter_and_shift(marked, key=f"{draw}", jitter=0.0, most_shift_px=20)
        assert seen.max() == 255
        row, column = np.argwhere(seen[..., 0] == 255)[0]
        places.append((row - 30, column - 40))
    offsets = np.array(places)
    assert np.abs(offsets).max() == 20
    assert np.abs(offsets.mean(axis=0)).max() < 3
    assert abs(np.corrcoef(offsets.T)[0, 1]) < 0.2
    grey = np.full((8, 8, 3), 100, np.uint8)
    levels = [jitter_and_shift(grey, key=f"{k}", jitter=0.1, most_shift_px=0).mean() for k in range(100)]
    assert 88 <= min(levels) < 93
    assert 107 < max(levels) <= 112


def test_what_leaves_the_image_is_gone_and_black_comes_in() -> None:
    image = np.arange(1, 13, dtype=np.uint8).reshape(3, 4, 1)
    assert shifted(image, right=1, down=-1)[..., 0].tolist() == [[0, 5, 6, 7], [0, 9, 10, 11], [0, 0, 0, 0]]
    assert not shifted(image, right=0, down=3).any()
