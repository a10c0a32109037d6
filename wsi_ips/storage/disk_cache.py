"""A cache on a local disk for the bytes of slides that lie on slow storage: :class:`DiskCache`.

Training reads the same compressed tiles in every epoch. Where they come from a network drive or a URL, the first
epoch puts what it reads into a folder on a local disk, and later epochs, folds and commands find it there. A
:class:`CachedFile` stands before one slow file and answers reads of byte ranges.

What is stored are blocks of 64 KiB of the file as it is, 64 of them to a *segment*, which is a file of the cache.
These rules make it safe without any process waiting for another while it reads:

- A segment belongs to one state of one file: its name is a digest of where the file is, how long it is, when it
  was written, and 16 samples of its content (of a URL: what the server says identifies the content). A file that
  was replaced has other segments. Segments of the old one are never asked for again, and leave in time.
- A block counts as stored when its length and checksum have been written, which happens after its bytes. A
  process that is killed leaves a block that is there or one that is not. Several processes that store the same
  block write the same bytes.
- A block whose bytes do not have its checksum is read from the slow file again.
- A segment is created under a lock, and counted with its full size (4 MiB and a page) however little of it is
  used, so that the folder never holds more than it may. Where there is no room, the segments that were used
  longest ago are deleted. A process that has one of them open keeps its bytes on the disk until it next stores
  something, or closes the slide; that is at most 8 segments for each file of a slide that is open.

If the folder cannot be written to, for instance because its disk is full, the cache says so once and is not used
any more by this process: everything is read from where it lies.
"""

import errno
import hashlib
import logging
import os
import re
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from threading import Lock
from time import monotonic, sleep
from zlib import crc32

from wsi_ips.storage.fingerprint import sample_places
from wsi_ips.storage.system import lock_file, open_flags, reader_and_writer_by_position

logger = logging.getLogger(__name__)

Read = Callable[[int, int], bytes]
"""Reads from the slow file: (offset, count) to the bytes, fewer where the file ends."""

BLOCK_BYTES = 1 << 16
"""What is stored and checked as one."""

BLOCKS = 64
"""Blocks of a segment."""

_HEADER = struct.Struct("<16s32sQ")
_RECORD = struct.Struct("<II")
_MAGIC = b"wsi_ips tiles 1\n"
_RECORDS_AT = 1024
_DATA_AT = 4096

SEGMENT_BYTES = _DATA_AT + BLOCKS * BLOCK_BYTES
"""What a segment counts as, however much of it is used."""

LOCK_NAME = "wsi_ips_cache.lock"
"""The file that is locked while a segment is created. It also holds how many there are."""

LOCK_SECONDS = 10.0
"""How long to wait for the lock. Whoever has it is done in milliseconds."""

OPEN_SEGMENTS = 8
"""Segments that a :class:`CachedFile` keeps open."""

FREED_AT_ONCE = 32
"""One segment in so many is deleted at once when the cache is full, so that the folder is rarely listed."""

MOST_KEYS = 10_000
"""Files whose samples are remembered."""

_SEGMENT_NAME = re.compile(r"[0-9a-f]{64}\.[0-9]+\.tiles")


@lru_cache(maxsize=16)
def disk_cache(folder: Path, most_bytes: int) -> "DiskCache":
    """The cache in this folder, one object for each process, so that it gives up once for all slides."""
    return DiskCache(folder, most_bytes=most_bytes)


