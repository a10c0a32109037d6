"""Prediction runs over slides of a manifest: :func:`predict_slides`; and :func:`predict_held_out`, what each
fold's model says of the slides that it has not seen.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from wsi_ips.config import FinetuneConfig, StreamingConfig, TaskConfig
from wsi_ips.datasets.feature_files import find_features
from wsi_ips.datasets.manifest import Manifest, SlideRecord
from wsi_ips.evaluation.survival_scores import PredictedSurvival, TrainingFollowUp, survival_figures
from wsi_ips.evaluation.task_scores import Scored
from wsi_ips.inference.case_answers import one_for_each_case
from wsi_ips.inference.case_predict import (
    case_jobs,
    label_cases_here,
    label_feature_cases,
    take_found,
)
from wsi_ips.inference.feature_predict import FeaturePredictor, label_features
from wsi_ips.inference.label import predict_in_turn
from wsi_ips.inference.predict import Predictor
from wsi_ips.inference.predictions import PredictionRow, write_case_answers
from wsi_ips.inference.run_folder import RunFolder, claimed
from wsi_ips.inference.run_tables import RunTables
from wsi_ips.inference.slide_work import SlideJob, SlideRecorder, SlideWork
from wsi_ips.models.checkpoint import checkpoint_config, checkpoint_sha256, load_checkpoint
from wsi_ips.models.encoders.registry import code_of
from wsi_ips.progress import Progress
from wsi_ips.storage.location import Location
from wsi_ips.streaming.device import calculating, numerics, pick_device
from wsi_ips.tiling.patches import FindPatches
from wsi_ips.training.cross_validation import Fold
from wsi_ips.training.open_settings import with_open_settings_of
from wsi_ips.training.survival import follow_up_of
from wsi_ips.units import Mpp

HELD_OUT = "held_out"
"""The run's folder, beside those of the folds."""


def predict_held_out(
    manifest: Manifest,
    config: FinetuneConfig,
    folds: Sequence[Fold],
    *,
    out: Path,
    features: Path | None,
    device: str,
    slide_mpp: Callable[[str], Mpp | None],
    find_patches: FindPatches | None = None,
    progress: Progress,
) -> list[PredictionRow]:
    """Label every held-out slide by its fold's model, into a run as ``predict`` writes it; give its rows.

    A slide that cannot be read becomes a row. A run that was killed goes on; one of other models is replaced.

    config: what the folds were trained with; ``run.json`` tells all of it. out: the folder of the
    cross-validation. features: stored features to read instead of slides. find_patches: finds the patches of
    slides, as for the folds; None: those in tissue.
    """
    described = {
        "held_out": {
            "model": "of each slide the fold's that held its case out, fold_<number of folds.csv>",
            "epoch_chosen_on": folds[0].chosen_on,
        },
    }
    models = [(fold.checkpoint, fold.held_out) for fold in folds]
    return predict_slides(
        manifest, config, models, out / HELD_OUT, checkpoint=out, described=described, features=features,
        device=device, slide_mpp=slide_mpp, find_patches=find_patches, progress=progress,
    )  # fmt: skip


def predict_slides(
    manifest: Manifest,
    config: FinetuneConfig,
    models: Sequence[tuple[Path, Sequence[str]]],
    out: Path,
    *,
    checkpoint: Path,
    features: Path | None,
    device: str,
    slide_mpp: Callable[[str], Mpp | None],
    progress: Progress,
    find_patches: FindPatches | None = None,
    described: Mapping[str, Any] | None = None,
) -> list[PredictionRow]:
    """Label slides of a manifest into a run as ``predict`` writes it; give its rows.

    A slide that cannot be read becomes a row. A run that was killed goes on; one of other models is replaced.

    Args:
        manifest: The slides.
        config: What the models were trained with; ``run.json`` tells all of it, and of what it leaves open what
            the first model's training decided.
        models: Checkpoints, and the ids of the slides that each labels.
        out: Folder of the run.
        checkpoint: What ``run.json`` names as the model, for people.
        features: Stored features to read instead of slides.
        device: Where the networks run.
        slide_mpp: Gives the resolution of a slide if the user knows it better than the file, or None.
        progress: Shows how far it is.
        find_patches: Finds the patches of a slide. None: those in tissue, tiled as the model was trained.
        described: What else ``run.json`` says of the configuration.
    """
    run = RunFolder(out)
    config = with_open_settings_of(config, checkpoint_config(models[0][0]).model)
    records = {record.slide_id: record for record in manifest.records}
    slide_ids = [slide_id for _, its in models for slide_id in its]
    paths: dict[str, Location] = {slide_id: records[slide_id].place for slide_id in slide_ids}
    if features is not None:
        paths = {**find_features(features, slide_ids)}
    hashes = [checkpoint_sha256(path) for path, _ in models]
    # Of one model its own, so that whoever asks that model again finds it to be the one.
    together = hashes[0] if len(hashes) == 1 else sha256(" ".join(hashes).encode()).hexdigest()
    deterministic = config.training.deterministic
    with (
        claimed(
            run,
            config={**config.model_dump(mode="json"), **(described or {})},
            checkpoint=checkpoint,
            sha256=together,
            code=code_of([config.model.encoder.name]),
            force=True,
            numerics=numerics(deterministic=deterministic),
        ),
        calculating(deterministic=deterministic),
    ):
        jobs = {slide_id: SlideJob(slide_id, path, slide_mpp(slide_id)) for slide_id, path in paths.items()}
        by_case = config.bag == "case"
        tables = RunTables(run, list(jobs.values()), tasks=config.model.tasks, by_case=by_case)
        case_of = {slide_id: records[slide_id].case_id for slide_id in slide_ids} if by_case else None
        for (path, its), model in zip(models, hashes, strict=True):
            reader = _Reader(
                path, model, config.streaming, device, find_patches, of_features=features is not None
            )
            reader.label([jobs[slide_id] for slide_id in its], run, tables, progress, case_of)
        tables.close()
        if by_case:
            write_case_answers(run.cases, tables.rows, tasks=config.model.tasks)
        return tables.rows


