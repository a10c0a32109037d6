"""The head start: what follows the encoder learns first, on features that are computed once.

If end-to-end learning begins with a head that knows nothing, it selects patches at random and teaches the
encoder on them, and from many starts it never finds what decides the label. Frozen features of all patches cost
a few passes over the slides. On them a head learns in seconds, can be tried from several starts, and can read
all patches of a slide at first (:attr:`wsi_ips.config.TrainingConfig.all_patches_first`).

:func:`encoded` turns bags into bags of features: the first time that one is opened, it is encoded and stored.
:func:`best_start` trains from several random starts and keeps the one that validation prefers. Where the labels
say little of where to look, the random initial weights decide whether attention finds it, and how many starts
learned says how far the result can be trusted.

Shape suffixes: N patches of a bag, n some of them, V views of a patch, C feature width.
"""

import csv
import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor, nn

from wsi_ips.config import AugmentConfig, FinetuneConfig, StreamingConfig, settings_fingerprint
from wsi_ips.datasets.manifest import Target
from wsi_ips.errors import NotFinite
from wsi_ips.models.ips_net import BagNet, scoring
from wsi_ips.storage.files import whole_file, whole_table
from wsi_ips.streaming.patch_source import Chunk, PatchSource
from wsi_ips.tiling.grid import rows_of
from wsi_ips.timeline import staged
from wsi_ips.training.augment import augment
from wsi_ips.training.bags import Bag
from wsi_ips.training.processes import is_first_process
from wsi_ips.training.run_state import (
    BEST_NAME,
    HEAD_START,
    LAST_NAME,
    RUN_NAME,
    STARTS,
    FinetuneReport,
    merit,
)
from wsi_ips.units import PlaceKind

ROWS_AT_ONCE = 4096
"""Patches of a chunk of stored features."""
TABLE = "starts.csv"
"""Table that says how each start ended."""
SEED_STEP = 10_007
"""Difference between the seeds of two starts. It is large because users number their own seeds 0, 1, 2."""


@dataclass(frozen=True, slots=True)
class Views:
    """Looks of a patch that are encoded beside the patch itself, so that what learns from features sees augmented
    patches too. An encoder's features change with a patch's orientation; a head that has seen one look of each
    patch learns the looks by heart.

    count: how many, the patch itself among them. augment, flips: as of
    :func:`wsi_ips.training.augment.augment`. seed: what the looks are drawn from.
    """

    count: int
    augment: AugmentConfig
    flips: bool
    seed: int

    def look(self, pixels: Tensor, ids_n: Tensor, *, bag_id: str, view: int) -> Tensor:
        """The patches as they look in a view; view 0 is the patches themselves."""
        if view == 0:
            return pixels
        key = f"{self.seed}/view {view}/{bag_id}"
        return augment(pixels, ids_n, key=key, config=self.augment, flips=self.flips)

    def drawn(self, patches: int, *, key: str) -> NDArray[np.int64]:
        """A view for each patch of a bag, (N,); the same for the same key."""
        seed = int.from_bytes(hashlib.sha256(f"{key}/views".encode()).digest()[:8], "little")
        return np.random.default_rng(seed).integers(self.count, size=patches)


def head_start_config(config: FinetuneConfig, *, width: int) -> FinetuneConfig:
    """The configuration of a head start: the same network and tasks on stored features ``width`` wide."""
    start = config.training.head_start
    selector = config.selection.selector if config.selection.selector in ("all", "random") else "ips"
    encoder = config.model.encoder.on_features(width)
    training = config.training.model_copy(
        update={
            "epochs": config.head_start_epochs,
            "warmup_epochs": 0.5,
            "lr": start.lr,
            "encoder_lr": None,
            "layer_decay": None,
            "encoder_checkpointing": False,
            "ema": None,
            "weight_decay": start.weight_decay,
            "slides_per_step": start.slides_per_step,
            "precision": "32",
            "start": None,
            "select_every": 1,
            "patience": None,
            # Epochs differ less than what a few validation slides say of them.
            "monitor": "last",
            "schedule": "cosine",
            "tensorboard": False,
        }
    )
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"encoder": encoder}),
            "selection": config.selection.model_copy(update={"selector": selector, "turns": 1}),
            "training": training,
        }
    )


