"""The plan of a table or a comparison in words, :func:`lines_of_series`, and as data, :func:`data_of_series`."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from wsi_ips.errors import count
from wsi_ips.planning.cost import Cost, Halving
from wsi_ips.planning.rates import Rates
from wsi_ips.planning.series import Series
from wsi_ips.planning.series_cost import Known, PartCost, SeriesCost
from wsi_ips.planning.survey import Count, Survey
from wsi_ips.planning.told import (
    HOW,
    halvings_in_words,
    in_bytes,
    in_gib,
    in_words,
    of_the_card,
    spread_of,
    to_read,
)

HEADS = ("a seed", "all seeds", "memory", "disk, all seeds")
WIDTHS = (15, 15, 12, 17)
STORED = "features, once"
"""What stands before the encoder of features that are stored once."""


@dataclass(frozen=True, slots=True)
class SeriesPlan:
    """All that is said of a table or a comparison.

    Attributes:
        source: The recipe.
        series: What is planned.
        known: What its cost is worked out from.
        cost: What it takes.
        halvings: What other settings would do to the time of all of it.
    """

    source: str
    series: Series
    known: Known
    cost: SeriesCost
    halvings: Sequence[Halving]

    @property
    def rates(self) -> Rates:
        """Those of the first part that reads slides."""
        return next(iter(self.known.rates.values()))

    @property
    def survey(self) -> Survey:
        """What is to be read by the first row."""
        return next(iter(self.known.surveys.values()))


def lines_of_series(plan: SeriesPlan) -> list[str]:
    """What the command prints."""
    series = plan.series
    trainings = f"{count(len(series.rows), 'row')}, {count(series.seeds, 'seed')} each"
    notes = dict.fromkeys(note for rates in plan.known.rates.values() for note in rates.notes)
    return [
        f"plan of {series.command} ({plan.source}), {HOW[plan.rates.how]} {plan.rates.device}",
        *plan.series.told,
        "",
        *to_read(plan.survey),
        f"trainings         {trainings}; then {round(plan.survey.readable(series.split))} slides are labelled"
        + ("" if series.bootstrap is None else " and scored"),
        "",
        *_rows(plan),
        "",
        *_space(plan),
        "",
        *_advice(plan),
        *(f"note: {note}" for note in notes),
    ]


def _rows(plan: SeriesPlan) -> Iterator[str]:
    cost, card = plan.cost, plan.cost.parts[0].once.vram_mb is not None
    names = [*(_encoder_of(plan, part) for part in cost.stored), *(part.name for part in cost.rows)]
    width = max(len(name) for name in [*names, "the whole comparison"]) + 2
    heads = [*HEADS, *(["of the card"] if card else [])]
    widths = [*WIDTHS, *([14] if card else [])]
    yield f"{'row':<{width}}" + "".join(f"{head:>{w}}" for head, w in zip(heads, widths, strict=True))
    for name, part in zip(names, cost.parts, strict=True):
        once = "" if part in cost.stored else _time(part.once, 1)
        cells = [once, _time(part.once, part.times), in_gib(part.once.ram_mb), in_bytes(Count(part.disk_mb))]
        cells += [in_gib(part.once.vram_mb)] if card else []
        yield f"{name:<{width}}" + "".join(f"{cell:>{w}}" for cell, w in zip(cells, widths, strict=True))
    for stage in cost.before:
        yield f"{stage.name + ', once':<{width}}{'':>{WIDTHS[0]}}{in_words(stage.seconds):>{WIDTHS[1]}}"
    whole = f"the whole {'table' if plan.series.command == 'table' else 'comparison'}"
    at_least = ">= " if cost.not_known else ""
    cells = ["", at_least + in_words(cost.seconds), in_gib(cost.ram_mb), in_bytes(Count(cost.disk_mb))]
    cells += [in_gib(cost.vram_mb)] if card else []
    yield f"{whole:<{width}}" + "".join(f"{cell:>{w}}" for cell, w in zip(cells, widths, strict=True))
    if not plan.survey.imagined and (spread := spread_of(plan.survey)):
        yield f"the sample of slides leaves it open by ± {spread:.0%}"


def _encoder_of(plan: SeriesPlan, part: PartCost) -> str:
    encoder = next(one.encoder for one in plan.series.stored if one.name == part.name)
    return f"{STORED}: {encoder}"


def _time(cost: Cost, times: int) -> str:
    """Of one row. Where a stage is not known it takes at least the others' time, which may be nothing."""
    if cost.not_known and not cost.seconds:
        return "not known"
    return (">= " if cost.not_known else "") + in_words(cost.seconds * times)


