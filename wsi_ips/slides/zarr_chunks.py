"""Decoding the chunks of a Zarr array within the bytes that the array's own shape gives them.

:func:`bounded` makes an array safe to read. zarr hands a chunk to its codec as it finds it, and some codecs
believe what the header of the chunk says: Blosc reads and writes beyond its buffers if the chunk was cut short,
and the others fill as much memory as the header (or the compressed data) asks for. Here the header of each chunk
is compared with the length of the chunk and with its decoded size before native code sees it, and nothing is
decoded beyond that size.

Sources: Blosc's header is described at https://github.com/Blosc/c-blosc/blob/main/README_CHUNK_FORMAT.rst,
Zstandard's in RFC 8878, section 3.1.1.1. LZ4's length is that of numcodecs, four bytes in front of the block.
"""

import asyncio
import bz2
import gzip
import io
import lzma
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import zarr
from numcodecs import BZ2, LZ4, LZMA, Blosc, GZip, Shuffle, Zlib, Zstd
from zarr.abc.codec import BytesBytesCodec, Codec
from zarr.codecs import (
    BloscCodec,
    BytesCodec,
    Crc32cCodec,
    GzipCodec,
    ShardingCodec,
    TransposeCodec,
    ZstdCodec,
)
from zarr.codecs._v2 import V2Codec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer
from zarr.registry import get_pipeline_class

BLOSC_HEADER_BYTES = 16
"""Length of Blosc's header."""

BLOSC_IS_A_COPY = 0x2
"""The bit of Blosc's flags that says that the bytes follow uncompressed."""

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
"""First bytes of a Zstandard frame."""

LZMA_MOST_BYTES = 1 << 28
"""The largest dictionary of LZMA, whose size the header states. The highest level of compression takes 65 MB."""


class BadChunk(ValueError):
    """A chunk that contradicts its array or itself."""


class UnknownCodecs(ValueError):
    """Codecs, or an order of codecs, that are not known to be safe."""


