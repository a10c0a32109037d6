"""OME-Zarr folders, written for a test by the package ``ome-zarr``, and their metadata changed afterwards."""

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from tests.slides.tiff_files import halved

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # it warns of itself on being imported
    from ome_zarr.format import FormatV04, FormatV05
    from ome_zarr.writer import write_multiscale

FORMATS = {"0.4": FormatV04(), "0.5": FormatV05()}
AXES = {
    "t": {"name": "t", "type": "time", "unit": "second"},
    "c": {"name": "c", "type": "channel"},
    "z": {"name": "z", "type": "space", "unit": "micrometer"},
    "y": {"name": "y", "type": "space", "unit": "micrometer"},
    "x": {"name": "x", "type": "space", "unit": "micrometer"},
}


def write_zarr(
    folder: Path | str,
    image: NDArray[Any],
    *,
    version: str = "0.5",
    mpp: float = 0.5,
    levels: int = 2,
    axes: str = "cyx",
    chunk: int = 128,
    shard: int | None = None,
) -> None:
    """Write ``image`` (height, width, channels) and its halves as the levels s0, s1, … of ``folder`` (or URL).

    ``axes`` other than c, y, x get the length 1.
    """
    images = [image]
    for _ in range(levels - 1):
        images.append(halved(images[-1]))
    sides = {"c": image.shape[2], "y": chunk, "x": chunk}
    options: dict[str, Any] = {"chunks": tuple(sides.get(axis, 1) for axis in axes)}
    if shard:
        options["shards"] = tuple({**sides, "y": shard, "x": shard}.get(axis, 1) for axis in axes)
    form = FORMATS[version]
    write_multiscale(
        [_with_axes(level, axes) for level in images],
        group=zarr.open_group(folder, mode="w", zarr_format=form.zarr_format),
        fmt=form,
        axes=[AXES[axis] for axis in axes],
        scale={axis: mpp if axis in "yx" else 1.0 for axis in axes},
        storage_options=options,
    )


def _with_axes(level: NDArray[Any], axes: str) -> NDArray[Any]:
    places = {"y": 0, "x": 1, "c": 2}
    pixels = level.transpose([places[axis] for axis in axes if axis in places])
    return np.expand_dims(pixels, [axes.index(axis) for axis in axes if axis not in places])


def change(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change the group's OME metadata: ``edit`` gets what holds ``multiscales``."""
    if (folder / "zarr.json").exists():
        file = folder / "zarr.json"
        whole = json.loads(file.read_text())
        edit(whole["attributes"]["ome"])
    else:
        file = folder / ".zattrs"
        whole = json.loads(file.read_text())
        edit(whole)
    file.write_text(json.dumps(whole))


def change_array(folder: Path, level: str, values: dict[str, Any]) -> None:
    """Overwrite entries of an array's own metadata."""
    files: Sequence[Path] = [folder / level / name for name in ("zarr.json", ".zarray")]
    file = next(path for path in files if path.exists())
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
