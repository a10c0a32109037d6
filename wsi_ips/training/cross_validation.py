"""k-fold cross-validation by case: k trainings, each measured on cases that it has not seen in any way.

Start with :func:`cross_validate`. The cases that a fold holds out neither teach its model nor choose its epoch:
the epoch is chosen on other cases, set aside from the rest. If it were chosen on the cases that it is measured
on, the best of many epochs would flatter; an AUC of 0.64 was measured that way on pure noise.
"""

import csv
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from wsi_ips.config import FinetuneConfig, TaskConfig
from wsi_ips.datasets.manifest import Manifest, SlideRecord, folds_by_case, set_aside_by_case
from wsi_ips.errors import ConfigError
from wsi_ips.storage.files import whole_file
from wsi_ips.timeline import TIMELINE_NAME
from wsi_ips.training.fit import deciding_settings
from wsi_ips.training.learned_from import LearnedFrom
from wsi_ips.training.run_state import BEST_NAME, FinetuneReport, forget_run

DONE_NAME = "fold.json"
"""File in the folder of a fold that says what was trained on what, and its figures. It exists once the fold is
complete.
"""

Train = Callable[[Manifest, Path], FinetuneReport]
"""A function that does one training, such as :func:`wsi_ips.training.fit.finetune`, from a manifest and the
folder to write to.
"""


@dataclass(frozen=True, slots=True)
class Fold:
    """One training of a cross-validation.

    Attributes:
        number: Number of the fold, from 0.
        train_slides, val_slides: How many slides were learned from, and chose the epoch.
        bad: ``{slide_id: why it was left out}``.
        figures: Figures of the epoch that was kept, as in ``history.csv``.
        held_out: Ids of the slides that its model has not seen, and that its epoch was not chosen on.
        checkpoint: Its model.
        measured: Figures on the slides held out, once they are known.
        skipped: Whether the fold was complete before this run.
    """

    number: int
    train_slides: int
    val_slides: int
    bad: Mapping[str, str]
    figures: Mapping[str, float]
    held_out: tuple[str, ...]
    checkpoint: Path
    measured: Mapping[str, float] = field(default_factory=dict)
    skipped: bool = False

    @property
    def chosen_on(self) -> str:
        """What the epoch of the fold was chosen on, for ``cv.csv``."""
        return "inner validation cases" if self.val_slides else "training loss"


def cross_validate(
    manifest: Manifest,
    config: FinetuneConfig,
    out: Path,
    *,
    k: int,
    inner_val: float,
    train: Train,
    coords: str = "",
    learned_from: LearnedFrom | None = None,
) -> tuple[Fold, ...]:
    """Divide the ``train`` and ``val`` cases into ``k`` folds and train once without each. ``test`` is not read.

    Divisions are stratified by the first task with classes, and drawn from ``training.seed``. Into ``out`` are
    written ``folds.csv`` (which fold a slide is held out in, and which folds it validates), ``fold_0`` and so on
    with a model each, and ``cv.csv`` with the figures of each (see :func:`write_figures`). A complete fold is
    not trained again, and one that was interrupted is continued.

    Args:
        manifest: The slides.
        config: The settings of each training.
        out: Folder to write to.
        k: Number of folds.
        inner_val: Of the cases that a fold does not hold out, about this share is its validation split, which
            chooses the epoch. 0: there is none, and the training loss chooses it.
        train: Does one training.
        coords: Fingerprint of the coordinates that the user gave, see
            :func:`wsi_ips.training.fit.train_bags`.
        learned_from: The content of the files of all slides now: a complete fold that learned from other content
            is refused. None: it is not compared.

    Raises:
        ConfigError: There are too few cases, or ``out`` holds another cross-validation.
    """
    manifests = fold_manifests(manifest, config, k=k, inner_val=inner_val)
    _write_folds(out / "folds.csv", manifests)
    folds: list[Fold] = []
    for number, fold_manifest in enumerate(manifests):
        its = None if learned_from is None else learned_from.only(_read_by(fold_manifest))
        folds.append(_fold(number, fold_manifest, config, out / f"fold_{number}", train, coords, its))
        # After every fold, so that a run that is killed leaves the figures so far.
        write_figures(out / "cv.csv", folds)
    return tuple(folds)


