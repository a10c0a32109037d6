"""A cache that is limited by bytes, for decoded tiles of a slide or encoded tiles of a web page."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
"""Type of the keys."""

V = TypeVar("V")
"""Type of the values."""


class ByteCache(Generic[K, V]):
    """A least-recently-used cache that holds at most ``limit`` bytes. It can be used from several threads.

    ``size`` returns the bytes of a value. When the cache is full, the value that was asked for longest ago is
    dropped. A value that is larger than ``limit`` is not kept.
    """

    def __init__(self, limit: int, *, size: Callable[[V], int]) -> None:
        self._limit = limit
        self._size = size
        self._held = 0
        self._items: OrderedDict[K, V] = OrderedDict()
        self._lock = Lock()

    def get(self, key: K) -> V | None:
        """The value of this key, or None if it is not in the cache."""
        with self._lock:
            item = self._items.get(key)
            if item is not None:
                self._items.move_to_end(key)
            return item

    def put(self, key: K, item: V) -> None:
        """Keep ``item`` under ``key``. If the key is there already, its value stays as it is."""
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
        """The bytes of all values that are in the cache."""
        return self._held
