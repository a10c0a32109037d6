"""Real texture patches by class and source, made equal in colour and woven into areas of any size (:func:`weave`).

A texture folder holds ``manifest.csv`` (``path,class,source_group``) and square RGB pictures of one size; all
pictures of a ``source_group`` show the same piece of tissue. :func:`read_textures` reads it.
:func:`read_picture_list` reads the list of any folder of pictures.

Shape suffixes: N textures, H rows, W columns, C channels.
"""

import csv
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.exposure import match_histograms

from wsi_ips.errors import ManifestError
from wsi_ips.slides.base import RgbImage
from wsi_ips.storage.files import check_table_size
from wsi_ips.storage.location import is_there
from wsi_ips.units import Size

COLUMNS = ("path", "class", "source_group")
"""Columns of the list of a texture folder."""

LARGEST_SIDE_PX = 4096
"""Side of the largest texture."""

BLEND_PX = 16
"""Width in pixels over which neighbouring textures fade into each other."""

PLAY_PX = 16
"""Pixels by which a texture is cropped, at a random place, so that it never covers the same pixels twice."""

Tiles = NDArray[np.uint8]
"""(N, side, side, 3) uint8 RGB."""


@dataclass(frozen=True, slots=True)
class TextureFile:
    """A line of a texture folder's list."""

    path: Path
    label: str
    group: str


@dataclass(frozen=True, slots=True)
class TexturePool:
    """Textures to weave from. ``group_N``, (N,) int64, says which of them show the same piece of tissue."""

    tiles_N: Tiles
    group_N: NDArray[np.int64]

    @property
    def side_px(self) -> int:
        """Side of a texture."""
        return int(self.tiles_N.shape[1])

    def of_groups(self, groups: NDArray[np.int64]) -> NDArray[np.int64]:
        """Indices of the textures of these groups, (n,) int64."""
        return np.flatnonzero(np.isin(self.group_N, groups))


def read_textures(folder: Path, *, classes: Sequence[str]) -> list[TextureFile]:
    """The textures of these classes, in file order.

    Raises :class:`ManifestError` for a list or column that is missing, a class without textures, a path outside
    the folder, and a group of two classes.
    """
    path, listed = read_picture_list(folder, COLUMNS, kind="texture")
    lines = (picture.cells for picture in listed)
    found = [TextureFile(folder / place, label, group) for place, label, group in lines]
    chosen = [texture for texture in found if texture.label in classes]
    label_of: dict[str, str] = {}
    for texture in chosen:
        below = is_there(texture.path) and texture.path.resolve().is_relative_to(folder.resolve())
        if not (below and texture.path.is_file()):
            raise ManifestError(path, f"no texture at {texture.path}", "paths are relative to the manifest")
        if label_of.setdefault(texture.group, texture.label) != texture.label:
            raise ManifestError(
                path,
                f"source_group {texture.group!r} has two classes",
                "give the pictures of each class a group of their own",
            )
    absent = sorted(set(classes) - set(label_of.values()))
    if absent:
        raise ManifestError(path, f"has no textures of class {absent[0]!r}", f"needed: {', '.join(classes)}")
    return chosen


def split_by_group(
    textures: Sequence[TextureFile], *, fractions: Mapping[str, float], seed: int
) -> dict[str, list[TextureFile]]:
    """Put each source group into one split, class by class in these fractions. ``seed`` decides the order."""
    split_of: dict[str, str] = {}
    for label in sorted({texture.label for texture in textures}):
        groups = sorted({texture.group for texture in textures if texture.label == label})
        random.Random(f"{seed}/{label}").shuffle(groups)  # noqa: S311 - not a secret
        start, share = 0, 0.0
        for split, fraction in fractions.items():
            share += fraction
            end = round(share * len(groups))
            split_of.update(dict.fromkeys(groups[start:end], split))
            start = end
    return {
        split: [texture for texture in textures if split_of[texture.group] == split] for split in fractions
    }


