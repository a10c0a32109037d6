"""The table of a comparison: what each entry is worth on the same slides, and what it costs.

Start with :func:`tabulate`. Figures are of the slides that every training has predicted.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np

from wsi_ips.config import TaskConfig
from wsi_ips.datasets.manifest import Manifest
from wsi_ips.errors import count
from wsi_ips.evaluation.intervals import DelongTest, Interval, OverSeeds, paired_bootstrap
from wsi_ips.evaluation.plots import COLOURS, GREY, figure_at, figure_name
from wsi_ips.evaluation.run.against import HEADLINES, Units, delong_of, only_slides, units_of
from wsi_ips.evaluation.run.compare import PREDICTIONS, Costs, Finished
from wsi_ips.evaluation.run.compare_config import CompareConfig
from wsi_ips.evaluation.run.config import EvaluationConfig
from wsi_ips.evaluation.run.joined import Joined, join
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.storage.files import whole_file

COST_COLUMNS = (
    "train_passes", "predict_passes", "train_seconds", "predict_seconds", "peak_memory", "bytes_written",
)  # fmt: skip
COLUMNS = (
    "entry", "task", "of", "count", "figure", "mean", "sd", "worst", "per_seed",
    "difference", "difference_low", "difference_high", "undefined_resamples", "delong_p", "why_none",
    *COST_COLUMNS,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line(OverSeeds):
    """One figure of one entry over its seeds.

    Attributes:
        entry, task, figure: What it is of.
        of, count: ``slides`` or ``patients``, and how many.
        values: The figure of each seed.
        difference: The mean over seeds of this entry minus the first, with its paired interval. None for the
            first.
        delong: DeLong's test of each seed against the first entry with the same seed. Empty where it does not
            hold.
    """

    entry: str
    task: str
    of: str
    count: int
    figure: str
    values: tuple[float, ...]
    difference: Interval | None
    delong: tuple[DelongTest, ...]

    @property
    def why_none(self) -> str:
        """Why there is no interval and no p value of DeLong's test, in a few words. Empty if there is one."""
        of_test = self.delong[0].why_none if self.delong else ""
        return of_test or (self.difference.why_none if self.difference is not None else "")

    @property
    def delong_p(self) -> tuple[float, ...]:
        """DeLong's p value of each seed. Empty where it does not hold, or there are too few cases."""
        return tuple(test.p for test in self.delong if not test.why_none)


@dataclass(frozen=True, slots=True)
class Table:
    """All figures of all entries, and what these cost, a mean over seeds; a cost that is not known is None."""

    lines: tuple[Line, ...]
    costs: Mapping[str, Mapping[str, float | None]]
    slides: int
    notes: tuple[str, ...]

    @property
    def headlines(self) -> list[Line]:
        """The lines of the main figures: of each task and kind of unit, the first that is one and that these
        slides give.
        """
        first: dict[tuple[str, str], str] = {}
        for line in self.lines:
            key = (line.task, line.of)
            if math.isnan(line.mean):
                continue
            if key not in first or (line.figure in HEADLINES and first[key] not in HEADLINES):
                first[key] = line.figure
        return [line for line in self.lines if first.get((line.task, line.of)) == line.figure]


def tabulate(config: CompareConfig, finished: Sequence[Finished], manifest: Manifest) -> Table:
    """Score every training on the slides that all of them have predicted.

    Raises:
        ResultsError: There are no such slides, or an output cannot be.
        ManifestError: The labels of these slides are all the same.
    """
    joined = [_joined(manifest, each, config) for each in finished]
    common = set.intersection(*({record.slide_id for record, _ in one.pairs} for one in joined))
    every = set.union(*({record.slide_id for record, _ in one.pairs} for one in joined))
    scoring = [_scoring(each, config) for each in finished]
    lines: list[Line] = []
    for task in config.model.tasks:
        units = [
            units_of(task, only_slides(one, common), manifest, its)
            for one, its in zip(joined, scoring, strict=True)
        ]
        lines += _lines(task, config, units)
    notes = []
    if lost := len(every - common):
        notes.append(
            f"left out of the figures of all: {count(lost, 'slide')} that some trainings could not predict"
        )
    notes += _too_few(lines)
    costs = {
        name: _mean_costs([each.costs for each in finished if each.planned.entry == name])
        for name in config.entries
    }
    return Table(tuple(lines), costs, len(common), tuple(notes))


