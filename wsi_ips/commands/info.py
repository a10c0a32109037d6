"""``info``: what a slide is."""

import json

from wsi_ips.commands.outcome import Outcome
from wsi_ips.errors import WsiIpsError
from wsi_ips.location import Location
from wsi_ips.slides.base import SlideInfo
from wsi_ips.slides.folder import find_slides
from wsi_ips.slides.registry import open_slide


def describe_slides(path: Location, *, as_json: bool) -> Outcome:
    """One line, or one JSON object, per slide. A slide given by itself that does not open raises."""
    lines: list[str] = []
    failures: list[str] = []
    for slide_path in find_slides(path):
        try:
            with open_slide(slide_path) as slide:
                lines.append(_as_json(slide.info) if as_json else _as_line(slide.info))
        except WsiIpsError as error:
            if slide_path == path:
                raise
            failures.append(str(error))
    described = Outcome.of_slides(failures, f"{len(lines)} slides")
    return Outcome([*lines, *(described.lines if failures else ())], described.exit_code)


def _as_line(info: SlideInfo) -> str:
    width, height = info.l0_size
    resolution = f"{info.mpp:.4f} µm/px" if info.mpp else "resolution unknown"
    levels = ", ".join(f"{level.size[0]}x{level.size[1]} (1/{level.downsample:.4g})" for level in info.levels)
    return f"{info.path}: {width}x{height} px, {resolution}, {info.vendor}, reader {info.reader}, levels {levels}"


def _as_json(info: SlideInfo) -> str:
    width, height = info.l0_size
    return json.dumps(
        {
            "path": str(info.path),
            "reader": info.reader,
            "vendor": info.vendor,
            "width": width,
            "height": height,
            "mpp": info.mpp,
            "levels": [[*level.size, level.downsample] for level in info.levels],
        }
    )
