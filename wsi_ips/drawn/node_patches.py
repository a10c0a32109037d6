"""Real lymph-node patches by class, source and stain, in one of eight symmetries: :func:`read_patches`.

A patch folder holds ``manifest.csv`` (``path,class,source_group,stain_family,tissue_share``) and square pictures
of one size; pictures that overlap share a ``source_group``. The folder that this was written for has
PatchCamelyon's patches (Veeling, Linmans, Winkens, Cohen, Welling, "Rotation Equivariant CNNs for Digital
Pathology", 2018; CC0), which were cut from the slides of CAMELYON16: 96 px at 0.972 µm per pixel, of class
``metastasis`` if the centre 32 px contain tumour.
"""

import io
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import Image

from wsi_ips.drawn.textures import ListedPicture, read_picture_list
from wsi_ips.errors import ConfigError, ManifestError
from wsi_ips.slides.base import RgbImage

COLUMNS = ("path", "class", "source_group", "stain_family", "tissue_share")
"""Columns of the manifest."""
NORMAL, METASTASIS = "normal", "metastasis"
"""The classes of patches."""
SYMMETRIES = 8
"""Symmetries of a square: four quarter turns, and the same mirrored."""
QUALITY = 100
"""JPEG quality for pictures without quantisation tables of their own."""


@dataclass(frozen=True, slots=True)
class NodePatch:
    """A line of the manifest. ``name`` is the patch's path as the manifest has it, relative to the folder."""

    name: str
    label: str
    group: str
    family: str
    tissue_share: float


def read_patches(folder: Path) -> list[NodePatch]:
    """The patches of a folder, in file order. No picture is opened.

    Raises :class:`ManifestError` with the line for a manifest or column that is missing, an unknown class, an
    empty field, a ``tissue_share`` that is no share, and a path that is listed twice, leads out of the folder or
    to no file; also for a manifest without patches.
    """
    path, listed = read_picture_list(folder, COLUMNS, kind="patch")
    patches = [_patch(path, picture) for picture in listed]
    if not patches:
        raise ManifestError(path, "lists no patches", "add a line per patch")
    seen: set[str] = set()
    for patch in patches:
        if patch.name in seen:
            raise ManifestError(path, f"{patch.name} is listed twice", "list every patch once")
        seen.add(patch.name)
    return patches


def _patch(path: Path, picture: ListedPicture) -> NodePatch:
    line = picture.line
    name, label, group, family, share = (cell.strip() for cell in picture.cells)
    for column, value in zip(COLUMNS, (name, label, group, family, share), strict=True):
        if not value:
            raise ManifestError(path, f"line {line}: {column} is empty", "fill it in, or leave the line out")
    if label not in (NORMAL, METASTASIS):
        raise ManifestError(
            path, f"line {line}: unknown class {label!r}", f"known: {NORMAL} and {METASTASIS}"
        )
    if not re.fullmatch(r"[\w-]{1,40}", family):
        raise ManifestError(
            path, f"line {line}: stain_family {family!r} is no name", "use letters, digits, _ and -"
        )
    try:
        tissue_share = float(share)
    except ValueError:
        tissue_share = float("nan")
    if not 0 <= tissue_share <= 1:
        raise ManifestError(path, f"line {line}: tissue_share {share!r} is no share", "give 0 to 1")
    folder = path.parent.resolve()
    if not (folder / name).resolve().is_relative_to(folder) or not (folder / name).is_file():
        raise ManifestError(
            path, f"line {line}: no patch at {path.parent / name}", "paths are relative to the manifest"
        )
    return NodePatch(name, label, group, family, tissue_share)


def digest(folder: Path, patches: Iterable[NodePatch]) -> str:
    """A hash that tells patch folders apart, made from the patches' lines and the sizes of their files."""
    held = sha256()
    for patch in patches:
        held.update(f"{patch} {(folder / patch.name).stat().st_size}\n".encode())
    return held.hexdigest()[:16]


def held_back(patches: Sequence[NodePatch], *, share: float) -> list[bool]:
    """Which patches belong to groups that are held back: about ``share`` of all groups.

    Only a group's own name decides, not a seed and not the other groups. What is held back is therefore held back
    in every data set, and a larger share holds back the same groups and more.
    """
    return [_place(patch.group) < share for patch in patches]


def _place(group: str) -> float:
    """A number from 0 to 1 that looks random but is always the same for a name."""
    return int.from_bytes(sha256(group.encode()).digest()[:6], "big") / 2**48


