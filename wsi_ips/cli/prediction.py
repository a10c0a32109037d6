"""Commands that label slides and show why: ``predict``, ``overlay``, ``export``, ``report``."""

from pathlib import Path
from typing import Annotated

import typer

from wsi_ips.cli.options import COLOUR_END, Device, MppCsv, OpenUrls, Out, Recipe, Set, SlideMppOption
from wsi_ips.cli.start import start

FromCoords = Annotated[
    Path | None,
    typer.Option(help="Folder of coordinates (CLAM, TRIDENT, AtlasPatch): those patches only."),
]
Overlays = Annotated[
    bool | None, typer.Option("--overlays/--no-overlays", help="Draw an overlay per slide (default).")
]
Profile = Annotated[
    bool | None, typer.Option("--profile", help="Print where the time went, and the slowest stage.")
]
Force = Annotated[bool | None, typer.Option("--force", help="Replace the results of another run in OUT.")]
Workers = Annotated[int | None, typer.Option(help="Processes that work on a slide each.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads of each of them.")]
Scheduler = Annotated[str | None, typer.Option(help="A running dask scheduler, tcp://HOST:8786, instead.")]
OnError = Annotated[str | None, typer.Option(help="A slide that fails: report (default) and go on, or stop.")]
Embeddings = Annotated[
    bool | None, typer.Option("--embeddings", help="Store the kept patches' embeddings too.")
]
Cases = Annotated[
    Path | None, typer.Option(help="CSV with columns slide_id,case_id: adds cases.csv, by patient.")
]
Map = Annotated[
    str | None,
    typer.Option("--map", help="contribution (default where the model tells), or attention."),
]
ExportMap = Annotated[str | None, typer.Option("--map", help="attention (default) or contribution.")]
ClassName = Annotated[
    str | None,
    typer.Option("--class", help="Contribution to this class; default: the last of two, else the likeliest."),
]
Task = Annotated[
    str | None, typer.Option(help="This task's map; default: its first, of attention the mean over queries.")
]
Query = Annotated[int | None, typer.Option(help="Attention of one query, from 0.")]
Head = Annotated[int | None, typer.Option(help="Attention of one head, from 0; default: mean over heads.")]
Pool = Annotated[str | None, typer.Option(help="A patient's probability: max (default), mean or noisy_or.")]


def predict(
    checkpoint: Annotated[
        list[Path],
        typer.Option(help="model.safetensors of a fine-tuning run; of several: their mean and spread."),
    ],
    out: Out,
    slides: Annotated[
        str | None, typer.Argument(help="A slide, a folder that is searched for slides, or a slide's URL.")
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="Folder of features stored by CLAM or TRIDENT, instead of slides.")
    ] = None,
    from_coords: FromCoords = None,
    calibration: Annotated[
        Path | None, typer.Option(help="JSON of calibrate: calibrated probabilities, and sets of answers.")
    ] = None,
    overlays: Overlays = None,
    profile: Profile = None,
    force: Force = None,
    workers: Workers = None,
    threads: Threads = None,
    scheduler: Scheduler = None,
    on_error: OnError = None,
    embeddings: Embeddings = None,
    cases: Cases = None,
    pool: Pool = None,
    device: Device = None,
    slide_mpp: SlideMppOption = None,
    mpp_csv: MppCsv = None,
    recipe: Recipe = None,
    set_: Set = None,
) -> None:
    """Label every slide of a folder; write predictions.csv, attention (HDF5) and overlays (PNG)."""
    flags = {"slides": slides, "features": features, "checkpoint": checkpoint, "out": out,
             "from_coords": from_coords, "calibration": calibration, "overlays": overlays,
             "profile": profile, "force": force, "device": device, "slide_mpp": slide_mpp, "mpp_csv": mpp_csv,
             "embeddings": embeddings, "cases": cases, "pool": pool}  # fmt: skip
    batch = {"workers": workers, "threads": threads, "scheduler": scheduler, "on_error": on_error}
    start("predict", flags, recipe=recipe, overrides=set_, sections={"batch": batch})


