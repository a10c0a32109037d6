"""Commands that draw slides: ``demo`` does everything on them, ``data nodes`` composes real lymph-node patches."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from wsi_ips.commands.options import Device, Out, Outcome, Set, finish, start
from wsi_ips.commands.recipe import Job, shipped_recipe
from wsi_ips.config.section import first_problem
from wsi_ips.drawn.config import DemoConfig
from wsi_ips.errors import ConfigError, DatasetError, count
from wsi_ips.progress import Progress


class DemoJob(DemoConfig, Job):
    """Draw slides, fine-tune, predict, score."""

    command: Literal["demo"] = "demo"
    out: Path = Path("demo_run")
    device: str = "auto"


def demo_command(
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: demo_run.")] = None,
    device: Device = None,
    set_: Set = None,
) -> None:
    """Draw a small CAMELYON-style data set, fine-tune on it, predict it and score the result."""
    start("demo", {"out": out, "device": device}, recipe=shipped_recipe("demo"), overrides=set_)


def demo(job: DemoJob, progress: Progress) -> Outcome:
    """Run the demo and print its score.

    Raises :class:`wsi_ips.errors.CheckpointError` before anything is drawn if the encoder's weights are not here.
    """
    from wsi_ips.drawn.demo import run_demo
    from wsi_ips.streaming.device import pick_device
    from wsi_ips.training.fit import check_encoder
    from wsi_ips.training.run_state import training_folder

    check_encoder(job)
    with training_folder(job.out):
        score = run_demo(job, job.out, device=pick_device(job.device), progress=progress)
    return Outcome(
        [
            f"slide AUC {score.slide_auc:.3f} on {count(score.slides, 'held-out slide')}"
            if score.slide_auc is not None
            else f"slide AUC not defined: all held-out slides ({score.slides}) have one label; raise data.test",
            f"patch AUC {score.patch_auc:.3f}: attention of lesions against normal tissue, by the outlines"
            if score.patch_auc is not None
            else "patch AUC not defined: no held-out slide has both a patch that is at least half lesion and one "
            "without any; raise data.side_px or data.test",
            f"{score.seconds:.0f} s; prediction {score.patches_per_second:.0f} patches/s",
            f"look at {job.out / 'predictions' / 'overlays'}",
        ]
    )


def twin_command(
    name: Annotated[str, typer.Argument(help="camelyon16, camelyon17, camelyon_plus, panda or tcga_brca.")],
    out: Out,
    side_px: Annotated[int, typer.Option(help="About the side of a slide in pixels.")] = 896,
    seed: Annotated[int, typer.Option(help="Another seed draws other slides.")] = 0,
    processes: Annotated[int, typer.Option(help="Processes that draw a slide each.")] = 1,
) -> None:
    """Draw a small twin of a public data set, laid out as its download is, to try a table on."""
    from wsi_ips.commands.progress_bars import RichProgress

    with RichProgress() as progress:
        outcome = draw_twin(name, out, progress, side_px=side_px, seed=seed, processes=processes)
    finish(outcome)


def draw_twin(
    name: str, out: Path, progress: Progress, *, side_px: int = 896, seed: int = 0, processes: int = 1
) -> Outcome:
    """Draw the twin into ``out``, and say how it is listed.

    Raises :class:`ConfigError` for a name that is not known, settings that cannot be, and a folder of another
    twin.
    """
    from pydantic import ValidationError

    from wsi_ips.datasets.known_sets import KNOWN_SETS
    from wsi_ips.drawn.twins import TwinConfig, make_twin

    if name not in KNOWN_SETS:
        raise ConfigError(f"{name}: known data sets are {', '.join(KNOWN_SETS)}")
    if processes < 1:
        raise ConfigError(f"--processes {processes}: one at least")
    try:
        config = TwinConfig.model_validate({"data_set": name, "side_px": side_px, "seed": seed})
    except ValidationError as error:
        raise ConfigError(f"wsi-ips data twin: {first_problem(error)}") from None
    number = make_twin(out, config, processes=processes, progress=progress)
    return Outcome(
        [f"{count(number, 'drawn slide')} in {out}, laid out as {KNOWN_SETS[name].title} is; not its slides"]
    )


def nodes_command(
    patches: Annotated[
        Path,
        typer.Argument(
            help="Folder of patches, with manifest.csv: path, class, source_group, stain_family, tissue_share."
        ),
    ],
    outlines: Annotated[Path, typer.Option(help="Folder of NCRF's JSON outlines of lesions.")],
    out: Out,
    train: Annotated[int | None, typer.Option(help="Slides to learn from (default 90).")] = None,
    val: Annotated[int | None, typer.Option(help="Slides to choose by (default 30).")] = None,
    test: Annotated[int | None, typer.Option(help="Slides to test on (default 60).")] = None,
    slide_patches: Annotated[int | None, typer.Option(help="Patches on a slide (default 500).")] = None,
    lesion_share: Annotated[
        tuple[float, float] | None,
        typer.Option(help="LOW HIGH: share of metastasis; default: macro, micro and small in turn."),
    ] = None,
    family: Annotated[
        list[str] | None, typer.Option(help="Stain family to use; repeatable; default: all.")
    ] = None,
    least_tissue: Annotated[
        float | None, typer.Option(help="Leave out patches with less tissue (default 0.3).")
    ] = None,
    hold_back: Annotated[float | None, typer.Option(help="Share of source groups to leave out.")] = None,
    only_held_back: Annotated[
        bool | None, typer.Option("--only-held-back", help="Use only what --hold-back leaves out.")
    ] = None,
    patch_px: Annotated[int | None, typer.Option(help="Side of the patches (default 96).")] = None,
    mpp: Annotated[float | None, typer.Option(help="µm per pixel of the patches (default 0.97).")] = None,
    seed: Annotated[int | None, typer.Option(help="Default 0.")] = None,
    processes: Annotated[int, typer.Option(help="Processes that compose a slide each.")] = 2,
) -> None:
    """Compose slides of real lymph-node patches, with metastases in the outlines of real lesions."""
    from wsi_ips.commands.progress_bars import RichProgress

    given = {"train": train, "val": val, "test": test, "patches": slide_patches, "lesion_share": lesion_share,
             "families": family or None, "least_tissue": least_tissue, "hold_back": hold_back,
             "only_held_back": only_held_back, "patch_px": patch_px, "mpp": mpp, "seed": seed}  # fmt: skip
    settings = {name: value for name, value in given.items() if value is not None}
    with RichProgress() as progress:
        outcome = compose_nodes(
            out, settings, progress, patches=patches, outlines=outlines, processes=processes
        )
    finish(outcome)


def compose_nodes(
    out: Path,
    settings: Mapping[str, Any],
    progress: Progress,
    *,
    patches: Path,
    outlines: Path,
    processes: int = 2,
) -> Outcome:
    """Compose the slides into ``out``, and say how many there are and how to read them.

    ``settings``: of :class:`LymphNodesConfig`. Raises :class:`ConfigError` for settings that cannot be,
    :class:`DatasetError` for a folder that is not there, :class:`ResultsError` while another process writes into
    ``out``, and what :func:`make_lymph_nodes` raises.
    """
    from pydantic import ValidationError

    from wsi_ips.datasets.manifest import SPLITS, read_manifest
    from wsi_ips.drawn.lymph_nodes import LymphNodesConfig, make_lymph_nodes, tiling_of
    from wsi_ips.storage.held_folder import held

    try:
        config = LymphNodesConfig.model_validate(dict(settings))
    except ValidationError as error:
        raise ConfigError(f"wsi-ips data nodes: {first_problem(error)}") from None
    if processes < 1:
        raise ConfigError(f"--processes {processes}: one at least")
    for folder in (patches, outlines):
        if not folder.is_dir():
            raise DatasetError(folder, "no such folder", "check the path")
    parts = [out / "images", out / "annotations", out / "cells"]
    with held(out, below=parts, undo=[out / "lymph_nodes.json"], results="images/*.tif"):
        manifest = make_lymph_nodes(
            out, config, patches=patches, outlines=outlines, processes=processes, progress=progress
        )
    records = read_manifest(manifest, tasks=()).records
    counts = Counter(record.split for record in records)
    splits = ", ".join(f"{split} {counts[split]}" for split in SPLITS if counts[split])
    tiling = tiling_of(config)
    return Outcome(
        [
            f"{count(len(records), 'slide')} in {manifest} ({splits})",
            f"read them with --set tiling.patch_px={tiling.patch_px} --set tiling.patch_mpp={tiling.patch_mpp:g} "
            f"--set tiling.min_tissue={tiling.min_tissue:g}: each patch is a real one",
        ]
    )
