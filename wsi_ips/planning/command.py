"""``plan``: what a recipe will cost, before anything runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import typer
from pydantic import PositiveInt, model_validator

from wsi_ips.commands.options import Outcome, Set, start
from wsi_ips.commands.recipe import Job
from wsi_ips.progress import Progress

if TYPE_CHECKING:
    from wsi_ips.planning.cost import Cost
    from wsi_ips.planning.rates import Clock, Rates
    from wsi_ips.planning.simulated import Peaks, Simulations
    from wsi_ips.planning.survey import Survey
    from wsi_ips.planning.told import Plan
    from wsi_ips.planning.work import Work

MANY = 40
"""Slides of a split above which a sample is looked at, unless the user says how many."""
SAMPLE = 24


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
            help="A YAML recipe of finetune, predict, features or demo, or the name of one of wsi_ips."
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
             "sample": sample, "slides": slides, "patches": patches, "clock": clock, "json_": json_,
             "out": out}  # fmt: skip
    start("plan", flags)


def plan(job: PlanJob, progress: Progress) -> Outcome:
    """Print the plan. Nothing is written except ``out``.

    Raises:
        ConfigError: The recipe is wrong, or of a command that a plan has no rules for; the device is not
            listed; the
            rates cannot be read; there are no slides that can be read.
        WsiIpsError: The manifest or the checkpoint of the recipe is missing.
    """
    import json

    from wsi_ips.planning.told import data_of, lines_of
    from wsi_ips.storage.files import whole_file

    made = make_plan(job, progress)
    text = json.dumps(data_of(made), indent=1) + "\n"
    if job.out is not None:
        with whole_file(job.out) as partial:
            partial.write_text(text, encoding="utf-8")
    return Outcome([text.rstrip()] if job.json_ else lines_of(made))


def make_plan(job: PlanJob, progress: Progress) -> "Plan":
    """The plan of a job. Raises what :func:`plan` raises."""
    from wsi_ips.errors import ConfigError
    from wsi_ips.planning.cost import cost_of, halvings
    from wsi_ips.planning.rates import known_devices
    from wsi_ips.planning.told import Plan

    measured_here = job.device in ("auto", "cpu", "cuda", "mps") or job.device.startswith("cuda:")
    if not measured_here and job.device not in known_devices():
        raise ConfigError(
            f"--device {job.device}: auto, cpu and cuda are measured here, and listed are "
            f"{', '.join(known_devices())}"
        )
    with _looked_at(job, progress) as seen:
        rates = _rates(seen.work, seen.survey, job, progress)
    cost = cost_of(seen.work, seen.survey, rates, seen.peaks)
    with progress("Trying other settings", total=1) as advance:
        tried = halvings(seen.work, seen.survey, rates, seen.simulations)
        advance()
    return Plan(str(job.recipe), seen.work, seen.survey, rates, cost, tried)


def costs_by_clock(job: PlanJob, progress: Progress) -> "dict[Clock, Cost]":
    """What the recipe will cost by each clock, which this machine is measured with in turn: ``wall`` and ``cpu``.

    Slides are looked at and memory is simulated once, so this takes little longer than one plan. Raises what
    :func:`plan` raises.
    """
    from wsi_ips.planning.cost import cost_of

    clocks: tuple[Clock, ...] = ("wall", "cpu")
    with _looked_at(job, progress) as seen:
        rates = {
            clock: _rates(seen.work, seen.survey, job.model_copy(update={"clock": clock}), progress)
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
def _looked_at(job: PlanJob, progress: Progress) -> "Iterator[_Seen]":
    """Read the recipe, look at its slides, and simulate its memory. Slides that were drawn for it last as long as
    the ``with`` block.
    """
    from wsi_ips.commands.recipe import load_recipe, make_job
    from wsi_ips.planning.simulated import Simulations
    from wsi_ips.planning.work import work_of

    planned = make_job(load_recipe(job.recipe, job.settings), source=str(job.recipe))
    with work_of(planned, job.kind, need_slides=job.slides is None) as work:
        work = _in_its_precision(work, job)
        _check_method(work)
        survey = _survey(work, job, progress)
        simulations = Simulations(learning=work.kind == "finetune")
        with progress("Simulating memory", total=1) as advance:
            peaks = simulations(work.config)
            advance()
        yield _Seen(work, survey, simulations, peaks)


def _in_its_precision(work: "Work", job: PlanJob) -> "Work":
    """``auto`` is decided by the encoder and the device that is planned for."""
    from dataclasses import replace

    from wsi_ips.models.encoders.network import settled
    from wsi_ips.models.encoders.registry import entry_of
    from wsi_ips.planning.rates import known_devices
    from wsi_ips.streaming.device import pick_device

    asked: Any = work.asked
    if asked == "auto":
        entry = entry_of(work.config.model.encoder.name)
        if job.device in known_devices():
            asked = "32" if entry is None else entry.precision
        else:
            asked = settled("auto", work.config.model.encoder.name, pick_device(job.device).type)
    training = work.config.training.model_copy(update={"precision": asked})
    return replace(work, config=work.config.model_copy(update={"training": training}))


def _check_method(work: "Work") -> None:
    """Raise :class:`ConfigError` for a selector whose passes are not known here."""
    from wsi_ips.errors import ConfigError

    selection = work.config.selection
    if work.kind != "features" and (selection.is_coarse_to_fine or selection.is_outside):
        raise ConfigError(
            f"a plan knows selection.selector ips, all and random, not {selection.selector}, whose coarse look is "
            "another pass: plan with --set selection.selector=ips, which is the upper end"
        )


def _survey(work: "Work", job: PlanJob, progress: Progress) -> "Survey":
    from dataclasses import replace

    from wsi_ips.planning.survey import SplitSurvey, imagined, survey

    if job.slides is not None and job.patches is not None:
        split = "train" if work.kind == "finetune" else "all"
        return imagined({split: job.slides}, job.patches, work.config.tiling)
    largest = max(
        (sum(slide.split == split for slide in work.slides) for split in {s.split for s in work.slides}),
        default=0,
    )
    sample = job.sample if job.sample is not None else (SAMPLE if largest > MANY else None)
    seen = survey(work.slides, work.find, work.config.streaming, sample=sample, progress=progress)
    if not work.counts:
        return seen
    # Of the demo's slides a few were drawn, which stand for the others.
    splits = {name: SplitSurvey(work.counts[name], its.looked_at) for name, its in seen.splits.items()}
    return replace(seen, splits=splits, slides=sum(work.counts.values()))


def _rates(work: "Work", survey: "Survey", job: PlanJob, progress: Progress) -> "Rates":
    """Measured, stated, or read from a file. For a stated card, decoding is measured here where there are
    slides.
    """
    from wsi_ips.errors import ConfigError, ProcessDied
    from wsi_ips.inference.in_hand import Died
    from wsi_ips.planning.measure import Wanted, measured_rates
    from wsi_ips.planning.rates import known_devices, read_rates, stated_rates
    from wsi_ips.planning.simulated import encoder_flops

    if job.rates is not None:
        return read_rates(job.rates)
    stated = job.device in known_devices()
    host: Rates | None = None
    if survey.samples:
        wanted = Wanted(
            kind=work.kind,
            config=work.config,
            sample=survey.samples[0],
            device="cpu" if stated else job.device,
            overlays=work.overlays,
            mean_patches=round(survey.mean_patches()),
            clock=job.clock,
            stream_only=stated,
        )
        with progress("Measuring this machine", total=1) as advance:
            try:
                host = measured_rates(wanted)
            except Died as death:
                raise ProcessDied(
                    str(survey.samples[0].path), f"the measurement {death}", "memory may have run out"
                ) from None
            advance()
    if stated:
        return stated_rates(job.device, work.config, encoder_flops(work.config), host=host)
    if host is None:
        raise ConfigError(
            "there is no slide to measure this machine on: name a card with --device, or a file with --rates"
        )
    return host
