"""What was made lately, within so many bytes: decoded tiles of a slide, encoded tiles of a page."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ByteCache(Generic[K, V]):
    """Holds ``limit`` bytes at most, as ``size`` counts them; what was asked for longest ago goes first.

    Safe from several threads. What is larger than all of it is not held; what is held already stays as it is.
    """

    def __init__(self, limit: int, *, size: Callable[[V], int]) -> None:
        self._limit = limit
        self._size = size
        self._held = 0
        self._items: OrderedDict[K, V] = OrderedDict()
        self._lock = Lock()

    def get(self, key: K) -> V | None:
        with self._lock:
            item = self._items.get(key)
            if item is not None:
                self._items.move_to_end(key)
            return item

    def put(self, key: K, item: V) -> None:
        size = self._size(item)
        with self._lock:
            if key in self._items or size > self._limit:
                return
            self._items[key] = item
            self._held += size
            while self._held > self._limit:
                _, oldest = self._items.popitem(last=False)
                self._held -= self._size(oldest)

    @property
    def held_bytes(self) -> int:
        return self._held
