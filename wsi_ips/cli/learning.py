"""Commands that learn and score: ``finetune``, ``calibrate``, ``evaluate``, ``demo``."""

from pathlib import Path
from typing import Annotated

import typer

from wsi_ips.cli.options import (
    Device,
    EncoderName,
    EncoderWeights,
    MppCsv,
    Out,
    Recipe,
    Set,
    SlideMppOption,
)
from wsi_ips.cli.start import start


def finetune(
    manifest: Annotated[Path, typer.Argument(help="CSV: slide_id,case_id,label,split,path.")],
    out: Out,
    slides_root: Annotated[
        Path | None, typer.Option("--slides", help="Folder that the manifest's paths are below.")
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="Folder of features stored by CLAM or TRIDENT, instead of slides.")
    ] = None,
    encoder: EncoderName = None,
    weights: EncoderWeights = None,
    folds: Annotated[int | None, typer.Option(help="Cross-validate by case, with so many folds.")] = None,
    restarts: Annotated[
        int | None,
        typer.Option(help="Beginnings of the head start or on --features; the best one goes on (default 1)."),
    ] = None,
    recipe: Recipe = None,
    set_: Set = None,
    restart: Annotated[
        bool | None, typer.Option("--restart", help="Begin anew where OUT holds a run, not go on with it.")
    ] = None,
    device: Device = None,
    slide_mpp: SlideMppOption = None,
    mpp_csv: MppCsv = None,
) -> None:
    """Fine-tune encoder, selection and attention from slide labels; goes on where a killed run was."""
    flags = {"manifest": manifest, "out": out, "slides_root": slides_root, "features": features,
             "folds": folds, "restart": restart, "device": device, "slide_mpp": slide_mpp,
             "mpp_csv": mpp_csv}  # fmt: skip
    chosen = [] if restarts is None else [f"training.restarts={restarts}"]
    sections = {"model.encoder": {"name": encoder, "weights": weights}}
    start("finetune", flags, recipe=recipe, overrides=[*(set_ or []), *chosen], sections=sections)


def evaluate(
    run: Annotated[Path, typer.Argument(help="The folder that predict wrote.")],
    manifest: Annotated[Path, typer.Argument(help="CSV with the labels: slide_id,case_id,label,split,path.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: RUN/evaluation.")] = None,
    split: Annotated[str | None, typer.Option(help="train, val, train+val or test (default).")] = None,
    task: Annotated[str | None, typer.Option(help="Score one task; default: all of the model's.")] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="Folder of lesion outlines, SLIDE_ID.xml (ASAP): adds FROC.")
    ] = None,
    partly_annotated: Annotated[
        bool | None,
        typer.Option("--partly-annotated", help="FROC on CAMELYON's partly annotated slides too."),
    ] = None,
    detection_radius_um: Annotated[
        float | None, typer.Option(help="µm between a slide's detections (default 1.5 patch sides).")
    ] = None,
    detections: Annotated[
        str | None,
        typer.Option(help="FROC by contribution (default where the model tells) or attention, listed first."),
    ] = None,
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
    plots: Annotated[
        bool | None, typer.Option("--plots/--no-plots", help="Draw PNGs; default: where matplotlib is.")
    ] = None,
) -> None:
    """Score a run against a manifest's labels: figures with intervals, tables, FROC, plots."""
    flags = {"run": run, "manifest": manifest, "out": out, "split": split, "task": task,
             "annotations": annotations, "partly_annotated": partly_annotated,
             "detection_radius_um": detection_radius_um, "detections": detections, "history": history,
             "pool": pool, "threshold": threshold, "threshold_from": threshold_from, "bootstrap": bootstrap,
             "stratify": stratify, "seed": seed, "plots": plots, "risk_groups": risk_groups}  # fmt: skip
    start("evaluate", flags)


def calibrate(
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


def demo(
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: demo_run.")] = None,
    device: Device = None,
    set_: Set = None,
) -> None:
    """Draw a small CAMELYON-style data set, fine-tune on it, predict it and score the result."""
    from wsi_ips.recipe import shipped_recipe

    start("demo", {"out": out, "device": device}, recipe=shipped_recipe("demo"), overrides=set_)
