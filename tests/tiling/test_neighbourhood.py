import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy import ndimage

from wsi_ips.tiling.bright_field import box_sum, grown, highest, lowest, median_3x3, shrunk


@pytest.mark.parametrize("side", [1, 3, 5, 11])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 2), (40, 31)])
def test_the_same_as_general_filters(side: int, shape: tuple[int, int]) -> None:
    values = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    np.testing.assert_array_equal(
        highest(values, side), ndimage.maximum_filter(values, side, mode="constant")
    )
    np.testing.assert_array_equal(
        lowest(values, side), ndimage.minimum_filter(values, side, mode="constant", cval=255)
    )
    mask = values > 200
    square = np.ones((side, side))
    np.testing.assert_array_equal(grown(mask, side), ndimage.binary_dilation(mask, square))
    np.testing.assert_array_equal(shrunk(~mask, side), ndimage.binary_erosion(~mask, square, border_value=1))
    sums = ndimage.convolve(values.astype(int), square.astype(int), mode="constant")
    np.testing.assert_array_equal(box_sum(values, side), sums)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 3), (40, 31), (300, 17)])
def test_the_median_is_pillow_s(size: tuple[int, int]) -> None:
    rgb_HWC = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    expected = Image.fromarray(rgb_HWC).filter(ImageFilter.MedianFilter(3))
    np.testing.assert_array_equal(median_3x3(rgb_HWC), expected)
