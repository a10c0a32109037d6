"""Slides on slow storage through ``streaming.disk_cache``: the same pixels, and nothing is fetched twice."""

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.slides.range_server import RangeServer, serving
from tests.slides.tiff_files import tissue_like, write_pyramid
from wsi_ips.config import DiskCacheConfig, FinetuneConfig, StreamingConfig, TilingConfig
from wsi_ips.slides.registry import open_slide
from wsi_ips.slides.tile_layout import TileFile
from wsi_ips.storage.location import Location
from wsi_ips.streaming.stream import PatchStream
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.tiling.patches import tile_slide
from wsi_ips.training.head_start import encoded
from wsi_ips.units import Mpp

TILING = TilingConfig(patch_px=64, patch_mpp=0.5, min_tissue=0)
PLAIN = StreamingConfig(batch=16, max_bad_tiles=0.1, threads=2)


@pytest.fixture
def slide_path(tmp_path: Path) -> Path:
    path = tmp_path / "slow" / "slide.tif"
    path.parent.mkdir()
    write_pyramid(path, tissue_like(700, 500), mpp=Mpp(0.5), tile=96, levels=2, compression="jpeg")
    return path


@pytest.fixture
def cached(tmp_path: Path) -> StreamingConfig:
    cache = DiskCacheConfig(folder=tmp_path / "fast" / "cache", gb=0.1)
    return PLAIN.model_copy(update={"disk_cache": cache})


@pytest.fixture
def slow_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many bytes each read takes from the slides themselves."""
    reads: list[int] = []
    itself = TileFile._read_itself

    def counted(file: TileFile, offset: int, count: int) -> bytes:
        reads.append(count)
        return itself(file, offset, count)

    monkeypatch.setattr(TileFile, "_read_itself", counted)
    return reads


def coords_of(location: Location | str) -> PatchCoords:
    with open_slide(location) as slide:
        return tile_slide(slide, TILING, slide_id="slide", mpp=Mpp(0.5))[0]


def pixels(location: Location | str, streaming: StreamingConfig, coords: PatchCoords) -> torch.Tensor:
    with open_slide(location) as slide:
        return torch.cat([chunk.pixels_n3PP for chunk in PatchStream(slide, coords, config=streaming)])


def test_pixels_are_the_same_and_the_second_pass_fetches_no_tile(
    slide_path: Path, cached: StreamingConfig, slow_reads: list[int]
) -> None:
    coords = coords_of(slide_path)
    plain = pixels(slide_path, PLAIN, coords)
    assert torch.equal(pixels(slide_path, cached, coords), plain)
    with open_slide(slide_path) as slide:
        stream = PatchStream(slide, coords, config=cached)
        slow_reads.clear()  # what opening reads is the header, from which it knows that the file is the same
        assert torch.equal(torch.cat([chunk.pixels_n3PP for chunk in stream]), plain)
        assert torch.equal(stream.read(coords_ids(coords)[5:7]).pixels_n3PP, plain[5:7])
    assert not slow_reads


def coords_ids(coords: PatchCoords) -> torch.Tensor:
    return torch.from_numpy(coords.ids_N)


def break_tile(path: Path) -> None:
    """Zeros in place of the second tile of level 0."""
    with open_slide(path) as slide:
        layout = slide.tile_layout(0)  # type: ignore[attr-defined]
        offset, count = int(layout.offsets[1]), int(layout.byte_counts[1])
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(count))


def test_a_slide_that_was_replaced_shows_its_new_pixels(slide_path: Path, cached: StreamingConfig) -> None:
    coords = coords_of(slide_path)
    before = pixels(slide_path, cached, coords)
    write_pyramid(
        slide_path, tissue_like(700, 500)[::-1].copy(), mpp=Mpp(0.5), tile=96, levels=2, compression="jpeg"
    )
    after = pixels(slide_path, cached, coords)
    assert torch.equal(after, pixels(slide_path, PLAIN, coords))
    assert not torch.equal(after, before)


def test_a_damaged_tile_is_white_with_the_cache_too(slide_path: Path, cached: StreamingConfig) -> None:
    coords = coords_of(slide_path)
    break_tile(slide_path)
    plain = pixels(slide_path, PLAIN, coords)
    for _ in range(2):
        with open_slide(slide_path) as slide:
            stream = PatchStream(slide, coords, config=cached)
            assert torch.equal(torch.cat([chunk.pixels_n3PP for chunk in stream]), plain)
            assert len(stream.telemetry.bad_tiles) == 1


def test_bytes_that_were_read_wrongly_are_mended_by_reading_the_slide_again(
    slide_path: Path, cached: StreamingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network drive gave zeros once. They are in the cache, with a checksum that is theirs."""
    coords = coords_of(slide_path)
    plain = pixels(slide_path, PLAIN, coords)
    with monkeypatch.context() as patched, open_slide(slide_path) as slide:
        stream = PatchStream(slide, coords, config=cached)
        patched.setattr(TileFile, "_read_itself", lambda _, offset, count: bytes(count))
        slide.fetch_tiles(0, [0, 1, 2, 3])  # type: ignore[attr-defined]
        del stream
    with open_slide(slide_path) as slide:
        stream = PatchStream(slide, coords, config=cached)
        assert torch.equal(torch.cat([chunk.pixels_n3PP for chunk in stream]), plain)
        assert not stream.telemetry.bad_tiles
    with open_slide(slide_path) as slide:
        stream = PatchStream(slide, coords, config=cached)
        assert torch.equal(torch.cat([chunk.pixels_n3PP for chunk in stream]), plain)


