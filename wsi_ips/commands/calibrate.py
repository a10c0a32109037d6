"""``calibrate``: how far a model's probabilities can be believed, from a run of slides with known labels."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from pydantic import Field, NonNegativeInt, field_validator

from wsi_ips.commands.options import Outcome, start
from wsi_ips.commands.recipe import Job
from wsi_ips.progress import Progress

EPOCH_NOTE = (
    "the epoch was probably chosen on these validation slides too, so they may flatter the model a little; "
    "slides that chose nothing are better to calibrate on"
)


class CalibrateJob(Job):
    """Fit temperatures, and thresholds of sets of answers, on a prediction run of slides with known labels."""

    command: Literal["calibrate"] = "calibrate"
    run: Path
    """The folder that ``predict`` wrote, without a calibration."""
    manifest: Path
    out: Path | None = None
    """None: ``calibration.json`` in ``run``."""
    split: Literal["val", "test"] = "val"
    risk: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """How often a set may miss the true answer."""
    by_class: bool = False
    """The risk holds among the slides of every class, not only among all; takes enough slides of each."""
    task: str | None = None
    """Of a model with several tasks, the one to calibrate; none: all but those that tell numbers."""
    seed: NonNegativeInt = 0
    """Where a case has several slides, one is drawn for the sets' thresholds."""

    @field_validator("split", mode="before")
    @classmethod
    def _not_what_was_learned_from(cls, split: object) -> object:
        if isinstance(split, str) and "train" in split.split("+"):
            raise ValueError(
                f"split {split!r} holds slides that the network learned from, of which it is surer than of "
                "others: calibrate on val, or on test slides that nothing else is measured on"
            )
        return split


def command(
    run: Annotated[Path, typer.Argument(help="The folder that predict wrote, of validation slides.")],
    manifest: Annotated[Path, typer.Argument(help="CSV with the labels: slide_id,case_id,label,split,path.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: RUN/calibration.json.")] = None,
    split: Annotated[str | None, typer.Option(help="val (default) or test.")] = None,
    risk: Annotated[
        float | None, typer.Option(help="How often a set of answers may miss the true one (default 0.1).")
    ] = None,
    by_class: Annotated[
        bool | None, typer.Option("--by-class", help="The risk holds among the slides of every class.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Calibrate one task; default: all that have classes.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Draws one slide of a case that has several (default 0).")
    ] = None,
) -> None:
    """Fit temperatures and thresholds on slides with known labels, for predict --calibration."""
    flags = {"run": run, "manifest": manifest, "out": out, "split": split, "risk": risk,
             "by_class": by_class, "task": task, "seed": seed}  # fmt: skip
    start("calibrate", flags)


def calibrate(job: CalibrateJob, progress: Progress) -> Outcome:
    """Write ``calibration.json``: a temperature per task, and the thresholds of its sets of answers.

    A slide that has no prediction is named, and the exit code says so. Raises a
    :class:`wsi_ips.errors.WsiIpsError`, before anything is written, for a run or manifest that cannot be used, for
    too few slides, and for labels that are all the same.
    """
    from wsi_ips.evaluation.conformal import write_calibration
    from wsi_ips.evaluation.run.doubt import calibrate_run, calibration_in_words

    calibration, joined = calibrate_run(
        job.run,
        job.manifest,
        split=job.split,
        task=job.task,
        risk=job.risk,
        by_class=job.by_class,
        seed=job.seed,
        progress=progress,
    )
    out = job.out or job.run / "calibration.json"
    write_calibration(out, calibration)
    details = calibration_in_words(calibration)
    if job.split == "val":
        details.append(EPOCH_NOTE)
    summary = (
        f"{len(joined.pairs)} {joined.bag}s of split {job.split} calibrated on: predict --calibration {out}"
    )
    return Outcome.of_slides(joined.complaints, summary, details=details)
