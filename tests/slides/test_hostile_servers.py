"""Servers that send what nobody asked for: refused within a few bytes, in one line."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands.console import make_console
from tests.slides.one_line import assert_one_line
from tests.slides.range_server import Manner, RangeServer, serving
from tests.slides.tiff_files import tissue_like, write_pyramid
from tests.slides.zarr_files import write_zarr
from wsi_ips.errors import ConfigError, FileError, SlideReadError, SlideUnreachable
from wsi_ips.slides import ome_zarr_reader, open_slide, slide_id
from wsi_ips.slides import remote as bounded_response
from wsi_ips.slides.folder import unique_slide_ids
from wsi_ips.slides.ome_zarr_reader import OmeZarrReader
from wsi_ips.slides.tiffslide_reader import TiffSlideReader
from wsi_ips.storage.location import Url

REFUSALS: dict[Manner, str] = {"endless": "more than the|though asked for", "gzip": "packs its answer"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RangeServer]:
    with serving(tmp_path) as state:
        yield state


@pytest.mark.parametrize("manner", REFUSALS)
def test_a_tiff_is_refused_within_a_few_blocks(server: RangeServer, manner: Manner) -> None:
    write_pyramid(server.folder / "a.tif", tissue_like(1500, 1500), levels=3, compression="none")
    server.manner = manner
    with pytest.raises(SlideUnreachable, match=REFUSALS[manner]) as caught:
        TiffSlideReader(server.url("a.tif"), timeout_s=5)
    assert_one_line(caught.value, server.url("a.tif"))
    assert server.sent_bytes < 1 << 24  # what lies in the sockets between


@pytest.mark.parametrize("manner", REFUSALS)
def test_a_tiff_that_turns_hostile_costs_the_read(server: RangeServer, manner: Manner) -> None:
    write_pyramid(server.folder / "a.tif", tissue_like(1500, 1500), levels=3, compression="none")
    with TiffSlideReader(server.url("a.tif"), timeout_s=5) as slide:
        server.manner = manner
        with pytest.raises(SlideReadError, match=REFUSALS[manner]):
            slide.read((700, 700), level=0, size_px=(500, 500))
    assert server.sent_bytes < len(server.requests) << 24  # what lies in the sockets between


@pytest.mark.parametrize("manner", REFUSALS)
def test_a_chunk_without_end_is_no_memory_error(
    server: RangeServer, manner: Manner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ome_zarr_reader, "LARGEST_FETCH_BYTES", 1 << 20)
    monkeypatch.setattr(bounded_response, "MOST_WHOLE_BYTES", 1 << 20)
    write_zarr(server.folder / "a.zarr", tissue_like(300, 200), version="0.4")
    with OmeZarrReader(server.url("a.zarr"), timeout_s=5) as slide:
        server.manner = manner
        with pytest.raises(SlideReadError, match=REFUSALS[manner]):
            slide.read((0, 0), level=0, size_px=(300, 200))
    with pytest.raises(FileError, match=REFUSALS[manner]):
        OmeZarrReader(server.url("a.zarr"), timeout_s=5)
    assert server.sent_bytes < len(server.requests) << 24


def test_a_resolution_that_is_no_number_is_none(server: RangeServer) -> None:
    aperio = "Aperio Image Library v11.2.1 \r\n300x200 (128x128) JPEG/RGB Q=30|AppMag = 20|MPP = abcdef"
    write_pyramid(server.folder / "a.svs", tissue_like(300, 200), tile=128, levels=1, description=aperio)
    with TiffSlideReader(server.url("a.svs")) as slide:
        assert slide.info.mpp is None


@pytest.mark.parametrize("name", ["a%00.svs", "a%00.zarr", "%00", "a%0a.svs", "a.svs%2f..%2f%00"])
def test_names_that_no_file_can_have_are_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    server: RangeServer,
    tmp_path: Path,
    name: str,
) -> None:
    with pytest.raises(FileError) as caught:
        open_slide(server.url(name))
    assert "\n" not in str(caught.value)
    for raised in (lambda: slide_id(server.url(name)), lambda: unique_slide_ids([Url(server.url(name))])):
        with pytest.raises(ConfigError, match="control character"):
            raised()
    said = make_console(monkeypatch, capsys)("tile", server.url(name), "--out", tmp_path / "out")
    assert said.code == 2
    assert "control character" in said.complaint
