"""What is kept, and how much of it."""

import threading
import time

import pytest

from wsi_ips.viewer.tiles import LruCache


def test_a_thing_that_several_threads_want_is_made_once() -> None:
    kept: LruCache[object] = LruCache(2)
    made: list[object] = []

    def make() -> object:
        made.append(object())
        time.sleep(0.05)
        return made[-1]

    given: list[object] = []
    threads = [threading.Thread(target=lambda: given.append(kept.get("a", make))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert given == made * 6


def test_what_fails_is_tried_again_and_the_least_recent_goes() -> None:
    kept: LruCache[int] = LruCache(2)

    def fail() -> int:
        raise OSError("not now")

    with pytest.raises(OSError, match="not now"):
        kept.get("a", fail)
    assert kept.get("a", lambda: 1) == 1
    assert kept.get("b", lambda: 2) == 2
    assert kept.peek("a") == 1  # which makes it no younger
    assert kept.get("c", lambda: 3) == 3
    assert kept.peek("a") is None
    assert kept.get("b", fail) == 2
