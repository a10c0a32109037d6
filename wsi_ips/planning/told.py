"""A plan in words, and as data: :func:`lines_of` and :func:`data_of`."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from wsi_ips.errors import count
from wsi_ips.planning.cost import ALMOST_HALF, Cost, Halving, Stage
from wsi_ips.planning.rates import Rates
from wsi_ips.planning.survey import Count, Survey
from wsi_ips.planning.work import Work

SHOWN_FAILURES = 5
HOW = {"measured": "measured on", "estimated": "estimated for", "given": "with the rates given for"}
"""Where rates are from, in words."""
COLUMN = 42
"""Width of the names of stages."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is said of a recipe."""

    source: str
    work: Work
    survey: Survey
    rates: Rates
    cost: Cost
    halvings: Sequence[Halving]


def lines_of(plan: Plan) -> list[str]:
    """What the command prints."""
    return [
        f"plan of {plan.work.kind} ({plan.source}), {HOW[plan.rates.how]} {plan.rates.device}",
        "",
        *to_read(plan.survey),
        _through_encoder(plan),
        "",
        *_times(plan),
        "",
        *_space(plan),
        "",
        *_advice(plan),
        *(f"note: {note}" for note in plan.rates.notes),
    ]


def to_read(survey: Survey) -> Iterator[str]:
    """Slides, patches, tiles and bytes, and which slides cannot be read."""
    of_splits = ", ".join(
        f"{round(its.slides)} {split}" for split, its in survey.splits.items() if its.slides
    )
    if survey.imagined:
        seen = "none of them looked at: their size is stated"
    elif survey.looked_at < survey.slides:
        seen = f"{survey.looked_at} of {survey.slides} looked at, the rest scaled up"
    else:
        seen = "all looked at"
    yield f"slides            {round(survey.readable()):,} ({of_splits}); {seen}"
    if survey.failed:
        yield f"cannot be read    {len(survey.failed)} of {count(survey.looked_at, 'slide')}, left out:"
        for slide_id, why in list(survey.failed.items())[:SHOWN_FAILURES]:
            yield f"                  {slide_id}: {why}"
        if len(survey.failed) > SHOWN_FAILURES:
            yield f"                  and {len(survey.failed) - SHOWN_FAILURES} more"
    largest = "" if survey.imagined else f"; the largest slide looked at has {survey.largest:,}"
    yield f"patches           {_count(survey.total('patches'))}{largest}"
    yield (
        f"one pass reads    {_count(survey.total('decodes'))} tiles to decode, "
        f"{in_bytes(survey.total('stored_mb'))} of the files"
    )


def _through_encoder(plan: Plan) -> str:
    cost = plan.cost
    if plan.work.kind == "finetune":
        return f"through encoder   {cost.passes_per_epoch:,.0f} patches an epoch, {cost.passes:,.0f} in all"
    return f"through encoder   {cost.passes:,.0f} patches"


def in_bytes(megabytes: Count) -> str:
    """A number of MB in the unit that suits it, such as 0.31 MB, 42 MB or 3.10 ± 0.20 GB."""
    if megabytes.value >= 1e3:
        return f"{_count(Count(megabytes.value / 1e3, megabytes.spread / 1e3), digits=2)} GB"
    return f"{_count(megabytes, digits=0 if megabytes.value >= 10 else 2)} MB"


def _count(count: Count, digits: int = 0) -> str:
    spread = f" ± {count.spread:,.{digits}f}" if count.spread else ""
    return f"{count.value:,.{digits}f}{spread}"


def _times(plan: Plan) -> Iterator[str]:
    cost, epochs = plan.cost, plan.work.kind == "finetune"
    head = f"{'time':<{COLUMN}}{'in all':>12}"
    yield head + (f"{'an epoch':>12}" if epochs else "")
    for stage in cost.stages:
        yield _time_row(stage, epochs=epochs)
    whole = Stage("all that is known" if cost.not_known else "all of it", cost.seconds, cost.epoch_seconds)
    yield _time_row(whole, epochs=epochs)
    if not plan.survey.imagined and (spread := spread_of(plan.survey)):
        yield f"the sample of slides leaves it open by ± {spread:.0%}"


def spread_of(survey: Survey) -> float:
    """Half the width of the 95 % interval of the number of patches, as a share of it."""
    patches = survey.total("patches")
    return patches.spread / patches.value if patches.value else 0.0