def fold_manifests(
    manifest: Manifest, config: FinetuneConfig, *, k: int, inner_val: float
) -> tuple[Manifest, ...]:
    """The manifest of each fold: what it learns from, what it chooses its epoch on, and what it holds out
    (``test``).

    Raises:
        ConfigError: There are too few cases.
    """
    records = [*manifest.split("train"), *manifest.split("val")]
    column, seed = strata_column(config.model.tasks), config.training.seed
    numbers = folds_by_case(records, k=k, column=column, seed=seed)
    manifests = []
    for number in range(k):
        held_out = [fold == number for fold in numbers]
        rest = [record for record, out in zip(records, held_out, strict=True) if not out]
        validates = _inner_validation(rest, share=inner_val, column=column, seed=f"{seed}/fold {number}")
        divided = [
            replace(record, split="test" if out else "val" if record.slide_id in validates else "train")
            for record, out in zip(records, held_out, strict=True)
        ]
        manifests.append(Manifest(manifest.path, tuple(divided)))
    return tuple(manifests)


def _inner_validation(
    rest: Sequence[SlideRecord], *, share: float, column: str | None, seed: str
) -> set[str]:
    """Ids of the slides that choose the epoch of a fold."""
    if not share:
        return set()
    try:
        chosen = set_aside_by_case(rest, share=share, column=column, seed=seed)
    except ConfigError as error:
        raise ConfigError(
            f"a fold's epoch cannot be chosen on cases of its own ({error}); add cases, take more folds, or set "
            "inner_val=0 to choose it by the training loss"
        ) from None
    return {record.slide_id for record, one in zip(rest, chosen, strict=True) if one}


def strata_column(tasks: Sequence[TaskConfig]) -> str | None:
    """The column of the manifest to stratify by: that of the first task that sorts slides into classes.

    For a survival task it is the column of the event. None if no task has such a column.
    """
    one = (
        task for task in tasks if task.activation == "softmax" or task.kind == "survival" or _yes_or_no(task)
    )
    return next((task.column_name for task in one), None)


def _yes_or_no(task: TaskConfig) -> bool:
    return task.activation == "sigmoid" and len(task.classes) == 1


def _read_by(manifest: Manifest) -> list[str]:
    """The slides that a fold learns from, or chooses its epoch on."""
    return [record.slide_id for record in manifest.records if record.split != "test"]


def _fold(
    number: int,
    manifest: Manifest,
    config: FinetuneConfig,
    out: Path,
    train: Train,
    coords: str,
    learned_from: LearnedFrom | None,
) -> Fold:
    what = run_fingerprint(manifest, config, coords)
    done, held_out = out / DONE_NAME, tuple(record.slide_id for record in manifest.split("test"))
    if done.is_file():
        return _done(done, number, what, held_out, learned_from)
    report = train(manifest, out)
    fold = Fold(
        number,
        train_slides=sum(record.slide_id not in report.bad for record in manifest.split("train")),
        val_slides=sum(record.slide_id not in report.bad for record in manifest.split("val")),
        bad=dict(report.bad),
        figures={name: float(value) for name, value in report.history[report.best_epoch].items()},
        held_out=held_out,
        checkpoint=out / BEST_NAME,
    )
    held = {"run": what, "train_slides": fold.train_slides, "val_slides": fold.val_slides,
            "bad": fold.bad, "figures": dict(fold.figures),
            "learned_from": None if learned_from is None else learned_from.to_json()}  # fmt: skip
    with whole_file(done) as partial:
        partial.write_text(json.dumps(held, indent=2) + "\n")
    return fold


