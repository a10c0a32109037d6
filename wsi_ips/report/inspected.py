"""What was read from a slide, and why: :func:`facts_of` gathers it, :func:`in_words` says it.

Most of it is stored with the result. Which reader opens the slide, from which level patches are read and at which
scale is not: that is found by opening the slide again, as this version does, and the facts say so. Where the slide
is gone, or is no longer the file that was read, the facts say that instead.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from wsi_ips.errors import ConfigError, ResultsError, WsiIpsError, count, first_of
from wsi_ips.heatmaps.display_scale import is_flat
from wsi_ips.heatmaps.maps import (
    OF_OUTPUTS,
    attention_map,
    even_share,
    output_in_words,
    outputs_with,
    shown_in_words,
)
from wsi_ips.inference.results import SlideResult
from wsi_ips.inference.run_folder import stored_location
from wsi_ips.report.stored_reading import StoredReading
from wsi_ips.slides.base import SlideReader, TiledReader
from wsi_ips.slides.folder import files_of
from wsi_ips.slides.registry import open_slide
from wsi_ips.slides.resolution import stated_in
from wsi_ips.storage.fingerprint import files_fingerprint
from wsi_ips.storage.location import Location
from wsi_ips.streaming.region_source import PatchRegion
from wsi_ips.tiling.grid import PatchCoords

SHOWN_TILES = 5
"""How many unreadable tiles are named in words."""

SAME_MPP = 1e-6
"""Relative difference up to which two resolutions are the same."""

Facts = dict[str, Any]
"""What ``--json`` writes: names and plain values, None for what is not known."""


def slide_of(reading: StoredReading, elsewhere: Location | None, *, open_urls: bool) -> Location:
    """Where the slide is: as the user says, or else where it was read.

    Raises :class:`ResultsError` if nobody says, if it was features that were read, and for a URL that the run
    names and that may not be opened.
    """
    if elsewhere is not None:
        return elsewhere
    if reading.of_features:
        raise ResultsError(
            reading.run, "was predicted from features, not from slides", "name the slides with --slides"
        )
    if not reading.slide_path:
        raise ResultsError(
            reading.run,
            "does not say where the slide is",
            "name the file as SLIDE, or the slides with --slides",
        )
    return stored_location(reading.slide_path, open_urls=open_urls)


def opened_unchanged(reading: StoredReading, where: Location) -> SlideReader:
    """Open the slide that was read.

    Raises :class:`ResultsError` if it is no longer the file that was read, and the reader's own error if it is
    gone or cannot be opened.
    """
    slide = open_slide(where)
    try:
        if changed(reading, where):
            raise ResultsError(
                where,
                f"is not the file that {reading.kind} read: it has changed since",
                f"run {reading.kind} again, or name the file that was read with --slides",
            )
        coords = reading.coords
        if coords is not None and slide.info.l0_size != coords.l0_size:
            raise ResultsError(
                where,
                f"is {_by(slide.info.l0_size)} px, and the slide that was read {_by(coords.l0_size)} px",
                "name the file that was read with --slides",
            )
    except BaseException:
        slide.close()
        raise
    return slide


def changed(reading: StoredReading, where: Location) -> bool:
    """Whether it is known that the file is another than the one that was read."""
    now = files_fingerprint(files_of(where)) if reading.fingerprint else ""
    return bool(now) and now != reading.fingerprint


def facts_of(
    reading: StoredReading, elsewhere: Location | None = None, *, open_urls: bool = False, top: int = 10
) -> Facts:
    """Everything that is known of the reading, as plain values.

    Args:
        reading: What is stored.
        elsewhere: Where the slide is now. None: where it was read.
        open_urls: Whether a URL that the run names may be opened.
        top: How many of the kept patches are listed, those with the highest scores.
    """
    coords = reading.coords
    facts: Facts = {
        "slide_id": reading.slide_id,
        "run": {
            "folder": str(reading.run),
            "command": reading.kind,
            "file": reading.file and str(reading.file),
        },
        "status": reading.status,
        "error": reading.error,
        "note": reading.note,
        "seconds": reading.seconds,
        "slide": _slide_facts(reading, elsewhere, open_urls=open_urls),
        "patches": None if coords is None else _patch_facts(reading, coords),
        "kept": None,
        "attention": None,
        "probabilities": None,
        "case": None,
        "features": None if reading.width is None else {"width": reading.width},
        "bad_tiles": list(reading.bad_tiles),
    }
    if reading.result is not None:
        facts |= _result_facts(reading.result, top=top)
    return facts


def _slide_facts(reading: StoredReading, elsewhere: Location | None, *, open_urls: bool) -> Facts:
    """The slide's file, and how this version reads it."""
    facts: Facts = {"read_at": reading.slide_path or None, "now_at": None, "unchanged": None, "problem": None}
    try:
        where = slide_of(reading, elsewhere, open_urls=open_urls)
        with open_slide(where) as slide:
            facts["now_at"] = str(where)
            facts["unchanged"] = not changed(reading, where) if reading.fingerprint else None
            facts |= _reader_facts(reading, slide)
    except WsiIpsError as error:
        facts["problem"] = str(error)
    return facts