class DiskCache:
    """A folder that holds at most ``most_bytes`` bytes of slow files. Several processes may use it at a time.

    Safe to use from several threads. Nothing is created before something is stored.
    """

    def __init__(self, folder: Path, *, most_bytes: int) -> None:
        self.folder = folder
        self.off = False
        """Whether the cache is not used any more, because of an error."""
        self._most = most_bytes // SEGMENT_BYTES
        self._creating = Lock()
        self._keys: dict[Path, tuple[tuple[int, ...], str]] = {}

    def file(self, path: Path, status: os.stat_result, read: Read) -> "CachedFile":
        """Stand before a file on this machine.

        Args:
            path: The file.
            status: What ``os.fstat`` says of the open file that ``read`` reads.
            read: Reads from the file itself, whose samples tell it from others.

        Raises:
            OSError: The file cannot be read.
        """
        state = status.st_size, status.st_mtime_ns, status.st_ctime_ns
        known = self._keys.get(path)
        if known is None or known[0] != state:
            digest = hashlib.sha256(repr((os.path.abspath(path), *state)).encode("utf-8", "surrogateescape"))  # noqa: PTH100 - does not resolve links
            for start, end in sample_places(status.st_size):
                digest.update(read(start, end - start))
            if len(self._keys) >= MOST_KEYS:
                self._keys.clear()
            known = self._keys[path] = state, digest.hexdigest()
        return CachedFile(self, known[1], status.st_size)

    def content(self, identity: str, size: int) -> "CachedFile":
        """Stand before a file elsewhere, where ``identity`` is a text that no other content has."""
        return CachedFile(self, hashlib.sha256(identity.encode()).hexdigest(), size)

    def give_up(self, error: OSError) -> None:
        """Use the cache no more, and say why, once."""
        if not self.off:
            self.off = True
            logger.warning(
                "the cache of tiles in %s is not used any more (%s): slides are read from where they lie; free "
                "some room there, or change streaming.disk_cache",
                self.folder,
                error.strerror or error,
            )

    def segment(self, key: str, number: int, *, create: bool) -> "_Segment | None":
        """A segment of the file with this key, or None if there is none and it cannot or need not be created."""
        path = self.folder / f"{key}.{number}.tiles"
        found = _Segment.opened(path, key, number)
        if found is not None or not create:
            return found
        with self._creating, self._locked() as lock:
            if lock is None or self._most < 1:
                return None
            found = _Segment.opened(path, key, number)
            if found is None:
                replaces = path.exists()  # what lies there is no segment of ours
                if not replaces:
                    self._count_one_more(lock)
                found = _Segment.created(path, key, number)
            return found

    def _count_one_more(self, lock: int) -> None:
        """Make room for a segment, and count it. It is counted before it is created: a process that is killed
        between both leaves a count that is too high, until the folder is listed next.
        """
        read, write = reader_and_writer_by_position(lock)
        stated = read(16, 0)
        count = int(stated) if stated.isdigit() else self._listed(self._most)
        if count >= self._most:
            count = self._listed(self._most - max(1, self._most // FREED_AT_ONCE))
        write(b"%016d" % (count + 1), 0)

    def _listed(self, most: int) -> int:
        """Delete the segments that were used longest ago until there are no more than ``most``; returns how many
        there are.
        """
        found = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if _SEGMENT_NAME.fullmatch(entry.name):
                    with suppress(FileNotFoundError):
                        found.append((entry.stat().st_mtime_ns, entry.path))
        found.sort()
        left = len(found)
        for _, path in found[: max(0, len(found) - most)]:
            with suppress(PermissionError):  # Windows deletes no file that is open
                Path(path).unlink(missing_ok=True)
                left -= 1
        return left

    @contextmanager
    def _locked(self) -> Iterator[int | None]:
        """The descriptor of the lock's file, locked; None if another process holds it for too long."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.folder / LOCK_NAME, open_flags(os.O_RDWR | os.O_CREAT), 0o666)
        try:
            until = monotonic() + LOCK_SECONDS
            while True:
                try:
                    lock_file(lock)
                    break
                except OSError as error:
                    if error.errno not in (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES):
                        raise
                if monotonic() > until:
                    yield None
                    return
                sleep(0.002)
            yield lock
        finally:
            os.close(lock)  # which unlocks it


class CachedFile:
    """Answers reads of a slow file from the cache where it can, and stores what it has to read.

    Safe to use from several threads. Memory: what is asked for, twice.
    """

    def __init__(self, cache: DiskCache, key: str, size: int) -> None:
        self._cache = cache
        self._key = key
        self._size = size
        self._segments: OrderedDict[int, _Segment] = OrderedDict()
        self._lock = Lock()

    def read(self, offset: int, count: int, slow: Read, *, anew: bool = False) -> bytes:
        """Read ``count`` bytes from ``offset`` on, or fewer if the file ends.

        Args:
            offset: Where to begin.
            count: How many bytes.
            slow: Reads from the slow file. It is not kept, so that a file may hold what stands before it.
            anew: Read from the slow file whatever is stored, and store that.

        Raises what ``slow`` raises.
        """
        end = min(offset + count, self._size)
        if self._cache.off or end <= offset:
            return slow(offset, count)
        blocks = range(offset // BLOCK_BYTES, (end - 1) // BLOCK_BYTES + 1)
        held: dict[int, memoryview] = {} if anew else self._held(blocks)
        missing = [block for block in blocks if block not in held]
        for _, run in groupby(enumerate(missing), key=lambda each: each[1] - each[0]):
            numbers = [block for _, block in run]
            first, after = numbers[0] * BLOCK_BYTES, min((numbers[-1] + 1) * BLOCK_BYTES, self._size)
            data = memoryview(slow(first, after - first))
            if len(data) < after - first:  # the file has become shorter: that is not stored
                return slow(offset, count)
            parts = [data[at : at + BLOCK_BYTES] for at in range(0, len(data), BLOCK_BYTES)]
            held.update(zip(numbers, parts, strict=True))
            self._store(numbers, parts)
        start = blocks[0] * BLOCK_BYTES
        return b"".join(
            held[block][max(0, offset - at) : end - at]
            for block, at in zip(blocks, range(start, end, BLOCK_BYTES), strict=True)
        )

    def _held(self, blocks: range) -> dict[int, memoryview]:
        held: dict[int, memoryview] = {}
        try:
            for number, its in groupby(blocks, key=lambda block: block // BLOCKS):
                if (segment := self._segment(number, create=False)) is not None:
                    held |= segment.read(list(its))
        except OSError as error:
            self._cache.give_up(error)
        return held

    def _store(self, blocks: Sequence[int], parts: Sequence[memoryview]) -> None:
        if self._cache.off:
            return
        try:
            place = 0
            for number, its in groupby(blocks, key=lambda block: block // BLOCKS):
                numbers = list(its)
                if (segment := self._segment(number, create=True)) is not None:
                    segment.write(numbers, parts[place : place + len(numbers)])
                place += len(numbers)
        except OSError as error:
            self._cache.give_up(error)

    def _segment(self, number: int, *, create: bool) -> "_Segment | None":
        with self._lock:
            segment = self._segments.get(number)
            if segment is not None and not (create and segment.is_deleted):
                self._segments.move_to_end(number)
                return segment
            segment = self._cache.segment(self._key, number, create=create)
            if segment is not None:
                self._segments[number] = segment
                self._segments.move_to_end(number)
                while len(self._segments) > OPEN_SEGMENTS:
                    self._segments.popitem(last=False)
            return segment


class _Segment:
    """An open segment: a page with a header and the records of its blocks, then the blocks.

    It closes when nobody holds it any more, since a thread may still read from it.
    """

    def __init__(self, descriptor: int, key: str, number: int) -> None:
        self._close = os.close  # kept: at the interpreter's end the module may be gone first
        self._descriptor = descriptor
        self._read, self._write = reader_and_writer_by_position(descriptor)
        self._first = number * BLOCKS
        self._seed = crc32(_HEADER.pack(_MAGIC, bytes.fromhex(key), number))

    @classmethod
    def opened(cls, path: Path, key: str, number: int) -> "_Segment | None":
        """The segment at this path, marked as used now. None if there is no sound one."""
        try:
            segment = cls(os.open(path, open_flags(os.O_RDWR)), key, number)
        except FileNotFoundError:
            return None
        if segment._read(_HEADER.size, 0) != _HEADER.pack(_MAGIC, bytes.fromhex(key), number):
            return None
        with suppress(FileNotFoundError):  # it has just been deleted
            os.utime(path)
        return segment

    @classmethod
    def created(cls, path: Path, key: str, number: int) -> "_Segment":
        """A new segment without blocks, in place of whatever lies there."""
        segment = cls(os.open(path, open_flags(os.O_RDWR | os.O_CREAT | os.O_TRUNC), 0o666), key, number)
        segment._write(_HEADER.pack(_MAGIC, bytes.fromhex(key), number), 0)
        return segment

    @property
    def is_deleted(self) -> bool:
        """Whether its file is gone, so that nobody else would find what is stored in it."""
        return os.fstat(self._descriptor).st_nlink == 0

    def read(self, blocks: Sequence[int]) -> dict[int, memoryview]:
        """The blocks that are stored and sound, of some that ascend."""
        records = self._read(BLOCKS * _RECORD.size, _RECORDS_AT).ljust(BLOCKS * _RECORD.size, b"\0")
        stated = {
            block: _RECORD.unpack_from(records, (block - self._first) * _RECORD.size) for block in blocks
        }
        there = [block for block in blocks if 0 < stated[block][1] <= BLOCK_BYTES]
        held: dict[int, memoryview] = {}
        for _, run in groupby(enumerate(there), key=lambda each: each[1] - each[0]):
            numbers = [block for _, block in run]
            at = _DATA_AT + (numbers[0] - self._first) * BLOCK_BYTES
            data = memoryview(self._read(len(numbers) * BLOCK_BYTES, at))
            for place, block in enumerate(numbers):
                checksum, length = stated[block]
                part = data[place * BLOCK_BYTES : place * BLOCK_BYTES + length]
                if len(part) == length and self._checksum(block, part) == checksum:
                    held[block] = part
        return held

    def write(self, blocks: Sequence[int], parts: Sequence[memoryview]) -> None:
        """Store blocks, first their bytes and then the records that say that they are there."""
        for block, part in zip(blocks, parts, strict=True):
            self._write_all(part, _DATA_AT + (block - self._first) * BLOCK_BYTES)
        for block, part in zip(blocks, parts, strict=True):
            record = _RECORD.pack(self._checksum(block, part), len(part))
            self._write_all(memoryview(record), _RECORDS_AT + (block - self._first) * _RECORD.size)

    def _write_all(self, data: memoryview, offset: int) -> None:
        while data:
            written = self._write(data, offset)
            data, offset = data[written:], offset + written

    def _checksum(self, block: int, data: memoryview) -> int:
        """CRC-32 of the bytes, which also depends on the file, its state and the block's place."""
        return crc32(data, crc32(block.to_bytes(8, "little"), self._seed))

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            self._close(self._descriptor)
