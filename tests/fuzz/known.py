"""Inputs that once made the program die, hang, swell or print a traceback, each built from our own seeds.

What users and a fuzzer reported before this harness was there. {name: (target, what it did then, files)}.
"""

import io
import json
from collections.abc import Callable, Mapping
from types import MappingProxyType

import h5py
import numpy as np
import torch

from tests.fuzz.edits import Files, apply, edits_between
from tests.fuzz.seeds import seed
from tests.slides.tiff_files import write_pyramid
from wsi_ips.training.run_state import FORMAT, STATE_NAME

Make = Callable[[], Files]


def _cut_blosc_chunk(*, kept: float) -> Files:
    """A chunk that an interrupted copy leaves behind: Blosc reads beyond its buffer."""
    files = dict(seed("zarr/version2"))
    chunk = next(name for name in files if name.endswith("/0/0/0"))
    files[chunk] = files[chunk][: int(len(files[chunk]) * kept)]
    return files


def _contradicting_dicom() -> Files:
    """Two levels that state another size than their frames have: libopenslide died over such folders."""
    files = dict(seed("dicom/jpeg"))
    name = "series/level1.dcm"
    data = files[name]
    at = data.index(b"\x48\x00\x06\x00UL\x04\x00") + 8  # TotalPixelMatrixColumns
    return apply(
        files, edits_between(name, data, data[:at] + (40_000).to_bytes(4, "little") + data[at + 4 :])
    )


def _resolution(*, mpp: float, side: int) -> Files:
    """A TIFF of one empty tile a corner, as sparse as its ``side`` allows."""
    out = io.BytesIO()
    write_pyramid(out, np.full((side, side, 3), 120, np.uint8), mpp=mpp, tile=256, compression="lzw",  # type: ignore[arg-type]
                  photometric="rgb")  # fmt: skip
    return {"s.tif": out.getvalue()}


def _stated_mpp(text: str) -> Files:
    files = seed("tiff/svs")
    return {
        name: data.replace(b"MPP = 0.4990", b"MPP = " + text.encode().ljust(6)[:6])
        for name, data in files.items()
    }


def _scribble(points: int) -> Files:
    """A ring of random points crosses itself thousands of times."""
    ring = np.random.default_rng(0).integers(0, 100, (points, 2)).tolist()
    geometry = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
    content = {"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": geometry}]}
    return {"s.geojson": json.dumps(content).encode()}


def _recipe(text: str) -> Files:
    return {"recipe.yaml": text.encode()}


def _bomb() -> Files:
    lines = ["command: tile", "a0: &a0 x"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    return _recipe("\n".join(lines))


def _claims(patches: int) -> Files:
    """An HDF5 file of a few kilobytes that claims millions of patches, none of which was written."""
    out = io.BytesIO()
    with h5py.File(out, "w") as file:
        coords = file.create_dataset("coords", (patches, 2), "i8", chunks=(1024, 2))
        file.create_dataset("features", (patches, 8), "f4", chunks=(1024, 8))
        coords.attrs.update({"patch_size": 32, "patch_level": 0})
    return {"s.h5": out.getvalue()}


def _state_without_run() -> Files:
    out = io.BytesIO()
    torch.save({"format": FORMAT, "net": {}, "optimizer": {}, "state": {}}, out)
    return {STATE_NAME: out.getvalue()}


def _named(name: str) -> Files:
    (data,) = seed("tiff/generic").values()
    return {name: data}


KNOWN: Mapping[str, tuple[str, str, Make]] = MappingProxyType(
    {
        "half_a_blosc_chunk": ("zarr", "SIGSEGV", lambda: _cut_blosc_chunk(kept=0.5)),
        "a_blosc_chunk_less_a_byte": ("zarr", "SIGSEGV", lambda: _cut_blosc_chunk(kept=0.9999)),
        "contradicting_dicom": ("dicom", "libopenslide died now and then", _contradicting_dicom),
        "coarse_slide": ("tiff", "ZeroDivisionError", lambda: _resolution(mpp=2.5, side=600)),
        "print_resolution": ("tiff", "3 GB, no end", lambda: _resolution(mpp=25400 / 300, side=1500)),
        "resolution_of_letters": ("tiff", "ValueError", lambda: _stated_mpp("abcdef")),
        "resolution_without_end": ("tiff", "OverflowError", lambda: _stated_mpp("1e-999")),
        "scribble": ("outlines", "no end", lambda: _scribble(300)),
        "recipe_date": ("recipe", "ValueError", lambda: _recipe("command: tile\nslides: 2024-99-99\n")),
        "recipe_timestamp": ("recipe", "ValueError", lambda: _recipe("command: tile\nslides: !!timestamp x\n")),
        "recipe_nesting": ("recipe", "RecursionError", lambda: _recipe("command: " + "[" * 5000)),
        "recipe_bomb": ("recipe", "no end", _bomb),
        "long_cell": ("tables", "csv.Error", lambda: {"mpp.csv": b"wsi,mpp\n" + b"x" * 140_000 + b",0.25\n"}),
        "long_cell_of_cases": ("tables", "csv.Error",
                               lambda: {"cases.csv": b"slide_id,case_id\na," + b"x" * 140_000 + b"\n"}),
        "state_without_run": ("state", "KeyError", _state_without_run),
        "name_that_is_not_utf8": ("tiff", "UnicodeEncodeError", lambda: _named("s\udcff.tif")),
        "long_name": ("tiff", "OSError", lambda: _named("s" * 240 + ".tif")),
        "coords_that_claim_millions": ("coords", "minutes", lambda: _claims(20_000_000)),
        "features_that_claim_millions": ("features", "1.3 GB", lambda: _claims(9_000_000)),
    }
)  # fmt: skip
