"""Rows in, a PNG out that every reader opens, whatever the cuts between the calls."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wsi_ips.heatmaps.raster import PngRows


def encoded(image: np.ndarray, cuts: list[int], text: dict[str, str] | None = None) -> bytes:
    file = io.BytesIO()
    with PngRows(file, (image.shape[1], image.shape[0]), text or {}) as png:
        for rows in np.split(image, sorted(cut % (len(image) + 1) for cut in cuts)):
            png.write(rows)
        png.close()
    return file.getvalue()


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.lists(st.integers(0, 40), max_size=4),
    st.integers(0, 99),
    st.booleans(),
)
def test_pixels_come_back(width: int, height: int, cuts: list[int], seed: int, smooth: bool) -> None:
    """Noise and gradients: both filters are used. Empty cuts too."""
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    if smooth:
        image = (np.add.outer(np.arange(height) * seed, np.arange(width))[..., None] + [0, 7, 99]).astype(
            np.uint8
        )
    with Image.open(io.BytesIO(encoded(image, cuts))) as found:
        assert found.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(found), image)


def test_text_comes_back_and_smooth_pictures_are_small() -> None:
    image = np.broadcast_to(np.arange(200, dtype=np.uint8)[:, None, None], (200, 300, 3)).copy()
    facts = {"slide_id": "é 切片", "scale": "percentile 0.0 100.0"}
    data = encoded(image, [7], facts)
    with Image.open(io.BytesIO(data)) as found:
        found.load()
        assert found.text == facts  # type: ignore[attr-defined]
    assert len(data) < image.size / 80


@pytest.mark.parametrize("along", [0, 1])
def test_each_row_takes_the_filter_that_suits_it(along: int) -> None:
    """Noise that repeats down the rows, or along them: only one of the two filters sees that."""
    noise = np.random.default_rng(0).integers(0, 256, 200, np.uint8)
    image = np.repeat(np.expand_dims(noise, along), 200, axis=along)[..., None].repeat(3, axis=2)
    assert len(encoded(np.ascontiguousarray(image), [100])) < image.size / 50


def test_a_wrong_number_of_rows_is_refused() -> None:
    with PngRows(io.BytesIO(), (4, 3), {}) as png:
        png.write(np.zeros((2, 4, 3), np.uint8))
        with pytest.raises(ValueError, match="2 of 3 rows"):
            png.close()
        for wrong in (np.zeros((1, 5, 3), np.uint8), np.zeros((2, 4, 3), np.uint8)):
            with pytest.raises(ValueError, match="rows of"):
                png.write(wrong)


@pytest.mark.parametrize("calls", [1, 2])
def test_what_the_thread_cannot_write_is_raised_here(calls: int) -> None:
    """By the next call, whichever that is: a disk that is full must not leave a picture that looks whole."""

    class Full(io.BytesIO):
        def write(self, data: bytes) -> int:  # type: ignore[override]
            if self.tell() > 200:
                raise OSError(28, "No space left on device")
            return super().write(data)

    noise = np.random.default_rng(0).integers(0, 256, (100, 4000, 3), np.uint8)
    with PngRows(Full(), (4000, 100 * calls), {}) as png:
        png.write(noise)
        with pytest.raises(OSError, match="No space left"):
            png.write(noise) if calls == 2 else png.close()