@dataclass(frozen=True, slots=True)
class EncodedBag:
    """Another bag, seen through an encoder. It is a :class:`wsi_ips.training.bags.AugmentedBag`.

    Attributes:
        bag: The bag that the patches come from.
        encoder: Maps pixels (n, ...) to features (n, C), on the device that bags are opened on. It is used in
            eval mode and without gradients.
        folder: Where the features of this encoder are stored, float16, one file for each bag.
        place_kind: In which form the network wants to be told of places. None: no places are stored.
        views: Augmented views of the patches that are encoded too. None: only the patches themselves.
        shown: The key that views are drawn by. None shows the patches themselves.
    """

    bag: Bag
    encoder: nn.Module
    folder: Path
    place_kind: PlaceKind | None
    views: Views | None = None
    shown: str | None = None

    @property
    def bag_id(self) -> str:
        return self.bag.bag_id

    @property
    def targets(self) -> Mapping[str, Target]:
        return self.bag.targets

    def __len__(self) -> int:
        return len(self.bag)

    def as_seen(self, key: str) -> Self:
        """The bag with a view drawn for each of its patches."""
        return self if self.views is None else replace(self, shown=key)

    @contextmanager
    def open(self, streaming: StreamingConfig, device: torch.device) -> Iterator["_Encoded"]:
        """The features in chunks of 4096 rows. Memory: one chunk.

        Raises the error of the bag if it cannot be read, and :class:`NotFinite` for features that are NaN or
        infinite.
        """
        if not self._is_stored():
            self._encode(streaming, device)
        features = np.load(self._features, mmap_mode="r", allow_pickle=False)
        features_NVC = features.reshape(len(features), -1, features.shape[-1])
        view_N = np.zeros(len(features), np.int64)
        if self.views is not None and self.shown is not None:
            view_N = self.views.drawn(len(features), key=self.shown)
        with np.load(self._about, allow_pickle=False) as held:
            places_N = None if self.place_kind is None else held["places"]
            yield _Encoded(held["ids"], held["corners"], features_NVC, view_N, places_N, device)

    def _is_stored(self) -> bool:
        """Whether the features are stored, for as many patches as the bag has now.

        An earlier run may have known another resolution of the slide, or another slide of this name.
        """
        if not self._about.exists():
            return False
        with np.load(self._about, allow_pickle=False) as held:
            return len(held["ids"]) == len(self)

    @torch.no_grad()
    def _encode(self, streaming: StreamingConfig, device: torch.device) -> None:
        ids, corners, row = [], [], 0
        with self.bag.open(streaming, device) as source:
            with whole_file(self._features) as partial, scoring(self.encoder):
                features_NVC: NDArray[np.float16] | None = None
                for chunk in source:
                    features_nVC = self._encoded_views(chunk)
                    if features_NVC is None:
                        shape = (len(self), *features_nVC.shape[1:])
                        features_NVC = open_memmap(partial, mode="w+", dtype=np.float16, shape=shape)
                    features_NVC[row : row + len(chunk)] = features_nVC.half().cpu().numpy()
                    row += len(chunk)
                    ids.append(chunk.ids_n.cpu())
                    corners.append(chunk.l0_xy_n2.cpu())
            ids_N, kind = torch.cat(ids), self.place_kind
            places_N = ids_N if kind is None else source.places(ids_N, kind).cpu()
        # This file is written last, so where it exists the other one is complete.
        with whole_file(self._about) as partial, partial.open("wb") as file:
            np.savez(file, ids=ids_N.numpy(), corners=torch.cat(corners).numpy(), places=places_N.numpy())

    @staged("encode")
    def _encoded_views(self, chunk: Chunk) -> Tensor:
        """(n, V, C) float. Raises :class:`NotFinite`."""
        if self.views is None:
            features_nVC: Tensor = self.encoder(chunk.pixels_n3PP).float()[:, None]
        else:
            pixels, ids_n = chunk.pixels_n3PP, chunk.ids_n
            looks = (
                self.views.look(pixels, ids_n, bag_id=self.bag_id, view=v) for v in range(self.views.count)
            )
            features_nVC = torch.stack([self.encoder(look).float() for look in looks], dim=1)
        if not torch.isfinite(features_nVC).all():
            raise NotFinite("features")
        return features_nVC

    @property
    def _features(self) -> Path:
        """File of the features. Its name is a hash, because the id of a bag may be any text."""
        return self.folder / f"{hashlib.sha256(self.bag_id.encode()).hexdigest()[:24]}.npy"

    @property
    def _about(self) -> Path:
        """File that says which patches these are, and where they lie."""
        return self._features.with_suffix(".npz")


class _Encoded(PatchSource):
    """An open file of features. The "pixels" of a chunk are features (n, C) float32, each patch in the view that
    ``view_N`` names.
    """

    def __init__(
        self,
        ids_N: NDArray[np.int64],
        corners_N2: NDArray[np.int64],
        features_NVC: NDArray[np.float16],
        view_N: NDArray[np.int64],
        places_N: NDArray[np.generic] | None,
        device: torch.device,
    ) -> None:
        self._ids_N, self._corners_N2 = ids_N, corners_N2
        self._features_NVC, self._view_N = features_NVC, view_N
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
        features_nC = self._features_NVC[rows_n, self._view_N[rows_n]]
        return Chunk(
            ids_n=torch.from_numpy(self._ids_N[rows_n]),
            l0_xy_n2=torch.from_numpy(self._corners_N2[rows_n]),
            pixels_n3PP=torch.from_numpy(features_nC.astype(np.float32)).to(self._device),
        )


