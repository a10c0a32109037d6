"""Commands on slides alone: ``info``, ``tile``, ``features``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from wsi_ips.cli.options import (
    Device,
    EncoderName,
    EncoderWeights,
    Layout,
    MppCsv,
    Out,
    Recipe,
    Set,
    SlideMppOption,
    Slides,
)
from wsi_ips.cli.start import finish, start


def info(
    slide: Annotated[str, typer.Argument(help="A slide, a folder of them, or a slide's URL.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per slide.")] = False,
    thumbnail: Annotated[
        Path | None,
        typer.Option(help="Write the slide's thumbnail (made from its levels if it has none) here."),
    ] = None,
    label: Annotated[
        Path | None, typer.Option(help="Write the picture of the slide's label here (PNG).")
    ] = None,
    macro: Annotated[
        Path | None, typer.Option(help="Write the picture of the whole glass here (PNG).")
    ] = None,
) -> None:
    """Say what a slide is: size, levels, resolution, vendor, which reader opens it, what else its file holds."""
    from wsi_ips.commands.info import describe_slides
    from wsi_ips.storage.location import locate

    asked = {"thumbnail": thumbnail, "label": label, "macro": macro}
    pictures = {name: out for name, out in asked.items() if out is not None}
    finish(describe_slides(locate(slide), as_json=as_json, pictures=pictures))


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
    mask_preview: Annotated[
        bool | None,
        typer.Option(
            "--mask-preview", help="Draw each slide's tissue and patches: OUT/previews/SLIDE_ID.jpg."
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that tile a slide each (default 1).")] = None,
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
    flags = {"slides": slides, "out": out, "layout": layout, "contours": contours,
             "mask_preview": mask_preview, "workers": workers, "slide_mpp": slide_mpp,
             "mpp_csv": mpp_csv}  # fmt: skip
    start("tile", flags, recipe=recipe, overrides=set_, sections={"tiling": tiling})


def features(
    slides: Slides,
    out: Out,
    encoder: EncoderName = None,
    weights: EncoderWeights = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="model.safetensors of a fine-tuning run: its encoder and its tiling.")
    ] = None,
    patch_px: Annotated[int | None, typer.Option(help="Side of a patch in pixels.")] = None,
    patch_mpp: Annotated[float | None, typer.Option(help="µm per pixel of a patch.")] = None,
    mag: Annotated[float | None, typer.Option(help='Same as --patch-mpp: 20 ("20x") is 0.5 µm.')] = None,
    from_coords: Annotated[
        Path | None,
        typer.Option(help="Folder of coordinates (CLAM, TRIDENT, AtlasPatch): those patches only."),
    ] = None,
    layout: Layout = None,
    half: Annotated[bool | None, typer.Option("--half", help="Store float16, not float32.")] = None,
    device: Device = None,
    slide_mpp: SlideMppOption = None,
    mpp_csv: MppCsv = None,
    recipe: Recipe = None,
    set_: Set = None,
) -> None:
    """Store what an encoder makes of every patch, as CLAM or TRIDENT do; nothing is learned."""
    if mag is not None:
        from wsi_ips.units import mpp_of_magnification

        patch_mpp = mpp_of_magnification(mag)
    flags = {"slides": slides, "out": out, "layout": layout, "checkpoint": checkpoint, "half": half,
             "from_coords": from_coords, "device": device, "slide_mpp": slide_mpp, "mpp_csv": mpp_csv}  # fmt: skip
    sections: dict[str, dict[str, Any]] = {
        "encoder": {"name": encoder, "weights": weights},
        "tiling": {"patch_px": patch_px, "patch_mpp": patch_mpp},
    }
    # A section that is there, even an empty one, is a choice.
    chosen = {
        name: values for name, values in sections.items() if any(v is not None for v in values.values())
    }
    start("features", flags, recipe=recipe, overrides=set_, sections=chosen)
