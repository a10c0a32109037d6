import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_ips.streaming.pixel_pool import PixelPool
from wsi_ips.streaming.tile_store import TileStore


def tile_of(number: int) -> np.ndarray:
    return np.full((2, 2, 3), number, np.uint8)


@given(order=st.lists(st.integers(0, 5), max_size=60), tiles=st.integers(0, 8))
def test_the_right_tile_is_lent_and_the_bound_is_kept(order: list[int], tiles: int) -> None:
    uses = np.bincount(order, minlength=6).astype(np.int32) if order else np.zeros(6, np.int32)
    store = TileStore(uses, tiles=tiles)
    for number in order:
        assert (store.borrow([number], tile_of)[0] == number).all()
        assert len(store) <= max(1, tiles)
    assert len(store) == 0  # nobody needs anything any more


def test_rows_that_fit_are_decoded_once_and_longer_ones_in_part() -> None:
    """Two passes over a row, as an unaligned grid makes them."""

    def decoded(row: int, tiles: int) -> int:
        made: list[int] = []
        store = TileStore(np.full(row, 2, np.int32), tiles=tiles)
        for number in [*range(row), *range(row)]:
            store.borrow([number], lambda n: (made.append(n), tile_of(n))[1])
        return len(made)

    assert decoded(row=20, tiles=20) == 20
    # Throwing out the oldest would decode all 40.
    assert 20 < decoded(row=20, tiles=12) < 32


def test_a_tile_under_way_is_waited_for_and_decoded_once() -> None:
    made: list[int] = []

    def slow(number: int) -> np.ndarray:
        made.append(number)
        time.sleep(0.05)
        return tile_of(number)

    store = TileStore(np.array([4], np.int32), tiles=4)
    got: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: got.append(store.borrow([0], slow)[0])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [0]
    assert len(got) == 4


def test_a_failure_reaches_those_who_wait() -> None:
    def broken(number: int) -> np.ndarray:
        raise OSError("gone")

    store = TileStore(np.array([2], np.int32), tiles=4)
    with pytest.raises(OSError, match="gone"):
        store.borrow([0], broken)
    with pytest.raises(RuntimeError, match="given up"):
        store.borrow([0], broken)


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
