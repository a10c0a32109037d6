"""What several commands take: slides by their id, and resolutions given by the user."""

import logging
from collections.abc import Collection
from pathlib import Path

from wsi_ips.config import TilingConfig
from wsi_ips.errors import ConfigError
from wsi_ips.slides.folder import find_slides, unique_slide_ids
from wsi_ips.slides.resolution import SlideMpp, read_mpp_table
from wsi_ips.storage.location import Location
from wsi_ips.tiling.patches import StoredPatches

logger = logging.getLogger(__name__)

SHOWN_NAMES = 5


def slides_by_id(path: Location) -> dict[str, Location]:
    """The slides under ``path`` (a folder, or one slide, or the URL of one), by slide id, in a stable order."""
    return unique_slide_ids(find_slides(path))


def given_mpp(for_all: float | None, table: Path | None, slide_ids: Collection[str]) -> SlideMpp:
    """What ``--slide-mpp`` and ``--mpp-csv`` say of these slides. Rows of the table that are none of theirs are
    warned about: a misspelt name would leave a slide at the resolution that its file states."""
    if for_all is not None and table is not None:
        raise ConfigError("--slide-mpp and --mpp-csv say the same thing: give one of them")
    slide_mpp = SlideMpp(for_all, read_mpp_table(table) if table else None)
    if unmatched := slide_mpp.unmatched(slide_ids):
        shown = ", ".join(unmatched[:SHOWN_NAMES]) + (", …" if len(unmatched) > SHOWN_NAMES else "")
        logger.warning(
            "%s: %d of its rows name no slide of this run: %s; the slides are called %s",
            table,
            len(unmatched),
            shown,
            ", ".join(list(slide_ids)[:SHOWN_NAMES]) + (", …" if len(slide_ids) > SHOWN_NAMES else ""),
        )
    return slide_mpp


def stored_patches(
    folder: Path, tiling: TilingConfig, *, raster: bool = False, own_px: bool = False
) -> StoredPatches:
    """The patches that ``--from-coords`` names, for any process; see :class:`StoredPatches`.

    Raises :class:`ConfigError` for no folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"--from-coords {folder}: no such folder")
    return StoredPatches(folder.absolute(), tiling, raster=raster, own_px=own_px)
