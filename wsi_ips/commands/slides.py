"""The slides of a job: as a recipe or a command line names them, by their id, with resolutions that are given."""

import logging
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BeforeValidator, InstanceOf, PositiveFloat, model_validator

from wsi_ips.config import Section
from wsi_ips.errors import ConfigError, first_of
from wsi_ips.storage.location import Location, Url, locate

if TYPE_CHECKING:
    from wsi_ips.slides.resolution import SlideMpp

logger = logging.getLogger(__name__)

SHOWN_NAMES = 5


def _located(value: Any) -> Any:
    return locate(value) if isinstance(value, str) else value


SlidesOfJob = Annotated[Path | InstanceOf[Url], BeforeValidator(_located)]
"""A slide or a folder of them, or the URL of one slide."""


class Resolution(Section):
    """Resolutions that the user gives, where the files do not say or are wrong."""

    slide_mpp: PositiveFloat | None = None
    """µm per pixel of every slide, instead of what the files say."""
    mpp_csv: Path | None = None
    """CSV with the columns wsi,mpp: the same, slide by slide."""


class PatchesOfJob(Section):
    """Whose patches are read: those in tissue, found anew or kept in a folder, or those that somebody laid out."""

    from_coords: Path | None = None
    """Folder of patch coordinates (CLAM's, TRIDENT's, AtlasPatch's, ours): exactly those patches."""
    coords: Path | None = None
    """Folder in which coordinates are kept, in the layout of ``wsi-ips tile --out``. Those that were made from the
    same files with the same tiling are found there, and tissue is not searched again; the others are made, and
    stored there. The patches are the same with and without it."""

    @model_validator(mode="after")
    def _coordinates_are_given_or_kept(self) -> Self:
        if self.from_coords is not None and self.coords is not None:
            raise ValueError(
                "from_coords takes the patches that somebody laid out, coords keeps those that are found in "
                "tissue: give one of them"
            )
        return self


def slides_by_id(path: Location) -> dict[str, Location]:
    """The slides under ``path`` (a folder, or one slide, or the URL of one), by slide id, in a stable order."""
    from wsi_ips.slides.folder import find_slides_by_id

    return find_slides_by_id(path)


def given_mpp(for_all: float | None, table: Path | None, slide_ids: Collection[str]) -> "SlideMpp":
    """What ``--slide-mpp`` and ``--mpp-csv`` say of these slides. Rows of the table that are none of theirs are
    warned about: a misspelt name would leave a slide at the resolution that its file states."""
    from wsi_ips.slides.resolution import SlideMpp, read_mpp_table

    if for_all is not None and table is not None:
        raise ConfigError("--slide-mpp and --mpp-csv say the same thing: give one of them")
    if for_all is not None and len(slide_ids) > 1:
        logger.warning(
            "--slide-mpp %g is taken for all %d slides, whatever their files state; --mpp-csv gives the µm per "
            "pixel of single slides",
            for_all,
            len(slide_ids),
        )
    slide_mpp = SlideMpp(for_all, read_mpp_table(table) if table else None)
    if unmatched := slide_mpp.unmatched(slide_ids):
        shown = first_of(unmatched, SHOWN_NAMES)
        logger.warning(
            "%s: %d of its rows name no slide of this run: %s; the slides are called %s",
            table,
            len(unmatched),
            shown,
            first_of(list(slide_ids), SHOWN_NAMES),
        )
    return slide_mpp
