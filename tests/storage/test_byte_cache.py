"""What is kept of what was made, and how much of it."""

import threading

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from wsi_ips.storage.byte_cache import ByteCache


def test_the_limit_holds_and_what_was_asked_for_longest_ago_goes_first() -> None:
    cache: ByteCache[object, bytes] = ByteCache(100, size=len)
    for number in range(5):
        cache.put(number, bytes(30))
        cache.get(0)  # asked for again and again
    assert cache.held_bytes == 90
    assert [number for number in range(5) if cache.get(number)] == [0, 3, 4]
    cache.put("large", bytes(101))
    assert cache.get("large") is None
    cache.put(0, bytes(30))  # there already
    assert cache.held_bytes == 90


def test_everyone_gets_the_same_array() -> None:
    cache: ByteCache[int, np.ndarray] = ByteCache(300, size=lambda tile: tile.nbytes)
    tile = np.zeros((10, 10, 3), np.uint8)
    cache.put(0, tile)
    assert cache.get(0) is tile
    assert cache.held_bytes == 300


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 60)), max_size=60))
def test_held_bytes_are_those_of_what_can_be_had(puts: list[tuple[int, int]]) -> None:
    cache: ByteCache[int, bytes] = ByteCache(100, size=len)
    for key, length in puts:
        cache.put(key, bytes(length))
        assert cache.held_bytes <= 100
    held = [cache.get(key) for key in range(9)]
    assert sum(len(data) for data in held if data is not None) == cache.held_bytes


def test_several_threads_at_once() -> None:
    cache: ByteCache[int, bytes] = ByteCache(1000, size=len)

    def work(start: int) -> None:
        for number in range(start, start + 2000):
            cache.put(number % 50, bytes(number % 50 + 1))
            cache.get((number * 7) % 50)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.held_bytes == sum(len(cache.get(key) or b"") for key in range(50)) <= 1000