def _done(path: Path, number: int, what: str, held_out: tuple[str, ...], now: LearnedFrom | None) -> Fold:
    """The fold that is complete. Raises :class:`ConfigError` if it is of another cross-validation, or learned from
    files that have changed since; folds of earlier versions do not say what they learned from.
    """
    try:
        held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if held["run"] != what:
            raise ConfigError(
                f"{path.parent}: holds a fold of another cross-validation (with other settings or slides); "
                "write to a new folder"
            )
        before = held.get("learned_from")
        if now is not None and before is not None and (why := LearnedFrom.from_json(before).difference(now)):
            raise ConfigError(
                f"{path.parent}: holds a fold that learned from other files ({why}); give --restart to begin anew "
                "in this folder, or write to a new one"
            )
        train_slides, val_slides = int(held["train_slides"]), int(held["val_slides"])
        bad = {str(slide_id): str(reason) for slide_id, reason in held["bad"].items()}
        figures = {str(name): float(value) for name, value in held["figures"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: cannot be read ({error}); delete it to go on with this fold") from None
    return Fold(
        number,
        train_slides,
        val_slides,
        bad=bad,
        figures=figures,
        held_out=held_out,
        checkpoint=path.with_name(BEST_NAME),
        skipped=True,
    )


def run_fingerprint(manifest: Manifest, config: FinetuneConfig, coords: str = "") -> str:
    """A hash of all that decides the result of a training: settings, slides, labels and their splits, and the
    fingerprint of coordinates that the user gave."""
    slides = [
        [record.slide_id, record.case_id, dict(record.labels), record.split] for record in manifest.records
    ]
    what = [deciding_settings(config), slides, *([coords] if coords else [])]
    return sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _write_folds(path: Path, manifests: Sequence[Manifest]) -> None:
    table = [["slide_id", "case_id", "fold", "validates_folds"]]
    for of_slide in zip(*(manifest.records for manifest in manifests), strict=True):
        splits = [record.split for record in of_slide]
        validates = ";".join(str(number) for number, split in enumerate(splits) if split == "val")
        table.append([of_slide[0].slide_id, of_slide[0].case_id, str(splits.index("test")), validates])
    if path.is_file():
        try:
            with path.open(newline="", encoding="utf-8") as file:
                same = list(csv.reader(file)) == table
        except (UnicodeDecodeError, csv.Error):
            same = False
        if not same:
            raise ConfigError(f"{path}: divides the slides into other folds; write to a new folder")
        return
    _write_table(path, table)


def write_figures(path: Path, folds: Sequence[Fold]) -> None:
    """Write ``cv.csv``: a row for each fold, then their mean and standard deviation.

    The columns ``held_out_<figure>`` are the result of the cross-validation: the figures on the slides that the
    fold held out. They are empty until they have been measured. ``epoch_chosen_on`` says what chose the epoch.
    The columns behind it are the figures of that epoch, on the slides that were learned from (``train_``) and on
    those that chose it (``val_``, which flatters).
    """
    rows = (
        [{f"held_out_{name}": value for name, value in fold.measured.items()} for fold in folds],
        [fold.figures for fold in folds],
    )
    measured, kept = (list(dict.fromkeys(name for row in each for name in row)) for each in rows)
    counts = ["fold", "train_slides", "val_slides", "held_out_slides", "bad_slides"]
    table = [[*counts, *measured, "epoch_chosen_on", *kept]]
    for fold, its_measured, its_kept in zip(folds, *rows, strict=True):
        sizes = (fold.number, fold.train_slides, fold.val_slides, len(fold.held_out), len(fold.bad))
        table.append([
            *map(str, sizes),
            *(repr(its_measured[name]) if name in its_measured else "" for name in measured),
            fold.chosen_on,
            *(repr(its_kept.get(name, math.nan)) for name in kept),
        ])  # fmt: skip
    summaries = [mean_and_sd(each) for each in rows]
    for row, place in (("mean", 0), ("sd", 1)):
        cells = [
            [repr(summary[name][place]) if name in summary else "" for name in names]
            for summary, names in zip(summaries, (measured, kept), strict=True)
        ]
        table.append([row, "", "", "", "", *cells[0], "", *cells[1]])
    _write_table(path, table)


def mean_and_sd(figures: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """``{figure: (mean, sample standard deviation)}`` over the folds.

    Both are NaN if a fold does not have the figure; the standard deviation is NaN for one fold.
    """
    names = dict.fromkeys(name for each in figures for name in each if name != "epoch")
    values = {name: [each.get(name, math.nan) for each in figures] for name in names}
    return {name: (statistics.fmean(each), _deviation(each)) for name, each in values.items()}


def _deviation(values: Sequence[float]) -> float:
    # statistics.stdev raises an AttributeError for NaN.
    defined = len(values) > 1 and all(math.isfinite(value) for value in values)
    return statistics.stdev(values) if defined else math.nan


def _write_table(path: Path, table: Sequence[Sequence[str]]) -> None:
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(table)


def forget_folds(out: Path) -> None:
    """Remove what a cross-validation in ``out`` would continue, and its timeline. Models and tables stay until
    they are overwritten.
    """
    for folder in out.glob("fold_*"):
        (folder / DONE_NAME).unlink(missing_ok=True)
        forget_run(folder)
    for name in ("folds.csv", TIMELINE_NAME):
        (out / name).unlink(missing_ok=True)
