"""What each fold's model says of the slides that it has not seen: one prediction run over all of them."""

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
from wsi_ips.inference.in_turn import predict_in_turn
from wsi_ips.inference.predict import Predictor
from wsi_ips.inference.predictions import PredictionRow, write_case_answers
from wsi_ips.inference.run_folder import RunFolder, claimed
from wsi_ips.inference.run_tables import RunTables
from wsi_ips.inference.slide_work import SlideJob, SlideRecorder, SlideWork
from wsi_ips.models.checkpoint import checkpoint_sha256, load_checkpoint
from wsi_ips.progress import Progress
from wsi_ips.streaming.device import calculating, numerics, pick_device
from wsi_ips.training.cross_validation import Fold
from wsi_ips.training.survival_start import follow_up_of
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
    progress: Progress,
) -> list[PredictionRow]:
    """Label every held-out slide by its fold's model, into a run as ``predict`` writes it; give its rows.

    A slide that cannot be read becomes a row. A run that was killed goes on; one of other models is replaced.

    config: what the folds were trained with; ``run.json`` tells all of it. out: the folder of the
    cross-validation. features: stored features to read instead of slides.
    """
    run = RunFolder(out / HELD_OUT)
    records = {record.slide_id: record for record in manifest.records}
    held_out = [slide_id for fold in folds for slide_id in fold.held_out]
    paths = {slide_id: records[slide_id].path.absolute() for slide_id in held_out}
    if features is not None:
        paths = find_features(features, held_out)
    hashes = [checkpoint_sha256(fold.checkpoint) for fold in folds]
    together = sha256(" ".join(hashes).encode()).hexdigest()
    deterministic = config.training.deterministic
    with (
        claimed(
            run,
            config=_described(config, folds),
            checkpoint=out,
            sha256=together,
            force=True,
            numerics=numerics(deterministic=deterministic),
        ),
        calculating(deterministic=deterministic),
    ):
        jobs = {slide_id: SlideJob(slide_id, path, slide_mpp(slide_id)) for slide_id, path in paths.items()}
        by_case = config.bag == "case"
        tables = RunTables(run, list(jobs.values()), tasks=config.model.tasks, by_case=by_case)
        case_of = {slide_id: records[slide_id].case_id for slide_id in held_out} if by_case else None
        for fold, checkpoint in zip(folds, hashes, strict=True):
            reader = _Reader(
                fold.checkpoint, checkpoint, config.streaming, device, of_features=features is not None
            )
            reader.label([jobs[slide_id] for slide_id in fold.held_out], run, tables, progress, case_of)
        tables.close()
        if by_case:
            write_case_answers(run.cases, tables.rows, tasks=config.model.tasks)
        return tables.rows


def _described(config: FinetuneConfig, folds: Sequence[Fold]) -> dict[str, Any]:
    """The settings that ``run.json`` holds."""
    return {
        **config.model_dump(mode="json"),
        "held_out": {
            "model": "of each slide the fold's that held its case out, fold_<number of folds.csv>",
            "epoch_chosen_on": folds[0].chosen_on,
        },
    }


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
        predictor = Predictor(net, pipeline, streaming=self.streaming, device=device, checkpoint=self.sha256)
        recorder = SlideRecorder(run, checkpoint=self.sha256, streaming=self.streaming)
        if case_of is not None:
            cases = [case for case in case_jobs(jobs, case_of) if not take_found(case, recorder, tables)]
            label_cases_here(cases, SlideWork(predictor, recorder), tables, progress=progress)
            return
        left = tables.take_found(jobs, recorder)
        predict_in_turn(left, SlideWork(predictor, recorder), tables, progress=progress)
