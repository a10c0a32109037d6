"""Training on stored features instead of slides: :func:`finetune_features`.

A :class:`FeatureBag` is a slide that is known only by its features.

Shape suffixes: N patches of a slide, n some of them, C feature width.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_ips.config import FinetuneConfig, StreamingConfig, TaskConfig
from wsi_ips.datasets.feature_files import FeatureFile, find_features, open_features, read_rows
from wsi_ips.datasets.manifest import Manifest, SlideRecord, Target
from wsi_ips.errors import FeaturesError, count
from wsi_ips.models.checkpoint_head import checkpoint_config
from wsi_ips.models.encoders.identity import FeaturesOrigin
from wsi_ips.progress import Progress, silent
from wsi_ips.storage.files import system_cause
from wsi_ips.storage.hdf5 import opened_hdf5
from wsi_ips.streaming.stream import Chunk
from wsi_ips.tiling.grid import rows_of
from wsi_ips.training.bags import bags_of, without_slides
from wsi_ips.training.fit import check_labels, too_many_bad, train_bags
from wsi_ips.training.learned_from import LearnedFrom
from wsi_ips.training.model_card import SlideFacts, write_card
from wsi_ips.training.processes import is_first_process
from wsi_ips.training.run_state import FinetuneReport
from wsi_ips.units import PlaceKind

logger = logging.getLogger(__name__)


class FeatureSource:
    """An open file of features in the form of a :class:`wsi_ips.streaming.patch_source.PatchSource`.

    The "pixels" of a chunk are features (n, C) float32. Memory: one chunk.
    """

    def __init__(self, file: Any, held: FeatureFile, *, batch: int, device: torch.device) -> None:
        self._file = file
        self._held = held
        self._batch = batch
        self._device = device

    def __len__(self) -> int:
        """The number of chunks."""
        return -(-len(self._held) // self._batch)

    def __iter__(self) -> Iterator[Chunk]:
        for start in range(0, len(self._held), self._batch):
            yield self._chunk(np.arange(start, min(start + self._batch, len(self._held))))

    def ids(self) -> Tensor:
        """The ids (N,) int64 of all patches, in the order of the file."""
        return torch.from_numpy(self._held.ids_N)

    def read(self, ids_n: Tensor) -> Chunk:
        """The patches with these ids. Raises ``KeyError`` for an id that the file does not have."""
        held = self._held
        return self._chunk(rows_of(ids_n.cpu().numpy(), held.ids_N, where=f"in {held.path}"))

    def places(self, ids_n: Tensor, kind: PlaceKind) -> Tensor:
        """Where these patches lie, in the form ``kind``.

        Raises:
            FeaturesError: The file does not say what ``kind`` asks for.
        """
        coords, stamp = self._held.coords, self._held.places
        if (
            kind == "um" and stamp is not None
        ):  # the same whether or not a slide is at hand: no pixel is rounded to
            rows_n = rows_of(ids_n.cpu().numpy(), self._held.ids_N, where=f"in {self._held.path}")
            return torch.from_numpy(stamp.um_centres(rows_n))
        if kind == "um" and coords is not None:
            return torch.from_numpy(coords.um_centres(ids_n.cpu().numpy()))
        if kind == "ids" and self._held.on_grid:
            return ids_n.cpu()
        wanted = "raster" if kind == "ids" else "slide"
        raise FeaturesError(
            self._held.path,
            f"does not say where its patches lie as attention.positions: {wanted} needs it",
            "set model.attention.positions=none" + ("" if coords is None and stamp is None else ", or slide"),
        )

    def _chunk(self, rows_n: NDArray[np.int64]) -> Chunk:
        features_nC = read_rows(self._file, self._held.path, rows_n)
        if features_nC.shape != (len(rows_n), self._held.width):
            raise FeaturesError(self._held.path, "changed while it was read", "start again")
        return Chunk(
            ids_n=torch.from_numpy(self._held.ids_N[rows_n]),
            l0_xy_n2=torch.from_numpy(self._held.l0_xy_N2[rows_n]),
            pixels_n3PP=torch.from_numpy(features_nC).to(self._device),
        )


@dataclass(frozen=True, slots=True)
class FeatureBag:
    """A slide of the training data that is known by its stored features. It is a
    :class:`wsi_ips.training.bags.Bag`.
    """

    record: SlideRecord
    held: FeatureFile
    targets: Mapping[str, Target]

    @property
    def bag_id(self) -> str:
        return self.record.slide_id

    def __len__(self) -> int:
        return len(self.held)

    def labelled(self, targets: Mapping[str, Target]) -> Self:
        """The same slide with other targets, such as those of its case."""
        return replace(self, targets=targets)

    @contextmanager
    def open(self, streaming: StreamingConfig, device: torch.device) -> Iterator[FeatureSource]:
        """The features in chunks of ``streaming.batch`` rows. Raises :class:`FeaturesError` if the file cannot
        be read.
        """
        with open_source(self.held, batch=streaming.batch, device=device) as source:
            yield source


@contextmanager
def open_source(held: FeatureFile, *, batch: int, device: torch.device) -> Iterator[FeatureSource]:
    """The features of a file that has been checked. The file is open only within the ``with`` block.

    Raises:
        FeaturesError: The file can no longer be opened.
    """
    try:
        file = opened_hdf5(held.path)
    except OSError as error:
        if cause := system_cause(error):
            raise FeaturesError(held.path, cause.problem, cause.fix) from None
        raise FeaturesError(held.path, f"can no longer be opened ({error})", "start again") from None
    with file:
        yield FeatureSource(file, held, batch=batch, device=device)


def feature_bag(record: SlideRecord, path: Path, *, tasks: Sequence[TaskConfig], width: int) -> FeatureBag:
    """Check the file of a slide and return its bag.

    Raises:
        FeaturesError: The file cannot be used, or its features are of another width than ``width``.
    """
    held = open_features(path)
    if held.width != width:
        raise FeaturesError(
            path,
            f"holds features of width {held.width}, not {width}",
            "set model.encoder.features to their width",
        )
    return FeatureBag(record, held, record.targets(tasks))


def of_one_origin(files: Sequence[FeatureFile], config: FinetuneConfig) -> FinetuneConfig:
    """The configuration with what the features are of: the encoder that made them (``model.encoder.features_of``)
    and the size of their patches (``features_patch_um``).

    Files that do not say it are taken as they are.

    Raises:
        FeaturesError: A file says another encoder, or patches of another size, than another file, the
            configuration, or the checkpoint ``training.start`` does.
        CheckpointError: That checkpoint cannot be read.
    """
    asked, start = FeaturesOrigin.of_config(config.model.encoder), config.training.start
    learned = FeaturesOrigin()
    if start is not None:
        learned = FeaturesOrigin.of_config(checkpoint_config(start).model.encoder)
    of_all = asked
    for held in files:
        held.check_origin(asked, whose="model.encoder asks for those")
        held.check_origin(of_all, whose="other files hold features")
        held.check_origin(learned, whose="training.start learned from features")
        of_all = of_all.filled_from(held.origin)
    model = config.model.model_copy(update={"encoder": of_all.into(config.model.encoder)})
    return config.model_copy(update={"model": model})


def _tell_of_repeated(bags: Sequence[FeatureBag]) -> None:
    """Warn of slides whose files hold some patches more than once: they count more than the others."""
    repeated = {bag.bag_id: note for bag in bags if (note := bag.held.repeated)}
    if repeated and is_first_process():
        slide_id, note = next(iter(repeated.items()))
        slides = count(len(repeated), "slide has", "slides have")
        logger.warning(
            "%s patches whose features are stored more than once, such as %s: %s", slides, slide_id, note
        )


def finetune_features(
    manifest: Manifest,
    config: FinetuneConfig,
    features: Path,
    out: Path,
    *,
    device: torch.device,
    progress: Progress = silent,
) -> FinetuneReport:
    """Train on the features in a folder, like :func:`wsi_ips.training.fit.finetune`. No slide is opened.

    Files that cannot be used are left out and reported.

    Args:
        manifest: The slides.
        config: The settings of the run; ``model.encoder.features`` is the width of the features.
        features: Folder of the feature files.
        out: Folder to write to.
        device: Where the network runs.
        progress: Shows how far it is.

    Raises:
        ManifestError: There are no training slides, or only one label.
        FeaturesError: A file is missing, or files are of different encoders or of patches of different sizes.
            This is found before training starts.
        ConfigError: ``out`` holds another run.
        TrainingError: More files than ``training.max_bad_slides`` allows are bad, or the loss is not finite.
    """
    check_labels(manifest, config)
    records = [*manifest.split("train"), *manifest.split("val")]
    width = config.model.encoder.features
    assert width is not None  # FinetuneJob makes sure of it
    paths = find_features(features, (record.slide_id for record in records))
    learned_from = LearnedFrom.now(records, config, features=features)  # before a file is read
    bags: dict[str, list[FeatureBag]] = {"train": [], "val": []}
    bad: dict[str, str] = {}
    allowed = math.ceil(config.training.max_bad_slides * len(records))
    with progress("Checking features", total=len(records)) as advance:
        for record in records:
            try:
                bag = feature_bag(record, paths[record.slide_id], tasks=config.model.tasks, width=width)
            except FeaturesError as error:
                bad[record.slide_id] = str(error)
                advance(f"{record.slide_id} is left out: {error}")
                if len(bad) > allowed:
                    raise too_many_bad(bad, error) from error
                continue
            bags[record.split].append(bag)
            advance(f"{record.slide_id}: {count(len(bag), 'patch', 'patches')}")
    bad |= without_slides(bad, records, config)
    _tell_of_repeated([bag for of_split in bags.values() for bag in of_split])
    config = of_one_origin([bag.held for of_split in bags.values() for bag in of_split], config)
    train, val = (bags_of(bags[split], manifest, config) for split in ("train", "val"))
    report = train_bags(
        train, val, config, out, device=device, progress=progress, max_bad=allowed - len(bad),
        learned_from=learned_from,
    )  # fmt: skip
    report = replace(report, bad={**bad, **report.bad})
    if is_first_process():
        facts = {
            bag.bag_id: SlideFacts(len(bag), float(bag.held.coords.slide_mpp) if bag.held.coords else None)
            for of_split in bags.values()
            for bag in of_split
        }
        write_card(out, manifest, config, report, facts)
    return report
