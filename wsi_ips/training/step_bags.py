"""The bags that a step of training has open: each is opened once a step, and the next one ahead of time.

A step looks at a bag two or three times: it selects patches, reads the kept ones again for what is learned, and
with a coarse scorer reads the windows once more. On slow storage, opening a slide costs as much as reading
hundreds of tiles. :class:`StepBags` therefore keeps the bags of a step open until the step ends. While one bag is
selected from or learned from, a thread opens the next one and has its first chunks decoded.

Nothing of this changes a number. What is random about a bag is drawn from its key and not from when it is read,
and an error of a bag that was prepared is raised when the bag is asked for.

Memory: of an open bag, what its reader holds (tables of where tiles lie; no pixels). Of a bag that is prepared,
which is one while another is worked on, ``streaming.chunks_in_flight`` chunks of ``streaming.batch`` patches, and
the decoded tiles that these share with later ones, at most ``streaming.tile_cache_mb``.
"""

from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch

from wsi_ips.config import StreamingConfig
from wsi_ips.streaming.patch_source import PatchSource
from wsi_ips.timeline import in_thread
from wsi_ips.training.bags import AugmentedBag, Bag

MOST_PREPARED = 2
"""Bags that are prepared at a time: the one that is about to be asked for, and the one after it."""

MOST_OPEN = 32
"""Bags that are open at a time. In a step of more, the first ones are opened again."""


@runtime_checkable
class StreamedBag(Bag, Protocol):
    """A bag that is read from files by threads, such as a slide. Opening it computes nothing, so that it may be
    opened in a thread beside the network.
    """

    @property
    def is_streamed(self) -> bool: ...


@runtime_checkable
class BegunSource(PatchSource, Protocol):
    """A source that can begin before somebody iterates over it. :class:`wsi_ips.streaming.stream.PatchStream` is
    one.
    """

    def begin(self) -> None:
        """Start to decode the first chunks of the next iteration."""
        ...

    def rest(self) -> None:
        """End an iteration that was begun and is not wanted, and free the memory for pixels."""
        ...


def whole_bag(bag: Bag, key: str) -> Bag:
    """The bag as an epoch shows it: augmented, if it is one that is augmented as a whole."""
    return bag.as_seen(key) if isinstance(bag, AugmentedBag) else bag


@dataclass(slots=True)
class _Opened:
    """An open bag. ``stack`` closes it."""

    source: PatchSource
    stack: ExitStack


@dataclass(slots=True)
class StepBags:
    """Opens bags for a step.

    Outside of :meth:`step`, a bag is open for the length of a ``with`` block, and nothing is prepared.

    Attributes:
        streaming: How slides are read.
    """

    streaming: StreamingConfig
    _holds: bool = False
    _held: OrderedDict[str, _Opened] = field(default_factory=OrderedDict)
    _coming: OrderedDict[str, Future[_Opened]] = field(default_factory=OrderedDict)
    _thread: ThreadPoolExecutor | None = None

    @contextmanager
    def step(self) -> Iterator[None]:
        """Keep bags open until the end of the block. What was prepared for the next step stays prepared, unless
        the block fails.
        """
        self._holds = True
        try:
            yield
        except BaseException:
            self.forget_prepared()
            raise
        finally:
            self._holds = False
            self._close(0)

    @contextmanager
    def open(self, bag: Bag, key: str, device: torch.device) -> Iterator[PatchSource]:
        """The patches of a bag as the key shows it, for the length of the block or of the step.

        A bag that raises an error in the block is closed, so that it is opened again when it is next asked for.

        Args:
            bag: The bag.
            key: The text that everything random about it is drawn from. It names the bag, too.
            device: Where pixels go.

        Raises the error of the bag if it cannot be opened.
        """
        if not self._holds:
            with whole_bag(bag, key).open(self.streaming, device) as source:
                yield source
            return
        opened = self._held.get(key)
        if opened is None:
            opened = self._held[key] = self._prepared(key) or self._open(bag, key, device, begin=False)
        self._held.move_to_end(key)
        self._close(MOST_OPEN)
        try:
            yield opened.source
        except BaseException:
            if self._held.pop(key, None) is not None:
                opened.stack.close()
            raise
        if isinstance(opened.source, BegunSource):
            opened.source.rest()

    def prepare(self, bag: Bag, key: str, device: torch.device, *, begin: bool) -> None:
        """Open a bag in a thread, which :meth:`open` then takes. Only bags that are streamed from files are.

        Args:
            bag: The bag that is asked for next.
            key: Its key.
            device: Where pixels go.
            begin: Whether all of its patches are going to be iterated over, so that the first may be decoded.
        """
        if key in self._held or key in self._coming:
            return
        self._forget(MOST_PREPARED - 1)
        if not isinstance(bag, StreamedBag) or not bag.is_streamed:
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="wsi_ips-prepare")
        opening = in_thread(self._open, who="ahead", slide_id=bag.bag_id)
        self._coming[key] = self._thread.submit(opening, bag, key, device, begin=begin)

    def forget_prepared(self) -> None:
        """Close bags that were prepared and not asked for. Their errors are forgotten, too."""
        self._forget(0)

    def _forget(self, most: int) -> None:
        """Close prepared bags until so many are left, the oldest first."""
        while len(self._coming) > most:
            _, future = self._coming.popitem(last=False)
            if future.exception() is None:
                future.result().stack.close()

    def _prepared(self, key: str) -> _Opened | None:
        """The bag of this key if it was prepared. Raises the error that it was prepared with."""
        future = self._coming.pop(key, None)
        return None if future is None else future.result()

    def _open(self, bag: Bag, key: str, device: torch.device, *, begin: bool) -> _Opened:
        # A new thread would otherwise allocate page-locked memory on the first card, whichever is used.
        card = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
        with card, ExitStack() as stack:
            source = stack.enter_context(whole_bag(bag, key).open(self.streaming, device))
            if isinstance(source, BegunSource):
                stack.callback(source.rest)
                if begin:
                    source.begin()
            return _Opened(source, stack.pop_all())

    def _close(self, most: int) -> None:
        """Close bags until so many are open, those that were asked for longest ago first."""
        while len(self._held) > most:
            _, opened = self._held.popitem(last=False)
            opened.stack.close()
