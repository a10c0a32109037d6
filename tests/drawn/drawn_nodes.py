"""A small folder of drawn patches, laid out as the real lymph-node patches."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from wsi_ips.slides.base import RgbImage

SIDE_PX = 32
FAMILIES = ("0", "1")
NORMALS, METASTASES = 240, 60
"""Patches per family; two of each ten share a source group."""


def draw_nodes(folder: Path, *, seed: int = 0) -> Path:
    """Write the pictures and ``manifest.csv`` into ``folder``, and return it."""
    rng = np.random.default_rng(seed)
    rows = [("path", "class", "source_group", "stain_family", "tissue_share")]
    for family in FAMILIES:
        for label, count in (("normal", NORMALS), ("metastasis", METASTASES)):
            (folder / label).mkdir(exist_ok=True)
            for number in range(count):
                name = f"{label}/{family}_{number}.jpg"
                how = {"quality": 92, "subsampling": 0}
                Image.fromarray(_patch(rng)).save(folder / name, **how)
                alone = number if number % 10 > 1 else number - number % 10
                rows.append((name, label, f"{family}{label[0]}{alone}", family, "0.9"))
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def _patch(rng: np.random.Generator) -> RgbImage:
    """Grainy spots in stain's colours, without any symmetry."""
    noise = Image.fromarray(rng.integers(0, 256, (9, 9), dtype=np.uint8))
    spots_HW = np.asarray(noise.resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)) / 255
    colour = rng.uniform((120, 60, 130), (170, 110, 180))
    grain = rng.normal(0, 8, (SIDE_PX, SIDE_PX, 3))
    return (colour * (0.6 + 0.6 * spots_HW[..., None]) + grain).clip(0, 255).astype(np.uint8)
