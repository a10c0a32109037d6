"""An image cut in memory: the patches are those that Tensor.unfold gives, on the grid that ids and places say."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsi_ips.config import StreamingConfig, TilingConfig
from wsi_ips.errors import ConfigError
from wsi_ips.images.bags import ImageBag, ImageGrid

CPU = torch.device("cpu")


def bag(image_hwc: np.ndarray, tiling: TilingConfig) -> ImageBag:
    grid = ImageGrid.cover(*image_hwc.shape[:2], tiling)
    return ImageBag("image", {"label": 1}, grid, lambda _key: image_hwc)


@given(
    height=st.integers(10, 40),
    width=st.integers(10, 40),
    channels=st.sampled_from([1, 3]),
    patch=st.integers(1, 10),
    data=st.data(),
)
def test_patches_lie_where_unfold_cuts_them(
    height: int, width: int, channels: int, patch: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, patch - 1))
    image = np.random.default_rng(0).integers(0, 256, (height, width, channels)).astype(np.uint8)
    one = bag(image, TilingConfig(patch_px=patch, overlap_px=overlap))
    step = patch - overlap
    expected = torch.from_numpy(image).permute(2, 0, 1).unfold(1, patch, step).unfold(2, patch, step)
    expected = expected.permute(1, 2, 0, 3, 4).reshape(-1, channels, patch, patch)
    with one.open(StreamingConfig(batch=7), CPU) as source:
        chunks = list(source)
        assert all(len(chunk) <= 7 for chunk in chunks)
        assert torch.equal(torch.cat([chunk.pixels_n3PP for chunk in chunks]), expected)
        ids = torch.cat([chunk.ids_n for chunk in chunks])
        assert ids.tolist() == list(range(len(one)))
        wanted = torch.tensor(data.draw(st.lists(st.integers(0, len(one) - 1), min_size=1, max_size=5)))
        again = source.read(wanted)
        assert torch.equal(again.pixels_n3PP, expected[wanted])
        for (x, y), pixels in zip(again.l0_xy_n2.tolist(), again.pixels_n3PP, strict=True):
            assert (image[y : y + patch, x : x + patch] == pixels.permute(1, 2, 0).numpy()).all()
        assert torch.equal(source.places(wanted, "um"), again.l0_xy_n2 + patch / 2)


def test_ids_outside_and_images_without_a_patch_are_refused() -> None:
    image = np.zeros((20, 30, 3), np.uint8)
    with (
        bag(image, TilingConfig(patch_px=10)).open(StreamingConfig(), CPU) as source,
        pytest.raises(KeyError, match=r"\[6, -1\] are not in an image of 6"),
    ):
        source.read(torch.tensor([0, 6, -1]))
    with pytest.raises(ConfigError, match="30 x 20 px hold no patch of 21 px"):
        bag(image, TilingConfig(patch_px=21))


def test_the_paper_s_grids() -> None:
    assert len(ImageGrid.cover(1500, 1500, TilingConfig(patch_px=50, overlap_px=25))) == 59**2
    assert len(ImageGrid.cover(1500, 1500, TilingConfig(patch_px=50))) == 900
    assert len(ImageGrid.cover(1200, 1600, TilingConfig(patch_px=100))) == 192


def test_an_augmented_image_is_the_same_for_one_key() -> None:
    asked: list[str | None] = []

    def load(key: str | None) -> np.ndarray:
        asked.append(key)
        return np.zeros((10, 10, 3), np.uint8)

    one = ImageBag("image", {}, ImageGrid.cover(10, 10, TilingConfig(patch_px=5)), load)
    for each in (one, one.as_seen("0/3/image")):
        with each.open(StreamingConfig(), CPU):
            pass
    assert asked == [None, "0/3/image"]
