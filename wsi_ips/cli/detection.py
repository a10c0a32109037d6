"""``train-detector`` and ``detect``: objects inside the patches."""

from pathlib import Path
from typing import Annotated

import typer

from wsi_ips.cli.options import Device, MppCsv, Out, Recipe, Set, SlideMppOption, Slides
from wsi_ips.cli.start import start


def train_detector(
    images: Annotated[
        Path, typer.Argument(help="Folder with train/ (and val/, test/): *.png, outlines *.xml beside them.")
    ],
    out: Out,
    model: Annotated[
        str | None, typer.Option(help="retinanet (default) finds boxes, mask_rcnn outlines as well.")
    ] = None,
    held_back: Annotated[
        int | None, typer.Option(help="Training images to choose the threshold on, without val/ (2).")
    ] = None,
    device: Device = None,
    recipe: Recipe = None,
    set_: Set = None,
) -> None:
    """Train a detector of nuclei on outlined images, and score it on those in test/."""
    flags = {"images": images, "out": out, "held_back": held_back, "device": device}
    start("train-detector", flags, recipe=recipe, overrides=set_, sections={"detector": {"model": model}})


def detect(
    slides: Slides,
    out: Out,
    detector: Annotated[Path, typer.Option(help="detector.safetensors of train-detector.")],
    run: Annotated[
        Path | None,
        typer.Option(help="The folder that predict wrote: the patches that it kept; default: all tissue."),
    ] = None,
    patch_px: Annotated[
        int | None, typer.Option(help="Side of a patch of all tissue, in the detector's pixels (448).")
    ] = None,
    min_tissue: Annotated[float | None, typer.Option(help="Share of a patch that is tissue (0.1).")] = None,
    score_threshold: Annotated[float | None, typer.Option(help="Default: the detector's own.")] = None,
    shape: Annotated[
        str | None, typer.Option(help="In the GeoJSON: outline (default of mask_rcnn), box or point.")
    ] = None,
    device: Device = None,
    slide_mpp: SlideMppOption = None,
    mpp_csv: MppCsv = None,
    recipe: Recipe = None,
    set_: Set = None,
) -> None:
    """Find nuclei in the kept patches, or in all tissue; write them as CSV and GeoJSON."""
    flags = {"slides": slides, "out": out, "detector": detector, "run": run, "patch_px": patch_px,
             "min_tissue": min_tissue, "score_threshold": score_threshold, "shape": shape, "device": device,
             "slide_mpp": slide_mpp, "mpp_csv": mpp_csv}  # fmt: skip
    start("detect", flags, recipe=recipe, overrides=set_)
