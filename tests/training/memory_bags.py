"""Bags out of tensors, for tests of learning."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wsi_ips.config import StreamingConfig
from wsi_ips.datasets.manifest import Target
from wsi_ips.errors import SlideReadError
from wsi_ips.streaming.stream import Chunk
from wsi_ips.units import PlaceKind


@dataclass(frozen=True)
class MemoryBag:
    """pixels_N: (N, ...) what the encoder takes. broken: opening it fails, as an unreadable slide's, from the
    beginning or after so many times. lost: what was iterated over cannot be read again. opened, scored: its name
    for each time that it was opened, and iterated over."""

    bag_id: str
    pixels_N: Tensor
    targets: Mapping[str, Target]
    broken: bool | int = False
    lost: bool = False
    opened: list[str] = field(default_factory=list)
    scored: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.pixels_N)

    @contextmanager
    def open(self, streaming: StreamingConfig, device: torch.device) -> Iterator["_Source"]:
        self.opened.append(self.bag_id)
        if self.broken is True or 0 < self.broken < len(self.opened):
            raise SlideReadError(self.bag_id, "is broken", "replace the file")
        yield _Source(self, streaming.batch)


@dataclass(frozen=True)
class _Source:
    bag: MemoryBag
    batch: int

    def __iter__(self) -> Iterator[Chunk]:
        self.bag.scored.append(self.bag.bag_id)
        return map(self._chunk, self.ids().split(self.batch))

    def ids(self) -> Tensor:
        return torch.arange(len(self.bag.pixels_N))

    def read(self, ids_n: Tensor) -> Chunk:
        if self.bag.lost:
            raise SlideReadError(self.bag.bag_id, "is broken", "replace the file")
        return self._chunk(ids_n)

    def _chunk(self, ids_n: Tensor) -> Chunk:
        return Chunk(ids_n, torch.stack([ids_n, ids_n], dim=1), self.bag.pixels_N[ids_n])

    def places(self, ids_n: Tensor, kind: PlaceKind) -> Tensor:
        assert kind == "ids"
        return ids_n
