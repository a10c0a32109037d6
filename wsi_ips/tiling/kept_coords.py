"""Coordinates that are made once and found again: :class:`KeptPatches`, a folder that several runs share.

The folder has the layout of ``wsi-ips tile --out``: ``patches/SLIDE.h5`` (or ``SLIDE_patches.h5``, TRIDENT's),
each file with what it was made from (:class:`wsi_ips.tiling.coords.TiledFrom`). What ``tile`` wrote is found, and
what is made here is found by ``--from-coords``.

Several processes may read and fill one folder at the same time. Each file is written whole or not at all, and a
process that needs a slide which another one is searching waits for its result instead of searching as well.
"""

import csv
import errno
import hashlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from wsi_ips.config import TilingConfig
from wsi_ips.errors import ConfigError, CoordsError, one_line
from wsi_ips.slides.base import SlideReader, failure_in_words, named
from wsi_ips.storage.files import check_table_size, whole_table
from wsi_ips.storage.fingerprint import files_fingerprint
from wsi_ips.storage.system import lock_file, open_flags
from wsi_ips.tiling.coords import Layout, TiledFrom, read_coords_if_same, stored_tiled_from, write_coords
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.tiling.patches import (
    FindPatches,
    PatchesInTissue,
    note_of_patches,
    replaced_meanwhile,
    stored_patches,
)
from wsi_ips.units import Mpp

logger = logging.getLogger(__name__)

COORDS = "coords"
"""Folder of the coordinates within the folder of a training."""
TABLE = "tiles.csv"
"""Table of the slides that ``tile`` writes into the folder."""
COLUMNS = ("n_patches", "status", "error", "note")
"""Its columns, behind ``slide_id``."""
TURNS = ".turns"
"""Folder, within that of the coordinates, of the files that processes lock while they search a slide."""
MOST_TURNS = 256
"""How many such files there are at most. Two slides may share one, and then are searched in turn."""
LOOK_AGAIN_S = 0.1
"""Seconds between two looks at whether another process is done with a slide."""
OTHERS_SLIDE = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES)
"""System errors of a lock that another process holds."""


