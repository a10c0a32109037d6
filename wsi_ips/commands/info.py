"""``info``: what a slide is."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wsi_ips.commands.options import Outcome, finish
from wsi_ips.errors import ConfigError, WsiIpsError, count
from wsi_ips.storage.location import Location, locate

if TYPE_CHECKING:
    from wsi_ips.slides.base import SlideInfo, SlideReader

THUMBNAIL_PX = 1024
"""Longest side of a thumbnail that is made from the slide's levels."""
MOST_NAMED = 20
"""How many slides of a folder a message names."""


def command(
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
    asked = {"thumbnail": thumbnail, "label": label, "macro": macro}
    pictures = {name: out for name, out in asked.items() if out is not None}
    finish(describe_slides(locate(slide), as_json=as_json, pictures=pictures))


def describe_slides(path: Location, *, as_json: bool, pictures: Mapping[str, Path] | None = None) -> Outcome:
    """One line, or one JSON object, per slide; more lines for a slide given by itself; what of a folder is none.

    pictures: which of a slide's associated pictures (``thumbnail``, ``label``, ``macro``) to write as PNG, and
    where, for one slide, or a folder that holds one; a slide without a stored thumbnail gets one made from its
    levels. A slide given by itself that does
    not open raises, and so does a picture that it does not have.
    """
    from wsi_ips.slides.folder import find_slides, left_out_of
    from wsi_ips.slides.registry import open_slide

    slides = find_slides(path)
    one = slides == [path]
    if pictures and len(slides) != 1:
        names = ", ".join(slide.name for slide in slides[:MOST_NAMED])
        more = f" and {len(slides) - MOST_NAMED} more" if len(slides) > MOST_NAMED else ""
        raise ConfigError(
            f"{path} holds {len(slides)} slides: pictures are written of one slide at a time; name one of: "
            f"{names}{more}"
        )
    lines: list[str] = []
    failures: list[str] = []
    described = 0
    for slide_path in slides:
        try:
            with open_slide(slide_path) as slide:
                lines.append(_as_json(slide.info) if as_json else _as_line(slide.info))
                lines += _details(slide.info) if one and not as_json else []
                lines += [_written(slide, name, out) for name, out in (pictures or {}).items()]
                described += 1
        except WsiIpsError as error:
            if slide_path == path:
                raise
            failures.append(str(error))
    if isinstance(path, Path) and path.is_dir() and not one and not as_json:
        lines += [f"left out: {part.what}: {part.why}" for part in left_out_of(path)]
    outcome = Outcome.of_slides(failures, f"{described} of {count(len(slides), 'slide')} opened")
    return Outcome([*lines, *(outcome.lines if failures else ())], outcome.exit_code)


def _as_line(info: "SlideInfo") -> str:
    width, height = info.l0_size
    levels = ", ".join(f"{level.size[0]}x{level.size[1]} (1/{level.downsample:.4g})" for level in info.levels)
    return (
        f"{info.path}: {width}x{height} px, {_resolution(info)}, {info.vendor}, reader {info.reader}, "
        f"levels {levels}"
    )


def _resolution(info: "SlideInfo") -> str:
    if info.mpp_xy is None:
        return "resolution unknown"
    x, y = info.mpp_xy
    return f"{x:.4f} µm/px" if f"{x:.4f}" == f"{y:.4f}" else f"{x:.4f} by {y:.4f} µm/px"


def _details(info: "SlideInfo") -> list[str]:
    """What else the file holds, a line each."""
    from wsi_ips.slides.resolution import stated_in

    lines: list[str] = []
    if info.mpp_xy is not None:
        lines.append(f"  resolution stated in: {stated_in(info.reader, info.vendor)}")
    if info.bounds is not None:
        b = info.bounds
        lines.append(f"  scanned area: {b.l0_width}x{b.l0_height} px at ({b.l0_x}, {b.l0_y})")
    if info.associated:
        pictures = ", ".join(f"{name} {width}x{height}" for name, (width, height) in info.associated)
        lines.append(f"  pictures: {pictures}")
    lines.append(f"  ICC profile: {'yes (it is not applied)' if info.icc_profile else 'none'}")
    lines += [f"  left out: {part.what}: {part.why}" for part in info.left_out]
    return lines


def _as_json(info: "SlideInfo") -> str:
    from wsi_ips.slides.resolution import stated_in

    width, height = info.l0_size
    mpp_x, mpp_y = info.mpp_xy or (None, None)
    bounds = info.bounds
    return json.dumps(
        {
            "path": str(info.path),
            "reader": info.reader,
            "vendor": info.vendor,
            "width": width,
            "height": height,
            "mpp": info.mpp,
            "mpp_x": mpp_x,
            "mpp_y": mpp_y,
            "mpp_from": None if info.mpp_xy is None else stated_in(info.reader, info.vendor),
            "levels": [[*level.size, level.downsample] for level in info.levels],
            "bounds": bounds and [bounds.l0_x, bounds.l0_y, bounds.l0_width, bounds.l0_height],
            "associated": {name: list(size) for name, size in info.associated},
            "icc_profile": info.icc_profile,
            "left_out": [{"what": part.what, "why": part.why} for part in info.left_out],
        }
    )


def _written(slide: "SlideReader", name: str, out: Path) -> str:
    """Write one picture as PNG, and say what it is."""
    from PIL import Image

    from wsi_ips.slides.base import AssociatedReader
    from wsi_ips.storage.files import whole_file
    from wsi_ips.tiling.picture import thumbnail

    stored = name in dict(slide.info.associated) and isinstance(slide, AssociatedReader)
    if not stored and name != "thumbnail":
        known = ", ".join(known_name for known_name, _ in slide.info.associated) or "none"
        raise ConfigError(f"{slide.info.path} comes with no {name} picture; it has {known}")
    picture = (
        slide.read_associated(name)
        if stored and isinstance(slide, AssociatedReader)
        else thumbnail(slide, side_px=THUMBNAIL_PX)
    )
    with whole_file(out) as partial:
        Image.fromarray(picture).save(partial, format="PNG")
    origin = "as stored" if stored else "made from the slide's levels"
    return f"{out}: {name}, {picture.shape[1]}x{picture.shape[0]} px, {origin}"
