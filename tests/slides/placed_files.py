"""Slides whose tiles have places of their own, written for a test: Leica SCN, Trestle, Ventana BIF."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
import tifffile

from tests.slides.tiff_files import Rgb, _blocks, _encode, halved

XMP = 700
LEICA_2010_10 = "http://www.leica-microsystems.com/scn/2010/10/01"


def write_tiled(
    writer: tifffile.TiffWriter,
    image: Rgb,
    *,
    tile: int | tuple[int, int],
    compression: str = "jpeg",
    empty_tiles: Sequence[int] = (),
    **options: Any,
) -> None:
    """A tiled image. compression: jpeg (YCbCr, 4:2:0), lzw, deflate, none. tile: its side, or (width, height)."""
    width, height = (tile, tile) if isinstance(tile, int) else tile
    encoded = [
        _encode(block, compression, "ycbcr", "4:2:0", False, False)
        for block in (_blocks(image, width) if width == height else _oblong(image, width, height))
    ]
    for empty in empty_tiles:
        encoded[empty] = b""
    jpeg = (
        {"photometric": "ycbcr", "subsampling": (2, 2)} if compression == "jpeg" else {"photometric": "rgb"}
    )
    writer.write(
        iter(encoded),
        shape=image.shape,
        dtype=np.uint8,
        tile=(height, width),
        compression={"none": None, "deflate": 8}.get(compression, compression),
        metadata=None,
        **jpeg,
        **options,
    )


def _oblong(image: Rgb, width: int, height: int) -> Sequence[Rgb]:
    padded = np.pad(image, ((0, -image.shape[0] % height), (0, -image.shape[1] % width), (0, 0)), "edge")
    return [
        np.ascontiguousarray(padded[top : top + height, left : left + width])
        for top in range(0, padded.shape[0], height)
        for left in range(0, padded.shape[1], width)
    ]


@dataclass(frozen=True)
class ScnArea:
    """One scanned area: its image at level 0, and where it lies on the glass, in pixels (may be broken)."""

    image: Rgb
    l0_xy: tuple[float, float] = (0, 0)
    illumination: str = "brightfield"
    objective: str = "20"
    levels: int = 2
    planes: int = 1
    stretch: float = 1.0
    """How much coarser the XML says that it was scanned."""


def write_scn(
    path: Path,
    areas: Sequence[ScnArea],
    *,
    l0_size: tuple[int, int],
    mpp: float = 0.5,
    tile: int = 128,
    compression: str = "jpeg",
    macro: bool = True,
    empty_tiles: Sequence[int] = (),
    resolution_tags: bool = True,
    namespace: str = LEICA_2010_10,
    edit: tuple[str, str] = ("", ""),
) -> list[Rgb]:
    """A glass slide of ``l0_size`` pixels. empty_tiles: of the first area's level 0. edit: what to replace in the
    XML, and by what. Returns the first area's levels before compression."""
    nm = mpp * 1000
    pages: list[tuple[Rgb, float]] = [(np.full((64, 64, 3), 200, np.uint8), l0_size[0] / 64)] if macro else []
    images = [] if not macro else [_scn_image((0, 0), l0_size, [(0, 64, 64, 0)], nm, "brightfield", "20")]
    first: list[Rgb] = []
    for area in areas:
        pixels, dimensions = area.image, []
        for level in range(area.levels):
            for plane in range(area.planes):
                dimensions.append((len(pages), pixels.shape[1], pixels.shape[0], plane))
                pages.append((pixels, 2.0**level))
            first += [pixels] if area is areas[0] else []
            pixels = halved(pixels)
        size = area.image.shape[1] * area.stretch, area.image.shape[0] * area.stretch
        images.append(_scn_image(area.l0_xy, size, dimensions, nm, area.illumination, area.objective))
    xml = (
        f'<?xml version="1.0"?><scn xmlns="{namespace}">'
        f'<collection sizeX="{round(l0_size[0] * nm)}" sizeY="{round(l0_size[1] * nm)}">{"".join(images)}'
        "</collection></scn>"
    ).replace(*edit)
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for number, (pixels, factor) in enumerate(pages):
            per_cm = 1e4 / (mpp * factor)
            resolution = (
                {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER"} if resolution_tags else {}
            )
            write_tiled(
                writer,
                pixels,
                tile=64 if macro and not number else tile,
                compression=compression,
                empty_tiles=empty_tiles if number == int(macro) else (),
                description=xml if number == 0 else None,
                **resolution,
            )
    return first


def _scn_image(
    l0_xy: tuple[float, float],
    size: tuple[float, float],
    dimensions: Sequence[tuple[int, int, int, int]],
    nm: float,
    illumination: str,
    objective: str,
) -> str:
    listed = "".join(
        f'<dimension sizeX="{width}" sizeY="{height}" ifd="{ifd}"' + (f' z="{plane}"' if plane else "") + "/>"
        for ifd, width, height, plane in dimensions
    )
    return (
        f"<image><pixels>{listed}</pixels>"
        f'<view sizeX="{round(size[0] * nm)}" sizeY="{round(size[1] * nm)}" '
        f'offsetX="{round(l0_xy[0] * nm)}" offsetY="{round(l0_xy[1] * nm)}"/>'
        f"<scanSettings><objectiveSettings><objective>{objective}</objective></objectiveSettings>"
        f"<illuminationSettings><illuminationSource>{illumination}</illuminationSource></illuminationSettings>"
        "</scanSettings></image>"
    )


def with_overlaps(image: Rgb, tile: tuple[int, int], overlap: tuple[int, int], *, tinted: bool = True) -> Rgb:
    """The mosaic of tiles that overlap in ``image``, put side by side as they are stored.

    tinted: each tile is a little darker or brighter than its neighbours, so that it shows which lies on top.
    """
    (tile_width, tile_height), (height, width) = tile, image.shape[:2]
    step_x, step_y = tile_width - overlap[0], tile_height - overlap[1]
    cols, rows = -(-(width - overlap[0]) // step_x), -(-(height - overlap[1]) // step_y)
    bands = []
    for row in range(rows):
        band = []
        for col in range(cols):
            top, left = row * step_y, col * step_x
            part = image[top : top + tile_height, left : left + tile_width]
            tint = 9 * ((3 * row + 2 * col) % 5 - 2) if tinted else 0
            band.append(np.clip(part.astype(int) + tint, 0, 250).astype(np.uint8))
        bands.append(np.concatenate(band, axis=1))
    return np.concatenate(bands, axis=0)


def write_trestle(
    path: Path,
    levels: Sequence[Rgb],
    *,
    overlaps: str | None = None,
    tile: int | tuple[int, int] = 128,
    mpp: float = 0.5,
    compression: str = "jpeg",
    empty_tiles: Sequence[int] = (),
    software: str = "MedScan 3.0",
) -> None:
    """levels: as they are stored (:func:`with_overlaps`). overlaps: what ``OverlapsXY`` says."""
    description = "Background Color=E6E6E6;White Balance=ff;Objective Power=20;"
    description += "" if overlaps is None else f"OverlapsXY={overlaps};"
    with tifffile.TiffWriter(path) as writer:
        for number, image in enumerate(levels):
            write_tiled(
                writer,
                image,
                tile=tile,
                compression=compression,
                empty_tiles=() if number else empty_tiles,
                description=description,
                software=software,
                resolution=(mpp, mpp),
            )


@dataclass(frozen=True)
class BifArea:
    """A rectangle of ``cols`` x ``rows`` tiles that begins at the stored tile ``start`` and lies at ``pos``.

    pos: Pos-X, and Pos-Y, which counts from below.
    """

    cols: int
    rows: int
    pos: tuple[float, float] = (0, 0)
    start: tuple[int, int] = (0, 0)
    scanned: int = 1


def write_bif(
    path: Path,
    mosaic: Rgb,
    areas: Sequence[BifArea] | None,
    *,
    overlap: tuple[float, float] = (0, 0),
    tile: tuple[int, int] = (128, 128),
    levels: int = 2,
    mpp: float | str = 0.5,
    compression: str = "jpeg",
    empty_tiles: Sequence[int] = (),
    joints: bool = True,
    edit: tuple[str, str] = ("", ""),
    magnifications: Sequence[float] = (),
    stored_share: float = 1.0,
) -> list[Rgb]:
    """mosaic: tiles side by side, with their overlaps, as level 0 stores them; later levels are its halves.

    areas None: without the XML that lays tiles out. overlap: what every joint states, give or take a pixel where
    it is no whole number. edit: what to replace in that XML, and by what. stored_share: how much of the later
    levels' width is stored. Returns the levels as stored.
    """
    iscan = f'<iScan Magnification="20" ScanRes="{mpp}" UnitNumber="2000515"/>'
    images = [mosaic]
    for _ in range(levels - 1):
        smaller = halved(images[-1])
        images.append(smaller[:, : int(smaller.shape[1] * stored_share)])
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        writer.write(
            np.full((40, 60, 3), 222, np.uint8),
            photometric="rgb",
            description="Label_Image",
            metadata=None,
            extratags=[(XMP, 1, None, iscan.encode(), True)],
        )
        for number, image in enumerate(images):
            magnification = magnifications[number] if magnifications else 20 / 2**number
            extra = []
            if number == 0 and areas is not None:
                xml = _encode_info(areas, tile, overlap, joints).replace(*edit)
                extra = [(XMP, 1, None, xml.encode(), True)]
            write_tiled(
                writer,
                image,
                tile=tile,
                compression=compression,
                empty_tiles=() if number else empty_tiles,
                description=f"level={number} mag={magnification:g} quality=90",
                extratags=extra,
            )
        writer.write(
            np.full((20, 30, 3), 211, np.uint8), photometric="rgb", description="Thumbnail", metadata=None
        )
    return images


def _encode_info(
    areas: Sequence[BifArea], tile: tuple[int, int], overlap: tuple[float, float], joints: bool
) -> str:
    infos, origins = [], []
    for area in areas:
        inner = "".join(_joints(area, overlap)) if joints else ""
        infos.append(
            f'<ImageInfo AOIScanned="{area.scanned}" Width="{tile[0]}" Height="{tile[1]}" NumRows="{area.rows}" '
            f'NumCols="{area.cols}" Pos-X="{area.pos[0]}" Pos-Y="{area.pos[1]}">{inner}</ImageInfo>'
        )
        x, y = area.start[0] * tile[0], area.start[1] * tile[1]
        origins.append(f"<AOI{len(origins)} OriginX={quoteattr(str(x))} OriginY={quoteattr(str(y))}/>")
    return (
        f'<EncodeInfo Ver="2"><SlideStitchInfo>{"".join(infos)}</SlideStitchInfo>'
        f"<AoiOrigin>{''.join(origins)}</AoiOrigin></EncodeInfo>"
    )


def _joints(area: BifArea, overlap: tuple[float, float]) -> list[str]:
    """Tiles are numbered from 1, from the lowest row up, every other row from right to left."""
    numbers = np.zeros((area.rows, area.cols), int)
    for from_below in range(area.rows):
        row = np.arange(area.cols) + 1 + from_below * area.cols
        numbers[area.rows - 1 - from_below] = row[::-1] if from_below % 2 else row
    joints = []
    across = [(numbers[r, c], numbers[r, c + 1]) for r in range(area.rows) for c in range(area.cols - 1)]
    up = [(numbers[r + 1, c], numbers[r, c]) for r in range(area.rows - 1) for c in range(area.cols)]
    for direction, pairs, stated in (("RIGHT", across, overlap[0]), ("UP", up, overlap[1])):
        for place, (first, second) in enumerate(pairs):
            # Whole numbers whose mean is the overlap; one joint that is not trusted says something else.
            share = int(np.floor((place + 1) * stated) - np.floor(place * stated))
            value = {"RIGHT": (share, 0), "UP": (0, share)}[direction]
            joints.append(
                f'<TileJointInfo FlagJoined="1" Confidence="98" Direction="{direction}" Tile1="{first}" '
                f'Tile2="{second}" OverlapX="{value[0]}" OverlapY="{value[1]}"/>'
            )
        if pairs:
            joints.append(
                f'<TileJointInfo FlagJoined="0" Confidence="0" Direction="{direction}" Tile1="{pairs[0][0]}" '
                f'Tile2="{pairs[0][1]}" OverlapX="77" OverlapY="77"/>'
            )
    return joints