def _joined(manifest: Manifest, finished: Finished, config: CompareConfig) -> Joined:
    table = RunFolder(finished.planned.out / PREDICTIONS).predictions
    return join(manifest, finished.rows, config.split, predictions=table)


def _scoring(finished: Finished, config: CompareConfig) -> EvaluationConfig:
    return EvaluationConfig(
        run=finished.planned.out / PREDICTIONS,
        manifest=config.manifest,
        split=config.split,
        pool=config.pool,
        bootstrap=config.bootstrap,
        stratify=config.stratify,
    )


def _lines(task: TaskConfig, config: CompareConfig, units: Sequence[Sequence[Units]]) -> list[Line]:
    """The lines of one task. units: of each training, entry by entry and seed by seed."""
    seeds = len(config.seeds)
    lines: list[Line] = []
    for kind in range(len(units[0])):
        first = [its[kind] for its in units[:seeds]]
        for number, entry in enumerate(config.entries):
            ours = [its[kind] for its in units[number * seeds : (number + 1) * seeds]]
            figures = [each.measure(np.arange(len(each))) for each in ours]
            lead: Mapping[str, Interval] = {}
            if number:
                pairs = [one.beside(other) for one, other in zip(ours, first, strict=True)]
                lead = paired_bootstrap(pairs, resamples=config.bootstrap)
            tests = [delong_of(one, other) for one, other in zip(ours, first, strict=True)] if number else []
            tests_of_seeds = tuple(test for test in tests if test is not None)
            lines += [
                Line(
                    entry, task.name, ours[0].of, len(ours[0]), name,
                    tuple(each.get(name, math.nan) for each in figures),
                    lead.get(name), tests_of_seeds if name == "auc" else (),
                )
                for name in figures[0]
            ]  # fmt: skip
    return lines


def _too_few(lines: Sequence[Line]) -> list[str]:
    """Of which figures nothing is said beyond their values, and why."""
    said: dict[tuple[str, str, str], list[str]] = {}
    for line in lines:
        if line.why_none:
            said.setdefault((line.task, line.of, line.why_none), []).append(line.figure)
    notes = []
    for (task, of, why), figures in said.items():
        few = list(dict.fromkeys(figures))
        every = {line.figure for line in lines if (line.task, line.of) == (task, of)}
        which = "" if set(few) == every else f"{', '.join(map(figure_name, few))} of "
        notes.append(f"{which}{task}, {of}: too few for an interval or a p value ({why})")
    return notes


def _mean_costs(costs: Sequence[Costs]) -> dict[str, float | None]:
    means: dict[str, float | None] = {}
    for name in COST_COLUMNS:
        values = [getattr(each, name) for each in costs]
        known = [value for value in values if value is not None]
        means[name] = math.fsum(known) / len(known) if known else None
    return means


