"""``data``: a data set on disk, checked or made."""

from pathlib import Path
from typing import Annotated

import typer

from wsi_ips.cli.options import Out
from wsi_ips.cli.start import finish

data_app = typer.Typer(
    help="A data set on disk: is it whole, which of its slides are there; or one made of real patches.",
    no_args_is_help=True,
)


@data_app.command("verify")
def data_verify(
    folder: Annotated[Path, typer.Argument(help="Folder with checksums.md5 or checksums.txt in it.")],
    manifest: Annotated[
        Path | None, typer.Option(help="Are all its slides there? A CSV, camelyon16 or camelyon17.")
    ] = None,
) -> None:
    """Check a downloaded data set against its checksums; exit code 3 where a file is missing or altered."""
    from wsi_ips.commands.data import verify
    from wsi_ips.commands.progress_bars import RichProgress

    with RichProgress() as progress:
        outcome = verify(folder, progress, manifest=manifest)
    finish(outcome)


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

    finish(list_slides(root, out, name=name))


@data_app.command("nodes")
def data_nodes(
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
    from wsi_ips.commands.data_nodes import compose_nodes
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
