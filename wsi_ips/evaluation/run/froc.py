"""FROC of a run: its stored attention, and where it is told its contributions, against outlined lesions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wsi_ips.config import TaskConfig
from wsi_ips.datasets import annotations as asap
from wsi_ips.datasets.annotations import Region, check_inside, outlines_in, read_asap
from wsi_ips.datasets.camelyon import NODE_CLASSES
from wsi_ips.datasets.irregular import PARTLY_ANNOTATED
from wsi_ips.datasets.manifest import SlideRecord
from wsi_ips.errors import AnnotationError, ConfigError, ResultsError
from wsi_ips.evaluation.froc import (
    RATES,
    TUMOR,
    Detections,
    FrocCurve,
    FrocRules,
    LesionMask,
    SlideHits,
    detections_from_attention,
    detections_from_contributions,
    froc_curve,
    hit_lesions,
    lesion_mask,
)
from wsi_ips.evaluation.intervals import (
    Band,
    Interval,
    Picked,
    bootstrap_band,
    percentile_interval,
    resample_cases,
    too_few,
)
from wsi_ips.evaluation.run.config import EvaluationConfig
from wsi_ips.evaluation.run.joined import Joined
from wsi_ips.evaluation.run.tasks import TaskReport
from wsi_ips.heatmaps.maps import NOT_TOLD, attention_map, tells
from wsi_ips.inference.results import SlideResult, read_result
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.progress import Progress
from wsi_ips.units import Size

DetectionsOf = Literal["attention", "contribution"]
_Largest = Mapping[str, Mapping[DetectionsOf, float]]
"""{case_id: the largest value of each map}, of cases whose slides were read as one bag."""

RATES_RESAMPLED = 64
"""False positives a slide that resampling keeps: what lies below can hardly come within the rates that count."""


@dataclass(frozen=True, slots=True, eq=False)
class FrocScore:
    """One way to find lesions. detections: {slide_id: what was found}."""

    curve: FrocCurve
    score: Interval
    band: Band | None
    detections: dict[str, Detections]


@dataclass(frozen=True, slots=True, eq=False)
class FrocReport:
    """by: what the detections are the maxima of, the ones that are asked for first. unannotated: positive slides
    without outlines, left out.

    unread: {slide_id: why its attention cannot be read}, left out. partly: {slide_id: why its outlines are known
    to be incomplete}, left out by the data set's own rule. rules: {slide_id: the scale it was judged on}.
    """

    by: dict[DetectionsOf, FrocScore]
    unannotated: tuple[str, ...]
    unread: dict[str, str]
    partly: dict[str, str]
    rules: dict[str, FrocRules]

    @property
    def first(self) -> tuple[DetectionsOf, FrocScore]:
        """The detections that are written down, by name."""
        return next(iter(self.by.items()))

    @property
    def complaints(self) -> list[str]:
        """A line per slide that was left out."""
        return [
            *(f"{slide_id}: left out of FROC: no outlines" for slide_id in self.unannotated),
            *(f"{slide_id}: left out of FROC: {why}" for slide_id, why in self.unread.items()),
        ]

    @property
    def notes(self) -> list[str]:
        """A line per slide that was left out because it should be, which is no failure."""
        return [
            f"{slide_id}: left out of FROC, not of the AUC: {why}" for slide_id, why in self.partly.items()
        ]


def report_froc(report: TaskReport, config: EvaluationConfig, progress: Progress) -> FrocReport:
    """Detections of every slide, sorted into hits and false positives.

    By attention, and by contribution where every slide has them. The one that ``detections`` names is first;
    where it names none, contributions do.

    A slide whose label is the task's first class has no lesion unless it has outlines. Slides whose outlines are
    known to be incomplete are left out (:func:`known_incomplete`), unless ``partly_annotated``. Raises
    :class:`AnnotationError` for a folder without outlines of these slides, or outlines that cannot be read or lie
    outside their slide, and :class:`ConfigError` for contributions that the model's head does not tell.
    """
    assert config.annotations is not None
    joined = report.joined
    outlines = _outlines(config.annotations, joined)
    hits: list[Mapping[DetectionsOf, SlideHits]] = []
    cases: list[str] = []
    detections: dict[str, Mapping[DetectionsOf, Detections]] = {}
    rules: dict[str, FrocRules] = {}
    unannotated: list[str] = []
    unread: dict[str, str] = {}
    largest = _largest_of_cases(report, config)
    partly = {} if config.partly_annotated else _partly_annotated(joined, report.scored.task)
    with progress("FROC", total=len(joined.pairs)) as advance:
        for place, (record, _) in enumerate(joined.pairs):
            slide_id, annotation = record.slide_id, outlines.get(record.slide_id.lower())
            advance(slide_id)
            if slide_id in partly:
                continue
            try:
                result = read_result(RunFolder(config.run).attention(slide_id))
                found = _detections(result, report, place, config, largest)
            except (ResultsError, ValueError) as error:
                unread[slide_id] = str(error)
                continue
            regions = read_asap(annotation) if annotation else []
            has_lesion = any(region.kind == "tumor" for region in regions)
            if not has_lesion and report.scored.label[place] > 0:
                unannotated.append(slide_id)
                continue
            detections[slide_id], rules[slide_id] = found, FrocRules.for_slide(result.coords.slide_mpp)
            mask = None
            if annotation and has_lesion:
                mask = _mask(regions, annotation, result.coords.l0_size, rules[slide_id])
            hits.append({by: hit_lesions(one, mask, rules[slide_id]) for by, one in found.items()})
            cases.append(record.case_id)
    scores: dict[DetectionsOf, FrocScore] = {}
    for by in _wanted(detections, config):
        found_by = {slide_id: found[by] for slide_id, found in detections.items()}
        scores[by] = _score([one[by] for one in hits], cases, found_by, config)
    return FrocReport(scores, tuple(unannotated), unread, partly, rules)


def _wanted(
    detections: Mapping[str, Mapping[DetectionsOf, Detections]], config: EvaluationConfig
) -> list[DetectionsOf]:
    """What every slide's detections can be made of, the ones that are asked for first."""
    untold = [slide_id for slide_id, found in detections.items() if "contribution" not in found]
    if untold and config.detections == "contribution":
        raise ConfigError(f"{untold[0]}: {NOT_TOLD}; use --detections attention")
    if untold or not detections:
        return ["attention"]
    return (
        ["attention", "contribution"] if config.detections == "attention" else ["contribution", "attention"]
    )


