"""The pictures of a proxy task: read once, kept as arrays, opened by every candidate's process.

Shape suffixes: n pictures, s their side, B boxes.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_ips.config import ProxyConfig
from wsi_ips.datasets.nucleus_outlines import OutlinedImage, read_outlined_images, split_off
from wsi_ips.datasets.textures import TextureFile, read_textures, split_by_group
from wsi_ips.errors import DatasetError
from wsi_ips.files import whole_file

PARTS = ("train", "held_back")
Arrays = Mapping[str, NDArray[np.generic]]


def prepare(config: ProxyConfig) -> Arrays:
    """What a proxy task looks at. Raises :class:`ManifestError`, :class:`DatasetError` or
    :class:`AnnotationError` for data that are not there, or too few to hold any back."""
    if not config.folder.is_dir():
        raise DatasetError(config.folder, "no such folder", "name the proxy's data in proxy.folder")
    return _textures(config) if config.data == "textures" else _nuclei(config)


def digest(arrays: Arrays) -> str:
    """Of every name, shape and value."""
    hashed = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        hashed.update(f"{name} {array.shape} {array.dtype}".encode())
        hashed.update(np.ascontiguousarray(array).tobytes())
    return hashed.hexdigest()[:16]


def write_arrays(path: Path, arrays: Arrays) -> None:
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_arrays(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _textures(config: ProxyConfig) -> Arrays:
    """``train_pixels`` (n, s, s, 3) uint8, ``train_labels`` (n,) int64; ``held_back_…`` from other sources."""
    textures = read_textures(config.folder, classes=config.classes)
    fractions = {"train": 1 - config.held_back, "held_back": config.held_back}
    arrays: dict[str, NDArray[np.generic]] = {}
    for part, files in split_by_group(textures, fractions=fractions, seed=0).items():
        if {texture.label for texture in files} != set(config.classes):
            raise DatasetError(config.folder, "has too few sources to hold some of each class back")
        arrays[f"{part}_pixels"] = np.stack([_shrunk(texture, config) for texture in files])
        arrays[f"{part}_labels"] = np.array([config.classes.index(texture.label) for texture in files])
    return arrays


def _shrunk(texture: TextureFile, config: ProxyConfig) -> NDArray[np.uint8]:
    size = (config.side_px, config.side_px)
    try:
        with Image.open(texture.path) as picture:
            coloured = picture.convert("L" if config.grey else "RGB").convert("RGB")
            # Pillow's BOX will do: all candidates of a search see the same pictures, and no slide is among them.
            return np.asarray(coloured.resize(size, Image.Resampling.BOX))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(texture.path, f"is no picture that can be read ({error})") from None


def _nuclei(config: ProxyConfig) -> Arrays:
    """For each picture ``<part>_<place>_pixels`` (height, width, 3) uint8 and ``…_boxes`` (B, 4) float32."""
    images = read_outlined_images(config.folder)
    back = max(1, round(config.held_back * len(images)))
    if back >= len(images):
        raise DatasetError(
            config.folder, f"has {len(images)} images: one at least to learn from, one to score"
        )
    arrays: dict[str, NDArray[np.generic]] = {}
    for part, chosen in zip(PARTS, split_off(images, back), strict=True):
        for place, image in enumerate(chosen):
            if min(image.rgb_HWC.shape[:2]) < config.side_px:
                raise DatasetError(image.name, f"is smaller than {config.side_px} px", "lower proxy.side_px")
            arrays[f"{part}_{place:04}_pixels"] = image.rgb_HWC
            arrays[f"{part}_{place:04}_boxes"] = image.boxes_N4
    return arrays


def outlined_images(arrays: Arrays, part: str) -> Sequence[OutlinedImage]:
    """The pictures of nuclei again, outlined by their boxes."""
    names = sorted(name for name in arrays if name.startswith(part) and name.endswith("_pixels"))
    return [
        OutlinedImage(
            name,
            np.asarray(arrays[name], np.uint8),
            tuple(np.asarray(arrays[name.replace("_pixels", "_boxes")], np.float64).reshape(-1, 2, 2)),
        )
        for name in names
    ]
