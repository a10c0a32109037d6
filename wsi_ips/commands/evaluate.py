"""``evaluate``: a run's predictions against a manifest's labels."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from wsi_ips.commands.options import Device, OpenUrls, Outcome, start
from wsi_ips.commands.recipe import Job
from wsi_ips.errors import ConfigError, count
from wsi_ips.evaluation.run.config import EvaluationConfig
from wsi_ips.progress import Progress


class EvaluateJob(EvaluationConfig, Job):
    """Score a prediction run against the labels of a manifest."""

    command: Literal["evaluate"] = "evaluate"


Detections = Annotated[
    str | None,
    typer.Option(help="FROC by contribution (default where the model tells) or attention, listed first."),
]
Faithfulness = Annotated[
    bool | None,
    typer.Option(
        "--faithfulness", help="Remove patches in the order of each map: does it tell what decided?"
    ),
]
Checkpoint = Annotated[
    Path | None, typer.Option(help="--faithfulness: the run's checkpoint; default: where predict read it.")
]
WhereSlidesAre = Annotated[
    Path | None,
    typer.Option("--slides", help="--faithfulness: the slides; default: where predict read them."),
]


Against = Annotated[Path | None, typer.Option(help="Another run: compare each figure on the slides of both.")]
PartlyAnnotated = Annotated[
    bool | None, typer.Option("--partly-annotated", help="FROC on CAMELYON's partly annotated slides too.")
]


def command(
    run: Annotated[Path, typer.Argument(help="The folder that predict wrote.")],
    manifest: Annotated[Path, typer.Argument(help="CSV with the labels: slide_id,case_id,label,split,path.")],
    against: Against = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: RUN/evaluation.")] = None,
    split: Annotated[str | None, typer.Option(help="train, val, train+val or test (default).")] = None,
    task: Annotated[str | None, typer.Option(help="Score one task; default: all of the model's.")] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="Folder of lesion outlines, SLIDE_ID.xml (ASAP): adds FROC.")
    ] = None,
    partly_annotated: PartlyAnnotated = None,
    detection_radius_um: Annotated[
        float | None, typer.Option(help="µm between a slide's detections (default 1.5 patch sides).")
    ] = None,
    detections: Detections = None,
    history: Annotated[Path | None, typer.Option(help="history.csv of finetune: draws the losses.")] = None,
    pool: Annotated[
        str | None, typer.Option(help="A patient's probability: max (default), mean or noisy_or.")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="Call a class from here on (default 0.5).")] = None,
    threshold_from: Annotated[
        str | None, typer.Option(help="Choose the threshold on this split (train or val) instead.")
    ] = None,
    risk_groups: Annotated[
        int | None, typer.Option(help="Groups of risk whose survival is compared (default 2).")
    ] = None,
    bootstrap: Annotated[int | None, typer.Option(help="Resamples for the intervals (default 2000).")] = None,
    stratify: Annotated[
        bool | None, typer.Option("--stratify/--no-stratify", help="Resample class by class (default).")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the resampling (default 0).")] = None,
    faithfulness: Faithfulness = None,
    checkpoint: Checkpoint = None,
    slides: WhereSlidesAre = None,
    open_urls: OpenUrls = None,
    device: Device = None,
    plots: Annotated[
        bool | None, typer.Option("--plots/--no-plots", help="Draw PNGs; default: where matplotlib is.")
    ] = None,
) -> None:
    """Score a run against a manifest's labels: figures with intervals, tables, FROC, plots."""
    flags = {"run": run, "manifest": manifest, "against": against, "out": out, "split": split, "task": task,
             "annotations": annotations, "partly_annotated": partly_annotated,
             "detection_radius_um": detection_radius_um, "detections": detections, "history": history,
             "pool": pool, "threshold": threshold, "threshold_from": threshold_from, "bootstrap": bootstrap,
             "stratify": stratify, "seed": seed, "plots": plots, "risk_groups": risk_groups,
             "faithfulness": faithfulness, "checkpoint": checkpoint, "slides": slides, "open_urls": open_urls,
             "device": device}  # fmt: skip
    start("evaluate", flags)


