import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_ips.streaming.device import PixelPool
from wsi_ips.streaming.tile_source import TileStore

SHAPE = (2, 2, 3)


def draw(number: int, out: np.ndarray) -> None:
    out[:] = number


@given(order=st.lists(st.integers(0, 5), max_size=60), tiles=st.integers(0, 8))
def test_the_right_tile_is_lent_and_the_bound_is_kept(order: list[int], tiles: int) -> None:
    uses = np.bincount(order, minlength=6).astype(np.int32) if order else np.zeros(6, np.int32)
    store = TileStore(uses, tile_shape=SHAPE, tiles=tiles)
    for number in order:
        assert (store.borrow([number], draw)[0].pixels == number).all()
        assert len(store) <= max(1, tiles)
    assert len(store) == 0  # nobody needs anything any more


def test_rows_that_fit_are_decoded_once_and_longer_ones_in_part() -> None:
    """Two passes over a row, as an unaligned grid makes them."""

    def decoded(row: int, tiles: int) -> int:
        made: list[int] = []
        store = TileStore(np.full(row, 2, np.int32), tile_shape=SHAPE, tiles=tiles)
        for number in [*range(row), *range(row)]:
            store.borrow([number], lambda n, _: made.append(n))
        return len(made)

    assert decoded(row=20, tiles=20) == 20
    # Throwing out the oldest would decode all 40.
    assert 20 < decoded(row=20, tiles=12) < 32


def test_a_tile_under_way_is_waited_for_and_decoded_once() -> None:
    made: list[int] = []

    def slow(number: int, out: np.ndarray) -> None:
        made.append(number)
        time.sleep(0.05)
        draw(number, out)

    store = TileStore(np.array([4], np.int32), tile_shape=SHAPE, tiles=4)
    got: list[int] = []
    threads = [
        threading.Thread(target=lambda: got.append(store.borrow([0], slow)[0].pixels.max())) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [0]
    assert got == [0, 0, 0, 0]


def test_a_failure_reaches_those_who_wait() -> None:
    def broken(number: int, out: np.ndarray) -> None:
        raise OSError("gone")

    store = TileStore(np.array([2], np.int32), tile_shape=SHAPE, tiles=4)
    with pytest.raises(OSError, match="gone"):
        store.borrow([0], broken)
    with pytest.raises(OSError, match="gone"):
        store.borrow([0], broken)


def test_a_failure_leaves_the_other_tiles_of_its_thread_to_those_who_need_them() -> None:
    """A thread that waited for one of them would wait for ever."""
    failing, seen = threading.Event(), []

    def broken(number: int, out: np.ndarray) -> None:
        failing.set()
        time.sleep(0.05)
        raise OSError("gone")

    def borrow(numbers: list[int]) -> None:
        try:
            store.borrow(numbers, broken)
        except OSError as error:
            seen.append(str(error))

    store = TileStore(np.array([2, 2], np.int32), tile_shape=SHAPE, tiles=8)
    first = threading.Thread(target=borrow, args=([0, 1],), daemon=True)
    first.start()
    assert failing.wait(5)
    other = threading.Thread(target=borrow, args=([1],), daemon=True)
    other.start()
    other.join(5)
    first.join(5)
    assert not other.is_alive()
    assert seen == ["gone", "gone"]


def test_two_threads_under_the_same_tiles_decode_half_of_them_each() -> None:
    by_thread: dict[str, list[int]] = {"a": [], "b": []}
    together = threading.Barrier(2)

    def slow(number: int, out: np.ndarray) -> None:
        by_thread[threading.current_thread().name].append(number)
        if sum(map(len, by_thread.values())) <= 2:
            together.wait(5)  # the second tile is begun before the first one is done
        draw(number, out)

    store = TileStore(np.full(2, 2, np.int32), tile_shape=SHAPE, tiles=8)
    threads = [threading.Thread(target=store.borrow, args=([0, 1], slow), name=name) for name in by_thread]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(map(len, by_thread.values())) == [1, 1]
    assert len(store) == 0


def test_a_tile_on_loan_keeps_its_pixels_when_the_store_forgets_it() -> None:
    store = TileStore(np.ones(3, np.int32), tile_shape=SHAPE, tiles=1)
    lent = store.borrow([1], draw)[0]
    store.borrow([2], draw)
    assert (lent.pixels == 1).all()
    address = lent.pixels.ctypes.data
    del lent
    assert store.borrow([0], draw)[0].pixels.ctypes.data == address


def test_memory_is_used_again_only_when_nobody_looks_at_it() -> None:
    pool = PixelPool((4, 4), spare=2)
    first = pool.take()
    first[:] = 7
    address = first.ctypes.data
    part = first[1:]
    del first
    assert pool.take().ctypes.data != address  # a view is left
    assert (part == 7).all()
    del part
    assert pool.take().ctypes.data == address


def test_memory_handed_to_torch_is_not_used_again_too_early() -> None:
    import torch

    pool = PixelPool((4, 4), spare=2)
    tensor = torch.from_numpy(pool.take()).permute(1, 0)
    address = tensor.data_ptr()
    assert pool.take().ctypes.data != address
    del tensor
    assert pool.take().ctypes.data == address


def test_no_more_than_the_spare_arrays_are_kept() -> None:
    pool = PixelPool((4, 4), spare=2)
    several = [pool.take() for _ in range(5)]
    del several
    assert len(pool._free) == 2
