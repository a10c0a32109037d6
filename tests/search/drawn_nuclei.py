"""A small folder of drawn nuclei: PNG and Aperio XML by the same name."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIDE_PX = 160


def draw_nuclei(folder: Path, *, count: int = 3) -> list[NDArray[np.float32]]:
    """Write the pictures; gives each one's boxes (n, 4)."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    truth = []
    for number in range(count):
        corners = rng.integers(4, SIDE_PX - 30, (6, 2))
        boxes = np.concatenate([corners, corners + rng.integers(12, 26, (6, 2))], axis=1)
        picture = Image.new("RGB", (SIDE_PX, SIDE_PX), (230, 190, 220))
        regions = ""
        for left, top, right, bottom in boxes.tolist():
            ImageDraw.Draw(picture).ellipse((left, top, right, bottom), fill=(70, 40, 120))
            ring = ((left, top), (right, top), (right, bottom), (left, bottom))
            vertices = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in ring)
            regions += f"<Region><Vertices>{vertices}</Vertices></Region>"
        picture.save(folder / f"{number}.png")
        xml = f"<Annotations><Annotation><Regions>{regions}</Regions></Annotation></Annotations>"
        (folder / f"{number}.xml").write_text(xml)
        truth.append(boxes.astype(np.float32))
    return truth
