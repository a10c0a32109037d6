"""Drawn photographs of speed limits in the layout of the Swedish traffic signs, for tests and a quick look."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from wsi_ips.datasets.traffic_signs import CLASSES, SETS, VISIBILITIES
from wsi_ips.files import whole_file

SIGN_RED, SIGN_YELLOW, SIGN_BLACK = (200, 30, 30), (250, 220, 60), (20, 20, 20)


def make_signs(
    root: Path,
    *,
    train: int,
    test: int,
    width_px: int = 320,
    height_px: int = 240,
    sign_px: int = 40,
    seed: int = 0,
) -> Path:
    """Write ``Set1`` and ``Set2`` (``annotations.txt`` and JPEGs) and return ``root``.

    Classes in turn: nothing, 50, 70, 80. Every fifth image is one that the paper leaves out (its sign is
    occluded), and every image but those of nothing also names a sign that does not count.
    """
    for number, (split, count) in enumerate((("train", train), ("test", test))):
        folder = root / SETS[split]
        rng = np.random.default_rng([seed, number])
        lines = []
        for index in range(count):
            name = f"{index:010d}.jpg"
            hidden = index % 5 == 4
            label = CLASSES[1 + index % 3] if hidden else CLASSES[index % len(CLASSES)]
            photo = Image.fromarray(rng.integers(60, 180, (height_px, width_px, 3)).astype(np.uint8))
            signs = []
            if label != CLASSES[0]:
                left, top = (int(rng.integers(0, side - sign_px)) for side in (width_px, height_px))
                draw_sign(photo, label, (left, top), sign_px)
                seen = VISIBILITIES[3] if hidden else VISIBILITIES[0]
                signs = [_described(seen, left, top, sign_px, label), "MISC_SIGNS"]
            with whole_file(folder / name) as partial:
                # Through memory: Pillow does not notice a disk on which a JPEG has no room.
                encoded = BytesIO()
                photo.save(encoded, format="JPEG", quality=90)
                partial.write_bytes(encoded.getvalue())
            lines.append(f"{name}:{';'.join(signs)}{';' if signs else ''}")
        _write_lines(folder / "annotations.txt", lines)
    return root


def draw_sign(photo: Image.Image, label: str, corner: tuple[int, int], side_px: int) -> None:
    """A yellow disc with a red rim and the limit, as Swedish limits are; ``corner``: its top left (x, y)."""
    pen = ImageDraw.Draw(photo)
    left, top = corner
    box = (left, top, left + side_px - 1, top + side_px - 1)
    pen.ellipse(box, fill=SIGN_YELLOW, outline=SIGN_RED, width=max(side_px // 10, 1))
    pen.text(
        (left + side_px / 2, top + side_px / 2),
        label[:2],
        fill=SIGN_BLACK,
        anchor="mm",
        font_size=side_px // 2,
    )


def _described(visibility: str, left: int, top: int, side_px: int, name: str) -> str:
    corners = f"{left + side_px}.0, {top + side_px}.0, {left}.0, {top}.0"
    return f" {visibility}, {corners}, PROHIBITORY, {name}"


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    with whole_file(path) as partial:
        partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