def _reader_facts(reading: StoredReading, slide: SlideReader) -> Facts:
    info = slide.info
    facts: Facts = {
        "reader": info.reader,
        "container": info.vendor,
        "width": info.l0_size[0],
        "height": info.l0_size[1],
        "levels": [[*level.size, level.downsample] for level in info.levels],
        "file_mpp": info.mpp,
        "file_mpp_from": stated_in(info.reader, info.vendor) if info.mpp is not None else None,
    }
    coords = reading.coords
    if coords is None or coords.l0_size != info.l0_size:
        return facts
    try:
        region = PatchRegion.of(
            info, patch_px=coords.patch_px, patch_mpp=coords.patch_mpp, slide_mpp=coords.slide_mpp
        )
    except ConfigError as error:
        return {**facts, "read_problem": str(error)}
    level, lv_per_px = region.level, region.lv_per_px
    tile_size, scale = None, 1
    if isinstance(slide, TiledReader):
        tile_size = list(slide.tile_layout(level).tile_size)
        scale = region.shrunk(slide, coords.l0_xy_N2)[1]
    return {
        **facts,
        "level": level,
        "level_downsample": info.levels[level].downsample,
        "level_px_per_patch_px": lv_per_px,
        "made_smaller_by_decoder": scale,
        "stored_tiles": tile_size,
    }


def _patch_facts(reading: StoredReading, coords: PatchCoords) -> Facts:
    tissue_N = coords.tissue_N[np.isfinite(coords.tissue_N)]
    return {
        "count": len(coords),
        "from": reading.patches_from,
        "px": coords.patch_px,
        "mpp": float(coords.patch_mpp),
        "um": float(coords.patch_px * coords.patch_mpp),
        "l0_px": float(coords.l0_patch),
        "overlap_px": coords.overlap_px,
        "slide_mpp": float(coords.slide_mpp),
        "slide_mpp_given": reading.mpp_given,
        "slide_mpp_from": reading.mpp_source or None,
        "on_grid": coords.lies_on_grid,
        "grid": list(coords.g_size) if coords.lies_on_grid else None,
        "l0_size": list(coords.l0_size),
        "min_tissue": None if reading.tiling is None else reading.tiling.min_tissue,
        "least_tissue": float(tissue_N.min()) if len(tissue_N) else None,
        "mean_tissue": float(tissue_N.mean()) if len(tissue_N) else None,
    }


