"""Why a slide has no patches, and which setting decided it."""

from wsi_ips.config import TilingConfig
from wsi_ips.errors import NoTissue
from wsi_ips.location import Location
from wsi_ips.tiling.grid import PatchCoords, PatchGrid
from wsi_ips.tiling.tile import tissue_share
from wsi_ips.tiling.tissue import TissueMask


def no_patches(path: Location, coords: PatchCoords, mask: TissueMask, tiling: TilingConfig) -> NoTissue:
    """The error for a slide of which :func:`wsi_ips.tiling.tile.tile_slide` kept no patch.

    It names what left everything out: the pen, the smallest object, the share of a patch that has to be tissue,
    the segmenter, the contours; or that nothing on the slide differs from the glass.
    """
    if mask.why_empty is not None:
        return NoTissue(str(path), *mask.why_empty)
    grid = PatchGrid.cover(coords.l0_size, slide_mpp=coords.slide_mpp, tiling=tiling)
    fullest = float(tissue_share(mask, grid).max())
    if not fullest:
        return NoTissue(
            str(path), "no tissue was found: its contours outline none", "outline it, or leave the slide out"
        )
    return NoTissue(
        str(path),
        f"no tissue was found: tiling.min_tissue asks for {tiling.min_tissue:.3g} of a patch, the fullest "
        f"patch has {fullest:.2g}",
        "lower tiling.min_tissue, or take smaller patches",
    )
