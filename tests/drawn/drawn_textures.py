"""A small folder of drawn textures and one of outlines, laid out as the real ones."""

import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image

from wsi_ips.drawn.composite import CLASSES
from wsi_ips.slides.base import RgbImage

SIDE_PX = 64
GROUPS = 8
"""Sources per class, of two textures each."""


def draw_textures(folder: Path) -> Path:
    """Write the pictures and ``manifest.csv`` into ``folder``, and return it."""
    rng = np.random.default_rng(0)
    rows = []
    for label in CLASSES:
        for number in range(2 * GROUPS):
            name = f"{label}_{number}.png"
            Image.fromarray(_texture(label, rng)).save(folder / name)
            rows.append((name, label, f"{label}-{number // 2}"))
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "class", "source_group"), *rows])
    return folder


def draw_outlines(folder: Path) -> Path:
    """Write one ellipse with a square hole as NCRF's JSON into ``folder``, and return it."""
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    ellipse = np.stack([9000 + 700 * np.cos(angle), 5000 + 500 * np.sin(angle)], axis=1).round().tolist()
    hole = [[8900, 4900], [9100, 4900], [9100, 5100], [8900, 5100]]
    held = {
        "positive": [{"name": "_0", "vertices": ellipse}],
        "negative": [{"name": "_2", "vertices": hole}],
    }
    (folder / "Tumor_1.json").write_text(json.dumps(held))
    return folder


def _texture(label: str, rng: np.random.Generator) -> RgbImage:
    """Stripes, checks or slants, in any colours."""
    y, x = np.mgrid[:SIDE_PX, :SIDE_PX]
    pattern = {
        "benign": np.sin(x / 2),
        "adenocarcinoma": np.sin(x / 2) * np.sin(y / 2),
        "squamous": np.sin((x + y) / 3),
    }[label]
    colour = rng.uniform(60, 160, 3) + rng.uniform(20, 60, 3) * pattern[..., None]
    return np.clip(colour + rng.normal(0, 4, (SIDE_PX, SIDE_PX, 3)), 0, 255).astype(np.uint8)
