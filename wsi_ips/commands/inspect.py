"""``inspect``: what a run read of one slide, and why."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wsi_ips.commands.options import OpenUrls, Outcome, finish
from wsi_ips.errors import ConfigError, ResultsError
from wsi_ips.storage.location import Location, Url, is_there, locate

if TYPE_CHECKING:
    from shapely import Polygon

    from wsi_ips.report.stored_reading import StoredReading
    from wsi_ips.slides.base import SlideReader


def command(
    run: Annotated[Path, typer.Argument(help="A folder that predict, tile or features wrote.")],
    slide: Annotated[str, typer.Argument(help="The slide: its id, or its file, wherever that is now.")],
    slides: Annotated[
        str | None, typer.Option(help="The folder of slides; default: where the run read the slide.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    top: Annotated[int, typer.Option(min=0, help="How many kept patches to list.")] = 10,
    debug_overlay: Annotated[
        Path | None,
        typer.Option(help="Draw grid, patches, ids of kept patches and tissue contour over the slide (PNG)."),
    ] = None,
    open_urls: OpenUrls = None,
) -> None:
    """Say what a run read of one slide and why: reader, level, µm, patches, kept ids, attention, bad tiles."""
    finish(
        inspect_slide(
            run,
            slide,
            slides=None if slides is None else locate(slides),
            as_json=as_json,
            top=top,
            debug_overlay=debug_overlay,
            open_urls=bool(open_urls),
        )
    )


def inspect_slide(
    run: Path,
    slide: str,
    *,
    slides: Location | None,
    as_json: bool,
    top: int,
    debug_overlay: Path | None,
    open_urls: bool,
) -> Outcome:
    """The facts in words or as JSON, and the picture if it is asked for.

    Where the slide is gone, the facts say so. Only the picture needs the slide: it is drawn before anything is
    said, and what keeps it from being drawn is the command's error.
    """
    from wsi_ips.report.inspected import facts_of, in_words
    from wsi_ips.report.stored_reading import read_stored

    reading = read_stored(run, slide)
    elsewhere = _place(reading, slide, slides)
    drawn: list[str] = []
    if debug_overlay is not None:
        drawn = _draw(reading, elsewhere, debug_overlay, open_urls=open_urls)
    facts = facts_of(reading, elsewhere, open_urls=open_urls, top=top)
    if as_json:
        facts["debug_overlay"] = None if debug_overlay is None else str(debug_overlay)
        return Outcome([json.dumps(facts, indent=2, allow_nan=False)])
    return Outcome([*in_words(facts), *drawn])


def _place(reading: "StoredReading", slide: str, slides: Location | None) -> Location | None:
    """Where the user says that the slide is; None if they do not.

    Raises :class:`ConfigError` if ``--slides`` holds no slide of this id.
    """
    from wsi_ips.commands.slides import slides_by_id

    if slides is not None:
        place = slides_by_id(slides).get(reading.slide_id)
        if place is None:
            raise ConfigError(f"--slides {slides}: holds no slide called {reading.slide_id}")
        return place
    named = locate(slide)
    return named if isinstance(named, Url) or (slide != reading.slide_id and is_there(named)) else None


def _draw(reading: "StoredReading", elsewhere: Location | None, out: Path, *, open_urls: bool) -> list[str]:
    """Draw the picture, and return the line that says so."""
    from wsi_ips.heatmaps.debug_overlay import write_debug_overlay
    from wsi_ips.report.inspected import opened_unchanged, slide_of

    if out.suffix.lower() != ".png":
        raise ConfigError(f"{out}: name a file that ends in .png")
    if reading.coords is None:
        problem = "does not say where its patches lie" if reading.file else "holds nothing of this slide"
        why = reading.error or f"its status is {reading.status}"
        raise ResultsError(reading.file or reading.run, problem, f"nothing can be drawn: {why}")
    where = slide_of(reading, elsewhere, open_urls=open_urls)
    with opened_unchanged(reading, where) as slide:
        contours, notes = _contours(reading, slide)
        write_debug_overlay(
            out, slide, reading.coords, kept_ids=_kept(reading), contours=contours, notes=notes
        )
    return [f"{out}: grid, patches, kept patches and tissue", *(f"  {note}" for note in notes)]


def _kept(reading: "StoredReading") -> list[int]:
    """The ids of the kept patches, the best first."""
    import numpy as np

    result = reading.result
    if result is None:
        return []
    scores_M = np.nan_to_num(result.kept_scores_M, nan=-np.inf)
    order = np.argsort(-scores_M, kind="stable")
    return [int(patch_id) for patch_id in result.kept_ids_M[order]]


def _contours(reading: "StoredReading", slide: "SlideReader") -> tuple[Sequence["Polygon"], list[str]]:
    """Outlines of the tissue, as tile stored them or as they are found again, and what is to be said of them."""
    import numpy as np

    from wsi_ips.tiling.contours import ContourFolder, tissue_contours
    from wsi_ips.tiling.patches import tile_slide
    from wsi_ips.units import Mpp

    coords = reading.coords
    assert coords is not None  # the caller sees to it
    if reading.outlines is not None:
        folder = ContourFolder(reading.outlines.parent)
        return folder.polygons(reading.slide_id, l0_size=coords.l0_size), []
    if reading.tiling is None:
        return [], [f"no outline of the tissue: the patches were {reading.patches_from}"]
    mpp = None if reading.mpp_given is None else Mpp(reading.mpp_given)
    again, mask = tile_slide(slide, reading.tiling, slide_id=reading.slide_id, mpp=mpp)
    coarse = reading.result is not None and reading.result.coarse is not None
    same = np.array_equal(again.ids_N, coords.ids_N)
    if coarse:
        note = f"the tissue was found again for this picture: {len(again)} patches, of which a part was read"
    elif same:
        note = "the tissue was found again for this picture, with the same patches"
    else:
        note = f"TISSUE FOUND AGAIN BY THIS VERSION DIFFERS: {len(again)} patches, not {len(coords)}"
    return tissue_contours(mask), [note]
