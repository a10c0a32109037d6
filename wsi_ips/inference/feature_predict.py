"""Labelling slides from their stored features, without opening a slide: :func:`predict_features`."""

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from wsi_ips import timeline
from wsi_ips.config import PipelineConfig, StreamingConfig
from wsi_ips.datasets.feature_files import FeatureFile, open_features
from wsi_ips.errors import ConfigError, FeaturesError
from wsi_ips.evaluation.conformal import Calibration
from wsi_ips.inference.checkpoints import mean_and_spread
from wsi_ips.inference.predict import SlideLost, SlideOfCase, slides_of_case
from wsi_ips.inference.predictions import PredictionRow
from wsi_ips.inference.results import SlideResult, named_probabilities, write_result
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.inference.run_tables import RunTables
from wsi_ips.inference.slide_work import Done, SlideJob, SlideRecorder
from wsi_ips.inference.telemetry import SlideTelemetry
from wsi_ips.models.encoders.identity import FeaturesOrigin
from wsi_ips.models.ips_net import BagNet, IPSNet
from wsi_ips.progress import Progress, silent
from wsi_ips.selection.reading import read_bag
from wsi_ips.selection.score_store import Normalisers
from wsi_ips.selection.slide_reading import SlideReading, check_explained, kept_gradients
from wsi_ips.slides.base import SlideInfo
from wsi_ips.slides.registry import open_slide
from wsi_ips.storage.hdf5 import put_about, whole_hdf5
from wsi_ips.streaming.patch_source import CaseSource
from wsi_ips.tiling.grid import rows_of
from wsi_ips.tiling.patches import joined_notes, note_of_patches
from wsi_ips.training.feature_bags import open_source


