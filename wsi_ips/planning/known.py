"""What a plan finds out before it works out a cost: what is to be read, how, and how fast the machine is."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from wsi_ips.errors import ConfigError, ProcessDied
from wsi_ips.inference.in_hand import Died
from wsi_ips.models.encoders.network import settled
from wsi_ips.models.encoders.registry import entry_of
from wsi_ips.planning.measure import Wanted, measured_rates
from wsi_ips.planning.rates import Rates, known_devices, read_rates, stated_rates
from wsi_ips.planning.simulated import encoder_flops
from wsi_ips.planning.survey import SplitSurvey, Survey, imagined, survey
from wsi_ips.planning.work import Work
from wsi_ips.progress import Progress
from wsi_ips.streaming.device import pick_device

if TYPE_CHECKING:
    from wsi_ips.planning.command import PlanJob

MANY = 40
"""Slides of a split above which a sample is looked at, unless the user says how many."""
SAMPLE = 24


def check_device(job: "PlanJob") -> None:
    """Raise :class:`ConfigError` for a device that is neither measured here nor listed."""
    measured_here = job.device in ("auto", "cpu", "cuda", "mps") or job.device.startswith("cuda:")
    if not measured_here and job.device not in known_devices():
        raise ConfigError(
            f"--device {job.device}: auto, cpu and cuda are measured here, and listed are "
            f"{', '.join(known_devices())}"
        )


def in_its_precision(work: Work, job: "PlanJob") -> Work:
    """``auto`` is decided by the encoder and the device that is planned for."""

    asked: Any = work.asked
    if asked == "auto":
        entry = entry_of(work.config.model.encoder.name)
        if job.device in known_devices():
            asked = "32" if entry is None else entry.precision
        else:
            asked = settled("auto", work.config.model.encoder.name, pick_device(job.device).type)
    training = work.config.training.model_copy(update={"precision": asked})
    return replace(work, config=work.config.model_copy(update={"training": training}))


def check_method(work: Work) -> None:
    """Raise :class:`ConfigError` for a selector whose passes are not known here."""
    selection = work.config.selection
    if work.kind != "features" and (selection.is_coarse_to_fine or selection.is_outside):
        raise ConfigError(
            f"a plan knows selection.selector ips, all and random, not {selection.selector}, whose coarse look is "
            "another pass: plan with --set selection.selector=ips, which is the upper end"
        )


def surveyed(work: Work, job: "PlanJob", progress: Progress, *, imagined_in: Mapping[str, int]) -> Survey:
    """What is to be read: of all slides of the work, or of a sample of them. ``imagined_in``: {split: slides} that
    nobody has, where the user says how large they are.
    """
    if job.slides is not None and job.patches is not None:
        return imagined(imagined_in, job.patches, work.config.tiling)
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


def rates_of(
    work: Work, survey: Survey, job: "PlanJob", progress: Progress, *, labels: bool = False
) -> Rates:
    """Measured, stated, or read from a file. For a stated card, decoding is measured here where there are
    slides.
    """
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
            labels=labels,
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
