"""Which patches of a slide are looked at: those in its tissue, unless somebody else has laid them out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from wsi_ips.config import TilingConfig
from wsi_ips.slides.base import SlideReader
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.tiling.no_patches import no_patches
from wsi_ips.tiling.tile import tile_slide
from wsi_ips.units import Mpp


class FindPatches(Protocol):
    """Gives an open slide's patches. Goes to other processes: it can be pickled."""

    def __call__(self, slide: SlideReader, *, slide_id: str, mpp: Mpp | None) -> PatchCoords:
        """At least one patch; ``mpp`` is used instead of the file's own resolution.

        Raises the slide's own error, :class:`wsi_ips.errors.NoTissue`, :class:`wsi_ips.errors.TooCoarse`, or
        :class:`CoordsError`.
        """
        ...

    def read_from(self, slide_id: str) -> Sequence[Path]:
        """The files beside the slide that its patches are found by. Raises :class:`CoordsError`."""
        ...


@dataclass(frozen=True, slots=True)
class PatchesInTissue:
    """The cells of the slide's grid with enough tissue, by our own segmentation."""

    tiling: TilingConfig

    def __call__(self, slide: SlideReader, *, slide_id: str, mpp: Mpp | None) -> PatchCoords:
        """See :class:`FindPatches`."""
        coords, mask = tile_slide(slide, self.tiling, slide_id=slide_id, mpp=mpp)
        if not len(coords):
            raise no_patches(slide.info.path, coords, mask, self.tiling)
        return coords

    def read_from(self, slide_id: str) -> Sequence[Path]:
        """See :class:`FindPatches`: none."""
        return ()