def write_table(path: Path, table: Table) -> None:
    """Write ``compare.csv``: a line for each figure of each entry, with the entry's costs."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for line in table.lines:
        lead = line.difference
        ends = ("", "", "", "") if lead is None else (lead.value, lead.low, lead.high, lead.undefined)
        writer.writerow([
            line.entry, line.task, line.of, line.count, line.figure, line.mean, line.sd, line.worst,
            ";".join(map(repr, line.values)), *ends, ";".join(map(repr, line.delong_p)),
            line.why_none,
            *("" if value is None else value for value in table.costs[line.entry].values()),
        ])  # fmt: skip
    with whole_file(path) as partial:
        partial.write_text(text.getvalue(), encoding="utf-8")


def write_markdown(path: Path, table: Table, config: CompareConfig) -> None:
    """Write ``compare.md``: the main figures of each entry, and its costs, for people."""
    with whole_file(path) as partial:
        partial.write_text("\n".join(markdown(table, config)) + "\n", encoding="utf-8")


def markdown(table: Table, config: CompareConfig) -> list[str]:
    """The lines of ``compare.md``."""
    first, seeds = next(iter(config.entries)), len(config.seeds)
    over = count(seeds, "seed")
    lines = [
        f"{count(table.slides, 'slide')} of split {config.split}, {over}. Differences are from {first}, with 95 % "
        f"intervals of {config.bootstrap} paired resamples of cases{' and seeds' if seeds > 1 else ''}. DeLong: "
        "the p value of each seed.",
        "",
    ]
    for key in dict.fromkeys((line.task, line.of, line.figure, line.count) for line in table.headlines):
        task, of, figure, number = key
        lines += [
            f"{task}: {figure_name(figure)} of {number} {of}",
            "",
            "| entry | mean | sd | worst | difference | DeLong p |",
            "|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {line.entry} | {_number(line.mean)} | {_number(line.sd)} | {_number(line.worst)} | "
            f"{lead_in_words(line)} | {delong_in_words(line)} |"
            for line in table.headlines
            if (line.task, line.of) == (task, of)
        ]
        lines.append("")
    lines += [
        "| entry | passes to train | to predict | seconds to train | to predict | peak memory | written |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [_cost_row(name, costs) for name, costs in table.costs.items()]
    return [*lines, *(["", *table.notes] if table.notes else [])]


def _cost_row(name: str, costs: Mapping[str, float | None]) -> str:
    def cell(what: str, *, unit: float = 1, end: str = "", digits: int = 0) -> str:
        value = costs[what]
        return "" if value is None else f"{value / unit:.{digits}f}{end}"

    cells = [
        cell("train_passes"), cell("predict_passes"), cell("train_seconds", digits=1),
        cell("predict_seconds", digits=1), cell("peak_memory", unit=2**20, end=" MiB"),
        cell("bytes_written", unit=2**20, end=" MiB", digits=1),
    ]  # fmt: skip
    return f"| {name} | {' | '.join(cells)} |"


def lead_in_words(line: Line) -> str:
    """``+0.031 [-0.012, +0.070]``; empty for the first entry."""
    if line.difference is None or math.isnan(line.difference.value):
        return ""
    lead = line.difference
    interval = f" [{lead.low:+.3f}, {lead.high:+.3f}]"
    if math.isnan(lead.low):
        interval = " (too few for an interval)" if lead.why_none else ""
    return f"{lead.value:+.3f}{interval}"


def delong_in_words(line: Line) -> str:
    """``0.14, 0.02``, the p value of each seed, or ``too few``; empty where the test does not hold."""
    if line.delong and line.delong[0].why_none:
        return "too few"
    return ", ".join(f"{p:.2g}" for p in line.delong_p)


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def draw_table(out: Path, table: Table) -> list[Path]:
    """Draw the main figure of each task: a dot for each seed, the mean, and how far ahead of the first entry.

    Returns the pictures: ``compare.png``, or ``compare_<task>_<of>.png`` each if there are several.
    """
    keys = list(dict.fromkeys((line.task, line.of, line.figure) for line in table.headlines))
    drawn = []
    for task, of, figure in keys:
        lines = [line for line in table.headlines if (line.task, line.of) == (task, of)]
        path = out / ("compare.png" if len(keys) == 1 else f"compare_{task}_{of}.png")
        with figure_at(path, width=7.5, height=1.1 + 0.42 * len(lines)) as axes:
            axes.axvline(lines[0].mean, color=GREY, linewidth=0.8, linestyle=":")
            for place, line in enumerate(lines):
                colour = COLOURS[0] if place else COLOURS[-1]
                axes.plot(
                    line.values, [place] * len(line.values), "o", color=colour, alpha=0.35, markersize=5
                )
                axes.plot([line.mean], [place], "D", color=colour, markersize=6)
                axes.annotate(
                    lead_in_words(line),
                    (1.02, place),
                    xycoords=("axes fraction", "data"),
                    va="center",
                    fontsize=8,
                )
            axes.set_yticks(range(len(lines)), [line.entry for line in lines])
            axes.set_ylim(len(lines) - 0.5, -0.5)
            axes.set_xlabel(
                f"{figure_name(figure)} of {task}, {lines[0].count} {of}; right: ahead of {lines[0].entry}"
            )
        drawn.append(path)
    return drawn
