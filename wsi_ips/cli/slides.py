"""Commands on slides alone: ``info``, ``tile``."""

from pathlib import Path
from typing import Annotated

import typer

from wsi_ips.cli.options import Layout, MppCsv, Out, Recipe, Set, SlideMppOption, Slides
from wsi_ips.cli.start import finish, start


def info(
    slide: Annotated[str, typer.Argument(help="A slide, a folder of them, or a slide's URL.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per slide.")] = False,
) -> None:
    """Say what a slide is: size, levels, resolution, vendor, which reader opens it."""
    from wsi_ips.commands.info import describe_slides
    from wsi_ips.location import locate

    finish(describe_slides(locate(slide), as_json=as_json))


def tile(
    slides: Slides,
    out: Out,
    patch_px: Annotated[int | None, typer.Option(help="Side of a patch in pixels.")] = None,
    patch_mpp: Annotated[float | None, typer.Option(help="µm per pixel of a patch.")] = None,
    mag: Annotated[float | None, typer.Option(help='Same as --patch-mpp: 20 ("20x") is 0.5 µm.')] = None,
    overlap_px: Annotated[int | None, typer.Option(help="Pixels that neighbours share.")] = None,
    min_tissue: Annotated[float | None, typer.Option(help="Share of a patch that is tissue.")] = None,
    layout: Layout = None,
    contours: Annotated[
        Path | None, typer.Option(help="Folder of SLIDE_ID.geojson (TRIDENT): tissue as outlined there.")
    ] = None,
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
    flags = {"slides": slides, "out": out, "layout": layout, "contours": contours, "slide_mpp": slide_mpp,
             "mpp_csv": mpp_csv}  # fmt: skip
    start("tile", flags, recipe=recipe, overrides=set_, sections={"tiling": tiling})
