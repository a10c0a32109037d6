"""Tiles decoded on the device: the same interface on the CPU, in everything but the copy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.streaming.test_stream import every_patch
from tests.streaming.test_tile_source import MPP, SIZE, slide_path  # noqa: F401 - a fixture
from wsi_ips.config import StreamingConfig
from wsi_ips.slides.openslide_reader import OpenSlideReader
from wsi_ips.slides.tiff.layout import TiffReader
from wsi_ips.streaming import device_decoder
from wsi_ips.streaming.device_decoder import CHECKED, DecodingFailed, DeviceDecoder, same_pixels
from wsi_ips.streaming.stream import PatchStream
from wsi_ips.tiling.grid import PatchCoords


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tiles each call of the device's decoder got."""
    calls: list[int] = []
    decode = DeviceDecoder.decode

    def counting(self: DeviceDecoder, jpegs: Sequence[bytes], insides: Sequence[Any]) -> Tensor:
        calls.append(len(jpegs))
        return decode(self, jpegs, insides)

    monkeypatch.setattr(DeviceDecoder, "decode", counting)
    return calls


def config(decode: str) -> StreamingConfig:
    return StreamingConfig.model_validate({"batch": 7, "decode": decode})


def tiles(patch_px: int = 256) -> PatchCoords:
    """Patches that are the slide's own tiles, to its ragged far corner."""
    return every_patch(size=SIZE, mpp=MPP, patch_px=patch_px)


def pixels(path: Path, decode: str) -> Tensor:
    with TiffReader(path) as slide:
        stream = PatchStream(slide, tiles(), config=config(decode))
        return torch.cat([chunk.pixels_n3PP for chunk in stream])


def test_tiles_are_decoded_there_and_white_beyond_the_slide(slide_path: Path, decoded: list[int]) -> None:  # noqa: F811
    there, here = pixels(slide_path, "device"), pixels(slide_path, "cpu")
    n = -(-SIZE[0] // 256) * -(-SIZE[1] // 256)
    assert len(there) == n
    assert sum(decoded) == CHECKED + n
    assert there.shape == here.shape
    assert there.is_contiguous(memory_format=torch.channels_last)
    # libjpeg-turbo here and there: what differs on CUDA is nvJPEG's.
    assert (there.float() - here.float()).abs().mean() < 0.5
    assert (there[-1, :, SIZE[1] % 256 :] == 255).all()
    assert (there[-1, :, :, SIZE[0] % 256 :] == 255).all()


def test_kept_patches_are_read_again_as_they_were(slide_path: Path, decoded: list[int]) -> None:  # noqa: F811
    with TiffReader(slide_path) as slide:
        coords = tiles()
        stream = PatchStream(slide, coords, config=config("device"))
        whole = torch.cat([chunk.pixels_n3PP for chunk in stream])
        kept = [20, 3, 11, 29, 0, 1, 2, 4, 5]
        again = stream.read(torch.from_numpy(coords.ids_N[kept])).pixels_n3PP
    assert torch.equal(again, whole[kept])
    assert decoded[-1] == len(kept)


def test_patches_that_are_no_tiles_are_decoded_here(slide_path: Path, decoded: list[int]) -> None:  # noqa: F811
    with TiffReader(slide_path) as slide:
        for patch_px in (128, 200):
            list(PatchStream(slide, tiles(patch_px), config=config("device")))
    with OpenSlideReader(slide_path) as slide:
        list(PatchStream(slide, tiles(), config=config("auto")))
    assert not decoded


def test_a_device_that_takes_colours_for_others_is_not_used_even_where_asked_for(
    slide_path: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As nvJPEG did with tiles that hold red, green and blue themselves."""
    decode = DeviceDecoder.decode
    monkeypatch.setattr(DeviceDecoder, "decode", lambda *args: decode(*args).flip(1))
    assert torch.equal(pixels(slide_path, "device"), pixels(slide_path, "cpu"))
    assert "grey levels off" in caplog.text


def test_what_the_device_cannot_decode_is_decoded_here(
    slide_path: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuses(self: DeviceDecoder, jpegs: Sequence[bytes], insides: Sequence[Any]) -> Tensor:
        raise DecodingFailed("no nvJPEG")

    monkeypatch.setattr(DeviceDecoder, "decode", refuses)
    assert torch.equal(pixels(slide_path, "device"), pixels(slide_path, "cpu"))
    assert torch.equal(pixels(slide_path, "auto"), pixels(slide_path, "cpu"))


def test_a_torn_tile_is_white_and_named(slide_path: Path, tmp_path: Path) -> None:  # noqa: F811
    with TiffReader(slide_path) as slide:
        layout = slide.tile_layout(0)
        start, count = int(layout.offsets[8]), int(layout.byte_counts[8])
    image = bytearray(slide_path.read_bytes())
    image[start : start + count] = bytes(count)
    (tmp_path / "torn.tif").write_bytes(image)
    with TiffReader(tmp_path / "torn.tif") as slide:
        stream = PatchStream(
            slide, tiles(), config=config("device").model_copy(update={"max_bad_tiles": 0.5})
        )
        whole = torch.cat([chunk.pixels_n3PP for chunk in stream])
    assert stream.telemetry.bad_tiles == ["level 0 tile (2, 1)"]
    assert (whole[8] == 255).all()


@pytest.mark.parametrize(("seconds", "there"), [(0.0, True), (1e9, False)])
def test_auto_decodes_where_it_takes_less_time(
    slide_path: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    decoded: list[int],
    seconds: float,
    there: bool,
) -> None:
    timed = DeviceDecoder.seconds
    monkeypatch.setattr(DeviceDecoder, "seconds", lambda *args: (seconds, timed(*args)[1]))
    n = len(pixels(slide_path, "auto"))
    assert (sum(decoded) == 2 * 7 + n) is there
    assert sum(decoded) >= 2 * 7


def test_another_picture_is_not_taken_for_the_same() -> None:
    ours = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8), np.uint8))
    assert same_pixels(ours, ours)
    assert not same_pixels(ours.flip(1), ours), "blue for red"
    assert device_decoder.MOST_DIFFERENCE < 5


def test_a_jpeg_of_another_size_is_refused(slide_path: Path) -> None:  # noqa: F811
    with TiffReader(slide_path) as slide:
        (data,) = slide.fetch_tiles(0, [0])
        jpeg = slide.tile_jpeg(0, 0, data)
    assert jpeg is not None
    with pytest.raises(DecodingFailed, match="not of 128x128"):
        DeviceDecoder(torch.device("cpu"), 128).decode([jpeg], [(128, 128)])
    with pytest.raises(DecodingFailed):
        DeviceDecoder(torch.device("cpu"), 256).decode([jpeg[:400]], [(256, 256)])
