"""Bags of frozen features of real lymph-node patches: every slide has exactly so many patches with metastasis.

:func:`encode_patches` encodes each patch of a folder in each of four turns, once. :func:`draw_bags` draws slides
from them as composite lymph nodes are drawn (:mod:`wsi_ips.drawn.lymph_nodes`): the same splits by source group,
one stain family a slide, a slide's own subset of patches, each patch in one of its turns. Places are left out,
since nothing that learns from these bags asks for them. So a point of a curve costs no slide to compose and no
patch to encode.

Shape suffixes: T turns, P patches of the folder, N patches of a slide, n some of them, C feature width.
"""

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.frozen_bags import FeatureBag
from wsi_ips.config import EncoderConfig, ModelConfig, StreamingConfig
from wsi_ips.datasets.manifest import SPLITS
from wsi_ips.drawn.lymph_nodes import FRACTIONS, OWN_METASTASES, OWN_NORMAL, draw_patches
from wsi_ips.drawn.node_patches import (
    METASTASIS,
    NORMAL,
    SYMMETRIES,
    NodePatch,
    read_patch,
    read_patches,
    split_patches,
    turned,
)
from wsi_ips.models.build import build_net
from wsi_ips.models.ips_net import scoring
from wsi_ips.storage.files import whole_file
from wsi_ips.streaming.patch_source import Chunk
from wsi_ips.units import PlaceKind

LEAST_TISSUE = 0.3
"""Patches with less tissue are not drawn, as on composite slides."""
TURNS = 4
"""Quarter turns in which a patch is encoded and shown."""
BATCH = 32
"""Patches that are encoded together, as in benchmarks/evidence.py."""


@dataclass(frozen=True, slots=True)
class EncodedPatches:
    """The patches of a folder, and their features in each turn."""

    patches: Sequence[NodePatch]
    features_TPC: NDArray[np.float32]

    def rows(self) -> dict[str, int]:
        """{name of a patch: its row}"""
        return {patch.name: row for row, patch in enumerate(self.patches)}


@dataclass(frozen=True, slots=True)
class DrawnBag:
    """A slide that was drawn. It is a :class:`wsi_ips.training.bags.Bag`.

    Attributes:
        bag_id: The slide.
        targets: ``{"label": 0 or 1}``; 1 is with metastasis.
        held: All patches and their features.
        row_N: The row of each of its patches, int64.
        turn_N: By how many quarters each of them is turned, int64.
        views: Quarters by which the whole slide is turned; the features of a patch are averaged over them.
    """

    bag_id: str
    targets: Mapping[str, int]
    held: EncodedPatches
    row_N: NDArray[np.int64]
    turn_N: NDArray[np.int64]
    views: tuple[int, ...] = (0,)

    def __len__(self) -> int:
        return len(self.row_N)

    def seen(self, views: Sequence[int]) -> "DrawnBag":
        """The same slide, the features of its patches averaged over these turns."""
        return replace(self, views=tuple(views))

    def features(self) -> Tensor:
        """(N, C) float32, a patch a row."""
        seen = [self.held.features_TPC[(self.turn_N + view) % TURNS, self.row_N] for view in self.views]
        return torch.from_numpy(seen[0] if len(seen) == 1 else np.mean(seen, axis=0))

    def as_features(self) -> FeatureBag:
        """The slide as benchmarks/frozen_bags.py learns from it."""
        return FeatureBag(self.bag_id, self.features(), torch.arange(len(self)), dict(self.targets))

    @contextmanager
    def open(self, streaming: StreamingConfig, device: torch.device) -> Iterator["_Source"]:
        """All patches as one chunk."""
        yield _Source(self.features().to(device))


@dataclass(frozen=True, slots=True)
class TurnedBag(DrawnBag):
    """A slide to learn from. It shows every patch in another turn each time, as ``finetune``'s head start does.

    It is a :class:`wsi_ips.training.bags.AugmentedBag`.
    """

    def as_seen(self, key: str) -> DrawnBag:
        """The slide with a turn drawn for each of its patches; the same for the same key."""
        seed = int.from_bytes(hashlib.sha256(f"{key}/turns".encode()).digest()[:8], "little")
        drawn_N = np.random.default_rng(seed).integers(TURNS, size=len(self))
        return replace(self, turn_N=(self.turn_N + drawn_N) % TURNS)


def turned_anew(bag: DrawnBag) -> TurnedBag:
    """The same slide, to learn from in turns."""
    return TurnedBag(bag.bag_id, bag.targets, bag.held, bag.row_N, bag.turn_N)


