"""What the coordinates of CLAM, TRIDENT and AtlasPatch say of a slide's patches.

All give top-left corners in level-0 pixels. How large a patch is they say each in their own way:

- CLAM: ``patch_size`` pixels of the slide's level ``patch_level`` (times ``custom_downsample``, where it is
  there). What it reads for its encoder is that many pixels of the level, so that is the footprint here; it lays
  out its own grid by the level's downsample without decimals, the same where that is whole.
- TRIDENT: ``patch_size`` pixels at ``target_magnification``, ``patch_size_level0`` level-0 pixels (decimals cut
  off) of a slide of ``level0_magnification``, ``level0_width`` x ``level0_height``.
- AtlasPatch (AtlasAnalyticsLab/AtlasPatch at 24f4d2d: README, services/storage.py, services/extraction.py): the
  same names as TRIDENT's, but at the file's root; ``coords`` are (N, 5) int32, x, y and how it read them (width,
  height, level).

A magnification says little of a resolution ("40x" scanners give 0.22 to 0.28 µm): where the slide is known, its
own µm per pixel count.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import CoordsError
from wsi_ips.slides.base import SlideInfo
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.units import MAGNIFICATION_MPP, Mpp, Size

FOREIGN_ATTRIBUTES = (
    "patch_size",
    "patch_level",
    "downsample",
    "custom_downsample",
    "level_dim",
    "downsampled_level_dim",
    "patch_size_level0",
    "level0_magnification",
    "target_magnification",
    "level0_width",
    "level0_height",
    "overlap",
)
"""The numbers that are read, whoever wrote them."""

SAME_DOWNSAMPLE = 0.02
"""How far the downsample that a file names may be from the slide's: readers round level sizes differently."""


def foreign_coords(
    attributes: Mapping[str, Any], l0_xy_N2: NDArray[np.int64], path: Path, info: SlideInfo | None
) -> PatchCoords:
    """These corners with what the attributes say of them; patches are numbered in file order.

    ``info``: the slide, which CLAM's files need. Raises :class:`CoordsError` for a file of another slide, and
    ``KeyError``, ``TypeError`` or ``ValueError`` for attributes that are missing or broken.
    """
    patch_px = int(positive(attributes["patch_size"]))
    if "target_magnification" in attributes:
        target = positive(attributes["target_magnification"])
        nominal_mpp = MAGNIFICATION_MPP / positive(attributes["level0_magnification"])
        coarser = MAGNIFICATION_MPP / target / nominal_mpp
        l0_size = pair((attributes["level0_width"], attributes["level0_height"]))
        if info is not None:
            check_l0_size(l0_size, path, info)
        slide_mpp = (info and info.mpp) or Mpp(nominal_mpp)
        l0_patch = positive(attributes.get("patch_size_level0", patch_px * coarser))
    else:
        if info is None:
            raise CoordsError(
                path, "is a CLAM file, which does not say the slide's resolution", "name the slide"
            )
        l0_size, slide_mpp = info.l0_size, info.known_mpp()
        l0_patch = patch_px * _clam_downsample(attributes, path, info)
    return PatchCoords(
        slide_id=path.stem.removesuffix("_patches"),
        l0_size=l0_size,
        slide_mpp=slide_mpp,
        patch_px=patch_px,
        patch_mpp=Mpp(l0_patch * slide_mpp / patch_px),
        overlap_px=int(attributes.get("overlap", 0)),
        l0_patch=l0_patch,
        g_size=(len(l0_xy_N2), 1),
        ids_N=np.arange(len(l0_xy_N2), dtype=np.int64),
        l0_xy_N2=l0_xy_N2,
        tissue_N=np.full(len(l0_xy_N2), np.nan, np.float32),
    )


def check_l0_size(l0_size: Size, path: Path, info: SlideInfo) -> None:
    """Raises :class:`CoordsError` for the size of another slide."""
    if l0_size != info.l0_size:
        _refuse_other(path, info, f"a slide of {_by(l0_size)} px", f"is {_by(info.l0_size)}")


def _clam_downsample(attributes: Mapping[str, Any], path: Path, info: SlideInfo) -> float:
    """Level-0 pixels per pixel of the patches. Where the file describes its level, it must be the slide's."""
    number = int(attributes["patch_level"])
    if not 0 <= number < len(info.levels):
        raise ValueError(f"patch_level {number} is not a level of the slide")
    level = info.levels[number]
    for name in ("level_dim", "downsampled_level_dim"):
        if name in attributes and (size := pair(attributes[name])) != level.size:
            _refuse_other(
                path, info, f"a slide whose level {number} is {_by(size)} px", f"has {_by(level.size)}"
            )
    for stated in map(positive, np.ravel(attributes.get("downsample", level.downsample))):
        if abs(stated / level.downsample - 1) > SAME_DOWNSAMPLE:
            _refuse_other(
                path,
                info,
                f"a slide whose level {number} is {stated:g} times smaller",
                f"has {level.downsample:g}",
            )
    return level.downsample * positive(attributes.get("custom_downsample", 1))


def _refuse_other(path: Path, info: SlideInfo, theirs: str, ours: str) -> None:
    raise CoordsError(
        path, f"holds patches of {theirs}; {info.path} {ours}", "give the coordinates of this very file"
    )


def _by(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def positive(value: Any) -> float:
    """Raises ``TypeError`` or ``ValueError`` for anything else."""
    number = float(value)
    if not (np.isfinite(number) and number > 0):
        raise ValueError(f"{value!r} is not a positive number")
    return number


def pair(value: Any) -> tuple[int, int]:
    """Two positive whole numbers. Raises as :func:`positive`."""
    first, second = (int(positive(each)) for each in value)
    return first, second