def evaluate(job: EvaluateJob, progress: Progress) -> Outcome:
    """Write ``metrics.json``, ``slides.csv``, ``cases.csv``, with outlines ``froc.csv`` and ``detections/``, of
    survival tasks ``survival.csv`` and ``kaplan_meier.csv``, on request ``faithfulness.csv``, PNGs. With
    ``against`` also ``against.csv`` and ``against.json``. What an earlier evaluation left there is removed.

    A slide that could not be scored is named, and the exit code says so. Raises a
    :class:`wsi_ips.errors.WsiIpsError`, before anything is written, for a run, manifest or folder of outlines
    that cannot be used, and for a split whose labels are all the same.
    """
    from wsi_ips.evaluation.plots import read_history
    from wsi_ips.evaluation.run.against import compare_runs, write_comparison
    from wsi_ips.evaluation.run.evaluate import draw, headlines, work_out
    from wsi_ips.evaluation.run.survival import write_survival
    from wsi_ips.evaluation.run.tables import forget_evaluation, write_metrics, write_tables

    if job.out is not None and job.out.resolve() == job.run.resolve():
        raise ConfigError(
            f"--out {job.out}: is the run itself, whose slides.csv and cases.csv would be replaced; "
            "give no --out, or name another folder"
        )
    can_plot = _can_plot(job)
    history = read_history(job.history) if job.history else None
    worked_out = work_out(job, progress, bands=can_plot)
    comparison = compare_runs(job) if job.against is not None else None
    out = job.out or job.run / "evaluation"
    forget_evaluation(out)
    write_tables(out, worked_out.tasks, worked_out.stages, worked_out.froc, worked_out.survival)
    write_survival(out, worked_out.survival)
    if worked_out.faithfulness:
        from wsi_ips.evaluation.run.faithfulness import write_faithfulness

        write_faithfulness(out / "faithfulness.csv", worked_out.faithfulness)
    if can_plot:
        draw(out, job, worked_out, history)
    write_metrics(
        out / "metrics.json", job, worked_out.joined, worked_out.tasks, worked_out.stages, worked_out.froc,
        froc_task=worked_out.froc_task, doubts=worked_out.doubts, survival=worked_out.survival,
        faithfulness=worked_out.faithfulness,
    )  # fmt: skip
    if comparison is not None:
        write_comparison(out, comparison)
    unasked = not can_plot and job.plots is None
    notes = ["no plots: matplotlib is not installed; pip install 'wsi_ips[plots]'"] if unasked else []
    complaints = [*worked_out.joined.complaints, *(worked_out.froc.complaints if worked_out.froc else ())]
    complaints += [line for report in worked_out.faithfulness.values() for line in report.complaints]
    notes += [
        f"{name}: {count(len(report.joined.unlabelled), 'slide has', 'slides have')} no label: left out "
        "of its figures"
        for name, report in worked_out.tasks.items()
        if report.joined.unlabelled
    ]
    notes += worked_out.froc.notes if worked_out.froc else []
    notes += [f"{name}: {note}" for name, report in worked_out.survival.items() for note in report.notes]
    compared = comparison.lines if comparison is not None else []
    summary = f"{worked_out.joined.counted} of split {job.split} scored; see {out}"
    return Outcome.of_slides(complaints, summary, details=[*headlines(worked_out), *notes, *compared])


def _can_plot(job: EvaluateJob) -> bool:
    """Whether to draw. Raises :class:`ConfigError` where plots are asked for and cannot be drawn."""
    from wsi_ips.evaluation.plots import check_can_plot

    if job.plots is False:
        return False
    try:
        check_can_plot()
    except ConfigError:
        if job.plots:
            raise
        return False
    return True