def _score(
    hits: Sequence[SlideHits],
    cases: Sequence[str],
    detections: dict[str, Detections],
    config: EvaluationConfig,
) -> FrocScore:
    assert config.annotations is not None
    try:
        curve = froc_curve(hits)
    except ValueError as error:
        raise AnnotationError(
            config.annotations, str(error), "leave --annotations away for these slides"
        ) from None
    score, band = _intervals(hits, cases, curve, config)
    return FrocScore(curve, score, band, detections)


def _partly_annotated(joined: Joined, task: TaskConfig) -> dict[str, str]:
    found = {record.slide_id: known_incomplete(record, task) for record, _ in joined.pairs}
    return {slide_id: why for slide_id, why in found.items() if why}


def known_incomplete(record: SlideRecord, task: TaskConfig) -> str:
    """Why lesions cannot be judged on this slide although it may have outlines; empty where they can.

    CAMELYON16 names slides that are not exhaustively annotated; in CAMELYON17 isolated tumour cells are not
    (README files of both; ``itc`` is the label of such a slide).
    """
    if record.slide_id.lower() in PARTLY_ANNOTATED:
        return "CAMELYON16's slide of this name is not exhaustively annotated"
    if set(task.classes) == set(NODE_CLASSES) and record.labels[task.column_name] == "itc":
        return "isolated tumour cells are not exhaustively annotated in CAMELYON17"
    return ""


def _outlines(folder: Path, joined: Joined) -> dict[str, Path]:
    """{slide_id in small letters: file}."""
    if not folder.is_dir():
        raise AnnotationError(folder, "no such folder", "name the folder of <slide_id>.xml")
    found = outlines_in(folder)
    if not any(record.slide_id.lower() in found for record, _ in joined.pairs):
        raise AnnotationError(
            folder,
            f"has no outlines for any of the {len(joined.pairs)} slides",
            f"files are named for slides, e.g. {joined.pairs[0][0].slide_id}.xml",
        )
    return found


