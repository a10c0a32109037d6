"""``plan``: what a recipe will cost, before anything runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

import typer
from pydantic import PositiveInt, model_validator

from wsi_ips.commands.options import Outcome, Set, start
from wsi_ips.commands.recipe import Job
from wsi_ips.progress import Progress

if TYPE_CHECKING:
    from wsi_ips.planning.cost import Cost
    from wsi_ips.planning.rates import Clock
    from wsi_ips.planning.series_cost import SeriesCost
    from wsi_ips.planning.series_told import SeriesPlan
    from wsi_ips.planning.simulated import Peaks, Simulations
    from wsi_ips.planning.survey import Survey
    from wsi_ips.planning.told import Plan
    from wsi_ips.planning.work import Work


class PlanJob(Job):
    """Say what a recipe will cost."""

    command: Literal["plan"] = "plan"
    recipe: Path
    settings: tuple[str, ...] = ()
    """Settings over those of the recipe, ``section.key=value``."""
    kind: Literal["finetune", "predict", "features"] | None = None
    """What is planned; none: what the recipe does."""
    device: str = "auto"
    """``cpu``, ``cuda`` or ``auto`` are measured here; the name of a listed card is estimated."""
    rates: Path | None = None
    """File of rates, or of an earlier plan, instead of a measurement."""
    sample: PositiveInt | None = None
    """Slides of each split that are looked at; none: all of up to 40, else 24."""
    slides: PositiveInt | None = None
    """As if there were so many slides, instead of opening any; with ``patches``."""
    patches: PositiveInt | None = None
    """Patches of each of them."""
    data: Path | None = None
    """Of a table: the downloaded folder, or the one above it; none: the recipe's."""
    labels: Path | None = None
    """Of a table: the table of labels, where it is not in the folder under its own name."""
    splits: Path | None = None
    """Of a table: folder of train.csv, val.csv and test.csv."""
    clock: Literal["wall", "cpu"] = "wall"
    """``cpu`` counts seconds of a core, whatever else the machine does while it is measured."""
    json_: bool = False
    out: Path | None = None

    @model_validator(mode="after")
    def _imagined_slides_have_a_size(self) -> Self:
        if (self.slides is None) != (self.patches is None):
            raise ValueError("--slides and --patches go together: so many slides with so many patches each")
        if self.clock == "cpu" and self.device not in ("auto", "cpu"):
            raise ValueError("--clock cpu counts seconds of a core: it goes with --device cpu")
        if self.slides is not None and self.sample is not None:
            raise ValueError("--sample looks at slides, and --slides imagines them: give one of them")
        return self


def command(
    recipe: Annotated[
        Path,
        typer.Argument(
            help="A YAML recipe of finetune, predict, features, demo, table or compare, or its name."
        ),
    ],
    kind: Annotated[
        str | None,
        typer.Option("--for", help="finetune, predict or features; default: what the recipe does."),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="auto (default), cpu, cuda: measured here; h200, h100, a100, rtx4090: estimated."),
    ] = None,
    rates: Annotated[
        Path | None,
        typer.Option(help="Rates from a file, or from a plan of another machine; nothing is measured."),
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(help="Look at so many slides of each split, and scale up (default: up to 40, all)."),
    ] = None,
    slides: Annotated[
        int | None, typer.Option(help="As if there were so many slides; none is opened. With --patches.")
    ] = None,
    patches: Annotated[int | None, typer.Option(help="Patches of each of these slides.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Of a table: the downloaded data set's folder, or the one above it.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Of a table: its labels, where they are not in that folder.")
    ] = None,
    splits: Annotated[
        Path | None, typer.Option(help="Of a table: folder of train.csv, val.csv, test.csv (PANDA, TCGA).")
    ] = None,
    clock: Annotated[
        str | None,
        typer.Option(help="wall (default), or cpu: seconds of a core, for a machine with other work."),
    ] = None,
    set_: Set = None,
    json_: Annotated[bool | None, typer.Option("--json", help="Print the plan as one JSON object.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the plan as JSON to this file.")
    ] = None,
) -> None:
    """Say what a recipe will cost before it runs: hours, memory, disk, and which setting would halve them."""
    flags = {"recipe": recipe, "settings": tuple(set_ or ()), "kind": kind, "device": device, "rates": rates,
             "sample": sample, "slides": slides, "patches": patches, "data": data, "labels": labels,
             "splits": splits, "clock": clock, "json_": json_, "out": out}  # fmt: skip
    start("plan", flags)