@dataclass(frozen=True, slots=True)
class FeaturePredictor:
    """A trained network that reads features, with the settings that it was trained with, on one device.

    Attributes:
        net: The network.
        pipeline: The configuration that it was trained with.
        streaming: How many patches are read at a time.
        device: Where the network runs.
        checkpoint: Its SHA-256, which is written into results. With ``others``, that of all networks together.
        others: Further networks of the same tasks and settings. The result is then the mean of all
            (:func:`wsi_ips.inference.checkpoints.mean_result`).
        slides: The slides that the features are of, by id, where they are at hand. Only their size and resolution
            are read: STAMP's features do not say in which pixels their patches lie.
        gradients: Whether results also hold gradient times input of the patches, by the first network.
    """

    net: BagNet
    pipeline: PipelineConfig
    streaming: StreamingConfig
    device: torch.device
    checkpoint: str = ""
    others: tuple[BagNet, ...] = ()
    gradients: bool = False
    slides: Mapping[str, SlideJob] | None = None

    def __post_init__(self) -> None:
        """Move the networks to the device.

        Raises :class:`ConfigError` for a network that reads pixels, and for gradients that its selector cannot
        give.
        """
        if self.gradients:
            check_explained(self.pipeline)
        if self.pipeline.model.encoder.features is None:
            raise ConfigError("this checkpoint reads the pixels of slides, not features: give it slides")
        for net in (self.net, *self.others):
            net.to(self.device).eval()

    def predict(self, slide_id: str, path: Path, run: RunFolder) -> tuple[Done, bool]:
        """Label a slide and write its attention.

        If the file does not say how large its patches are (CLAM's do not), or in which pixels they lie (STAMP's do
        not, and no slide tells), the HDF5 file with the attention holds only the corners, and no overlay can be
        drawn from it.

        Args:
            slide_id: Name of the slide.
            path: File of its features.
            run: Where the attention is written.

        Returns:
            What became of the slide, and whether it is known which pixels its patches cover.

        Raises:
            FeaturesError: The file cannot be used.
        """
        started = time.perf_counter()
        held = self.checked(slide_id, path)
        both = [self._read(net, held) for net in (self.net, *self.others)]
        readings, gradients = [reading for reading, _ in both], both[0][1]
        tasks = self.pipeline.model.tasks
        told = [named_probabilities(reading, tasks) for reading in readings]
        probabilities, spread = mean_and_spread(told) if self.others else (told[0], {})
        row = PredictionRow(
            slide_id=slide_id,
            status="ok",
            probabilities=probabilities,
            n_patches=len(held),
            spread=spread,
        )
        note = self._write(run.attention(slide_id), row, held, readings[0], gradients=gradients)
        patches = len(held) * len(readings)
        telemetry = SlideTelemetry(patches=patches, seconds=time.perf_counter() - started)
        return Done(row, telemetry, note=note), held.coords is not None

    def checked(self, slide_id: str, path: Path) -> FeatureFile:
        """The features of a slide, after a check that this network reads such.

        Raises:
            FeaturesError: The file cannot be used, or its slide is not among those given.
            SlideReadError: Its slide cannot be opened.
        """
        held = open_features(path, info=self._info(slide_id, path))
        self._check_kind(held)
        return held

    def check_first(self, paths: Iterable[Path]) -> None:
        """Check that the first file that can be read holds features of the kind that this network reads.

        A folder of another encoder's features is found so before anything is written.

        Raises:
            FeaturesError: It holds others.
        """
        for path in paths:
            try:
                held = open_features(path)
            except FeaturesError:  # a slide that fails by itself
                continue
            self._check_kind(held)
            return

    def _check_kind(self, held: FeatureFile) -> None:
        path, width = held.path, self.pipeline.model.encoder.features
        if held.width != width:
            raise FeaturesError(
                path,
                f"holds features of width {held.width}, the checkpoint reads {width}",
                "give it features of the encoder that it was trained with",
            )
        learned = FeaturesOrigin.of_config(self.pipeline.model.encoder)
        held.check_origin(learned, whose="the checkpoint learned from features")

    def _info(self, slide_id: str, path: Path) -> SlideInfo | None:
        if self.slides is None:
            return None
        if (slide := self.slides.get(slide_id)) is None:
            raise FeaturesError(
                path, f"is of {slide_id}, which is not among the slides given", "add the slide, or give none"
            )
        with open_slide(slide.path) as reader:
            return reader.info if slide.mpp is None else reader.info.with_mpp(slide.mpp)

    def predict_case(
        self, case_id: str, slide_ids: Sequence[str], files: Sequence[FeatureFile], run: RunFolder
    ) -> list[Done]:
        """Label a case whose slides are one bag, and write the attention of each slide.

        Args:
            case_id: Name of the case.
            slide_ids: Names of its slides, in order.
            files: The features of each slide.
            run: Where the attention is written.

        Raises:
            SlideLost: A file can no longer be read; it says which, and why.
            NotFinite: The network computed NaN or infinity.
        """
        started = time.perf_counter()
        tasks = self.pipeline.model.tasks
        told: list[dict[str, dict[str, float]]] = []
        slides: list[SlideOfCase] = []
        for net in (self.net, *self.others):
            with ExitStack() as opened:
                source = self._opened(files, opened)
                try:
                    reading = read_bag(net, source, self.pipeline.selection)
                except Exception as error:
                    if source.lost is None:
                        raise
                    raise SlideLost(source.lost, error) from error
                told.append(named_probabilities(reading, tasks))
                slides = slides or slides_of_case(reading, source, case_id=case_id, slide_ids=slide_ids)
        probabilities, spread = mean_and_spread(told) if self.others else (told[0], {})
        seconds = (time.perf_counter() - started) / sum(map(len, files))
        done = []
        for slide_id, held, slide in zip(slide_ids, files, slides, strict=True):
            row = PredictionRow(
                slide_id=slide_id,
                status="ok",
                probabilities=probabilities,
                n_patches=len(held),
                spread=spread,
                case=slide.part,
            )
            note = self._write(run.attention(slide_id), row, held, slide.reading, slide.normalisers)
            patches = len(held) * len(told)
            done.append(Done(row, SlideTelemetry(patches=patches, seconds=seconds * len(held)), note=note))
        return done

    def _opened(self, files: Sequence[FeatureFile], opened: ExitStack) -> CaseSource:
        sources = []
        for place, held in enumerate(files):
            try:
                source = open_source(held, batch=self.streaming.batch, device=self.device)
                sources.append(opened.enter_context(source))
            except FeaturesError as error:
                raise SlideLost(place, error) from error
        return CaseSource(sources)

    def _write(
        self,
        path: Path,
        row: PredictionRow,
        held: FeatureFile,
        reading: SlideReading,
        normalisers: Normalisers | None = None,
        gradients: Mapping[str, Tensor] | None = None,
    ) -> str:
        """Write the attention of a slide, and return the note on its resolution and on patches that are there more
        than once."""
        if held.coords is None:
            _write_corners_only(path, row, held, reading, self.checkpoint, normalisers)
            return held.repeated
        coords = replace(held.coords, slide_id=row.slide_id).only(reading.store.ids().numpy())
        result = SlideResult.of(
            reading,
            coords,
            tasks=self.pipeline.model.tasks,
            slide_path=str(held.path),
            checkpoint=self.checkpoint,
            normalisers=normalisers,
            case=row.case,
            gradients=gradients,
        )
        write_result(path, replace(result, probabilities=row.probabilities, spread=row.spread))
        return joined_notes(note_of_patches(coords), held.repeated)

    def _read(self, net: BagNet, held: FeatureFile) -> tuple[SlideReading, dict[str, Tensor] | None]:
        """What a network read, and of the first network gradient times input if it is asked for."""
        with open_source(held, batch=self.streaming.batch, device=self.device) as source:
            reading = read_bag(net, source, self.pipeline.selection)
            if not self.gradients or net is not self.net:
                return reading, None
            return reading, kept_gradients(cast(IPSNet, net), source, reading)


