"""A folder of tiled slides: coordinates, contours and previews of each, and when they are made anew."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from shapely import Polygon

from wsi_ips.config import TilingConfig
from wsi_ips.errors import CoordsError
from wsi_ips.slides.base import SlideInfo, SlideReader, failure_in_words, named
from wsi_ips.slides.registry import open_slide
from wsi_ips.storage.location import Location
from wsi_ips.tiling.contours import ContourFolder, outlined_tissue, tissue_contours, write_geojson
from wsi_ips.tiling.coords import Layout, TiledFrom, read_coords, stored_tiled_from, write_coords
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.tiling.patches import no_patches, tile_slide, upsampling_note
from wsi_ips.tiling.tissue import TissueMask
from wsi_ips.units import Mpp

Preview = Callable[[Path, SlideReader, PatchCoords, TissueMask, Sequence[Polygon]], None]
"""Draws a slide with its tissue, contours and patches, and writes the picture to a path."""


@dataclass(frozen=True, slots=True)
class TilingFolder:
    """Where tiled slides are kept, and how they are tiled. It can be pickled: several processes share one folder.

    contours: a folder of outlines of tissue, ``<slide_id>.geojson``; None: our own segmentation. preview: what
    draws ``previews/<slide_id>.jpg``; None: nothing is drawn. alone: the slide that was given by itself, whose
    error is the caller's.
    """

    root: Path
    config: TilingConfig
    layout: Layout = "clam"
    contours: Path | None = None
    preview: Preview | None = None
    alone: Location | None = None

    def coords(self, slide_id: str) -> Path:
        """The HDF5 file of a slide's coordinates."""
        end = ".h5" if self.layout == "clam" else "_patches.h5"
        return self.root / "patches" / f"{slide_id}{end}"

    def outlines(self, slide_id: str) -> Path:
        """The GeoJSON file of the contours that our segmentation found."""
        return self.root / "contours_geojson" / f"{slide_id}.geojson"

    def picture(self, slide_id: str) -> Path:
        """The JPEG file of a slide's preview."""
        return self.root / "previews" / f"{slide_id}.jpg"

    def wanted(self, slide_id: str) -> Iterator[Path]:
        """The files that a slide has once it is tiled."""
        yield self.coords(slide_id)
        if self.contours is None:
            yield self.outlines(slide_id)
        if self.preview is not None:
            yield self.picture(slide_id)

    def given_outlines(self, slide_id: str) -> Path | None:
        """The file in which the user outlined a slide's tissue; None where our segmentation finds it."""
        return None if self.contours is None else ContourFolder(self.contours).file_of(slide_id)


@dataclass(frozen=True, slots=True)
class SlideToTile:
    """A slide, and its resolution where the user gave one."""

    slide_id: str
    path: Location
    mpp: Mpp | None


@dataclass(frozen=True, slots=True)
class TiledSlide:
    """What became of a slide.

    error: why it failed, else empty. raised: the exception itself, of a slide that was given alone. was_there: its
    coordinates were stored already.
    """

    n_patches: int
    error: str = ""
    note: str = ""
    was_there: bool = False
    raised: Exception | None = None

    @classmethod
    def failed(cls, slide: SlideToTile, why: str, raised: Exception | None = None) -> Self:
        return cls(0, named(slide.slide_id, why), raised=raised)


def tile_one(
    folder: TilingFolder, slide: SlideToTile, *, begin: Callable[[str], None] | None = None
) -> TiledSlide:
    """Tile a slide, unless that is done already. Whatever it raises is its own failure. ``begin`` is told the
    slide's id before it is read.

    What an earlier run stored stays until its successor is written. Only where the slide fails is it removed: else
    ``--from-coords`` would believe coordinates of other settings.
    """
    try:
        now = _tiled_from(folder, slide)
        stored = _stored(folder, slide, now)
        if stored is None and begin is not None:
            begin(slide.slide_id)
        coords = _tile(folder, slide, now) if stored is None else stored
    except Exception as error:  # noqa: BLE001 - whatever a decoder may raise is this slide's failure
        forget_stale(folder, slide)
        raised = error if slide.path == folder.alone else None
        return TiledSlide.failed(slide, failure_in_words(slide.slide_id, error), raised)
    return TiledSlide(len(coords), note=upsampling_note(coords), was_there=stored is not None)


def forget_stale(folder: TilingFolder, slide: SlideToTile) -> None:
    """Remove stored coordinates and contours, unless they are as they would be made today."""
    stored = stored_tiled_from(folder.coords(slide.slide_id))
    try:
        same = stored is not None and stored.may_be_same(_tiled_from(folder, slide))
    except Exception:  # noqa: BLE001 - nothing is known of a slide whose headers cannot even be looked at
        same = False
    if not same:
        folder.coords(slide.slide_id).unlink(missing_ok=True)
        _forget_contours(folder, slide)


def _forget_contours(folder: TilingFolder, slide: SlideToTile) -> None:
    """Remove the contours of our own segmentation; never those that the user gave, which may lie in ``out``."""
    path = folder.outlines(slide.slide_id)
    given = folder.given_outlines(slide.slide_id)
    if given is None or given.resolve() != path.resolve():
        path.unlink(missing_ok=True)


def _tiled_from(folder: TilingFolder, slide: SlideToTile) -> TiledFrom:
    outlines = folder.given_outlines(slide.slide_id)
    return TiledFrom.now(slide.path, mpp=slide.mpp, tiling=folder.config, outlines=outlines)


def _stored(folder: TilingFolder, slide: SlideToTile, now: TiledFrom) -> PatchCoords | None:
    """The coordinates that an earlier run made of the same; None where something has to be made."""
    if not all(path.is_file() for path in folder.wanted(slide.slide_id)):
        return None
    before = stored_tiled_from(folder.coords(slide.slide_id))
    if before is None or not before.is_same(now):
        return None
    try:
        return read_coords(folder.coords(slide.slide_id))
    except CoordsError:
        return None


def _tile(folder: TilingFolder, slide: SlideToTile, now: TiledFrom) -> PatchCoords:
    """Find the slide's patches and write all that belongs to it, the coordinates last."""
    with open_slide(slide.path) as opened:
        info = opened.info
        given = None if folder.contours is None else _given_tissue(folder.contours, folder, slide, info)
        coords, mask = tile_slide(opened, folder.config, slide_id=slide.slide_id, mpp=slide.mpp, mask=given)
        contours = tissue_contours(mask) if given is None or folder.preview is not None else []
        if folder.preview is not None:
            # Before anything is said of missing tissue: then it is needed most.
            folder.preview(folder.picture(slide.slide_id), opened, coords, mask, contours)
        else:
            folder.picture(slide.slide_id).unlink(missing_ok=True)  # it shows another mask
    if not len(coords):
        raise no_patches(slide.path, coords, mask, folder.config)
    if given is None:
        write_geojson(folder.outlines(slide.slide_id), contours)
    write_coords(folder.coords(slide.slide_id), coords, layout=folder.layout, info=info, made_from=now)
    if given is not None:
        _forget_contours(folder, slide)
    return coords


def _given_tissue(outlines: Path, folder: TilingFolder, slide: SlideToTile, info: SlideInfo) -> TissueMask:
    return outlined_tissue(
        ContourFolder(outlines).polygons(slide.slide_id, l0_size=info.l0_size),
        l0_size=info.l0_size,
        slide_mpp=slide.mpp or info.known_mpp(),
        thumbnail_mpp=folder.config.tissue.thumbnail_mpp,
    )