def reference_colours(textures: Sequence[TextureFile], *, seed: int) -> RgbImage:
    """A picture as large as a texture, (side, side, 3) uint8, whose pixels are drawn from all textures."""
    rng = np.random.default_rng(seed)
    side = _read(textures[0]).shape[0]
    each = -(-side * side // len(textures))
    drawn = [rng.choice(_read(texture).reshape(-1, 3), each, replace=False) for texture in textures]
    pixels = rng.permutation(np.concatenate(drawn))[: side * side]
    return np.asarray(pixels.reshape(side, side, 3))


def load_matched(textures: Sequence[TextureFile], reference: RgbImage, *, seed: int) -> Tiles:
    """The textures, (N, side, side, 3) uint8, each with exactly the reference's histogram in each channel.

    Grey levels are spread by half a level before they are matched. Otherwise equal pixels would stay equal, and
    the levels that a texture leaves empty would reveal its original colours. Raises :class:`ManifestError` for a
    picture of another size.
    """
    rng = np.random.default_rng(seed)
    tiles = np.empty((len(textures), *reference.shape), np.uint8)
    for place, texture in enumerate(textures):
        pixels = _read(texture)
        if pixels.shape != reference.shape:
            raise ManifestError(
                texture.path, f"is {pixels.shape[1]}x{pixels.shape[0]} px", f"not {len(reference)} px square"
            )
        spread = pixels + rng.uniform(-0.5, 0.5, pixels.shape)
        tiles[place] = np.rint(match_histograms(spread, reference, channel_axis=-1))
    return tiles


def weave(size_px: Size, pool: TexturePool, places: NDArray[np.int64], rng: np.random.Generator) -> RgbImage:
    """An area of ``size_px`` (width, height) made of the textures at ``places``, (height, width, 3) uint8.

    Textures are turned, mirrored, cropped and blended in the same way whatever they show: same step, same
    blending, rows shifted at random. Every texture is used once before any is used again.
    """
    width, height = size_px
    crop = pool.side_px - PLAY_PX
    step = crop - BLEND_PX
    # One column more than the width needs: a row may begin anywhere in its first texture.
    rows, columns = -(-height // step), -(-width // step) + 1
    rounds = -(-rows * columns // len(places))
    order = np.concatenate([rng.permutation(places) for _ in range(rounds)])
    area = np.empty((rows * step + BLEND_PX, width, 3), np.uint8)
    strip = np.empty((crop, columns * step + BLEND_PX, 3), np.uint8)
    for row in range(rows):
        for column in range(columns):
            tile = _cut(pool.tiles_N[order[row * columns + column]], crop, rng)
            left = column * step
            if column:
                tile[:, :BLEND_PX] = _fade(strip[:, left : left + BLEND_PX], tile[:, :BLEND_PX], axis=1)
            strip[:, left : left + crop] = tile
        shift, top = int(rng.integers(step)), row * step
        piece = strip[:, shift : shift + width]
        below = piece[:BLEND_PX]
        if row:
            below = _fade(area[top : top + BLEND_PX], below, axis=0)
        area[top + BLEND_PX : top + crop] = piece[BLEND_PX:]
        area[top : top + BLEND_PX] = below
    return area[:height]


def _cut(tile: RgbImage, crop: int, rng: np.random.Generator) -> RgbImage:
    """A copy of a texture in one of the square's eight symmetries, cropped at a random place."""
    turned = np.rot90(tile, int(rng.integers(4)))
    if rng.integers(2):
        turned = turned[:, ::-1]
    x, y = (int(place) for place in rng.integers(tile.shape[0] - crop + 1, size=2))
    return turned[y : y + crop, x : x + crop].copy()


def _fade(from_: RgbImage, to: RgbImage, *, axis: int) -> RgbImage:
    weights = (2 * np.arange(from_.shape[axis]) + 1) * 256 // (2 * from_.shape[axis])
    return mix(from_, to, weights.reshape((-1, 1) if axis == 0 else (1, -1)))


def mix(under: RgbImage, over: RgbImage, alpha_HW: NDArray[np.integer]) -> RgbImage:
    """``over`` where alpha is 256, ``under`` where it is 0, blended in between; (H, W, 3) uint8.

    ``alpha_HW`` may be broadcast to height and width.
    """
    alpha = alpha_HW.astype(np.uint16)[..., None]
    # The sum is at most 255 * 256 + 128: it fits.
    return ((under * (256 - alpha) + over * alpha + np.uint16(128)) >> 8).astype(np.uint8)


def _read(texture: TextureFile) -> RgbImage:
    with Image.open(texture.path) as picture:
        if picture.width != picture.height or picture.width > LARGEST_SIDE_PX:
            raise ManifestError(
                texture.path, f"is {picture.width}x{picture.height} px", "textures are square"
            )
        return np.asarray(picture.convert("RGB"))


@dataclass(frozen=True, slots=True)
class ListedPicture:
    """A line of a list of pictures: its number in the file, and its cells in the columns that were asked for."""

    line: int
    cells: tuple[str, ...]


def read_picture_list(folder: Path, columns: Sequence[str], *, kind: str) -> tuple[Path, list[ListedPicture]]:
    """The path of the folder's list ``manifest.csv``, and its lines in file order. A missing cell is empty.

    ``kind`` says what such a folder is called in messages. Raises :class:`ManifestError` for a list or a column
    that is missing, and for a file that is no CSV or too large.
    """
    path = folder / "manifest.csv"
    if not path.is_file():
        raise ManifestError(path, "no such manifest", f"a {kind} folder has one with {','.join(columns)}")
    check_table_size(path, ManifestError)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            missing = [name for name in columns if name not in (rows.fieldnames or ())]
            if missing:
                raise ManifestError(
                    path, f"lacks the column {missing[0]}", f"it must name {','.join(columns)}"
                )
            listed = [
                ListedPicture(rows.line_num, tuple(row[name] or "" for name in columns)) for row in rows
            ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(path, f"is not a CSV in UTF-8 ({error})", "save it as CSV") from None
    return path, listed