class _Source:
    """Features (N, C) as a :class:`wsi_ips.streaming.patch_source.PatchSource`; patches have no places."""

    def __init__(self, features_NC: Tensor) -> None:
        self._features_NC = features_NC

    def __iter__(self) -> Iterator[Chunk]:
        yield self.read(self.ids())

    def ids(self) -> Tensor:
        return torch.arange(len(self._features_NC))

    def read(self, ids_n: Tensor) -> Chunk:
        ids_n = ids_n.cpu()
        corners_n2 = torch.stack([ids_n, torch.zeros_like(ids_n)], dim=1)
        return Chunk(ids_n, corners_n2, self._features_NC[ids_n.to(self._features_NC.device)])

    def places(self, ids_n: Tensor, kind: PlaceKind) -> Tensor:
        raise NotImplementedError("drawn bags have no places")


def encode_patches(folder: Path, out: Path, encoder: Mapping[str, Any], *, side_px: int) -> EncodedPatches:
    """Encode every patch of a folder in each turn, and keep the features in ``out``, a float16 file for each turn.

    Files that are there are used: ``out`` belongs to this folder and this encoder.
    """
    patches = read_patches(folder)
    paths = [out / f"turn_{turn}.npy" for turn in range(TURNS)]
    for turn, path in enumerate(paths):
        if not path.exists():
            print(f"encoding {len(patches)} patches, turn {turn} …", file=sys.stderr, flush=True)
            _encode(folder, patches, turn, path, encoder, side_px=side_px)
    features = [np.load(path, allow_pickle=False).astype(np.float32) for path in paths]
    return EncodedPatches(patches, np.stack(features))


@torch.no_grad()
def _encode(
    folder: Path,
    patches: Sequence[NodePatch],
    turn: int,
    path: Path,
    encoder: Mapping[str, Any],
    *,
    side_px: int,
) -> None:
    tasks = [{"name": "label", "classes": ["normal", "tumor"]}]
    config = ModelConfig.model_validate({"encoder": EncoderConfig.model_validate(encoder), "tasks": tasks})
    net = build_net(config).encoder
    with scoring(net):
        features = []
        for start in range(0, len(patches), BATCH):
            some = patches[start : start + BATCH]
            rgb_nHWC = np.stack(
                [turned(read_patch(folder / patch.name, side_px=side_px), turn) for patch in some]
            )
            features_nC = net(torch.from_numpy(rgb_nHWC).permute(0, 3, 1, 2)).float()
            features.append(features_nC.half().numpy())
    with whole_file(path) as partial, partial.open("wb") as file:
        np.save(file, np.concatenate(features))


def draw_bags(
    held: EncodedPatches, *, counts: Mapping[str, int], patches: int, tumor: int, seed: int
) -> dict[str, list[DrawnBag]]:
    """{split: its slides}. Every second pair of slides is positive, and the stain families take turns.

    A slide depends on the seed, its split and its number alone: fewer slides are the first ones of more, and with
    more metastasis a slide shows other patches of the same subsets.

    Args:
        held: The patches.
        counts: {split: number of slides}; multiples of 4 balance labels and families.
        patches: Patches of a slide.
        tumor: Patches with metastasis on a positive slide.
        seed: What is drawn.
    """
    rows, usable = held.rows(), [patch for patch in held.patches if patch.tissue_share >= LEAST_TISSUE]
    families = sorted({patch.family for patch in usable})
    pools = split_patches(usable, fractions=FRACTIONS, seed=seed)
    bags: dict[str, list[DrawnBag]] = {split: [] for split in SPLITS}
    for number, split in enumerate(SPLITS):
        for index in range(counts[split]):
            positive = index // len(families) % 2 == 1
            pool = [patch for patch in pools[split] if patch.family == families[index % len(families)]]
            cells: list[tuple[NodePatch, int]] = []
            for label, many in ((NORMAL, patches - tumor * positive), (METASTASIS, tumor * positive)):
                rng = np.random.default_rng([seed, number, index, label == METASTASIS])
                of_class = [patch for patch in pool if patch.label == label]
                own = round(OWN_NORMAL * len(of_class)) if label == NORMAL else OWN_METASTASES
                if many > SYMMETRIES * len(of_class):
                    raise ValueError(f"{split}: {many} patches of class {label} from {len(of_class)}")
                cells += draw_patches(of_class, many, own, rng)
            bags[split].append(
                DrawnBag(
                    f"{split}_{index:03d}",
                    {"label": int(positive)},
                    held,
                    np.array([rows[patch.name] for patch, _ in cells]),
                    np.array([symmetry % TURNS for _, symmetry in cells]),
                )
            )
    return bags
