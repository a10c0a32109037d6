"""Slides that are coarser than the patches wanted of them: detail that they do not have is not made up."""

from wsi_ips.errors import TooCoarse
from wsi_ips.location import Location
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.units import Mpp

TOLERANCE = 0.1
"""How much coarser than its patches a slide may be without a word: scanners' 0.5 µm are 0.45 to 0.55."""


def check_upsampling(path: Location, *, slide_mpp: Mpp, patch_mpp: Mpp, allowed: bool) -> None:
    """Raise :class:`TooCoarse` for a slide more than 10 % coarser than its patches, unless that is ``allowed``."""
    if not allowed and _is_coarser(slide_mpp, patch_mpp):
        raise TooCoarse(
            path,
            f"has {slide_mpp:.4g} µm per pixel and the patches are to have {patch_mpp:.4g} µm: they would be "
            f"enlarged {slide_mpp / patch_mpp:.3g} times",
            "give a coarser --patch-mpp (or a model that learned coarser patches), or the true --slide-mpp if the "
            "file's is wrong, or allow it with --set tiling.allow_upsampling=true",
        )


def upsampling_note(coords: PatchCoords) -> str:
    """What a result's row says of patches that are enlarged by more than 10 %; of all others nothing."""
    return note_of(slide_mpp=coords.slide_mpp, patch_mpp=coords.patch_mpp)


def note_of(*, slide_mpp: Mpp, patch_mpp: Mpp) -> str:
    """The same of two resolutions."""
    if not _is_coarser(slide_mpp, patch_mpp):
        return ""
    return f"patches of {patch_mpp:.4g} µm are enlarged {slide_mpp / patch_mpp:.3g} times from {slide_mpp:.4g} µm"


def _is_coarser(slide_mpp: Mpp, patch_mpp: Mpp) -> bool:
    return slide_mpp > patch_mpp * (1 + TOLERANCE) * (1 + 1e-9)
