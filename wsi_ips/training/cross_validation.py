"""k-fold cross-validation by case: as many trainings, each measured on the cases that it did not see."""

import csv
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from wsi_ips.config import FinetuneConfig, TaskConfig
from wsi_ips.datasets.manifest import Manifest, SlideRecord
from wsi_ips.datasets.splits import folds_by_case
from wsi_ips.errors import ConfigError
from wsi_ips.files import whole_file
from wsi_ips.training.fit import FinetuneReport, deciding_settings
from wsi_ips.training.record import BEST_NAME
from wsi_ips.training.run_state import forget_run

DONE_NAME = "fold.json"
"""In a fold's folder: what was trained on what, and its figures. It is there when the fold is complete."""

Train = Callable[[Manifest, Path], FinetuneReport]
"""(manifest, folder to write to): one training, :func:`wsi_ips.training.finetune.finetune` or the like."""


@dataclass(frozen=True, slots=True)
class Fold:
    """figures: of the epoch that was kept, as in ``history.csv``. bad: {slide_id: why it was left out}. held_out:
    ids of the slides that its checkpoint has not seen. skipped: the fold was complete already."""

    number: int
    train_slides: int
    val_slides: int
    bad: Mapping[str, str]
    figures: Mapping[str, float]
    held_out: tuple[str, ...]
    checkpoint: Path
    skipped: bool = False


def cross_validate(
    manifest: Manifest, config: FinetuneConfig, out: Path, *, k: int, train: Train
) -> tuple[Fold, ...]:
    """Divide the ``train`` and ``val`` cases into ``k`` folds and train once without each; ``test`` is not read.

    Folds are stratified by the first task with classes, by ``training.seed``. Writes ``folds.csv`` (which slide
    lies in which fold), ``fold_0`` ... with a model each, and ``cv.csv`` (figures per fold, their mean and
    standard deviation). The epoch of a fold is chosen on the very cases that it is measured on, which flatters
    a little: results to publish come from a test set. A complete fold is not trained again, one that was killed
    goes on. Raises :class:`ConfigError` where cases do not suffice, or ``out`` holds another cross-validation,
    and whatever ``train`` raises.
    """
    records = [*manifest.split("train"), *manifest.split("val")]
    numbers = folds_by_case(records, k=k, column=strata_column(config.model.tasks), seed=config.training.seed)
    _write_folds(out / "folds.csv", records, numbers)
    test = manifest.split("test")
    folds: list[Fold] = []
    for number in range(k):
        divided = [
            replace(record, split="val" if fold == number else "train")
            for record, fold in zip(records, numbers, strict=True)
        ]
        fold_manifest = Manifest(manifest.path, (*divided, *test))
        folds.append(_fold(number, fold_manifest, config, out / f"fold_{number}", train))
        # After every fold, so that a killed run leaves what it found out.
        _write_figures(out / "cv.csv", folds)
    return tuple(folds)


def forget_folds(out: Path) -> None:
    """Remove what a cross-validation would go on with in ``out``. Models and tables stay until they are
    written again."""
    for folder in out.glob("fold_*"):
        (folder / DONE_NAME).unlink(missing_ok=True)
        forget_run(folder)
    (out / "folds.csv").unlink(missing_ok=True)


def strata_column(tasks: Sequence[TaskConfig]) -> str | None:
    """The manifest's column to stratify by: that of the first task that sorts slides into classes, if any."""
    one = (task for task in tasks if task.activation == "softmax" or _yes_or_no(task))
    return next((task.column_name for task in one), None)


def mean_and_sd(folds: Sequence[Fold]) -> dict[str, tuple[float, float]]:
    """{figure: its mean and sample standard deviation over the folds}; the latter is nan for one fold."""
    names = dict.fromkeys(name for fold in folds for name in fold.figures if name != "epoch")
    values = {name: [fold.figures.get(name, math.nan) for fold in folds] for name in names}
    return {
        name: (statistics.fmean(each), statistics.stdev(each) if len(each) > 1 else math.nan)
        for name, each in values.items()
    }


def _fold(number: int, manifest: Manifest, config: FinetuneConfig, out: Path, train: Train) -> Fold:
    what = _fingerprint(manifest, config)
    done, held_out = out / DONE_NAME, tuple(record.slide_id for record in manifest.split("val"))
    if done.is_file():
        return _done(done, number, what, held_out)
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
            "bad": fold.bad, "figures": dict(fold.figures)}  # fmt: skip
    with whole_file(done) as partial:
        partial.write_text(json.dumps(held, indent=2) + "\n")
    return fold


def _done(path: Path, number: int, what: str, held_out: tuple[str, ...]) -> Fold:
    try:
        held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if held["run"] != what:
            raise ConfigError(
                f"{path.parent}: holds a fold of another cross-validation (other settings or slides); "
                "write to a new folder"
            )
        counts = {name: int(held[name]) for name in ("train_slides", "val_slides")}
        bad = {str(slide_id): str(reason) for slide_id, reason in held["bad"].items()}
        figures = {str(name): float(value) for name, value in held["figures"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: cannot be read ({error}); delete it to go on with this fold") from None
    return Fold(
        number,
        **counts,
        bad=bad,
        figures=figures,
        held_out=held_out,
        checkpoint=path.with_name(BEST_NAME),
        skipped=True,
    )


def _fingerprint(manifest: Manifest, config: FinetuneConfig) -> str:
    """Of all that decides a fold's result: settings, slides, labels, which side they are on."""
    slides = [
        [record.slide_id, record.case_id, dict(record.labels), record.split]
        for record in manifest.records
        if record.split != "test"
    ]
    return sha256(json.dumps([deciding_settings(config), slides], sort_keys=True).encode()).hexdigest()


def _yes_or_no(task: TaskConfig) -> bool:
    return task.activation == "sigmoid" and len(task.classes) == 1


def _write_folds(path: Path, records: Sequence[SlideRecord], numbers: Sequence[int]) -> None:
    lines = [[record.slide_id, record.case_id, str(n)] for record, n in zip(records, numbers, strict=True)]
    table = [["slide_id", "case_id", "fold"], *lines]
    if path.is_file():
        try:
            with path.open(newline="", encoding="utf-8") as file:
                same = list(csv.reader(file)) == table
        except (UnicodeDecodeError, csv.Error):
            same = False
        if not same:
            raise ConfigError(f"{path}: divides slides otherwise; write to a new folder")
        return
    _write_table(path, table)


def _write_figures(path: Path, folds: Sequence[Fold]) -> None:
    names = list(dict.fromkeys(name for fold in folds for name in fold.figures))
    table = [["fold", "train_slides", "val_slides", "bad_slides", *names]]
    for fold in folds:
        counts = (fold.number, fold.train_slides, fold.val_slides, len(fold.bad))
        table.append([*map(str, counts), *(repr(fold.figures.get(name, math.nan)) for name in names)])
    summary = mean_and_sd(folds)
    for row, place in (("mean", 0), ("sd", 1)):
        table.append([row, "", "", "", *(repr(summary[n][place]) if n in summary else "" for n in names)])
    _write_table(path, table)


def _write_table(path: Path, table: Sequence[Sequence[str]]) -> None:
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(table)