def bounded(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """Make ``array`` decode its chunks safely, for reading. The array itself is changed, and returned.

    Raises :class:`UnknownCodecs` for a codec, or a chain of codecs, that is not known to be safe: the file could
    name any codec that is installed, even one that unpickles.
    """
    metadata: Any = array.metadata
    codecs: Sequence[Codec]
    if metadata.zarr_format == 2:
        others = [one for one in metadata.filters or () if not isinstance(one, Shuffle)]
        if others:
            raise UnknownCodecs(_names(others))
        compressor = metadata.compressor
        if compressor is not None:
            _known(compressor, Blosc, BZ2, GZip, LZ4, LZMA, Zlib, Zstd)
            compressor = _Compressor(compressor, prod(array.chunks) * array.dtype.itemsize)
        codecs = [V2Codec(filters=metadata.filters, compressor=compressor)]
    else:
        codecs = _checked(metadata.codecs)
    pipeline = get_pipeline_class().from_codecs(codecs)
    object.__setattr__(array.async_array, "codec_pipeline", pipeline)
    return array


def first_bad_chunk(array: zarr.Array[Any], selection: Sequence[slice | int]) -> tuple[str, Exception] | None:
    """Find the first chunk within ``selection`` that cannot be decoded.

    Returns its name and the exception, or None if all chunks can be decoded.
    """
    sides = array.shards or array.chunks
    ranges = []
    for part, length, side in zip(selection, array.shape, sides, strict=True):
        start, stop, _ = part.indices(length) if isinstance(part, slice) else (part, part + 1, 1)
        ranges.append(range(start // side, -(-stop // side)))
    for place in np.ndindex(*(len(one) for one in ranges)):
        chunk = tuple(one[i] for one, i in zip(ranges, place, strict=True))
        try:
            array[tuple(slice(i * side, (i + 1) * side) for i, side in zip(chunk, sides, strict=True))]
        except Exception as error:  # noqa: BLE001 - the disk's, zarr's and the codecs' errors
            return f"{array.path}/{array.metadata.encode_chunk_key(chunk)}", error
    return None


def _checked(codecs: Sequence[Codec]) -> tuple[Codec, ...]:
    checked: list[Codec] = []
    beyond, compressed = 0, False
    for codec in codecs:
        if isinstance(codec, ShardingCodec):
            others = [one for one in codec.index_codecs if not isinstance(one, BytesCodec | Crc32cCodec)]
            if others:
                raise UnknownCodecs(_names(others))
            checked.append(replace(codec, codecs=_checked(codec.codecs)))
            compressed = True  # what comes after a shard's index is of no known length
        elif isinstance(codec, BloscCodec | GzipCodec | ZstdCodec):
            if compressed:
                raise UnknownCodecs(f"{_names([codec])} after another codec")
            checked.append(_Checked(_of_numcodecs(codec), beyond))
            compressed = True
        else:
            _known(codec, BytesCodec, Crc32cCodec, TransposeCodec)
            beyond += 4 * isinstance(codec, Crc32cCodec)
            checked.append(codec)
    return tuple(checked)


def _of_numcodecs(codec: BloscCodec | GzipCodec | ZstdCodec) -> Any:
    """The numcodecs codec that decodes the same chunks. None of them needs its settings for that."""
    if isinstance(codec, BloscCodec):
        return Blosc()
    return GZip() if isinstance(codec, GzipCodec) else Zstd()


def _known(codec: Any, *kinds: type) -> None:
    if not isinstance(codec, kinds):
        raise UnknownCodecs(_names([codec]))


def _names(codecs: Sequence[Any]) -> str:
    return ", ".join(sorted(str(getattr(one, "codec_id", type(one).__name__)) for one in codecs))


class _Compressor:
    """A numcodecs compressor of Zarr 2 all of whose chunks decode to ``size`` bytes."""

    def __init__(self, codec: Any, size: int) -> None:
        self._codec, self._size = codec, size

    def decode(self, chunk: Any) -> bytes:
        """Decode a chunk to exactly ``size`` bytes."""
        return decode(self._codec, bytes(chunk), self._size)


@dataclass(frozen=True)
class _Checked(BytesBytesCodec):
    """A compressor of Zarr 3. ``beyond`` bytes of checksums were added to a chunk before it was compressed."""

    codec: Any
    beyond: int
    is_fixed_size = False

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        size = prod(chunk_spec.shape) * chunk_spec.dtype.to_native_dtype().itemsize + self.beyond
        decoded = await asyncio.to_thread(decode, self.codec, chunk_data.to_bytes(), size)
        return chunk_spec.prototype.buffer.from_bytes(decoded)

    async def _encode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer | None:
        raise NotImplementedError("only for reading")

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        raise NotImplementedError("only for reading")


def decode(codec: Any, chunk: bytes, size: int) -> bytes:
    """Decode ``chunk`` with ``codec``, one of numcodecs', to exactly ``size`` bytes.

    Raises :class:`BadChunk` if the chunk holds more or fewer bytes, or if its header cannot be true, and
    :class:`UnknownCodecs` for any other codec.
    """
    match codec:
        case Blosc():
            check_blosc(chunk, size)
            decoded = codec.decode(chunk)
        case LZ4():
            _agree(struct.unpack("<i", chunk[:4])[0] if len(chunk) > 4 else None, size)
            decoded = codec.decode(chunk)
        case Zstd():
            stated = _zstd_size(chunk)
            if stated is not None:
                _agree(stated, size)
            decoded = codec.decode(chunk, out=np.empty(size, np.uint8))
        case GZip():
            decoded = gzip.GzipFile(fileobj=io.BytesIO(chunk)).read(size + 1)
        case Zlib() | LZMA():
            stream = _stream(codec)
            decoded = stream.decompress(chunk, size + 1)
            if not stream.eof and len(decoded) <= size:
                raise BadChunk("its compressed data end early")
        case BZ2():
            decoded = bz2.BZ2File(io.BytesIO(chunk)).read(size + 1)
        case _:
            raise UnknownCodecs(type(codec).__name__)
    decoded = bytes(decoded)
    if len(decoded) != size:
        more = "more than " if len(decoded) > size else ""
        raise BadChunk(f"it holds {more}{min(len(decoded), size)} bytes, not {size}")
    return decoded


def _stream(codec: Zlib | LZMA) -> Any:
    if isinstance(codec, Zlib):
        return zlib.decompressobj()
    limit = None if codec.format == lzma.FORMAT_RAW else LZMA_MOST_BYTES
    return lzma.LZMADecompressor(codec.format, limit, codec.filters)


def check_blosc(chunk: bytes, size: int) -> None:
    """Raise :class:`BadChunk` unless the Blosc header fits this chunk and its decoded ``size`` in bytes."""
    if len(chunk) < BLOSC_HEADER_BYTES:
        raise BadChunk(f"it is cut short: {len(chunk)} bytes, less than a Blosc header")
    _, _, flags, type_size, stated, block, length = struct.unpack("<4B3I", chunk[:BLOSC_HEADER_BYTES])
    if length != len(chunk):
        kind = "it is cut short" if length > len(chunk) else "something follows it"
        raise BadChunk(f"{kind}: {len(chunk)} bytes, where its Blosc header says {length}")
    _agree(stated, size)
    if type_size == 0 or not 0 < block <= max(stated, type_size):
        raise BadChunk(f"its Blosc header is wrong: blocks of {block} bytes, values of {type_size}")
    blocks = -(-stated // block)
    least = BLOSC_HEADER_BYTES + (stated if flags & BLOSC_IS_A_COPY else 4 * blocks)
    if length < least or (flags & BLOSC_IS_A_COPY and length != least):
        raise BadChunk(f"its Blosc header is wrong: {blocks} blocks in {length} bytes")


def _agree(stated: int | None, size: int) -> None:
    if stated != size:
        raise BadChunk(f"its header says {stated} bytes, its array {size}")


def _zstd_size(chunk: bytes) -> int | None:
    """How many bytes the first frame says that it holds, or None if it does not say."""
    if len(chunk) < 6 or chunk[:4] != ZSTD_MAGIC:
        raise BadChunk("it is no Zstandard frame")
    descriptor = chunk[4]
    single, dictionary = descriptor >> 5 & 1, (0, 1, 2, 4)[descriptor & 3]
    length = (single, 2, 4, 8)[descriptor >> 6]
    begin = 5 + (1 - single) + dictionary
    field = chunk[begin : begin + length]
    if len(field) < length:
        raise BadChunk("it is cut short within its header")
    if length == 0:
        return None
    return int.from_bytes(field, "little") + (256 if length == 2 else 0)
