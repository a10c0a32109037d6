"""Encoded tiles that were made lately."""

from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock


class ByteCache:
    """Holds ``limit`` bytes at most; what was asked for longest ago goes first. Safe from several threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._items: OrderedDict[Hashable, bytes] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable) -> bytes | None:
        with self._lock:
            data = self._items.get(key)
            if data is not None:
                self._items.move_to_end(key)
            return data

    def put(self, key: Hashable, data: bytes) -> None:
        with self._lock:
            if key in self._items or len(data) > self._limit:
                return
            self._items[key] = data
            self._held += len(data)
            while self._held > self._limit:
                _, oldest = self._items.popitem(last=False)
                self._held -= len(oldest)

    @property
    def held_bytes(self) -> int:
        return self._held