def _detections(
    result: SlideResult, report: TaskReport, place: int, config: EvaluationConfig, largest: _Largest
) -> dict[DetectionsOf, Detections]:
    """What a slide's attention finds, and its contributions where they are told."""
    scored = report.scored
    # A task's first class is the slide without lesion; of a single yes-or-no class, its absence.
    lesion = scored.probability[place] if scored.kind == "binary" else 1 - scored.output_NC[place, 0]
    found: dict[DetectionsOf, Detections] = {}
    for by, values_N in _values(result, scored.task).items():
        detections = detections_from_attention if by == "attention" else detections_from_contributions
        found[by] = detections(
            result.coords,
            values_N,
            probability=float(lesion),
            radius_um=config.detection_radius_um,
            largest=largest.get(report.joined.pairs[place][0].case_id, {}).get(by),
        )
    return found


def _values(result: SlideResult, task: TaskConfig) -> dict[DetectionsOf, NDArray[np.float32]]:
    """What says where lesions are, (N,): attention, and contributions where they are told."""
    values: dict[DetectionsOf, NDArray[np.float32]] = {
        "attention": attention_map(result, query=result.task_queries.get(task.name))
    }
    if tells(result):
        # What speaks for a lesion is what takes from the first class, or adds to the only one.
        sign = np.float32(1 if len(task.classes) == 1 else -1)
        values["contribution"] = result.contribution(task.name, task.classes[0]) * sign
    return values


def _largest_of_cases(report: TaskReport, config: EvaluationConfig) -> _Largest:
    """The largest value over all slides of each case that was read as one bag. A slide with little of its case's
    attention is not as suspicious as the one that has most of it. Slides that cannot be read count nothing here;
    they are named elsewhere.
    """
    largest: dict[str, dict[DetectionsOf, float]] = {}
    for record, row in report.joined.pairs:
        if row.case is None:
            continue
        try:
            values = _values(
                read_result(RunFolder(config.run).attention(record.slide_id)), report.scored.task
            )
        except (ResultsError, ValueError):
            continue
        of_case = largest.setdefault(record.case_id, {})
        for by, values_N in values.items():
            of_case[by] = max(of_case.get(by, 0.0), float(values_N.max(initial=0)))
    return largest


def _mask(regions: Sequence[Region], annotation: Path, l0_size: Size, rules: FrocRules) -> LesionMask | None:
    """The mask that ASAP would make at the rules' level; None where no lesion holds one of its pixels."""
    check_inside(annotation, regions, l0_size)
    try:
        size = rules.mask_size(l0_size)
    except ValueError as error:
        raise AnnotationError(annotation, str(error), "is it this slide's?") from None
    tumor_HW = asap.lesion_mask(regions, downsample=rules.l0_per_px, size=size)
    return lesion_mask(tumor_HW * np.uint8(TUMOR), rules) if tumor_HW.any() else None


def _intervals(
    hits: Sequence[SlideHits], cases: Sequence[str], curve: FrocCurve, config: EvaluationConfig
) -> tuple[Interval, Band | None]:
    pruned = _pruned(hits)
    rates = np.geomspace(RATES[0] / 2, RATES[-1] * 2, 200)
    scores: list[float] = []

    def resampled(picked: Picked) -> NDArray[np.float64] | None:
        try:
            one = froc_curve([pruned[place] for place in picked.tolist()])
        except ValueError:
            scores.append(math.nan)
            return None
        scores.append(one.score)
        return one.sensitivity_at(rates.tolist())

    with_lesions = {case for case, one in zip(cases, hits, strict=True) if one.lesions}
    why = too_few(cases, rarest=len(with_lesions), of="with a lesion")
    if why and config.bootstrap:
        return Interval.not_stated(curve.score, why), None
    strata = [case in with_lesions for case in cases] if config.stratify else None
    drawn = resample_cases(cases, strata=strata, resamples=config.bootstrap, seed=config.seed)
    band = bootstrap_band(resampled, rates, drawn)
    return percentile_interval(curve.score, np.array(scores, np.float64)), band


def _pruned(hits: Sequence[SlideHits]) -> list[SlideHits]:
    """The hits without the false positives that no rate of interest reaches: a hundredth of the sorting."""
    wrong = np.sort(np.concatenate([one.false_positives_F for one in hits]))[::-1]
    kept = RATES_RESAMPLED * len(hits)
    if len(wrong) <= kept:
        return list(hits)
    return [
        SlideHits(
            one.false_positives_F[one.false_positives_F >= wrong[kept]], one.lesion_scores_L, one.lesions
        )
        for one in hits
    ]