def _result_facts(result: SlideResult, *, top: int) -> Facts:
    case, coarse = result.case, result.coarse
    n, heads, queries = result.attention_NHT.shape
    mean_N = attention_map(result)
    even = even_share(result)
    maps = [shown_in_words(result, query=None, head=None)]
    maps += [shown_in_words(result, query=query, head=None) for query in range(queries) if queries > 1]
    maps += [output_in_words(kind, output) for kind in OF_OUTPUTS for output in outputs_with(result, kind)]
    return {
        "kept": _kept_facts(result, top=top),
        "attention": {
            "patches": n,
            "heads": heads,
            "queries": queries,
            "query_names": list(result.query_names),
            "task_queries": dict(result.task_queries),
            "sum": _plain(float(mean_N.sum(dtype=np.float64))),
            "highest_times_even": _plain(float(mean_N.max(initial=0)) / even),
            "flat": bool(is_flat(mean_N, even)),
            "maps": maps,
        },
        "probabilities": {
            task: {name: _plain(value) for name, value in classes.items()}
            for task, classes in result.probabilities.items()
        },
        "case": None if case is None else {**case.to_json(), "share": _plain(case.share)},
        "coarse": None if coarse is None else coarse.to_json(),
        "checkpoint": result.checkpoint,
    }


def _kept_facts(result: SlideResult, *, top: int) -> Facts:
    """The kept patches with the highest scores. A score that is not a number comes last."""
    coords, rows_M = result.coords, result.kept_rows()
    mean_N, even = attention_map(result), even_share(result)
    order = np.argsort(-np.nan_to_num(result.kept_scores_M, nan=-np.inf), kind="stable")
    listed = [
        {
            "id": int(result.kept_ids_M[place]),
            "column": int(result.kept_ids_M[place]) % coords.g_size[0] if coords.lies_on_grid else None,
            "row": int(result.kept_ids_M[place]) // coords.g_size[0] if coords.lies_on_grid else None,
            "l0_x": int(coords.l0_xy_N2[rows_M[place], 0]),
            "l0_y": int(coords.l0_xy_N2[rows_M[place], 1]),
            "score": _plain(float(result.kept_scores_M[place])),
            "attention_times_even": _plain(float(mean_N[rows_M[place]]) / even),
            "tissue": _plain(float(coords.tissue_N[rows_M[place]])),
        }
        for place in order[:top]
    ]
    return {"count": len(rows_M), "top": listed}


def _plain(value: float) -> float | None:
    """The number, or None for one that JSON does not have."""
    return value if math.isfinite(value) else None


def in_words(facts: Mapping[str, Any]) -> list[str]:
    """The facts as lines of text."""
    run = facts["run"]
    took = "" if facts["seconds"] is None else f", {facts['seconds']:.1f} s"
    lines = [f"{facts['slide_id']}: {facts['status']} in {run['folder']} ({run['command']}{took})"]
    lines += [f"  error: {facts['error']}"] if facts["error"] else []
    lines += [f"  note: {facts['note']}"] if facts["note"] else []
    lines += _slide_words(facts["slide"])
    if facts["patches"] is not None:
        lines += _patch_words(facts["patches"], facts["slide"])
    lines += _reading_words(facts["slide"], "would be read" if run["command"] == "tile" else "read")
    if facts["features"] is not None:
        lines.append(f"  features: {facts['features']['width']} numbers a patch")
    bad = facts["bad_tiles"]
    named = first_of(bad, SHOWN_TILES)
    if run["file"] is not None and run["command"] != "tile":
        lines.append(f"  unreadable tiles, read as white: {f'{len(bad)} ({named})' if bad else 'none'}")
    if facts["attention"] is not None:
        lines += _result_words(facts)
    return lines


def _slide_words(slide: Mapping[str, Any]) -> Iterator[str]:
    state = {True: ", unchanged since", False: ", CHANGED SINCE IT WAS READ", None: ""}[slide["unchanged"]]
    if slide["now_at"] is None:
        if slide["read_at"]:
            yield f"  file: {slide['read_at']}"
        yield f"  the slide cannot be looked at: {slide['problem']}"
        return
    moved = slide["read_at"] and slide["read_at"] != slide["now_at"]
    yield f"  file: {slide['now_at']}{state}" + (f" (it was read at {slide['read_at']})" if moved else "")
    if slide["problem"]:
        yield f"  the slide cannot be looked at: {slide['problem']}"
        return
    levels = ", ".join(f"{width}x{height} (1/{factor:.4g})" for width, height, factor in slide["levels"])
    yield f"  reader: {slide['reader']}, container {slide['container']}, levels {levels}"


