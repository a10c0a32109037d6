"""Bags whose patches an encoder has seen: the first time that one is opened it is encoded and stored, then read.

Shape suffixes: N patches of a bag, n some of them, C feature width.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor, nn

from wsi_ips.config import StreamingConfig
from wsi_ips.datasets.targets import Target
from wsi_ips.errors import NotFinite
from wsi_ips.files import whole_file
from wsi_ips.models.bag_net import scoring
from wsi_ips.streaming.chunk import Chunk
from wsi_ips.streaming.patch_source import PatchSource
from wsi_ips.tiling.grid import rows_of
from wsi_ips.training.bags import Bag
from wsi_ips.units import PlaceKind

ROWS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class EncodedBag:
    """Another bag, seen through an encoder. See :class:`wsi_ips.training.bags.Bag`.

    bag: whose patches they are. encoder: (n, ...) pixels to (n, C), on the device that bags are opened on; it is
    used in eval mode and without gradients. folder: where the features of this encoder lie, float16, a file a bag.
    place_kind: as of :class:`wsi_ips.models.bag_net.BagNet`; None: no place is stored.
    """

    bag: Bag
    encoder: nn.Module
    folder: Path
    place_kind: PlaceKind | None

    @property
    def bag_id(self) -> str:
        return self.bag.bag_id

    @property
    def targets(self) -> Mapping[str, Target]:
        return self.bag.targets

    def __len__(self) -> int:
        return len(self.bag)

    @contextmanager
    def open(self, streaming: StreamingConfig, device: torch.device) -> Iterator["_Encoded"]:
        """The features, in chunks of 4096 rows. Memory: one chunk. Raises the bag's own error, and
        :class:`NotFinite`."""
        if not self._is_stored():
            self._encode(streaming, device)
        features_NC = np.load(self._features, mmap_mode="r", allow_pickle=False)
        with np.load(self._about, allow_pickle=False) as held:
            places_N = None if self.place_kind is None else held["places"]
            yield _Encoded(held["ids"], held["corners"], features_NC, places_N, device)

    def _is_stored(self) -> bool:
        """Whether the features are there, and of as many patches as the bag has now: an earlier start may have
        known another resolution of the slide, or another slide of this name."""
        if not self._about.exists():
            return False
        with np.load(self._about, allow_pickle=False) as held:
            return len(held["ids"]) == len(self)

    @torch.no_grad()
    def _encode(self, streaming: StreamingConfig, device: torch.device) -> None:
        ids, corners, row = [], [], 0
        with self.bag.open(streaming, device) as source:
            with whole_file(self._features) as partial, scoring(self.encoder):
                features_NC: NDArray[np.float16] | None = None
                for chunk in source:
                    features_nC: Tensor = self.encoder(chunk.pixels_n3PP).float()
                    if not torch.isfinite(features_nC).all():
                        raise NotFinite("features")
                    if features_NC is None:
                        shape = (len(self), features_nC.shape[1])
                        features_NC = open_memmap(partial, mode="w+", dtype=np.float16, shape=shape)
                    features_NC[row : row + len(chunk)] = features_nC.half().cpu().numpy()
                    row += len(chunk)
                    ids.append(chunk.ids_n.cpu())
                    corners.append(chunk.l0_xy_n2.cpu())
            ids_N, kind = torch.cat(ids), self.place_kind
            places_N = ids_N if kind is None else source.places(ids_N, kind).cpu()
        # Last: where this file is, the other one is whole.
        with whole_file(self._about) as partial, partial.open("wb") as file:
            np.savez(file, ids=ids_N.numpy(), corners=torch.cat(corners).numpy(), places=places_N.numpy())

    @property
    def _features(self) -> Path:
        """A bag's id may be any text, a file's name may not."""
        return self.folder / f"{hashlib.sha256(self.bag_id.encode()).hexdigest()[:24]}.npy"

    @property
    def _about(self) -> Path:
        """Which patches they are, and where they lie."""
        return self._features.with_suffix(".npz")


class _Encoded(PatchSource):
    """An opened file; a chunk's "pixels" are (n, C) float32 features."""

    def __init__(
        self,
        ids_N: NDArray[np.int64],
        corners_N2: NDArray[np.int64],
        features_NC: NDArray[np.float16],
        places_N: NDArray[np.generic] | None,
        device: torch.device,
    ) -> None:
        self._ids_N, self._corners_N2, self._features_NC = ids_N, corners_N2, features_NC
        self._places_N = places_N
        self._device = device

    def __iter__(self) -> Iterator[Chunk]:
        for start in range(0, len(self._ids_N), ROWS_AT_ONCE):
            yield self._chunk(np.arange(start, min(start + ROWS_AT_ONCE, len(self._ids_N))))

    def ids(self) -> Tensor:
        return torch.from_numpy(self._ids_N)

    def read(self, ids_n: Tensor) -> Chunk:
        return self._chunk(self._rows(ids_n))

    def places(self, ids_n: Tensor, kind: PlaceKind) -> Tensor:
        assert self._places_N is not None  # its network was asked what it wants
        return torch.from_numpy(self._places_N[self._rows(ids_n)])

    def _rows(self, ids_n: Tensor) -> NDArray[np.int64]:
        return rows_of(ids_n.cpu().numpy(), self._ids_N, where="of this bag")

    def _chunk(self, rows_n: NDArray[np.int64]) -> Chunk:
        return Chunk(
            ids_n=torch.from_numpy(self._ids_N[rows_n]),
            l0_xy_n2=torch.from_numpy(self._corners_N2[rows_n]),
            pixels_n3PP=torch.from_numpy(self._features_NC[rows_n].astype(np.float32)).to(self._device),
        )