def plan(job: PlanJob, progress: Progress) -> Outcome:
    """Print the plan. Nothing is written except ``out``.

    Raises:
        ConfigError: The recipe is wrong, or of a command that a plan has no rules for; the device is not
            listed; the rates cannot be read; there are no slides that can be read.
        WsiIpsError: The manifest or the checkpoint of the recipe is missing.
    """
    import json

    from wsi_ips.planning.series_told import SeriesPlan, data_of_series, lines_of_series
    from wsi_ips.planning.told import data_of, lines_of
    from wsi_ips.storage.files import whole_file

    made = make_plan(job, progress)
    data = data_of_series(made) if isinstance(made, SeriesPlan) else data_of(made)
    text = json.dumps(data, indent=1) + "\n"
    if job.out is not None:
        with whole_file(job.out) as partial:
            partial.write_text(text, encoding="utf-8")
    if job.json_:
        return Outcome([text.rstrip()])
    return Outcome(lines_of_series(made) if isinstance(made, SeriesPlan) else lines_of(made))


def make_plan(job: PlanJob, progress: Progress) -> "Plan | SeriesPlan":
    """The plan of a job. Raises what :func:`plan` raises."""
    from wsi_ips.planning.cost import cost_of, halvings
    from wsi_ips.planning.known import check_device, rates_of
    from wsi_ips.planning.series import is_series
    from wsi_ips.planning.series_known import plan_series
    from wsi_ips.planning.told import Plan

    check_device(job)
    planned = _planned(job)
    if is_series(planned):
        return plan_series(job, planned, progress)
    with _looked_at(job, planned, progress) as seen:
        rates = rates_of(seen.work, seen.survey, job, progress)
    cost = cost_of(seen.work, seen.survey, rates, seen.peaks)
    with progress("Trying other settings", total=1) as advance:
        tried = halvings(seen.work, seen.survey, rates, seen.simulations)
        advance()
    return Plan(str(job.recipe), seen.work, seen.survey, rates, cost, tried)


def _planned(job: PlanJob) -> Job:
    """The job of the recipe, with the options that say where the data of a table lie.

    Raises :class:`ConfigError` for such options and a recipe of something else.
    """
    from wsi_ips.commands.recipe import load_recipe, make_job
    from wsi_ips.errors import ConfigError

    where = {"data": job.data, "labels": job.labels, "splits": job.splits}
    given = {name: path for name, path in where.items() if path is not None}
    values = load_recipe(job.recipe, job.settings)
    of_table = values.get("command") == "table"
    if given and not of_table:
        raise ConfigError(
            f"--{next(iter(given))} goes with recipes of table: {job.recipe} is of another command"
        )
    planned = make_job({**values, **given}, source=str(job.recipe))
    if job.kind not in (None, "finetune") and planned.command in ("table", "compare"):
        raise ConfigError(f"--for {job.kind}: a {planned.command} is planned as a whole: leave --for out")
    return planned


def costs_by_clock(job: PlanJob, progress: Progress) -> "dict[Clock, Cost] | dict[Clock, SeriesCost]":
    """What the recipe will cost by each clock, which this machine is measured with in turn: ``wall`` and ``cpu``.

    Slides are looked at and memory is simulated once, so this takes little longer than one plan. Raises what
    :func:`plan` raises.
    """
    from wsi_ips.planning.cost import cost_of
    from wsi_ips.planning.known import rates_of
    from wsi_ips.planning.series import is_series
    from wsi_ips.planning.series_known import series_costs

    clocks: tuple[Clock, ...] = ("wall", "cpu")
    planned = _planned(job)
    if is_series(planned):
        return series_costs(job, planned, clocks, progress)
    with _looked_at(job, planned, progress) as seen:
        rates = {
            clock: rates_of(seen.work, seen.survey, job.model_copy(update={"clock": clock}), progress)
            for clock in clocks
        }
    return {clock: cost_of(seen.work, seen.survey, rates[clock], seen.peaks) for clock in clocks}


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is known of a recipe before the machine is measured."""

    work: "Work"
    survey: "Survey"
    simulations: "Simulations"
    peaks: "Peaks"


@contextmanager
def _looked_at(job: PlanJob, planned: Job, progress: Progress) -> "Iterator[_Seen]":
    """Look at the slides of the recipe, and simulate its memory. Slides that were drawn for it last as long as
    the ``with`` block.
    """
    from wsi_ips.planning.known import check_method, in_its_precision, surveyed
    from wsi_ips.planning.simulated import Simulations
    from wsi_ips.planning.work import work_of

    with work_of(planned, job.kind, need_slides=job.slides is None) as work:
        work = in_its_precision(work, job)
        check_method(work)
        split = "train" if work.kind == "finetune" else "all"
        counts = {split: job.slides} if job.slides is not None else {}
        survey = surveyed(work, job, progress, imagined_in=counts)
        simulations = Simulations(learning=work.kind == "finetune")
        with progress("Simulating memory", total=1) as advance:
            peaks = simulations(work.config)
            advance()
        yield _Seen(work, survey, simulations, peaks)
