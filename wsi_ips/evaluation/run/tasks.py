"""One task of a run: its figures with intervals, slide by slide and patient by patient."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_ips.config import TaskConfig
from wsi_ips.datasets.camelyon import NODE_CLASSES, STAGES
from wsi_ips.errors import ManifestError, ResultsError
from wsi_ips.evaluation.intervals import (
    OUTSIDE_THE_COMMONEST,
    Band,
    Interval,
    Picked,
    bootstrap,
    bootstrap_band,
    delong_interval,
    resample_cases,
    too_few,
)
from wsi_ips.evaluation.plots import NamedRoc
from wsi_ips.evaluation.run.config import EvaluationConfig
from wsi_ips.evaluation.run.joined import Joined
from wsi_ips.evaluation.slide_level import roc_curve, youden_threshold
from wsi_ips.evaluation.staging import pn_stage, quadratic_kappa
from wsi_ips.evaluation.task_scores import PooledCases, Scored, kind_of, pool_cases
from wsi_ips.inference.run_folder import RunFolder

MOST_BANDS = 3
"""More bands than this hide each other."""


@dataclass(frozen=True, slots=True, eq=False)
class TaskReport:
    """joined: the slides that have a label for the task. figures: of these, case_figures: of patients (empty where
    each has one slide).

    delong: of a binary task's AUC, where each patient has one slide.
    """

    joined: Joined
    scored: Scored
    figures: dict[str, Interval]
    delong: Interval | None
    pooled: PooledCases
    case_figures: dict[str, Interval]
    threshold_from: str | None


def report_task(
    task: TaskConfig, joined: Joined, elsewhere: Joined | None, config: EvaluationConfig
) -> TaskReport:
    """Score one task; ``elsewhere`` holds the slides on which a binary task's threshold is chosen.

    Raises :class:`ManifestError` where the slides' labels are all the same, :class:`ResultsError` for an output
    that is no probability.
    """
    joined, scored, chosen_on = score_task(task, joined, elsewhere, config)
    pooled = pool_cases(scored, config.pool)
    several = len(set(scored.case)) < len(scored.case)
    delong = None
    rarest = scored.rarest
    if isinstance(rarest, int) and not several and not too_few(scored.case, rarest=rarest):
        delong = delong_interval(scored.probability, scored.positive)
    return TaskReport(
        joined=joined,
        scored=scored,
        figures=scored.intervals(resamples=config.bootstrap, seed=config.seed, stratified=config.stratify),
        delong=delong,
        pooled=pooled,
        case_figures=pooled.scored.intervals(
            resamples=config.bootstrap, seed=config.seed, stratified=config.stratify
        )
        if several and pooled.slides
        else {},
        threshold_from=chosen_on,
    )


def score_task(
    task: TaskConfig, joined: Joined, elsewhere: Joined | None, config: EvaluationConfig
) -> tuple[Joined, Scored, str | None]:
    """The slides that have a label for the task, their outputs and targets, and the split that the threshold of
    a binary task was chosen on. Arguments and errors are those of :func:`report_task`.
    """
    joined = joined.of_task(task)
    scored = joined.scored(task, threshold=config.threshold)
    check_scored(scored, joined, manifest=config.manifest, run=config.run)
    if elsewhere is None or scored.kind != "binary":
        return joined, scored, None
    elsewhere = elsewhere.of_task(task)
    other = elsewhere.scored(task, threshold=config.threshold)
    check_scored(other, elsewhere, manifest=config.manifest, run=config.run)
    scored = joined.scored(task, threshold=youden_threshold(other.probability, other.positive))
    return joined, scored, elsewhere.split


def check_scored(scored: Scored, joined: Joined, *, manifest: Path, run: Path) -> None:
    """Check that a task can be scored.

    Raises :class:`ManifestError` where no slide has a label, or all have the same; :class:`ResultsError` for an
    output that is no probability.
    """
    task = scored.task
    if not joined.pairs:
        raise ManifestError(
            manifest,
            f"no scored slide of split {joined.split!r} has a {task.column_name}",
            "name another split or --task",
        )
    wrong_N = ~np.isfinite(scored.output_NC).all(axis=1)
    if scored.kind != "regression":
        wrong_N |= ((scored.output_NC < 0) | (scored.output_NC > 1)).any(axis=1)
    if wrong_N.any():
        slide_id = joined.pairs[int(np.flatnonzero(wrong_N)[0])][0].slide_id
        raise ResultsError(
            RunFolder(run).predictions,
            f"the output of slide {slide_id!r} for task {task.name!r} cannot be",
            "predict again",
        )
    if scored.kind != "regression" and (scored.target_NC == scored.target_NC[0]).all():
        cell = joined.pairs[0][0].labels[task.column_name]
        raise ManifestError(
            manifest,
            f"all {len(joined.pairs)} scored slides of split {joined.split!r} have the {task.column_name} "
            f"{cell!r}",
            "nothing can be told apart: name another split or --task",
        )


def roc_plots(report: TaskReport, config: EvaluationConfig) -> list[NamedRoc]:
    """The ROC curves of a task: the positive's, or each class against the others; of numbers, none."""
    scored = report.scored
    if scored.kind == "binary":
        columns = [len(scored.task.classes) - 1]
    else:
        columns = list(range(len(scored.task.classes))) if scored.kind != "regression" else []
    curves = []
    for column in columns:
        scores, positive = scored.output_NC[:, column], scored.target_NC[:, column] > 0
        if 0 < positive.sum() < len(positive):
            name = scored.task.classes[column]
            auc = report.figures["auc" if scored.kind == "binary" else f"auc_{name}"]
            band = _roc_band(scored, scores, positive, config) if len(columns) <= MOST_BANDS else None
            curves.append(NamedRoc(name, roc_curve(scores, positive), auc, band))
    return curves


