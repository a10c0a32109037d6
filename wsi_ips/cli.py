"""The command line: parse, import late, run one job, print, exit code.

Nothing heavy is imported before a command is known, so ``--help`` answers at once. Exit codes: 0 done,
1 a bug of ours (traceback), 2 wrong input (one line), 3 done but some slides (or some of their
overlays) failed.
"""

import logging
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from wsi_ips.errors import WsiIpsError

app = typer.Typer(
    name="wsi-ips",
    help="Raw gigapixel slides in, slide labels and honest attention maps out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

data_app = typer.Typer(
    help="A data set on disk: is it whole, and which of its slides are there?", no_args_is_help=True
)
app.add_typer(data_app, name="data")

# Text, not Path: a Path would take one of the two slashes of a URL.
Slides = Annotated[
    str, typer.Argument(help="A slide, a folder that is searched for slides, or a slide's URL.")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")]
Device = Annotated[str | None, typer.Option(help="auto (default), cpu, cuda, cuda:1, mps")]
SlideMppOption = Annotated[
    float | None, typer.Option("--slide-mpp", help="µm per pixel of every slide, instead of what files say.")
]
MppCsv = Annotated[Path | None, typer.Option(help="CSV with columns wsi,mpp: the same, slide by slide.")]
Recipe = Annotated[Path | None, typer.Option("--recipe", "-c", help="YAML with settings; flags win.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="A setting, e.g. training.epochs=5; repeatable.")
]
Layout = Annotated[str | None, typer.Option(help="HDF5 layout: clam (default) or trident.")]
COLOUR_END = "{} end of the colours: a percentile, or a raw value with --scale absolute."


def _version(wanted: bool) -> None:
    if wanted:
        from wsi_ips import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def common(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Shared by all commands."""
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(name)s: %(message)s")


@app.command()
def info(
    slide: Annotated[str, typer.Argument(help="A slide, a folder of them, or a slide's URL.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per slide.")] = False,
) -> None:
    """Say what a slide is: size, levels, resolution, vendor, which reader opens it."""
    from wsi_ips.commands.info import describe_slides
    from wsi_ips.location import locate

    _finish(describe_slides(locate(slide), as_json=as_json))


@app.command()
def tile(
    slides: Slides,
    out: Out,
    patch_px: Annotated[int | None, typer.Option(help="Side of a patch in pixels.")] = None,
    patch_mpp: Annotated[float | None, typer.Option(help="µm per pixel of a patch.")] = None,
    mag: Annotated[float | None, typer.Option(help='Same as --patch-mpp: 20 ("20x") is 0.5 µm.')] = None,
    overlap_px: Annotated[int | None, typer.Option(help="Pixels that neighbours share.")] = None,
    min_tissue: Annotated[float | None, typer.Option(help="Share of a patch that is tissue.")] = None,
    layout: Layout = None,
    slide_mpp: SlideMppOption = None,
    mpp_csv: MppCsv = None,
    recipe: Recipe = None,
    set_: Set = None,
) -> None:
    """Find tissue and write patch coordinates (HDF5) and contours (GeoJSON); no model."""
    if mag is not None:
        from wsi_ips.units import mpp_of_magnification

        patch_mpp = mpp_of_magnification(mag)
    tiling = {
        "patch_px": patch_px,
        "patch_mpp": patch_mpp,
        "overlap_px": overlap_px,
        "min_tissue": min_tissue,
    }
    flags = {"slides": slides, "out": out, "layout": layout, "slide_mpp": slide_mpp, "mpp_csv": mpp_csv}
    _run("tile", flags, recipe=recipe, overrides=set_, sections={"tiling": tiling})


@app.command()
def finetune(
    manifest: Annotated[Path, typer.Argument(help="CSV: slide_id,case_id,label,split,path.")],
    out: Out,
    slides_root: Annotated[
        Path | None, typer.Option("--slides", help="Folder that the manifest's paths are below.")
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="Folder of features stored by CLAM or TRIDENT, instead of slides.")
    ] = None,
    folds: Annotated[int | None, typer.Option(help="Cross-validate by case, with so many folds.")] = None,
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
    _run("finetune", flags, recipe=recipe, overrides=set_)


@app.command()
def predict(
    checkpoint: Annotated[Path, typer.Option(help="model.safetensors of a fine-tuning run.")],
    out: Out,
    slides: Annotated[
        str | None, typer.Argument(help="A slide, a folder that is searched for slides, or a slide's URL.")
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="Folder of features stored by CLAM or TRIDENT, instead of slides.")
    ] = None,
    overlays: Annotated[
        bool | None, typer.Option("--overlays/--no-overlays", help="Draw an overlay per slide (default).")
    ] = None,
    profile: Annotated[
        bool | None, typer.Option("--profile", help="Print where the time went, and the slowest stage.")
    ] = None,
    force: Annotated[
        bool | None, typer.Option("--force", help="Replace the results of another run in OUT.")
    ] = None,
    device: Device = None,
    slide_mpp: SlideMppOption = None,
    mpp_csv: MppCsv = None,
    recipe: Recipe = None,
    set_: Set = None,
) -> None:
    """Label every slide of a folder; write predictions.csv, attention (HDF5) and overlays (PNG)."""
    flags = {"slides": slides, "features": features, "checkpoint": checkpoint, "out": out,
             "overlays": overlays, "profile": profile, "force": force, "device": device,
             "slide_mpp": slide_mpp, "mpp_csv": mpp_csv}  # fmt: skip
    _run("predict", flags, recipe=recipe, overrides=set_)


@app.command()
def overlay(
    run: Annotated[Path, typer.Argument(help="The folder that predict wrote.")],
    slides: Annotated[str | None, typer.Option(help="The slides; default: where predict read them.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: RUN/overlays.")] = None,
    task: Annotated[str | None, typer.Option(help="A task's attention; default: mean over queries.")] = None,
    query: Annotated[int | None, typer.Option(help="The same by the query's index, from 0.")] = None,
    head: Annotated[int | None, typer.Option(help="One head, from 0; default: mean over heads.")] = None,
    side_px: Annotated[int | None, typer.Option(help="Longest side in pixels (default 2048).")] = None,
    alpha: Annotated[float | None, typer.Option(help="Opacity of the heat, 0 to 1 (default 0.5).")] = None,
    colormap: Annotated[str | None, typer.Option(help="blue_yellow (default) or blue_red.")] = None,
    scale: Annotated[str | None, typer.Option(help="percentile (default) or absolute.")] = None,
    low: Annotated[float | None, typer.Option(help=COLOUR_END.format("Low"))] = None,
    high: Annotated[float | None, typer.Option(help=COLOUR_END.format("High"))] = None,
) -> None:
    """Draw overlays from stored attention; no model is needed."""
    flags = {"run": run, "slides": slides, "out": out, "task": task, "query": query, "head": head,
             "side_px": side_px, "alpha": alpha, "colormap": colormap, "scale": scale, "low": low,
             "high": high}  # fmt: skip
    _run("overlay", flags)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="The folder that predict wrote.")],
    manifest: Annotated[Path, typer.Argument(help="CSV with the labels: slide_id,case_id,label,split,path.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: RUN/evaluation.")] = None,
    split: Annotated[str | None, typer.Option(help="train, val or test (default).")] = None,
    task: Annotated[str | None, typer.Option(help="Score one task; default: all of the model's.")] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="Folder of lesion outlines, SLIDE_ID.xml (ASAP): adds FROC.")
    ] = None,
    detection_radius_um: Annotated[
        float | None, typer.Option(help="µm between a slide's detections (default 1.5 patch sides).")
    ] = None,
    history: Annotated[Path | None, typer.Option(help="history.csv of finetune: draws the losses.")] = None,
    pool: Annotated[
        str | None, typer.Option(help="A patient's probability: max (default), mean or noisy_or.")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="Call a class from here on (default 0.5).")] = None,
    threshold_from: Annotated[
        str | None, typer.Option(help="Choose the threshold on this split (train or val) instead.")
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
             "annotations": annotations, "detection_radius_um": detection_radius_um, "history": history,
             "pool": pool, "threshold": threshold, "threshold_from": threshold_from, "bootstrap": bootstrap,
             "stratify": stratify, "seed": seed, "plots": plots}  # fmt: skip
    _run("evaluate", flags)


@app.command()
def demo(
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: demo_run.")] = None,
    device: Device = None,
    set_: Set = None,
) -> None:
    """Draw a small CAMELYON-style data set, fine-tune on it, predict it and score the result."""
    from wsi_ips.recipe import shipped_recipe

    _run("demo", {"out": out, "device": device}, recipe=shipped_recipe("demo"), overrides=set_)


@data_app.command("verify")
def data_verify(
    folder: Annotated[Path, typer.Argument(help="Folder with checksums.md5 or checksums.txt in it.")],
    manifest: Annotated[
        Path | None, typer.Option(help="Are all its slides there? A CSV, camelyon16 or camelyon17.")
    ] = None,
) -> None:
    """Check a downloaded data set against its checksums; exit code 3 where a file is missing or altered."""
    from wsi_ips.commands.data import verify
    from wsi_ips.progress_bars import RichProgress

    with RichProgress() as progress:
        outcome = verify(folder, progress, manifest=manifest)
    _finish(outcome)


@data_app.command("manifest")
def data_manifest(
    root: Annotated[Path, typer.Argument(help="Folder with CAMELYON's slides, in either layout.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV to write.")],
    name: Annotated[
        str | None, typer.Option(help="camelyon16 or camelyon17; default: what is there.")
    ] = None,
) -> None:
    """Write a manifest of the slides that are there, with CAMELYON's labels and splits."""
    from wsi_ips.commands.data import list_slides

    _finish(list_slides(root, out, name=name))


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe; see pipelines/.")], set_: Set = None
) -> None:
    """Run a recipe."""
    from wsi_ips.recipe import load_recipe, make_job

    _run_job(make_job(load_recipe(recipe, set_ or ()), source=str(recipe)))


def _run(
    command: Literal["tile", "finetune", "predict", "overlay", "evaluate", "demo"],
    flags: dict[str, Any],
    *,
    recipe: Path | None = None,
    overrides: list[str] | None = None,
    sections: dict[str, dict[str, Any]] | None = None,
) -> None:
    """Make a job of a recipe, the flags over it and ``--set`` over both, and run it."""
    from wsi_ips.recipe import load_recipe, make_job, with_overrides

    values = load_recipe(recipe) if recipe else {}
    given = {name: value for name, value in flags.items() if value is not None}
    values = {**values, **given, "command": command}
    for section, settings in (sections or {}).items():
        chosen = {name: value for name, value in settings.items() if value is not None}
        values[section] = {**(values.get(section) or {}), **chosen}
    _run_job(make_job(with_overrides(values, overrides or ()), source=f"wsi-ips {command}"))


def _run_job(job: Any) -> None:
    from wsi_ips.commands.job import run_job
    from wsi_ips.progress_bars import RichProgress

    with RichProgress() as progress:
        outcome = run_job(job, progress)
    _finish(outcome)


def _finish(outcome: Any) -> None:
    for line in outcome.lines:
        typer.echo(line)
    raise typer.Exit(outcome.exit_code)


def main() -> None:
    """Entry point of ``wsi-ips``: errors raised on purpose become one line and exit code 2."""
    try:
        app()
    except WsiIpsError as error:
        _complain(str(error))
    except OSError as error:
        # A file that cannot be read or written (no such place, no permission, disk full) is no bug of ours.
        if error.filename is None and error.errno is None:
            raise
        _complain(f"{error.filename or 'writing'}: {error.strerror}")


def _complain(message: str) -> None:
    typer.echo(f"wsi-ips: {' '.join(message.split())}", err=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
