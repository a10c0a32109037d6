"""The cache of slow files on a local disk: the same bytes, in bounded room, whatever happens to it or to them."""

import multiprocessing
import os
import random
from pathlib import Path

import pytest

from tests.small_disk import small_disk
from wsi_ips.storage.disk_cache import (
    BLOCK_BYTES,
    BLOCKS,
    LOCK_NAME,
    SEGMENT_BYTES,
    CachedFile,
    DiskCache,
    disk_cache,
)

SIZE = 2 * BLOCKS * BLOCK_BYTES + 3 * BLOCK_BYTES + 777
"""Two whole segments, three blocks, and a part of one."""


class Slow:
    """A file on slow storage that counts what is read of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reads: list[tuple[int, int]] = []

    def __call__(self, offset: int, count: int) -> bytes:
        self.reads.append((offset, count))
        return self.path.read_bytes()[offset : offset + count]

    def before(self, cache: DiskCache) -> CachedFile:
        """What a newly opened reader reads through."""
        return cache.file(self.path, self.path.stat(), self)


@pytest.fixture
def slow(tmp_path: Path) -> Slow:
    path = tmp_path / "slow.bin"
    path.write_bytes(random.Random(0).randbytes(SIZE))
    return Slow(path)


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    return DiskCache(tmp_path / "cache", most_bytes=8 * SEGMENT_BYTES)


def segments(cache: DiskCache) -> list[Path]:
    return sorted(cache.folder.glob("*.tiles"))


PARTS = [
    (0, 10), (5, BLOCK_BYTES), (BLOCK_BYTES, BLOCK_BYTES), (BLOCKS * BLOCK_BYTES - 3, 7), (SIZE - 5, 5),
    (SIZE - 5, 100), (SIZE, 10), (SIZE + 10, 5), (0, SIZE), (12345, 3_000_000), (7, 0),
]  # fmt: skip


def test_the_bytes_are_those_of_the_file_and_are_read_from_it_once(slow: Slow, cache: DiskCache) -> None:
    content = slow.path.read_bytes()
    for offset, count in PARTS:
        assert slow.before(cache).read(offset, count, slow) == content[offset : offset + count]
    slow.reads.clear()
    for offset, count in reversed(PARTS):
        assert slow.before(cache).read(offset, count, slow) == content[offset : offset + count]
    assert [count for offset, count in slow.reads if offset < SIZE and count] == []


def test_another_process_finds_what_was_stored(slow: Slow, cache: DiskCache) -> None:
    slow.before(cache).read(0, SIZE, slow)
    slow.reads.clear()
    again = DiskCache(cache.folder, most_bytes=8 * SEGMENT_BYTES)
    assert slow.before(again).read(100, 200_000, slow) == slow.path.read_bytes()[100:200_100]
    assert sum(count for _, count in slow.reads) == 16 * 4096  # the samples that tell the file from others


def test_missing_blocks_beside_each_other_are_read_at_once(slow: Slow, cache: DiskCache) -> None:
    file = slow.before(cache)
    file.read(2 * BLOCK_BYTES, 1, slow)
    slow.reads.clear()
    file.read(0, 6 * BLOCK_BYTES, slow)
    assert slow.reads == [(0, 2 * BLOCK_BYTES), (3 * BLOCK_BYTES, 3 * BLOCK_BYTES)]


@pytest.mark.parametrize("kept", [(), ("mtime",)])
def test_a_replaced_file_is_not_answered_with_old_bytes(
    slow: Slow, cache: DiskCache, kept: tuple[str, ...]
) -> None:
    """Neither one of another date, nor one that was given the date and the length of the old one."""
    slow.before(cache).read(0, SIZE, slow)
    before = slow.path.stat()
    changed = bytearray(slow.path.read_bytes())
    changed[300_000] ^= 255  # not among the samples
    slow.path.write_bytes(changed)
    if kept:
        os.utime(slow.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert slow.before(cache).read(0, SIZE, slow) == bytes(changed)


def test_a_file_that_is_written_while_the_process_runs_gets_new_samples(slow: Slow, cache: DiskCache) -> None:
    slow.before(cache)
    slow.reads.clear()
    slow.before(cache)
    assert not slow.reads  # a status is enough to know it again
    slow.path.write_bytes(random.Random(1).randbytes(SIZE))
    slow.before(cache)
    assert slow.reads


@pytest.mark.parametrize("place", [10, 40, 1030, 4096, 4096 + 70_000])
def test_damage_to_a_segment_is_noticed_and_mended(slow: Slow, cache: DiskCache, place: int) -> None:
    """In the header, in a record, in a block."""
    content = slow.path.read_bytes()
    slow.before(cache).read(0, SIZE, slow)
    for segment in segments(cache):
        stored = bytearray(segment.read_bytes())
        stored[place] ^= 1
        segment.write_bytes(stored)
    assert slow.before(cache).read(0, SIZE, slow) == content
    slow.reads.clear()
    assert slow.before(cache).read(0, SIZE, slow) == content
    assert not slow.reads


@pytest.mark.parametrize("length", [0, 20, 1500, 4096 + 100, 4096 + BLOCK_BYTES + 5])
def test_a_segment_that_is_cut_short_is_mended(slow: Slow, cache: DiskCache, length: int) -> None:
    slow.before(cache).read(0, SIZE, slow)
    for segment in segments(cache):
        os.truncate(segment, length)
    assert slow.before(cache).read(0, SIZE, slow) == slow.path.read_bytes()
    assert len(segments(cache)) == 3


def test_the_segment_of_one_file_is_not_taken_for_that_of_another(slow: Slow, cache: DiskCache) -> None:
    slow.before(cache).read(0, SIZE, slow)
    other = Slow(slow.path.with_name("other.bin"))
    other.path.write_bytes(random.Random(2).randbytes(SIZE))
    old = segments(cache)
    other.before(cache).read(0, SIZE, other)
    new = [path for path in segments(cache) if path not in old]
    for source, target in zip(old, new, strict=True):
        target.write_bytes(source.read_bytes())
    assert other.before(cache).read(0, SIZE, other) == other.path.read_bytes()


def test_the_folder_holds_no_more_than_it_may_and_the_least_recently_used_leaves(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", most_bytes=3 * SEGMENT_BYTES + 100)
    files = []
    for number in range(4):
        files.append(Slow(tmp_path / f"{number}.bin"))
        files[-1].path.write_bytes(random.Random(number).randbytes(BLOCK_BYTES))
    for number, file in enumerate(files[:3]):
        file.before(cache).read(0, 10, file)
        os.utime(segments_of(cache, newest=True), ns=(number, number))
    files[0].before(cache).read(0, 10, files[0])  # now used last of the three
    files[3].before(cache).read(0, 10, files[3])
    assert len(segments(cache)) == 3
    for file in files:
        file.reads.clear()
    files[0].before(cache).read(0, 10, files[0])
    assert not files[0].reads
    files[1].before(cache).read(0, 10, files[1])
    assert files[1].reads


def segments_of(cache: DiskCache, *, newest: bool) -> Path:
    return sorted(segments(cache), key=lambda path: path.stat().st_mtime_ns, reverse=newest)[0]


def test_a_slide_that_is_larger_than_the_cache_is_read_all_the_same(slow: Slow, tmp_path: Path) -> None:
    for most_bytes in (100, SEGMENT_BYTES, 2 * SEGMENT_BYTES):
        cache = DiskCache(tmp_path / f"{most_bytes}", most_bytes=most_bytes)
        for _ in range(2):
            assert slow.before(cache).read(0, SIZE, slow) == slow.path.read_bytes()
        used = sum(path.stat().st_blocks * 512 for path in cache.folder.glob("*.tiles"))
        assert used <= most_bytes


def test_a_smaller_bound_takes_effect_with_the_next_segment(
    slow: Slow, cache: DiskCache, tmp_path: Path
) -> None:
    slow.before(cache).read(0, SIZE, slow)
    other = Slow(tmp_path / "other.bin")
    other.path.write_bytes(b"abc")
    other.before(DiskCache(cache.folder, most_bytes=SEGMENT_BYTES)).read(0, 3, other)
    assert len(segments(cache)) == 1


def test_a_count_that_is_lost_or_wrong_is_made_again(slow: Slow, cache: DiskCache) -> None:
    for stated in (b"", b"nonsense", b"9999999999999999"):
        cache.folder.mkdir(exist_ok=True)
        (cache.folder / LOCK_NAME).write_bytes(stated)
        slow.path.write_bytes(slow.path.read_bytes())
        slow.before(cache).read(0, SIZE, slow)
        assert int((cache.folder / LOCK_NAME).read_bytes()) == len(segments(cache))


def test_what_others_put_into_the_folder_is_left_alone(slow: Slow, tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", most_bytes=SEGMENT_BYTES)
    cache.folder.mkdir()
    (cache.folder / "thesis.tiles").write_text("mine")
    for _ in range(3):
        slow.before(cache).read(0, SIZE, slow)
    assert (cache.folder / "thesis.tiles").read_text() == "mine"


def test_a_file_that_has_become_shorter_is_not_stored(slow: Slow, cache: DiskCache) -> None:
    file = slow.before(cache)
    os.truncate(slow.path, 100_000)
    assert file.read(90_000, 50_000, slow) == slow.path.read_bytes()[90_000:]
    assert not segments(cache)


def test_reading_anew_replaces_what_was_read_wrongly(slow: Slow, cache: DiskCache) -> None:
    file = slow.before(cache)
    file.read(0, 1000, lambda offset, count: bytes(count))
    assert file.read(0, 1000, slow) == bytes(1000)
    assert file.read(0, 1000, slow, anew=True) == slow.path.read_bytes()[:1000]
    assert slow.before(cache).read(0, 1000, slow) == slow.path.read_bytes()[:1000]


def test_a_full_disk_ends_the_cache_and_not_the_run(slow: Slow, caplog: pytest.LogCaptureFixture) -> None:
    with small_disk(kilobytes=1000) as disk:
        cache = DiskCache(disk / "cache", most_bytes=8 * SEGMENT_BYTES)
        for _ in range(3):
            assert slow.before(cache).read(0, SIZE, slow) == slow.path.read_bytes()
        assert cache.off
        [said] = [record.getMessage() for record in caplog.records]
        assert "No space left on device" in said
        assert str(cache.folder) in said
        # What was stored before the disk was full is sound.
        slow.reads.clear()
        again = DiskCache(cache.folder, most_bytes=8 * SEGMENT_BYTES)
        assert slow.before(again).read(0, 1000, slow) == slow.path.read_bytes()[:1000]


def test_a_folder_that_cannot_be_made_ends_the_cache_and_not_the_run(
    slow: Slow, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    cache = DiskCache(tmp_path / "file" / "cache", most_bytes=8 * SEGMENT_BYTES)
    assert slow.before(cache).read(5, 10, slow) == slow.path.read_bytes()[5:15]
    assert slow.before(cache).read(5, 10, slow) == slow.path.read_bytes()[5:15]
    assert len(caplog.records) == 1


def _fill(folder: Path, path: Path, seed: int) -> None:
    slow, cache = Slow(path), DiskCache(folder, most_bytes=5 * SEGMENT_BYTES)
    content, rng = path.read_bytes(), random.Random(seed)
    while True:
        offset = rng.randrange(SIZE)
        read = slow.before(cache).read(offset, 200_000, slow)
        if read != content[offset : offset + 200_000]:
            os._exit(7)


def test_writers_that_are_killed_leave_nothing_wrong(slow: Slow, tmp_path: Path) -> None:
    """Several processes write and delete in one folder until they are killed in the middle of it."""
    folder = tmp_path / "cache"
    other = Slow(tmp_path / "other.bin")
    other.path.write_bytes(random.Random(3).randbytes(SIZE))
    context = multiprocessing.get_context("fork")
    for round_ in range(3):
        writers = [
            context.Process(target=_fill, args=(folder, file.path, round_ * 10 + number))
            for number, file in enumerate((slow, other, slow))
        ]
        for writer in writers:
            writer.start()
        writers[0].join(0.4)
        assert [writer.exitcode for writer in writers] == [None] * 3
        for writer in writers:
            writer.kill()
        for writer in writers:
            writer.join()
        cache = DiskCache(folder, most_bytes=5 * SEGMENT_BYTES)
        assert len(segments(cache)) <= 5
        for file in (slow, other):
            assert file.before(cache).read(0, SIZE, file) == file.path.read_bytes()


def test_a_process_has_one_object_for_a_folder(tmp_path: Path) -> None:
    assert disk_cache(tmp_path, 10**9) is disk_cache(Path(tmp_path), 10**9)
    assert disk_cache(tmp_path, 10**9) is not disk_cache(tmp_path, 2 * 10**9)