def measure(
    fold: Fold, rows: Sequence[PredictionRow], manifest: Manifest, tasks: Sequence[TaskConfig]
) -> dict[str, float]:
    """The figures of the slides that a fold held out, named for their task where there are several.

    NaN where its slides cannot tell; none where no slide could be labelled.
    """
    records = {record.slide_id: record for record in manifest.records}
    row_of = {row.slide_id: row for row in rows if row.status == "ok"}
    labelled = [(records[slide_id], row_of[slide_id]) for slide_id in fold.held_out if slide_id in row_of]
    labelled = one_for_each_case(labelled, manifest, tasks)
    figures: dict[str, float] = {}
    for task in tasks:
        known = [(record, row) for record, row in labelled if record.targets([task])]
        if task.survival is not None:
            its = _survival_figures(fold, known, manifest, task)
            figures |= {name if len(tasks) == 1 else f"{task.name}_{name}": v for name, v in its.items()}
            continue
        scored = Scored.of(
            task,
            [row.probabilities[task.name] for _, row in known],
            [record.targets([task])[task.name] for record, _ in known],
            [record.case_id for record, _ in known],
        )
        its = scored.figures() if known else {}
        figures |= {name if len(tasks) == 1 else f"{task.name}_{name}": value for name, value in its.items()}
    return figures


def _survival_figures(
    fold: Fold, known: Sequence[tuple[SlideRecord, PredictionRow]], manifest: Manifest, task: TaskConfig
) -> dict[str, float]:
    """Of the patients that a fold held out, with the censoring of those that it did not."""
    away = set(fold.held_out)
    rest = [record for record in manifest.records if record.slide_id not in away and record.split != "test"]
    targets = {record.case_id: record.targets([task]) for record in rest if record.targets([task])}
    if not known or not targets:
        return {}
    predicted = PredictedSurvival.of(
        task,
        [row.probabilities[task.name] for _, row in known],
        [record.targets([task])[task.name] for record, _ in known],
        [record.case_id for record, _ in known],
    )
    return survival_figures(predicted, TrainingFollowUp.of(follow_up_of(task, list(targets.values()))))


@dataclass(frozen=True, slots=True)
class _Reader:
    """A fold's model, and how it reads the slides that the fold held out."""

    path: Path
    sha256: str
    streaming: StreamingConfig
    device: str
    find_patches: FindPatches | None
    of_features: bool

    def label(
        self,
        jobs: Sequence[SlideJob],
        run: RunFolder,
        tables: RunTables,
        progress: Progress,
        case_of: Mapping[str, str] | None,
    ) -> None:
        """Label slides, or with ``case_of`` the cases that they make."""
        net, pipeline = load_checkpoint(self.path)
        device = pick_device(self.device)
        if self.of_features:
            reader = FeaturePredictor(net, pipeline, self.streaming, device, checkpoint=self.sha256)
            if case_of is None:
                label_features(jobs, reader, run, tables, progress=progress)
            else:
                label_feature_cases(case_jobs(jobs, case_of), reader, run, tables, progress=progress)
            return
        how: Any = {"streaming": self.streaming, "checkpoint": self.sha256, "find_patches": self.find_patches}
        predictor = Predictor(net, pipeline, device=device, **how)
        recorder = SlideRecorder(run, **how)
        if case_of is not None:
            cases = [case for case in case_jobs(jobs, case_of) if not take_found(case, recorder, tables)]
            label_cases_here(cases, SlideWork(predictor, recorder), tables, progress=progress)
            return
        left = tables.take_found(jobs, recorder)
        predict_in_turn(left, SlideWork(predictor, recorder), tables, progress=progress)
