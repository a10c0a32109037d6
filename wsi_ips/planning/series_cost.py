"""What a table or a comparison takes: :func:`cost_of_series` adds up its rows, seeds and stored features.

A row that reads slides takes what its training takes (:func:`wsi_ips.planning.cost.cost_of`), then the labels of
the test slides and their evaluation, all in one process. A row on stored features does the same with features,
which are stored once for all rows and seeds.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from wsi_ips.planning.cost import (
    Change,
    Cost,
    Halving,
    Stage,
    changes_of,
    cost_of,
    grows_mb,
    labels_disk_mb,
    network_mb,
    training_disk,
)
from wsi_ips.planning.rates import JobRates, Rates
from wsi_ips.planning.series import Row, Series, Stored
from wsi_ips.planning.simulated import Peaks
from wsi_ips.planning.survey import Survey
from wsi_ips.planning.work import Work

TISSUE = "finding tissue"
START = "starting"
END = "ending"
TISSUE_OF_TEST = "finding tissue of test slides"


@dataclass(frozen=True, slots=True)
class Known:
    """All that a series' cost is worked out from.

    Attributes:
        surveys: ``{name of a row or of stored features: what is to be read}``.
        rates: The rates of what reads slides, by the same names.
        jobs: The rates of each row's job beside its slides.
        peaks: Simulated memory, by the same names.
    """

    surveys: Mapping[str, Survey]
    rates: Mapping[str, Rates]
    jobs: Mapping[str, JobRates]
    peaks: Mapping[str, Peaks]


@dataclass(frozen=True, slots=True)
class PartCost:
    """What one row takes, or features that are stored for several.

    Attributes:
        name: Its name.
        once: What one seed of it takes: training, labels and figures. Of stored features: all of it.
        times: How often that is done: once for each seed.
    """

    name: str
    once: Cost
    times: int

    @property
    def seconds(self) -> float:
        """All that is known together, in all seeds."""
        return self.once.seconds * self.times

    @property
    def disk_mb(self) -> float:
        return self.once.disk_mb * self.times


@dataclass(frozen=True, slots=True)
class SeriesCost:
    """What all of it takes.

    Attributes:
        stored: Features that are stored once.
        rows: The rows.
        before: What the program itself does once: it starts, and finds tissue where jobs share that.
        starter_mb: Memory of the process that starts the jobs, beside theirs. None: not known, or there is none.
    """

    stored: tuple[PartCost, ...]
    rows: tuple[PartCost, ...]
    before: tuple[Stage, ...]
    starter_mb: float | None

    @property
    def parts(self) -> tuple[PartCost, ...]:
        """Stored features and rows."""
        return (*self.stored, *self.rows)

    @property
    def seconds(self) -> float:
        """All that is known together."""
        before = math.fsum(stage.seconds for stage in self.before if stage.seconds is not None)
        return before + math.fsum(part.seconds for part in self.parts)

    @property
    def not_known(self) -> tuple[str, ...]:
        """The stages whose time is not known of some part; each part tells its own."""
        once = [stage.name for stage in self.before if stage.seconds is None]
        return tuple(dict.fromkeys([*once, *(name for part in self.parts for name in part.once.not_known)]))

    @property
    def dominating(self) -> PartCost:
        """The row, or the stored features, that takes longest of what is known."""
        return max(self.parts, key=lambda part: part.seconds)

    @property
    def ram_mb(self) -> float | None:
        """Of the largest job. None where it is not known of one."""
        return _largest([part.once.ram_mb for part in self.parts])

    @property
    def vram_mb(self) -> float | None:
        """Of the largest job on a card."""
        return _largest([part.once.vram_mb for part in self.parts])

    @property
    def disk_mb(self) -> float:
        """What stays, in millions of bytes."""
        return math.fsum(part.disk_mb for part in self.parts)

    @property
    def scratch_mb(self) -> float:
        """The most that is deleted again: jobs run one after the other."""
        return max(part.once.scratch_mb for part in self.parts)


def _largest(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if len(known) == len(values) else None


def cost_of_series(series: Series, known: Known) -> SeriesCost:
    """What a table or a comparison takes on a machine."""
    stored = tuple(PartCost(one.name, _of_stored(one, series, known), 1) for one in series.stored)
    rows = tuple(PartCost(row.name, cost_of_row(row, series, known), series.seeds) for row in series.rows)
    start_s = next((job.start_s for job in known.jobs.values()), None)
    end_s = _end_of(known)
    before = [Stage(START, start_s), *_ending(end_s)]
    if series.tissue_once:
        first = series.rows[0]
        whole = cost_of(replace(first.work, kind="features"), known.surveys[first.name], known.rates[first.name],
                        known.peaks[first.name])  # fmt: skip
        before += [stage for stage in whole.stages if stage.name == TISSUE]
    if series.bootstrap is None:
        before.append(Stage("figures of all", None))
    base = next((rates.base_mb for rates in known.rates.values()), None)
    return SeriesCost(stored, rows, tuple(before), base if series.isolate else None)


def _of_stored(one: Stored, series: Series, known: Known) -> Cost:
    cost = cost_of(one.work, known.surveys[one.name], known.rates[one.name], known.peaks[one.name])
    if not series.isolate:
        return replace(cost, stages=_without(cost.stages, START))
    return replace(cost, stages=(*cost.stages, *_ending(_end_of(known))))


def _end_of(known: Known) -> float:
    """Seconds in which a process ends, as far as it is known of one."""
    return max((job.end_s for job in known.jobs.values()), default=0.0)


def _ending(seconds: float) -> list[Stage]:
    return [Stage(END, seconds)] if seconds else []


def cost_of_row(row: Row, series: Series, known: Known) -> Cost:
    """One row with one seed: its training, then the labels of the split that is scored, and their figures."""
    survey, job, peaks = known.surveys[row.name], known.jobs[row.name], known.peaks[row.name]
    test, learned = survey.only(series.split), survey.only("train", "val")
    if row.stored is None:
        rates = known.rates[row.name]
        training = cost_of(row.work, learned, rates, peaks)
        labels = cost_of(replace(row.work, kind="predict"), test, rates, peaks)
        labelled = [_of_test(stage) for stage in labels.stages if stage.name != START]
    else:
        training = _on_features(row, learned, job, peaks, known.rates[row.stored])
        seconds = None if job.label_s is None else job.label_s * test.readable()
        labels = replace(training, passes=test.total("patches").value, disk_mb=labels_disk_mb(row.work, test))
        labelled = [Stage("labelling test slides", seconds, does="learning")]
    ending = _ending(job.end_s) if series.isolate else []
    without = ([] if series.isolate else [START]) + ([TISSUE, TISSUE_OF_TEST] if series.tissue_once else [])
    stages = _without((*training.stages, *labelled, *_scoring(series, test, job), *ending), *without)
    return replace(
        training,
        stages=stages,
        passes=training.passes + labels.passes,
        disk_mb=training.disk_mb + labels.disk_mb,
    )


def _of_test(stage: Stage) -> Stage:
    names = {TISSUE: TISSUE_OF_TEST, "selecting and labelling": "labelling test slides"}
    return replace(stage, name=names.get(stage.name, f"{stage.name} of test slides"))


def _without(stages: tuple[Stage, ...], *names: str) -> tuple[Stage, ...]:
    return tuple(stage for stage in stages if stage.name not in names)


def _scoring(series: Series, test: Survey, job: JobRates) -> list[Stage]:
    if series.bootstrap is None:
        return []
    if job.score_s is None:
        return [Stage("figures", None)]
    return [Stage("figures", job.score_s + job.score_slide_s * test.readable())]


def _on_features(row: Row, survey: Survey, job: JobRates, peaks: Peaks, storing: Rates) -> Cost:
    """A training on stored features. ``storing``: the rates of the machine that stores them."""
    config, head = row.work.config, job.head
    training = config.training
    bags = survey.readable("train") + survey.readable("val")
    patches = survey.total("patches", "train", "val").value
    learned = each_epoch = None
    if head is not None:
        each_epoch = head.epoch_s + bags * head.bag_s
        learned = training.restarts * (head.start_s + training.epochs * each_epoch)
    stages = (
        Stage(START, job.start_s),
        Stage("learning on features", learned, each_epoch or 0.0, "learning"),
    )
    ram = None if job.peak_mb is None else job.peak_mb + grows_mb(row.work, survey)
    vram = None if storing.device.startswith("cpu") else network_mb(row.work, peaks)
    disk, _ = training_disk(config, peaks, 0.0, 0.0)
    return Cost(stages, patches, patches * training.epochs * training.restarts, ram, vram, disk, 0.0)


def series_halvings(series: Series, known: Known) -> list[Halving]:
    """What each of a few other settings would do to the time of all rows together, by the same model.

    A setting changes the rows that read slides, and the storing of features. What learns on features is taken to
    last as long as before, which is too long where there would be fewer patches.
    """
    now = cost_of_series(series, known).seconds
    if not now:
        return []
    works = {part.name: part.work for part in series.parts if part.name in known.rates}
    found: dict[str, dict[str, Change]] = {}
    for name, work in works.items():
        for change in changes_of(work):
            found.setdefault(change[0], {})[name] = change
    halvings = []
    for setting, of_parts in found.items():
        changed = _changed(works, known, of_parts)
        if changed is not None:
            then = cost_of_series(_with(series, changed[0]), changed[1]).seconds
            marked = any(change[1] for change in of_parts.values())
            halvings.append(Halving(setting, then / now, None, marked))
    return halvings


def _changed(
    works: Mapping[str, Work], known: Known, of_parts: Mapping[str, Change]
) -> tuple[dict[str, Work], Known] | None:
    """The works of all parts with a setting, and what is known of them; None where no part can have it."""
    new, surveys, rates = dict(works), dict(known.surveys), dict(known.rates)
    possible = False
    for name, (_, _, change) in of_parts.items():
        if (made := change(works[name], surveys[name], rates[name])) is not None:
            new[name], surveys[name], rates[name] = made
            possible = True
    return (new, replace(known, surveys=surveys, rates=rates)) if possible else None


def _with(series: Series, works: Mapping[str, Work]) -> Series:
    return replace(
        series,
        rows=tuple(replace(row, work=works.get(row.name, row.work)) for row in series.rows),
        stored=tuple(replace(one, work=works.get(one.name, one.work)) for one in series.stored),
    )