def _space(plan: SeriesPlan) -> Iterator[str]:
    cost = plan.cost
    beside = (
        "" if cost.starter_mb is None else f", and {in_gib(cost.starter_mb)} of the process that starts it"
    )
    of_job = "" if cost.ram_mb is None else f" of the largest job{beside}"
    yield f"peak memory       {in_gib(cost.ram_mb)}{of_job}"
    yield from of_the_card(cost.vram_mb, plan.rates.device_gb)
    features = in_bytes(Count(sum(part.disk_mb for part in cost.stored)))
    shared = f", {features} of them features that rows share" if cost.stored else ""
    scratch = (
        f", and {in_bytes(Count(cost.scratch_mb))} while a head start goes on" if cost.scratch_mb else ""
    )
    yield f"disk              {in_bytes(Count(cost.disk_mb))}{shared}{scratch}"


def _advice(plan: SeriesPlan) -> Iterator[str]:
    cost = plan.cost
    if cost.not_known:
        yield f"not known: how long these take: {', '.join(cost.not_known)}"
    part = cost.dominating
    if part.seconds:
        stage = part.once.dominating
        assert stage is not None
        in_it = (stage.seconds or 0.0) / part.once.seconds
        name = part.name if part in cost.rows else _encoder_of(plan, part)
        does = "" if stage.does == "other" else f", {stage.does}"
        share = part.seconds / cost.seconds
        yield f"most time goes into {name}: {share:.0%}, of which {stage.name}{does}: {in_it:.0%}"
        yield from halvings_in_words(plan.halvings, "time")


def data_of_series(plan: SeriesPlan) -> dict[str, Any]:
    """The plan for ``--json`` and ``--out``, in seconds, MiB (memory) and MB (files)."""
    survey, cost, known = plan.survey, plan.cost, plan.known
    names = ("patches", "tiles", "decodes", "megapixels", "stored_mb")
    return {
        "recipe": plan.source,
        "kind": plan.series.command,
        "told": list(plan.series.told),
        "slides": survey.slides,
        "looked_at": survey.looked_at,
        "readable": {split: its.slides for split, its in survey.splits.items()},
        "failed": dict(survey.failed),
        "survey": {name: asdict(survey.total(name)) for name in names},
        "seeds": plan.series.seeds,
        "features": [
            _part(part, known) | {"encoder": one.encoder, "rows": list(one.rows)}
            for part, one in zip(cost.stored, plan.series.stored, strict=True)
        ],
        "rows": [
            _part(part, known) | {"features": row.stored}
            for part, row in zip(cost.rows, plan.series.rows, strict=True)
        ],
        "before": [asdict(stage) for stage in cost.before],
        "seconds": cost.seconds,
        "not_known": list(cost.not_known),
        "ram_mb": cost.ram_mb,
        "starter_mb": cost.starter_mb,
        "vram_mb": cost.vram_mb,
        "disk_mb": cost.disk_mb,
        "scratch_mb": cost.scratch_mb,
        "dominating": cost.dominating.name if cost.dominating.seconds else None,
        "halvings": [asdict(halving) for halving in plan.halvings],
    }


def _part(part: PartCost, known: Known) -> dict[str, Any]:
    once, rates, job = part.once, known.rates.get(part.name), known.jobs.get(part.name)
    return {
        "name": part.name,
        "times": part.times,
        "stages": [asdict(stage) for stage in once.stages],
        "seconds_once": once.seconds,
        "seconds": part.seconds,
        "not_known": list(once.not_known),
        "passes_once": once.passes,
        "ram_mb": once.ram_mb,
        "vram_mb": once.vram_mb,
        "disk_mb": part.disk_mb,
        "scratch_mb": once.scratch_mb,
        "rates": None if rates is None else rates.model_dump(mode="json"),
        "job": None if job is None else job.model_dump(mode="json"),
    }
