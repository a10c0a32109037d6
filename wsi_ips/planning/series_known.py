"""What a plan finds out of a table or a comparison before it works out its cost: :func:`plan_series`.

Slides are looked at once for all rows that tile them alike, and this machine is measured once for each network.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_ips.commands.recipe import Job
from wsi_ips.config import FinetuneConfig
from wsi_ips.errors import ConfigError, ProcessDied
from wsi_ips.planning.known import check_method, in_its_precision, rates_of, surveyed
from wsi_ips.planning.measure_jobs import JobWanted, measured_job, scored_sample
from wsi_ips.planning.rates import (
    Clock,
    JobRates,
    Rates,
    checked_rates,
    known_devices,
    read_rates,
    read_values,
)
from wsi_ips.planning.series import Part, Row, Series, measured_as, scored_as, series_of, surveyed_as
from wsi_ips.planning.series_cost import Known, SeriesCost, cost_of_series, series_halvings
from wsi_ips.planning.series_told import SeriesPlan
from wsi_ips.planning.simulated import Peaks, Simulations
from wsi_ips.planning.survey import Survey
from wsi_ips.progress import Progress

if TYPE_CHECKING:
    from wsi_ips.planning.command import PlanJob


@dataclass(frozen=True, slots=True)
class _Seen:
    """A series whose slides have been looked at, and whose memory has been simulated."""

    series: Series
    surveys: Mapping[str, Survey]
    peaks: Mapping[str, Peaks]


def plan_series(job: "PlanJob", planned: Job, progress: Progress) -> SeriesPlan:
    """The plan of a table or a comparison.

    Raises:
        ConfigError: A row cannot be trained or is not known to a plan; rates cannot be read or lack a row.
        WsiIpsError: The data set is not laid out as released, or no slide can be read.
    """
    with _looked_at(job, planned, progress) as seen:
        known = _known(seen, job, progress)
    cost = cost_of_series(seen.series, known)
    return SeriesPlan(str(job.recipe), seen.series, known, cost, series_halvings(seen.series, known))


def series_costs(
    job: "PlanJob", planned: Job, clocks: Sequence[Clock], progress: Progress
) -> dict[Clock, SeriesCost]:
    """What a series will cost by each of these clocks, with one look at its slides."""
    with _looked_at(job, planned, progress) as seen:
        return {
            clock: cost_of_series(
                seen.series, _known(seen, job.model_copy(update={"clock": clock}), progress)
            )
            for clock in clocks
        }


@contextmanager
def _looked_at(job: "PlanJob", planned: Job, progress: Progress) -> Iterator[_Seen]:
    with series_of(planned, imagined=job.slides) as series:
        series = _checked(series, job)
        surveys: dict[str, Survey] = {}
        peaks: dict[str, Peaks] = {}
        by_tiling: dict[str, Survey] = {}
        parts = series.parts
        for part in parts:
            key = surveyed_as(part.work)
            if key not in by_tiling:
                work = replace(part.work, slides=series.slides)
                by_tiling[key] = surveyed(work, job, progress, imagined_in=series.counts)
            surveys[part.name] = by_tiling[key]
        with progress("Simulating memory", total=len(parts)) as advance:
            for part in parts:
                simulate = Simulations(learning=part.work.kind == "finetune")
                peaks[part.name] = simulate(_as_large(part, surveys[part.name]))
                advance(part.name)
        yield _Seen(series, surveys, peaks)


def _checked(series: Series, job: "PlanJob") -> Series:
    """The same with every precision decided. Raises :class:`ConfigError` that names a row that no plan knows."""
    rows = []
    for row in series.rows:
        work = in_its_precision(row.work, job)
        try:
            check_method(work)
        except ConfigError as error:
            raise ConfigError(f"row {row.name}: {error}") from None
        rows.append(replace(row, work=work))
    stored = tuple(replace(one, work=in_its_precision(one.work, job)) for one in series.stored)
    return replace(series, rows=tuple(rows), stored=stored)


def _as_large(part: Part, survey: Survey) -> FinetuneConfig:
    """The settings whose memory is simulated. A row on features that reads all patches of a slide keeps as many as
    the largest has."""
    config = part.work.config
    if config.model.encoder.features is None or config.selection.selector != "all":
        return config
    most = max(1, min(survey.largest, config.training.most_patches))
    return config.model_copy(update={"selection": config.selection.model_copy(update={"memory_size": most})})


def _known(seen: _Seen, job: "PlanJob", progress: Progress) -> Known:
    """Rates of everything, measured, stated or read."""
    given = _Given.read(job.rates) if job.rates is not None else None
    return Known(
        seen.surveys, _rates(seen, job, given, progress), _jobs(seen, job, given, progress), seen.peaks
    )


def _rates(seen: _Seen, job: "PlanJob", given: "_Given | None", progress: Progress) -> dict[str, Rates]:
    """Of each part that reads slides; those of the same network are measured once."""
    found: dict[str, Rates] = {}
    by_network: dict[str, Rates] = {}
    for part in seen.series.parts:
        if isinstance(part, Row) and part.stored is not None:
            continue
        if given is not None:
            found[part.name] = given.rates(part.name)
            continue
        survey, key = seen.surveys[part.name], measured_as(part.work)
        if isinstance(part, Row):
            survey = survey.only("train", "val")
        if key not in by_network:
            by_network[key] = rates_of(part.work, survey, job, progress, labels=isinstance(part, Row))
        found[part.name] = by_network[key]
    return found


def _jobs(seen: _Seen, job: "PlanJob", given: "_Given | None", progress: Progress) -> dict[str, JobRates]:
    """Of each row. Rows that learn on features are measured first: what they are scored in, others are too."""
    found: dict[str, JobRates] = {}
    by_head: dict[tuple[str, str], JobRates] = {}
    for row in sorted(seen.series.rows, key=lambda row: row.stored is None):
        survey = seen.surveys[row.name]
        if given is not None:
            found[row.name] = given.job(row.name)
        elif not survey.samples:
            found[row.name] = JobRates(device=job.device, how="given")
        else:
            learns = row.stored is not None and job.device not in known_devices()
            head, training = scored_as(row, learns)
            rates = by_head.get((head, training))
            if rates is None:
                rates = _measured(row, seen, job, learns, progress)
            by_head[head, training] = rates
            # Scored alike, whatever they learn from.
            by_head.setdefault((head, ""), rates)
            found[row.name] = rates
    return {row.name: found[row.name] for row in seen.series.rows}


def _measured(row: Row, seen: _Seen, job: "PlanJob", learns: bool, progress: Progress) -> JobRates:
    series, survey, config = seen.series, seen.surveys[row.name], row.work.config
    if config.model.encoder.features is None:
        encoder = config.model.encoder.on_features(seen.peaks[row.name].width)
        config = config.model_copy(update={"model": config.model.model_copy(update={"encoder": encoder})})
    scored = series.scored if series.bootstrap is not None else ()
    wanted = JobWanted(
        config=config,
        learns=learns,
        sample=survey.samples[0],
        mean_patches=survey.mean_patches(),
        test=scored_sample(scored, config.model.tasks[0].column_name),
        slides=len(scored),
        lesions=series.lesions,
        bootstrap=series.bootstrap or 0,
        device="cpu" if job.device in known_devices() else job.device,
        clock=job.clock,
    )
    with progress("Measuring a job", total=1) as advance:
        try:
            rates = measured_job(wanted)
        except BrokenProcessPool:
            raise ProcessDied(
                str(survey.samples[0].path), "the measurement was killed", "memory may have run out"
            ) from None
        advance(row.name)
    return rates


@dataclass(frozen=True, slots=True)
class _Given:
    """Rates that the user gives: of an earlier plan of a table, by name, or the same for all rows."""

    path: Path
    same: Rates | None
    parts: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, path: Path) -> "_Given":
        """Raises :class:`ConfigError` for a file that is missing or does not hold rates."""
        values = read_values(path)
        if not isinstance(values.get("rows"), list):
            return cls(path, read_rates(path), {})
        held = [*values["rows"], *(values.get("features") or [])]
        parts = {part["name"]: part for part in held if isinstance(part, dict) and "name" in part}
        return cls(path, None, parts)

    def rates(self, name: str) -> Rates:
        """Of a part that reads slides. Raises :class:`ConfigError` where the file has none."""
        return self.same or checked_rates(Rates, self._of(name, "rates"), self.path)

    def job(self, name: str) -> JobRates:
        """Of a row beside its slides. What a file of rates alone does not say is not known."""
        if self.same is not None:
            return JobRates(device=self.same.device, how="given", clock=self.same.clock, head=self.same.head,
                            start_s=self.same.start_s)  # fmt: skip
        return checked_rates(JobRates, self._of(name, "job"), self.path)

    def _of(self, name: str, kind: str) -> Mapping[str, Any]:
        held = self.parts.get(name, {}).get(kind)
        if not isinstance(held, dict):
            raise ConfigError(
                f"--rates {self.path}: has no {kind} of {name}; plan it where it was measured, with this recipe"
            )
        return held