def test_a_reader_that_was_pickled_reads_the_same(slide_path: Path, cached: StreamingConfig) -> None:
    coords = coords_of(slide_path)
    with open_slide(slide_path) as slide:
        PatchStream(slide, coords, config=cached)
        with pickle.loads(pickle.dumps(slide)) as again:
            stream = PatchStream(again, coords, config=cached)
            assert torch.equal(next(iter(stream)).pixels_n3PP, pixels(slide_path, PLAIN, coords)[:16])


@pytest.fixture
def server(slide_path: Path) -> Iterator[RangeServer]:
    with serving(slide_path.parent) as state:
        yield state


def test_of_a_url_only_the_headers_are_fetched_again(server: RangeServer, cached: StreamingConfig) -> None:
    server.etag = '"one"'
    url = server.url("slide.tif")
    coords = coords_of(url)
    plain = pixels(url, PLAIN, coords)
    assert torch.equal(pixels(url, cached, coords), plain)
    with open_slide(url) as slide:
        stream = PatchStream(slide, coords, config=cached)
        server.requests.clear()
        assert torch.equal(torch.cat([chunk.pixels_n3PP for chunk in stream]), plain)
    assert not server.requests


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_a_url_whose_server_does_not_identify_the_content_is_not_cached(
    server: RangeServer, cached: StreamingConfig, etag: str
) -> None:
    server.etag = etag
    url = server.url("slide.tif")
    coords = coords_of(url)
    pixels(url, cached, coords)
    assert cached.disk_cache is not None
    assert not cached.disk_cache.folder.exists()


def test_a_url_whose_content_was_replaced_shows_its_new_pixels(
    server: RangeServer, slide_path: Path, cached: StreamingConfig
) -> None:
    server.etag = '"one"'
    url = server.url("slide.tif")
    coords = coords_of(url)
    before = pixels(url, cached, coords)
    write_pyramid(
        slide_path, tissue_like(700, 500)[::-1].copy(), mpp=Mpp(0.5), tile=96, levels=2, compression="jpeg"
    )
    server.etag = '"two"'
    assert not torch.equal(pixels(url, cached, coords), before)


def test_features_of_a_head_start_are_found_again_with_and_without_a_cache(cached: StreamingConfig) -> None:
    """Their folder is named by the settings that change them, and as it was before there was a cache."""

    class Net(nn.Module):
        encoder, place_kind = nn.Identity(), None

    class Any:
        bag_id = "one"

    folders = set()
    for streaming in (PLAIN, cached, StreamingConfig.model_validate(PLAIN.model_dump())):
        config = FinetuneConfig(streaming=streaming)
        [bag] = encoded([Any()], Net(), config, Path("out"), device=torch.device("cpu"))  # type: ignore[list-item, arg-type]
        folders.add(bag.folder)
    assert len(folders) == 1
    assert "disk_cache" not in StreamingConfig().model_dump()
