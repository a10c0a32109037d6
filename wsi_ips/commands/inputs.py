"""What several commands take: slides by their id, and resolutions given by the user."""

from pathlib import Path

from wsi_ips.config import TilingConfig
from wsi_ips.errors import ConfigError
from wsi_ips.location import Location
from wsi_ips.slides.folder import find_slides, unique_slide_ids
from wsi_ips.slides.resolution import SlideMpp, read_mpp_table
from wsi_ips.tiling.stored_patches import StoredPatches


def slides_by_id(path: Location) -> dict[str, Location]:
    """The slides under ``path`` (a folder, or one slide, or the URL of one), by slide id, in a stable order."""
    return unique_slide_ids(find_slides(path))


def given_mpp(for_all: float | None, table: Path | None) -> SlideMpp:
    """What ``--slide-mpp`` and ``--mpp-csv`` say."""
    if for_all is not None and table is not None:
        raise ConfigError("--slide-mpp and --mpp-csv say the same thing: give one of them")
    return SlideMpp(for_all, read_mpp_table(table) if table else None)


def stored_patches(folder: Path, tiling: TilingConfig, *, raster: bool = False) -> StoredPatches:
    """The patches that ``--from-coords`` names, for any process; see :class:`StoredPatches`.

    Raises :class:`ConfigError` for no folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"--from-coords {folder}: no such folder")
    return StoredPatches(folder.absolute(), tiling, raster=raster)
