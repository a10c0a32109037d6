"""Damaged and hostile chunks of a Zarr array: an error before native code reads or writes beyond its buffers."""

import random
import struct
import subprocess
import sys
import tracemalloc

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

from wsi_ips.errors import SlideReadError
from wsi_ips.slides import open_slide
from wsi_ips.slides.zarr_chunks import BadChunk, bounded, decode

PIXELS = np.random.default_rng(0).integers(0, 9, 3 * 64 * 64, dtype=np.uint8).tobytes()
BLOSC = numcodecs.Blosc(cname="lz4", shuffle=1)
CODECS = {
    "blosc": BLOSC,
    "blosc copy": numcodecs.Blosc(clevel=0),
    "blosc zstd": numcodecs.Blosc(cname="zstd", shuffle=2),
    "lz4": numcodecs.LZ4(),
    "zstd": numcodecs.Zstd(),
    "zstd with a checksum": numcodecs.Zstd(checksum=True),
    "gzip": numcodecs.GZip(),
    "zlib": numcodecs.Zlib(),
    "bz2": numcodecs.BZ2(),
    "lzma": numcodecs.LZMA(),
}


@pytest.fixture(params=CODECS.values(), ids=CODECS)
def codec(request):
    return request.param


def test_a_sound_chunk_is_decoded(codec):
    assert decode(codec, bytes(codec.encode(PIXELS)), len(PIXELS)) == PIXELS


@pytest.mark.parametrize("size", [1, 7, 255, 256, 257, 65_535, 65_792])
def test_lengths_around_those_that_zstandard_writes_otherwise(size):
    pixels = (PIXELS * 6)[:size]
    for codec in (numcodecs.Zstd(), numcodecs.Blosc(), numcodecs.LZ4()):
        assert decode(codec, bytes(codec.encode(pixels)), size) == pixels


@pytest.mark.parametrize("beside", [-1, 1])
def test_a_chunk_of_another_length_than_its_array_gives_it(codec, beside):
    with pytest.raises(BadChunk):
        decode(codec, bytes(codec.encode(PIXELS + b"\0")), len(PIXELS) + (1 + beside))


@pytest.mark.parametrize("kept", [0, 3, 5, 12, 16, 0.5, -1])
def test_a_chunk_that_was_cut(codec, kept):
    chunk = bytes(codec.encode(PIXELS))
    with pytest.raises((ValueError, RuntimeError, EOFError, OSError, numcodecs.lzma._lzma.LZMAError)):
        decode(codec, chunk[: int(len(chunk) * kept) if isinstance(kept, float) else kept], len(PIXELS))


@pytest.mark.parametrize("place", range(4, 16))
def test_a_blosc_header_that_lies(place):
    chunk = bytearray(BLOSC.encode(PIXELS))
    chunk[place] ^= 0xFF
    with pytest.raises((BadChunk, RuntimeError)):
        decode(BLOSC, bytes(chunk), len(PIXELS))


def test_a_frame_without_its_length_is_decoded_within_the_array():
    frame = struct.pack("<I", 0xFD2FB528) + b"\x00\x38" + struct.pack("<I", 200 << 3 | 1)[:3] + PIXELS[:200]
    assert decode(numcodecs.Zstd(), frame, 200) == PIXELS[:200]
    for other in (199, 201):
        with pytest.raises(RuntimeError):
            decode(numcodecs.Zstd(), frame, other)


@pytest.mark.parametrize("name", ["gzip", "zlib", "bz2", "lzma", "zstd", "lz4", "blosc"])
def test_no_more_is_decoded_than_the_array_has(name):
    bomb = bytes(CODECS[name].encode(bytes(100_000_000)))
    tracemalloc.start()
    with pytest.raises(BadChunk):
        decode(CODECS[name], bomb, len(PIXELS))
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("compressor", [BloscCodec(cname="lz4"), GzipCodec(), ZstdCodec()])
@pytest.mark.parametrize("shards", [None, (3, 128, 128)])
def test_arrays_of_zarr_3(tmp_path, compressor, shards):
    pixels = np.random.default_rng(1).integers(0, 9, (3, 128, 200), dtype=np.uint8)
    made = zarr.create_array(
        tmp_path, shape=pixels.shape, chunks=(3, 64, 64), shards=shards, dtype="u1", compressors=[compressor]
    )
    made[:] = pixels
    array = bounded(zarr.open_array(tmp_path, mode="r"))
    np.testing.assert_array_equal(array[:], pixels)
    file = tmp_path / "c" / "0" / "0" / "0"
    data = bytearray(file.read_bytes())
    if shards:  # the first chunk lies at the beginning; the index stays
        data[:40] = bytes(40)
    file.write_bytes(data if shards else data[: len(data) // 2])
    with pytest.raises((ValueError, RuntimeError, EOFError, OSError)):
        array[:, :64, :64]
    np.testing.assert_array_equal(array[:, :, 128:], pixels[:, :, 128:])


def test_the_cut_chunk_that_killed_the_process(cases_folder):
    """In a process of its own, so that its death is a failure of this test alone."""
    code = (
        "import sys; from wsi_ips.slides import open_slide\n"
        "with open_slide(sys.argv[1]) as slide: slide.read((0, 0), level=0, size_px=(256, 256))"
    )
    path = cases_folder / "hostile" / "cut_blosc_chunk.zarr"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "SlideReadError" in done.stderr
    with open_slide(path) as slide, pytest.raises(SlideReadError, match=r"its chunk 0/0\.0\.0: .*cut short"):
        slide.read((0, 0), level=0, size_px=(256, 256))


def test_damaged_bytes_behind_a_sound_header_stay_within_their_buffers():
    """3,000 damaged chunks in a process of its own: each is an error or other pixels, never the process's end."""
    code = (
        "import random, sys; from tests.slides.test_zarr_chunks import damage\n"
        "random.seed(5); sys.exit(damage(3000))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-300:]


def damage(times: int) -> int:
    """Decode chunks with a few other bytes each; 0 where some failed and none ended the process."""
    chunks = [(codec, bytes(codec.encode(PIXELS))) for codec in CODECS.values()]
    failed = 0
    for _ in range(times):
        codec, sound = random.choice(chunks)
        chunk = bytearray(sound)
        for _ in range(random.randint(1, 8)):
            chunk[random.randrange(len(chunk))] = random.randrange(256)
        try:
            decode(codec, bytes(chunk), len(PIXELS))
        except Exception:  # whatever the codecs raise
            failed += 1
    return 0 if failed > times // 10 else 3