def overlay(
    run: Annotated[Path, typer.Argument(help="The folder that predict wrote.")],
    slides: Annotated[str | None, typer.Option(help="The slides; default: where predict read them.")] = None,
    open_urls: OpenUrls = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: RUN/overlays.")] = None,
    map_: Map = None,
    task: Task = None,
    class_name: ClassName = None,
    query: Query = None,
    head: Head = None,
    side_px: Annotated[int | None, typer.Option(help="Longest side in pixels (default 2048).")] = None,
    alpha: Annotated[float | None, typer.Option(help="Opacity of the heat, 0 to 1 (default 0.5).")] = None,
    colormap: Annotated[
        str | None, typer.Option(help="Attention: blue_yellow (default) or blue_red.")
    ] = None,
    scale: Annotated[
        str | None, typer.Option(help="Attention: even (default): times the even share 1/N; rank; absolute.")
    ] = None,
    low: Annotated[float | None, typer.Option(help=COLOUR_END.format("Low"))] = None,
    high: Annotated[float | None, typer.Option(help=COLOUR_END.format("High"))] = None,
) -> None:
    """Draw overlays from stored contributions or attention; no model is needed."""
    flags = {"run": run, "slides": slides, "open_urls": open_urls, "out": out, "map": map_, "task": task,
             "class_name": class_name, "query": query, "head": head,
             "side_px": side_px, "alpha": alpha, "colormap": colormap, "scale": scale, "low": low,
             "high": high}  # fmt: skip
    start("overlay", flags)


def export(
    run: Annotated[Path, typer.Argument(help="The folder that predict wrote.")],
    format_: Annotated[
        str, typer.Option("--format", "-f", help="ome-tiff, ome-zarr, geojson, deepzoom, sheet or asap.")
    ],
    slides: Annotated[str | None, typer.Option(help="The slides; default: where predict read them.")] = None,
    open_urls: OpenUrls = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: RUN/exports/FORMAT.")] = None,
    map_: ExportMap = None,
    task: Task = None,
    class_name: ClassName = None,
    query: Query = None,
    head: Head = None,
    um_per_px: Annotated[
        float | None, typer.Option(help="ome-tiff, ome-zarr: µm a pixel; default: a pixel a patch.")
    ] = None,
    top: Annotated[
        int | None, typer.Option(help="geojson: only so many patches; sheet: so many of each kind.")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="asap: regions from this raw value on.")] = None,
    percentile: Annotated[float | None, typer.Option(help="asap: the same as a percentile (95).")] = None,
    heat_only: Annotated[
        bool | None, typer.Option("--heat-only", help="deepzoom: transparent tiles without the slide.")
    ] = None,
    side_px: Annotated[int | None, typer.Option(help="deepzoom: longest side; default: the slide's.")] = None,
    alpha: Annotated[float | None, typer.Option(help="deepzoom: opacity of the heat (0.5).")] = None,
    colormap: Annotated[str | None, typer.Option(help="deepzoom: blue_yellow (default), blue_red.")] = None,
    scale: Annotated[str | None, typer.Option(help="deepzoom: even (default), rank, absolute.")] = None,
    low: Annotated[float | None, typer.Option(help="deepzoom: " + COLOUR_END.format("low"))] = None,
    high: Annotated[float | None, typer.Option(help="deepzoom: " + COLOUR_END.format("high"))] = None,
) -> None:
    """Write stored attention or contributions for QuPath, OMERO, napari, ASAP, web viewers; needs no model."""
    flags = {"run": run, "format": format_, "slides": slides, "open_urls": open_urls, "out": out,
             "map": map_, "task": task, "class_name": class_name, "query": query, "head": head,
             "um_per_px": um_per_px, "top": top, "threshold": threshold,
             "percentile": percentile, "heat_only": heat_only, "side_px": side_px, "alpha": alpha,
             "colormap": colormap, "scale": scale, "low": low, "high": high}  # fmt: skip
    start("export", flags)


def report(
    run: Annotated[Path, typer.Argument(help="The folder that predict wrote.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: RUN/report.html.")] = None,
    evaluation: Annotated[
        Path | None, typer.Option(help="The folder that evaluate wrote; default: RUN/evaluation, if there.")
    ] = None,
    training: Annotated[
        Path | None, typer.Option(help="The folder that finetune wrote: adds its losses.")
    ] = None,
    slides: Annotated[str | None, typer.Option(help="The slides; default: where predict read them.")] = None,
    open_urls: OpenUrls = None,
    top: Annotated[int | None, typer.Option(help="Patches shown of each slide (default 9).")] = None,
) -> None:
    """Write a run as one HTML file that can be mailed: figures, pictures, failures; no model is needed."""
    flags = {"run": run, "out": out, "evaluation": evaluation, "training": training, "slides": slides,
             "open_urls": open_urls, "top": top}  # fmt: skip
    start("report", flags)