def _time_row(stage: Stage, *, epochs: bool) -> str:
    row = f"{stage.name:<{COLUMN}}{in_words(stage.seconds):>12}"
    return row + (f"{in_words(stage.each_epoch) if stage.each_epoch else '':>12}" if epochs else "")


def in_words(seconds: float | None) -> str:
    """A time in the unit that suits it."""
    if seconds is None:
        return "not known"
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:,.1f} h"


def in_gib(mebibytes: float | None) -> str:
    """Memory in GiB."""
    return "not known" if mebibytes is None else f"{mebibytes / 1024:.2f} GiB"


def of_the_card(vram_mb: float | None, device_gb: float | None) -> Iterator[str]:
    """The memory of the card, and whether there is as much; nothing where there is no card."""
    if vram_mb is None:
        return
    of_card = f" of {device_gb:g} GB" if device_gb else ""
    beside = "simulated; an allocator and CUDA add about 0.5 GiB"
    yield f"of the card       {in_gib(vram_mb)}{of_card} ({beside})"
    if device_gb and vram_mb * 2**20 > device_gb * 1e9:
        yield "                  it does not fit"


def _space(plan: Plan) -> Iterator[str]:
    cost = plan.cost
    how = "measured, and what grows with the slides" if plan.rates.peak_mb is not None else "estimated"
    yield f"peak memory       {in_gib(cost.ram_mb)}" + ("" if cost.ram_mb is None else f" ({how})")
    yield from of_the_card(cost.vram_mb, plan.rates.device_gb)
    scratch = (
        f", and {in_bytes(Count(cost.scratch_mb))} until the head start is over" if cost.scratch_mb else ""
    )
    yield f"disk              {in_bytes(Count(cost.disk_mb))}{scratch}"


def _advice(plan: Plan) -> Iterator[str]:
    dominating = plan.cost.dominating
    if cost_unknown := plan.cost.not_known:
        yield f"not known: how long these take: {', '.join(cost_unknown)}"
    if dominating is not None:
        share = (dominating.seconds or 0.0) / (plan.cost.seconds or 1.0)
        of_it = "" if dominating.does == "other" else f", {dominating.does}"
        yield f"most time goes into {dominating.name}{of_it}: {share:.0%}"
    yield from halvings_in_words(plan.halvings, "time")
    yield from halvings_in_words(plan.halvings, "memory")


def halvings_in_words(halvings: Sequence[Halving], what: Literal["time", "memory"]) -> Iterator[str]:
    """The settings that halve time or memory, or the one that saves most of it."""
    known = [halving for halving in halvings if getattr(halving, what) is not None]
    ranked = sorted(known, key=lambda halving: float(getattr(halving, what)))
    if not ranked or getattr(ranked[0], what) > 0.95:
        yield f"no single setting that was tried saves {what}"
        return
    halves = [halving for halving in ranked if getattr(halving, what) <= ALMOST_HALF]
    shown = halves[:3] or ranked[:1]
    verb = f"halves the {what}" if halves else f"saves most {what}"
    for halving in shown:
        marks = "; it changes what is computed" if halving.changes else ""
        yield f"{verb}: {halving.setting} ({getattr(halving, what):.2f} times{marks})"


def data_of(plan: Plan) -> dict[str, Any]:
    """The plan for ``--json`` and ``--out``, in seconds, MiB (memory) and MB (files)."""
    survey, cost = plan.survey, plan.cost
    names = ("patches", "tiles", "decodes", "megapixels", "stored_mb")
    return {
        "recipe": plan.source,
        "kind": plan.work.kind,
        "slides": survey.slides,
        "looked_at": survey.looked_at,
        "readable": {split: its.slides for split, its in survey.splits.items()},
        "failed": dict(survey.failed),
        "survey": {name: asdict(survey.total(name)) for name in names},
        "largest_slide_patches": survey.largest,
        "passes_per_epoch": cost.passes_per_epoch,
        "passes": cost.passes,
        "stages": [asdict(stage) for stage in cost.stages],
        "seconds": cost.seconds,
        "epoch_seconds": cost.epoch_seconds,
        "not_known": list(cost.not_known),
        "ram_mb": cost.ram_mb,
        "vram_mb": cost.vram_mb,
        "disk_mb": cost.disk_mb,
        "scratch_mb": cost.scratch_mb,
        "dominating": None if cost.dominating is None else cost.dominating.name,
        "halvings": [asdict(halving) for halving in plan.halvings],
        "rates": plan.rates.model_dump(mode="json"),
    }