def _patch_words(patches: Mapping[str, Any], slide: Mapping[str, Any]) -> Iterator[str]:
    source = patches["slide_mpp_from"]
    if source is None:
        stated = slide.get("file_mpp_from")
        source = f"the file's own: {stated}" if stated else "the file's own"
    now = slide.get("file_mpp")
    if now is not None and abs(now / patches["slide_mpp"] - 1) > SAME_MPP:
        source += f" (the file states {now:.4g} µm: {slide['file_mpp_from']})"
    yield f"  resolution: {patches['slide_mpp']:.6g} µm per pixel; {source}"
    grid = f"grid of {_by(patches['grid'])}" if patches["on_grid"] else "not on one grid"
    size = f"{patches['px']} px at {patches['mpp']:.4g} µm"
    extent = f"{patches['um']:.4g} µm, {patches['l0_px']:.6g} px of level 0"
    yield f"  patches: {patches['count']} of {size} ({extent}), {grid}, overlap {patches['overlap_px']} px"
    least = patches["least_tissue"]
    shares = (
        ""
        if least is None
        else f"; they hold {least:.0%} tissue at least, {patches['mean_tissue']:.0%} on average"
    )
    asked = "" if patches["min_tissue"] is None else f", min_tissue {patches['min_tissue']:g}"
    yield f"  patches were {patches['from']}{asked}{shares}"


def _reading_words(slide: Mapping[str, Any], verb: str) -> Iterator[str]:
    if "read_problem" in slide:
        yield f"  {verb}: {slide['read_problem']}"
    if "level" not in slide:
        return
    factor, scale = slide["level_px_per_patch_px"], slide["made_smaller_by_decoder"]
    if scale > 1:
        how = f"the decoder makes tiles {scale} times smaller"
    elif factor == 1:
        how = "pixel for pixel"
    elif factor > 1:
        how = f"a pixel is the mean of {factor:.4g} x {factor:.4g}"
    else:
        how = f"enlarged {1 / factor:.4g} times"
    tiles = slide["stored_tiles"]
    via = f"stored tiles of {_by(tiles)} px" if tiles else "regions, the reader has no tiles"
    yield f"  {verb}: level {slide['level']} (1/{slide['level_downsample']:.4g}), {how}; {via}"


def _result_words(facts: Mapping[str, Any]) -> Iterator[str]:
    attention, kept = facts["attention"], facts["kept"]
    coarse, case = facts["coarse"], facts["case"]
    if coarse is not None:
        yield f"  coarse pass: let {coarse['let_through']} of {coarse['patches']} patches through"
    flat = ", FLAT: nothing stands out" if attention["flat"] else ""
    shape = " x ".join(
        (
            count(attention["patches"], "patch", "patches"),
            count(attention["heads"], "head"),
            count(attention["queries"], "query", "queries"),
        )
    )
    highest = f"highest {_shown(attention['highest_times_even'])} times the even share{flat}"
    yield f"  attention: {shape}, sum {_shown(attention['sum'])}, {highest}"
    yield f"  maps: {'; '.join(attention['maps'])}"
    for task, classes in facts["probabilities"].items():
        yield f"  {task}: {', '.join(f'{name} {_shown(value)}' for name, value in classes.items())}"
    if case is not None:
        others = f"{len(case['slides'])} slides" if case["slides"] else "its slides"
        share = _shown(case["share"])
        yield f"  case {case['case_id']}: one bag of {others}; this one has {share} of the attention"
    yield f"  kept: {kept['count']} of {attention['patches']} patches, best first:"
    yield "      id  column  row        x        y     score  x even  tissue"
    for one in kept["top"]:
        column, row = ("-" if one[name] is None else one[name] for name in ("column", "row"))
        score, times, tissue = (_shown(one[name]) for name in ("score", "attention_times_even", "tissue"))
        place = f"{one['id']:>6}  {column:>6}  {row:>3}  {one['l0_x']:>7}  {one['l0_y']:>7}"
        yield f"  {place}  {score:>8}  {times:>6}  {tissue:>6}"


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _by(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"