def split_patches(
    patches: Sequence[NodePatch], *, fractions: Mapping[str, float], seed: int
) -> dict[str, list[NodePatch]]:
    """Put each source group into one split, in these fractions of the groups of each family and class.

    A group with two classes (or families) is divided among groups of the same kind. ``seed`` decides the order.
    """
    kinds: dict[str, set[tuple[str, str]]] = {}
    for patch in patches:
        kinds.setdefault(patch.group, set()).add((patch.family, patch.label))
    alike: dict[str, list[str]] = {}
    for group, kind in kinds.items():
        alike.setdefault(repr(sorted(kind)), []).append(group)
    split_of: dict[str, str] = {}
    for kind_name, groups in sorted(alike.items()):
        shuffled = sorted(groups)
        random.Random(f"{seed}/{kind_name}").shuffle(shuffled)  # noqa: S311 - not a secret
        start, share = 0, 0.0
        for split, fraction in fractions.items():
            share += fraction
            end = round(share * len(shuffled))
            split_of.update(dict.fromkeys(shuffled[start:end], split))
            start = end
    return {split: [patch for patch in patches if split_of.get(patch.group) == split] for split in fractions}


def turned(rgb_HWC: RgbImage, symmetry: int) -> RgbImage:
    """A square picture, (side, side, 3), in one of its eight symmetries.

    It is turned by ``symmetry % 4`` quarters and, from 4 on, mirrored.
    """
    result = np.rot90(rgb_HWC, symmetry % 4)
    return np.ascontiguousarray(result[:, ::-1] if symmetry >= SYMMETRIES // 2 else result)


def read_patch(path: Path, *, side_px: int) -> RgbImage:
    """The pixels of a patch, (side_px, side_px, 3) uint8 RGB.

    Raises :class:`ManifestError` for a file that is no picture, or has another size.
    """
    return _read(path, side_px)[0]


def read_as_jpeg(path: Path, symmetry: int, *, side_px: int) -> tuple[RgbImage, bytes]:
    """A patch in one of its symmetries: its pixels, and the same as a JPEG stream without chroma subsampling.

    A patch that is a JPEG is written with its own quantisation tables, turned with it, so that the coefficients
    are the same whole numbers again; what changes (0.2 grey levels on average) is rounding and clipping. Raises
    :class:`ManifestError` for a file that is no picture, or has another size.
    """
    rgb_HWC, tables = _read(path, side_px)
    rgb_HWC = turned(rgb_HWC, symmetry)
    if symmetry % 2:
        tables = {number: _transposed(table) for number, table in tables.items()}
    stream = io.BytesIO()
    how = {"qtables": tables} if tables else {"quality": QUALITY}
    Image.fromarray(rgb_HWC).save(stream, "JPEG", subsampling="4:4:4", optimize=True, **how)
    return rgb_HWC, stream.getvalue()


def _read(path: Path, side_px: int) -> tuple[RgbImage, dict[int, list[int]]]:
    try:
        with Image.open(path) as picture:
            if picture.size != (side_px, side_px):
                raise ManifestError(
                    path,
                    f"is {picture.width}x{picture.height} px",
                    f"patches have to be {side_px} px square (patch_px)",
                )
            tables = {number: list(table) for number, table in getattr(picture, "quantization", {}).items()}
            whole = all(len(table) == 64 and 0 < min(table) <= max(table) < 256 for table in tables.values())
            return np.asarray(picture.convert("RGB")), tables if whole else {}
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ManifestError(path, f"is no picture that can be read ({error})", "copy it again") from None


def _transposed(table: Sequence[int]) -> list[int]:
    """The quantisation table of the picture turned by a quarter: rows of frequencies become columns."""
    return [int(value) for value in np.array(table).reshape(8, 8).T.ravel()]


def families_of(patches: Iterable[NodePatch], wanted: Sequence[str]) -> tuple[str, ...]:
    """The stain families of the patches, sorted; if any are ``wanted``, only those, in their order.

    Raises :class:`ConfigError` for a wanted family that no patch has.
    """
    found = sorted({patch.family for patch in patches})
    for family in wanted:
        if family not in found:
            raise ConfigError(f"no patch has the stain family {family!r}; there are {', '.join(found)}")
    return tuple(dict.fromkeys(wanted)) or tuple(found)