def _roc_band(
    scored: Scored, scores: NDArray[np.float64], positive: NDArray[np.bool_], config: EvaluationConfig
) -> Band | None:
    if too_few(scored.case, rarest=int(min(positive.sum(), (~positive).sum()))):
        return None
    at = np.linspace(0, 1, 201)

    def curve(picked: Picked) -> NDArray[np.float64] | None:
        some = positive[picked]
        return roc_curve(scores[picked], some).sensitivity_at(at) if 0 < some.sum() < len(some) else None

    return bootstrap_band(curve, at, _draws(scored, config))


def _draws(scored: Scored, config: EvaluationConfig) -> Iterator[Picked]:
    strata = scored.strata if config.stratify else None
    return resample_cases(scored.case, strata=strata, resamples=config.bootstrap, seed=config.seed)


@dataclass(frozen=True, slots=True, eq=False)
class StageReport:
    """Of a task that tells CAMELYON17's node classes, or the pN stages themselves: patients' stages and their
    agreement.

    nodes: {patient: {slide: predicted class}}, patients with every node scored; empty for a task that tells
    stages. incomplete: the other patients; for a task that tells stages, those with more than one label.
    """

    nodes: dict[str, dict[str, str]]
    labels: dict[str, str]
    predicted: dict[str, str]
    kappa: Interval
    incomplete: tuple[str, ...]


def report_stages(
    report: TaskReport, records: dict[str, int], config: EvaluationConfig
) -> StageReport | None:
    """The pN stages, where the task's classes are the challenge's; ``records``: slides a patient should have."""
    task = report.scored.task
    if kind_of(task) != "multiclass" or set(task.classes) != set(NODE_CLASSES) or report.joined.bag == "case":
        return None
    nodes: dict[str, dict[str, str]] = {}
    truth: dict[str, list[str]] = {}
    for (record, _), called in zip(report.joined.pairs, report.scored.called_class.tolist(), strict=True):
        nodes.setdefault(record.case_id, {})[record.slide_id] = task.classes[called]
        truth.setdefault(record.case_id, []).append(record.labels[task.column_name])
    whole = [case for case, slides in nodes.items() if len(slides) == records[case]]
    try:
        labels = {case: pn_stage(truth[case]) for case in whole}
        predicted = {case: pn_stage(list(nodes[case].values())) for case in whole}
    except ValueError as error:
        raise ResultsError(Path(config.manifest), f"a patient cannot be staged: {error}") from None

    return StageReport(
        {case: nodes[case] for case in whole}, labels, predicted, _kappa(labels, predicted, config),
        tuple(case for case in nodes if case not in labels),
    )  # fmt: skip


def report_patient_stages(report: TaskReport, config: EvaluationConfig) -> StageReport | None:
    """The pN stages of a task whose classes they are, patient by patient. None for any other task.

    Where all slides of a patient are one bag, the answer is the network's own; otherwise the patient's slides are
    pooled.
    """
    task, scored = report.scored.task, report.pooled.scored
    if kind_of(task) != "multiclass" or set(task.classes) != set(STAGES):
        return None
    cases = [str(case) for case in scored.case]
    labels, predicted = (
        {case: task.classes[place] for case, place in zip(cases, places.tolist(), strict=True)}
        for places in (scored.label, scored.called_class)
    )
    mixed = tuple(str(case) for case in report.pooled.mixed)
    return StageReport({}, labels, predicted, _kappa(labels, predicted, config), mixed)


def _kappa(labels: dict[str, str], predicted: dict[str, str], config: EvaluationConfig) -> Interval:
    """Quadratic kappa of the stages of patients, in the challenge's order, with its bootstrap interval."""
    cases = list(labels)

    def kappa(picked: Picked) -> dict[str, float]:
        chosen = [cases[place] for place in picked.tolist()]
        try:
            return {"kappa": quadratic_kappa([labels[c] for c in chosen], [predicted[c] for c in chosen])}
        except ValueError:
            return {"kappa": float("nan")}

    strata = [STAGES.index(labels[case]) for case in cases] if config.stratify else None
    commonest = max(map([*labels.values()].count, labels.values()), default=0)
    return bootstrap(
        kappa,
        cases,
        strata=strata,
        resamples=config.bootstrap,
        seed=config.seed,
        rarest=len(cases) - commonest,
        of=OUTSIDE_THE_COMMONEST,
    )["kappa"]