def encoded(
    bags: Sequence[Bag],
    net: BagNet,
    config: FinetuneConfig,
    out: Path,
    *,
    device: torch.device,
    views: Views | None = None,
    content: str = "",
) -> list[EncodedBag]:
    """The bags with features of the encoder of ``net`` in place of pixels.

    The encoder is moved to ``device``. A bag is encoded when it is first opened.

    Args:
        bags: The bags.
        net: The network whose encoder is used.
        config: The settings of the run.
        out: Folder of the run. Features are stored below ``out/head_start/features``.
        device: Where the encoder runs.
        views: What training bags show of their patches beside the patches themselves, see :func:`views_of`.
        content: A text that is another one for other content of the files that the bags are read from, if that is
            known. Features of other content are not taken for those of this.
    """
    encoder = net.encoder.to(device)
    # Other patches or another encoder get another folder. The threads and the cache change no feature.
    streaming = config.streaming.model_copy(update={"threads": 1, "disk_cache": None})
    settings = [config.tiling, config.model.encoder, streaming]
    names = [settings_fingerprint(each) for each in settings]
    if views is not None:
        names.append(f"{views.count}-{views.seed}-{int(views.flips)}-{settings_fingerprint(views.augment)}")
    if config.training.precision != "32":
        names.append(config.training.precision)
    if content:
        names.append(content)
    folder = out / HEAD_START / "features" / "-".join(names)
    return [EncodedBag(bag, encoder, folder, net.place_kind, views) for bag in bags]


def views_of(config: FinetuneConfig) -> Views | None:
    """The looks of training patches that a head start learns from; None where all of them would be the same."""
    training, nothing = config.training, AugmentConfig(per=config.training.augment.per)
    if training.head_start.views == 1 or not (training.flips or training.augment != nothing):
        return None
    return Views(training.head_start.views, training.augment, training.flips, training.seed)


def last_row(out: Path) -> dict[str, float] | None:
    """The figures of the last epoch of the head start of a run in ``out``; None where they cannot be read."""
    try:
        with (out / HEAD_START / "history.csv").open(newline="", encoding="utf-8") as file:
            *_, row = csv.DictReader(file)
        return {name: float(value) for name, value in row.items() if value}
    except (OSError, ValueError, TypeError, csv.Error):
        return None


def forget_features(out: Path) -> None:
    """Delete the features that :func:`encoded` stored."""
    shutil.rmtree(out / HEAD_START / "features", ignore_errors=True)


def best_start(
    config: FinetuneConfig, out: Path, train: Callable[[FinetuneConfig, Path], FinetuneReport]
) -> FinetuneReport:
    """Train from several random starts, and put the files of the best one into ``out``.

    The best start is the one whose best epoch ``training.monitor`` prefers, the first among equals. If that is
    the last epoch, it is the start that tells the validation slides apart best then. ``starts.csv`` gets a line
    for each start.

    Args:
        config: The settings; ``training.restarts`` is the number of starts.
        out: Folder to write to. Each start is a run below ``out/starts``.
        train: Trains one start into a folder, or returns how it ended if it has been trained already.
    """
    reports = []
    for number in range(config.training.restarts):
        training = config.training.model_copy(
            update={"restarts": 1, "seed": config.training.seed + number * SEED_STEP}
        )
        reports.append(train(config.model_copy(update={"training": training}), out / STARTS / str(number)))
    # The last epochs of all beginnings are equally late.
    monitor = "refined_loss" if config.training.monitor == "last" else config.training.monitor
    best = max(range(len(reports)), key=lambda number: merit(best_row(reports[number]), monitor))
    if is_first_process():
        for name in (BEST_NAME, LAST_NAME, "history.csv", RUN_NAME):
            with whole_file(out / name) as partial:
                shutil.copyfile(out / STARTS / str(best) / name, partial)
        _write_table(out / TABLE, reports, chosen=best)
    return FinetuneReport(
        out / BEST_NAME,
        reports[best].best_epoch,
        reports[best].history,
        {bag_id: why for report in reports for bag_id, why in report.bad.items()},
        reports[best].doubts,
    )


def best_row(report: FinetuneReport) -> Mapping[str, float]:
    """The line of the best epoch in the history."""
    return report.history[report.best_epoch]


def _write_table(path: Path, reports: list[FinetuneReport], *, chosen: int) -> None:
    names = list(dict.fromkeys(name for report in reports for name in best_row(report)))
    with whole_table(path) as writer:
        writer.writerow(["start", "chosen", *names])
        for number, report in enumerate(reports):
            row = best_row(report)
            figures = [f"{row[name]:.6g}" if name in row else "" for name in names]
            writer.writerow([number, "yes" if number == chosen else "no", *figures])