def predict_features(
    paths: Mapping[str, Path],
    predictor: FeaturePredictor,
    run: RunFolder,
    *,
    on_error: Literal["report", "stop"] = "report",
    calibration: Calibration | None = None,
    progress: Progress = silent,
) -> tuple[RunTables, list[str]]:
    """Label every slide and write the tables of the run.

    A bad file becomes a row with its reason, or with ``stop`` ends the run. This is seconds of work, so a run
    that is started again does all of it. The tables are written after every slide, so that a run that is killed
    leaves complete files.

    Args:
        paths: ``{slide_id: features file}``.
        predictor: The network.
        run: The folder to write to.
        on_error: ``report`` or ``stop``.
        calibration: What is done to the probabilities before they are written.
        progress: Shows how far it is.

    Returns:
        The tables, and the ids of the slides of which it is not known which pixels the patches cover.
    """
    jobs = [SlideJob(slide_id, path) for slide_id, path in paths.items()]
    tables = RunTables(
        run,
        jobs,
        tasks=predictor.pipeline.model.tasks,
        spread=bool(predictor.others),
        calibration=calibration,
    )
    unplaced = label_features(jobs, predictor, run, tables, on_error=on_error, progress=progress)
    tables.close()
    return tables, unplaced


def label_features(
    jobs: Sequence[SlideJob],
    predictor: FeaturePredictor,
    run: RunFolder,
    tables: RunTables,
    *,
    on_error: Literal["report", "stop"] = "report",
    progress: Progress = silent,
) -> list[str]:
    """Label slides from their features as part of a run.

    Args:
        jobs: The slides. ``path`` is the features file.
        predictor: The network.
        run: The folder to write to.
        tables: The tables of the run, which are kept up to date.
        on_error: ``report`` makes a row of a bad file and goes on; ``stop`` raises its error.
        progress: Shows how far it is.

    Returns:
        The ids of the slides of which it is not known which pixels the patches cover.
    """
    unplaced: list[str] = []
    recorder = SlideRecorder(run, checkpoint=predictor.checkpoint)
    with progress("Predicting", total=len(jobs)) as advance:
        for job in jobs:
            tables.begun(job.slide_id)
            try:
                with timeline.slide(job.slide_id):
                    done, placed = predictor.predict(job.slide_id, Path(job.path), run)
                if not placed:
                    unplaced.append(job.slide_id)
            except Exception as error:  # noqa: BLE001 - whatever a file holds is its slide's failure
                done = recorder.failed(job, error)
            tables.add(done)
            if done.error is not None and on_error == "stop":
                raise done.error
            advance(f"{job.slide_id}: {done.row.status}")
    return unplaced


def _write_corners_only(
    path: Path,
    row: PredictionRow,
    held: FeatureFile,
    reading: SlideReading,
    checkpoint: str,
    normalisers: Normalisers | None,
) -> None:
    """Write what is known of a slide whose patches have no size: the datasets of a result, coords without
    attributes. Of STAMP's features the corners are known in µm: they are ``coords_um``.

    The file has no ``schema_version``, because :func:`wsi_ips.inference.results.read_result` cannot read it.
    """
    with whole_hdf5(path) as file:
        about: dict[str, Any] = {
            "slide_id": row.slide_id,
            "slide_path": str(held.path),
            "probabilities": {task: dict(classes) for task, classes in row.probabilities.items()},
            "checkpoint": checkpoint,
        }
        if row.spread:
            about["spread"] = {task: dict(classes) for task, classes in row.spread.items()}
        if row.case is not None:
            about["case"] = row.case.to_json()
        put_about(file, about)
        rows_N = rows_of(reading.store.ids().numpy(), held.ids_N, where=f"in {held.path}")
        if held.places is None:
            file["coords"] = held.l0_xy_N2[rows_N]
        else:
            file["coords_um"] = held.places.um_xy_N2[rows_N]
            file["coords_um"].attrs["tile_size_um"] = held.places.um_patch
        file["logits"] = reading.store.logits().numpy()
        file["attention"] = reading.store.attention(normalisers).numpy()
        file["kept_ids"] = reading.kept.ids_M.cpu().numpy()
        file["kept_scores"] = reading.kept.scores_M.cpu().numpy()
