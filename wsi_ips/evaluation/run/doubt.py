"""Whether a calibrated run's sets and probabilities keep what its calibration promised."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydantic import ValidationError

from wsi_ips.config import TaskConfig
from wsi_ips.datasets.manifest import Manifest
from wsi_ips.errors import ResultsError, one_line
from wsi_ips.evaluation.bootstrap import Interval
from wsi_ips.evaluation.conformal import (
    Calibration,
    SetFigures,
    negative_log_likelihood,
    questions,
    score_sets,
)
from wsi_ips.evaluation.run.config import EvaluationConfig
from wsi_ips.evaluation.run.joined import Joined
from wsi_ips.evaluation.task_scores import Scored
from wsi_ips.inference.predictions import PredictionRow
from wsi_ips.inference.run_folder import RunFolder, description_of


@dataclass(frozen=True, slots=True)
class BeforeAfter:
    """A figure of the network's own probabilities, and of the calibrated ones."""

    before: float
    after: float


@dataclass(frozen=True, slots=True, eq=False)
class DoubtReport:
    """One task's. left_out: slides that it was calibrated on, or of the same cases. sets: {question: figures}, the
    task's only question under the task's name; empty, and nll and ece None, where all slides are left out."""

    calibration: Calibration
    temperature: float
    left_out: tuple[str, ...]
    sets: Mapping[str, SetFigures]
    nll: BeforeAfter | None
    ece: BeforeAfter | None

    @property
    def complaint(self) -> str:
        """What a reader has to know; empty where there is nothing."""
        if not self.left_out:
            return ""
        slides = f"{len(self.left_out)} slides were calibrated on, or are of the same patients"
        return (
            f"{slides}: they are left out of coverage" if self.sets else f"{slides}: coverage has no others"
        )


def calibration_of_run(run: RunFolder, rows: Sequence[PredictionRow]) -> Calibration | None:
    """The calibration that the run was made with; None of a run without.

    Raises :class:`ResultsError` for one that cannot be read, or that the table of predictions is not of.
    """
    held = description_of(run).get("calibration")
    try:
        calibration = None if held is None else Calibration.model_validate(held)
    except ValidationError as error:
        reason = one_line(error, most=200)
        raise ResultsError(run.description, f"holds no calibration ({reason})", "predict again") from None
    told = {name for row in rows for name in row.sets}
    labelled = any(row.status == "ok" for row in rows)
    if labelled and told != set(calibration.tasks if calibration else ()):
        raise ResultsError(
            run.predictions, "was calibrated for other tasks than run.json says", "predict again"
        )
    return calibration


def unseen(joined: Joined, calibration: Calibration, manifest: Manifest) -> Joined:
    """Without the slides that the calibration comes from, and others of their cases."""
    seen = set(calibration.slides)
    cases = {record.case_id for record in manifest.records if record.slide_id in seen}
    pairs = tuple(
        (record, row)
        for record, row in joined.pairs
        if record.slide_id not in seen and record.case_id not in cases
    )
    return replace(joined, pairs=pairs)


def report_doubt(
    task: TaskConfig, joined: Joined, calibration: Calibration, manifest: Manifest, config: EvaluationConfig
) -> DoubtReport | None:
    """Score one task's sets, and its probabilities with and without calibration; None of a task that has none.

    ``joined``: the slides that have a label for the task.
    """
    its = calibration.tasks.get(task.name)
    if its is None:
        return None
    fresh = unseen(joined, calibration, manifest)
    kept = {record.slide_id for record, _ in fresh.pairs}
    left_out = tuple(record.slide_id for record, _ in joined.pairs if record.slide_id not in kept)
    if not fresh.pairs:
        return DoubtReport(calibration, its.temperature, left_out, {}, None, None)
    after = fresh.scored(task)
    before = replace_outputs(after, [row.raw[task.name] for _, row in fresh.pairs])
    nll = [negative_log_likelihood(its.activation, one.output_NC, one.target_NC) for one in (before, after)]
    sets = {}
    for place, question in enumerate(questions(task)):
        told = [row.sets[task.name][place] for _, row in fresh.pairs]
        held_NA = np.array([[answer in one for answer in question.answers] for one in told], bool)
        sets[question.name or task.name] = score_sets(
            held_NA,
            question.truth(after.target_NC),
            answers=question.answers,
            cases=after.case,
            resamples=config.bootstrap,
            seed=config.seed,
        )
    return DoubtReport(
        calibration,
        its.temperature,
        left_out,
        sets,
        BeforeAfter(*nll),
        BeforeAfter(before.reliability.ece, after.reliability.ece),
    )


def replace_outputs(scored: Scored, outputs: Sequence[Mapping[str, float]]) -> Scored:
    """The same slides with other {class: probability}."""
    output_NC = np.array([[one[name] for name in scored.task.classes] for one in outputs], np.float64)
    return replace(scored, output_NC=output_NC)


def doubt_in_words(name: str, doubt: DoubtReport) -> list[str]:
    """Lines to print."""
    lines = []
    for asked, figures in doubt.sets.items():
        which = name if asked == name else f"{name}, {asked}"
        cover = figures.coverage
        right = "" if np.isnan(figures.right_if_single) else f", {figures.right_if_single:.3f} of these right"
        lines.append(
            f"{which}: sets hold the true answer for {cover.value:.3f} [{cover.low:.3f}, {cover.high:.3f}] of "
            f"{figures.slides} slides (promised {1 - doubt.calibration.risk:.3g}); "
            f"{figures.size:.2f} answers a set, {figures.single:.3f} of one answer{right}"
        )
    if doubt.nll is not None and doubt.ece is not None:
        lines.append(
            f"{name}: temperature {doubt.temperature:.3g}: negative log-likelihood {doubt.nll.before:.3f} before, "
            f"{doubt.nll.after:.3f} after; calibration error {doubt.ece.before:.3f}, {doubt.ece.after:.3f}"
        )
    return [*lines, f"{name}: {doubt.complaint}"] if doubt.complaint else lines


def doubt_json(doubt: DoubtReport) -> dict[str, Any]:
    """For ``metrics.json``."""
    calibration = doubt.calibration
    return {
        "calibrated_on": {"split": calibration.split, "slides": len(calibration.slides)},
        "risk": calibration.risk,
        "by_class": calibration.by_class,
        "temperature": doubt.temperature,
        "left_out": list(doubt.left_out),
        "nll": _two(doubt.nll),
        "ece": _two(doubt.ece),
        "sets": {name: _set_json(figures) for name, figures in doubt.sets.items()},
    }


def _two(figure: BeforeAfter | None) -> dict[str, float] | None:
    return None if figure is None else {"before": figure.before, "after": figure.after}


def _set_json(figures: SetFigures) -> dict[str, Any]:
    return {
        "slides": figures.slides,
        "coverage": _interval(figures.coverage),
        "interval_method": "Clopper-Pearson" if figures.exact else "percentile bootstrap over cases",
        "mean_size": figures.size,
        "single": figures.single,
        "right_if_single": figures.right_if_single,
        "empty": figures.empty,
        "by_answer": {
            name: {"slides": one.slides, "coverage": one.coverage} for name, one in figures.by_answer.items()
        },
    }


def _interval(interval: Interval) -> dict[str, float]:
    return {"value": interval.value, "low": interval.low, "high": interval.high}
