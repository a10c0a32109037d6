"""The few large things that are worth keeping: open slides, attention that was read, maps of it."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

Kept = TypeVar("Kept")


class Lately(Generic[Kept]):
    """The ``most`` things used last. What goes is let go of, not closed: another thread may still use it.

    Two threads that ask for the same new thing wait for each other, and for nobody else.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._items: OrderedDict[Hashable, Kept] = OrderedDict()
        self._making: dict[Hashable, Lock] = {}
        self._lock = Lock()

    def get(self, key: Hashable, make: Callable[[], Kept]) -> Kept:
        """The thing under ``key``, made now where it is not there. What ``make`` raises is not kept."""
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
                return self._items[key]
            making = self._making.setdefault(key, Lock())
        with making:
            with self._lock:
                if key in self._items:
                    return self._items[key]
            try:
                made = make()
                with self._lock:
                    self._items[key] = made
                    while len(self._items) > self._most:
                        self._items.popitem(last=False)
                return made
            finally:
                with self._lock:
                    self._making.pop(key, None)

    def peek(self, key: Hashable) -> Kept | None:
        """The thing under ``key``, if it is there; it becomes no younger by it."""
        with self._lock:
            return self._items.get(key)