@dataclass(frozen=True, slots=True)
class KeptPatches:
    """The patches of :class:`wsi_ips.tiling.patches.PatchesInTissue`, kept in a folder.

    Where the folder has a slide's coordinates, made from the same file by the same tiling settings and the same
    version, they are read, and no tissue is searched. Where they are missing or stale they are made and stored.
    The patches are the same in either case.
    """

    folder: Path
    tiling: TilingConfig

    def __call__(self, slide: SlideReader, *, slide_id: str, mpp: Mpp | None) -> PatchCoords:
        """The slide's patches, as :class:`wsi_ips.tiling.patches.FindPatches` describes.

        Where they cannot be stored (a full disk, a folder that is read-only), that is a warning.

        Raises :class:`CoordsError` for a stored file that is not ours to replace: one that does not say what it
        was made from, or that was made from tissue which somebody outlined. Otherwise as
        :class:`wsi_ips.tiling.patches.PatchesInTissue`.
        """
        now = TiledFrom.now(slide.info.path, mpp=mpp, tiling=self.tiling)
        found = self._found(slide, slide_id, mpp, now)
        if found is not None:
            return found
        with self._turn(slide_id):
            found = self._found(slide, slide_id, mpp, now)  # by another process, meanwhile
            return self._made(slide, slide_id, mpp, now) if found is None else found

    def read_from(self, slide_id: str) -> Sequence[Path]:
        """No files: the slide and the settings decide, whether its coordinates are stored or not."""
        return ()

    def _found(
        self, slide: SlideReader, slide_id: str, mpp: Mpp | None, now: TiledFrom
    ) -> PatchCoords | None:
        info = slide.info if mpp is None else slide.info.with_mpp(mpp)
        for path in self._files(slide_id):
            coords = read_coords_if_same(path, now, info=info)
            if coords is not None and len(coords):
                return replace(coords, slide_id=slide_id)
        return None

    def _made(self, slide: SlideReader, slide_id: str, mpp: Mpp | None, now: TiledFrom) -> PatchCoords:
        path = self._to_write(slide_id)
        try:
            coords = PatchesInTissue(self.tiling)(slide, slide_id=slide_id, mpp=mpp)
            if now.is_of_another(slide.info.path):
                raise replaced_meanwhile(slide.info.path)
        except Exception as failure:
            try:
                self._forget(path, slide_id)  # what --from-coords would otherwise believe
                why = named(slide_id, failure_in_words(slide_id, failure))
                self._note(slide_id, (0, "failed", one_line(why), ""))
            except OSError as error:
                logger.warning("the stale coordinates of %s are not removed: %s", slide_id, error)
            raise
        try:
            self._forget(path, slide_id)
            layout: Layout = "trident" if path.stem == f"{slide_id}_patches" else "clam"
            write_coords(path, coords, layout=layout, info=slide.info, made_from=now)
            self._note(slide_id, (len(coords), "ok", "", note_of_patches(coords)))
        except OSError as error:
            logger.warning("the coordinates of %s are not kept: %s", slide_id, error)
        return coords

    def _note(self, slide_id: str, cells: Sequence[object]) -> None:
        """Correct the slide's row in the table that ``tile`` wrote, if there is one: it told of coordinates that
        have been replaced. Nothing else in the table changes.
        """
        path = self.folder / TABLE
        if not path.is_file():
            return
        with self._alone("table"):
            rows = _table(path)
            row = [slide_id, *map(str, cells)]
            places = [place for place, each in enumerate(rows) if place and each[:1] == [slide_id]]
            if not places or all(rows[place] == row for place in places):
                return
            for place in places:
                rows[place] = row
            with whole_table(path) as writer:
                writer.writerows(rows)

    def _files(self, slide_id: str) -> tuple[Path, Path]:
        below = self.folder / "patches"
        return below / f"{slide_id}.h5", below / f"{slide_id}_patches.h5"

    def _to_write(self, slide_id: str) -> Path:
        """The file that the coordinates go to: the one that is there already, else one in CLAM's layout."""
        there = [path for path in self._files(slide_id) if path.exists()]
        for path in there:
            before = stored_tiled_from(path)
            if before is None:
                raise CoordsError(
                    path,
                    "does not say what it was made from, so it may be somebody else's work and is not replaced",
                    "read it with --from-coords, delete it, or give another folder to --coords",
                )
            if before.outlines:
                raise CoordsError(
                    path,
                    "was made from tissue that somebody outlined (tile --contours), and is not replaced by what "
                    "our segmentation finds",
                    "read it with --from-coords, or give another folder to --coords",
                )
        return there[0] if there else self._files(slide_id)[0]

    def _forget(self, path: Path, slide_id: str) -> None:
        """Remove stale coordinates, and the contours and the preview that ``tile`` made with them. Contours that
        were written after the coordinates stay, because ``tile`` writes them first: somebody has corrected them.
        """
        if not path.exists():
            return
        made_ns = path.stat().st_mtime_ns
        contours = self.folder / "contours_geojson" / f"{slide_id}.geojson"
        if contours.exists() and contours.stat().st_mtime_ns <= made_ns:
            contours.unlink(missing_ok=True)
        for old in (self.folder / "previews" / f"{slide_id}.jpg", *self._files(slide_id)):
            old.unlink(missing_ok=True)

    @contextmanager
    def _turn(self, slide_id: str) -> Iterator[None]:
        """Keep other processes from searching the slide within the ``with`` block, once none of them does."""
        number = int(hashlib.sha256(slide_id.encode()).hexdigest(), 16) % MOST_TURNS
        with self._alone(f"{number:02x}"):
            yield

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Hold a lock of this name within the ``with`` block. Where there are no locks, nobody waits."""
        path = self.folder / TURNS / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # The file stays: whoever removes it may split those that open it before from those that come after.
            descriptor = os.open(path, open_flags(os.O_RDWR | os.O_CREAT), 0o666)
        except OSError:
            yield
            return
        try:
            _lock(descriptor)
            yield
        finally:
            os.close(descriptor)  # which unlocks it


def _table(path: Path) -> list[list[str]]:
    """The rows of a table of ``tile``, with its header; none of a table that is not one."""
    try:
        check_table_size(path, CoordsError)
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, strict=True))
    except (CoordsError, csv.Error, UnicodeDecodeError):
        return []
    return rows if rows and rows[0] == ["slide_id", *COLUMNS] else []


def _lock(descriptor: int) -> None:
    """Lock the file once nobody else has it, if the file system has locks."""
    while True:
        try:
            lock_file(descriptor)
        except OSError as error:
            if error.errno in OTHERS_SLIDE:
                time.sleep(LOOK_AGAIN_S)
                continue
        return


def patches_from(
    tiling: TilingConfig,
    *,
    coords: Path | None = None,
    from_coords: Path | None = None,
    raster: bool = False,
    own_px: bool = False,
) -> FindPatches:
    """What finds the patches of slides, as ``--coords`` and ``--from-coords`` ask; without either, patches in
    tissue that are kept nowhere.

    ``coords`` is the folder of :class:`KeptPatches`. ``from_coords``, ``raster`` and ``own_px`` are as in
    :func:`wsi_ips.tiling.patches.stored_patches`. Raises :class:`ConfigError` for a folder that is none.
    """
    if from_coords is not None:
        return stored_patches(from_coords, tiling, raster=raster, own_px=own_px)
    if coords is None:
        return PatchesInTissue(tiling)
    if coords.exists() and not coords.is_dir():
        raise ConfigError(f"--coords {coords}: is a file; name the folder that coordinates are kept in")
    return KeptPatches(coords.absolute(), tiling)


def given_coords(find: FindPatches, slide_ids: Sequence[str]) -> str:
    """A digest of the files beside the slides that decide their patches: those of ``--from-coords``.

    Empty where there are none, because tissue is searched. A slide whose file is missing counts without one.
    """
    digests = []
    for slide_id in slide_ids:
        try:
            beside = find.read_from(slide_id)
        except CoordsError:
            digests.append("")
            continue
        if beside:
            digests.append(files_fingerprint(beside))
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()[:24] if digests else ""
