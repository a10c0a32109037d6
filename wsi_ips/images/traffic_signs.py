"""The Swedish traffic signs (STS) as the paper uses them: which speed limit is shown, if any.

Start with :func:`read_split` and :func:`image_bags`. Source: Larsson and Felsberg 2011; the selection of images is
that of attention sampling (Katharopoulos and Fleuret 2019), as in the IPS reference code (Bergner et al. 2023). On
disk there are ``Set1`` and ``Set2``, each with ``annotations.txt`` and the images of ``Set{k}Part0.zip`` beside
it. Nothing is downloaded.

Augmentations (:func:`jitter_and_shift`, :func:`brightened_and_shifted`) do what torchvision's ColorJitter and
RandomAffine(degrees=0) do, but are drawn from a key and not from a global random state, because a photograph is
opened once to score its patches and again to train on some of them. :func:`make_signs` draws a small data set in
the same layout, for tests and a quick look.

Shape suffixes: H height, W width, C channels.
"""

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional

from wsi_ips.config import TaskConfig, TilingConfig
from wsi_ips.datasets.manifest import Target, target_of
from wsi_ips.errors import ConfigError, DatasetError
from wsi_ips.images.bags import ImageBag, ImageGrid
from wsi_ips.images.config import TrafficSignsConfig
from wsi_ips.storage.files import check_size, whole_file
from wsi_ips.storage.location import is_there

OFTEN = 0.8
"""Probability with which attention sampling makes each of its two changes to a training image."""

CLASSES = ("EMPTY", "50_SIGN", "70_SIGN", "80_SIGN")
"""The classes of images."""

VISIBILITIES = ("VISIBLE", "BLURRED", "SIDE_ROAD", "OCCLUDED")
"""How well a sign can be seen, from best to worst."""

SETS = {"train": "Set1", "test": "Set2"}
"""The folder of each split."""

URL = "http://www.isy.liu.se/cvl/research/trafficSigns/swedishSignsSummer"
"""Where the data set is published."""

ANNOTATIONS_MD5 = {"Set1": "9106a905a86209c95dc9b51d12f520d6", "Set2": "09debbc67f6cd89c1e2a2688ad1d03ca"}
"""MD5 of the published annotations."""

IGNORED = "MISC_SIGNS"
"""Name of signs that nobody could identify."""

LARGEST_BYTES = 50_000_000
"""The largest file of annotations that is read."""

LARGEST_IMAGE_PX = 50_000_000
"""Pixels of the largest image that is read."""

MOST_SHIFT_PX = 100
"""The largest shift of a training image."""

COLOUR_JITTER = 0.1
"""The largest change of a training image's colours."""

SIGN_RED, SIGN_YELLOW, SIGN_BLACK = (200, 30, 30), (250, 220, 60), (20, 20, 20)
"""Colours of drawn signs."""


@dataclass(frozen=True, slots=True)
class Sign:
    """A sign of an annotation. ``box`` is (x_min, y_min, x_max, y_max) in pixels of the image."""

    visibility: str
    name: str
    box: tuple[float, float, float, float]

    @property
    def area(self) -> float:
        """Area of the box in square pixels."""
        x_min, y_min, x_max, y_max = self.box
        return (x_max - x_min) * (y_max - y_min)


@dataclass(frozen=True, slots=True)
class SignImage:
    """An image that is used, with the one of :data:`CLASSES` that it shows."""

    path: Path
    label: str


def read_split(config: TrafficSignsConfig, split: str) -> list[SignImage]:
    """The images of ``train`` or ``test`` that are used, in file order.

    Raises :class:`DatasetError` for annotations that are missing or, with ``config.verify``, not the published
    ones (MD5), and for missing images: all are looked for before hours are spent.
    """
    folder = config.root / SETS[split]
    path = folder / "annotations.txt"
    annotated = read_annotations(path)
    # After reading, which knows a missing or huge file; the list is a few hundred kilobytes.
    if (
        config.verify
        and hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        != (ANNOTATIONS_MD5[SETS[split]])
    ):
        raise DatasetError(
            path, "is not the published file (MD5 differs)", "download it again, or data.verify=false"
        )
    kept = [
        SignImage(folder / name, label) for name, signs in annotated if (label := label_of(signs)) is not None
    ]
    absent = [image.path for image in kept if not is_there(image.path)]
    if absent:
        raise DatasetError(
            absent[0],
            f"no such image (and {len(absent) - 1} more of {len(kept)})",
            f"unpack {URL}/{folder.name}/{folder.name}Part0.zip into {folder}",
        )
    return kept


def image_bags(
    images: Sequence[SignImage],
    config: TrafficSignsConfig,
    *,
    split: str,
    tasks: Sequence[TaskConfig],
    tiling: TilingConfig,
) -> list[ImageBag]:
    """The images as bags. No image is decoded before its bag is opened, and only training images are augmented.

    Raises :class:`ConfigError` for a task with other classes.
    """
    grid = ImageGrid.cover(config.height_px, config.width_px, tiling)

    scale = config.small_scale

    def pixels(path: Path, key: str | None) -> NDArray[np.uint8]:
        photo = read_photo(path, height_px=config.height_px, width_px=config.width_px)
        if scale is not None:
            photo = photo[..., ::-1].copy()  # as OpenCV, which the reference reads with, has them
        if key is None or split != "train" or not config.augment:
            return photo
        if scale is not None:
            return brightened_and_shifted(photo, key=key, most_shift_px=MOST_SHIFT_PX)
        return jitter_and_shift(photo, key=key, jitter=COLOUR_JITTER, most_shift_px=MOST_SHIFT_PX)

    return [
        ImageBag(
            bag_id=f"{SETS[split if split != 'val' else 'train']}_{image.path.stem}",
            targets={task.name: _target(task, image.label) for task in tasks},
            grid=grid,
            load=lambda key, path=image.path: pixels(path, key),  # type: ignore[misc]
            small=None if scale is None else lambda photo: seen_small(photo, scale),
        )
        for image in images
    ]


def read_photo(path: Path, *, height_px: int, width_px: int) -> NDArray[np.uint8]:
    """A photograph, (H, W, 3) uint8, resized (bilinear, anti-aliased, as torchvision resizes images).

    Raises :class:`DatasetError` for a file that is no image, is cut short, or has more than 50 megapixels.
    """
    try:
        # Larger sizes are refused below, before pixels are decoded.
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
            photo = Image.open(path)
        with photo:
            if photo.width * photo.height > LARGEST_IMAGE_PX:
                raise DatasetError(path, f"has {photo.width} x {photo.height} pixels", "unpack it again")
            resized = photo.convert("RGB").resize((width_px, height_px), Image.Resampling.BILINEAR)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise DatasetError(path, f"cannot be read as an image ({error})", "unpack it again") from None
    return np.array(resized)


def _target(task: TaskConfig, label: str) -> Target:
    try:
        return target_of(task, label)
    except ValueError as error:
        raise ConfigError(f"task {task.name}: {error}; traffic signs are {', '.join(CLASSES)}") from None


def read_annotations(path: Path) -> list[tuple[str, list[Sign]]]:
    """Every image of the file with its signs, without those that nobody could identify.

    A line is ``file:vis, xmax, ymax, xmin, ymin, type, name;...``. As in the reference, numbers lose characters at
    their end until they are numbers. Raises :class:`DatasetError` with the line for what still cannot be read, and
    for a name that is no file name.
    """
    if not path.is_file():
        raise DatasetError(path, "no such annotations", f"download them from {URL}")
    check_size(path, DatasetError, most=LARGEST_BYTES, fix="give annotations.txt of STS")
    images = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        name, colon, described = line.strip().partition(":")
        if not name and not described:
            continue
        try:
            if not colon or Path(name).name != name or name in (".", ".."):
                raise ValueError(f"{name[:40]!r} is no image followed by a colon")
            images.append(
                (name, [sign for text in described.split(";") if (sign := _sign(text)) is not None])
            )
        except ValueError as error:
            raise DatasetError(path, f"line {number}: {error}", "download it again") from None
    return images


def label_of(signs: Sequence[Sign]) -> str | None:
    """The class of an image, or None if the image is not used.

    Without any signs it is ``EMPTY``. Otherwise it is the speed limit that is seen best (of equal ones the
    largest, then the first), provided that it is ``VISIBLE``. Images without a limit, or with hidden ones only,
    are not used.
    """
    if not signs:
        return CLASSES[0]
    limits = [sign for sign in signs if sign.name in CLASSES[1:]]
    best = min(limits, key=lambda sign: (VISIBILITIES.index(sign.visibility), -sign.area), default=None)
    return best.name if best is not None and best.visibility == VISIBILITIES[0] else None


def _sign(text: str) -> Sign | None:
    """One sign; None for an empty text and for signs that nobody could identify. Raises ``ValueError``."""
    parts = [part.strip() for part in text.split(",")]
    if parts in ([""], [IGNORED]) or parts[0] == IGNORED:
        return None
    if len(parts) < 7 or parts[0] not in VISIBILITIES:
        raise ValueError(f"{text[:60]!r} is not 'visibility, xmax, ymax, xmin, ymin, type, name'")
    x_max, y_max, x_min, y_min = (_number(part) for part in parts[1:5])
    return Sign(parts[0], parts[6], (x_min, y_min, x_max, y_max))


def _number(text: str) -> float:
    for end in range(len(text), 0, -1):
        try:
            return float(text[:end])
        except ValueError:
            continue
    raise ValueError(f"{text[:20]!r} is no number")


def jitter_and_shift(
    photo_HWC: NDArray[np.uint8], *, key: str, jitter: float, most_shift_px: int
) -> NDArray[np.uint8]:
    """Change the colours of a photograph and move it, both at random but the same for the same ``key``.

    ``photo_HWC`` is (H, W, 3) uint8; a new array is returned. Brightness, contrast and saturation are multiplied
    by 1 - ``jitter`` to 1 + ``jitter``, and hue is turned by up to ``jitter`` of the circle, in random order. The
    photograph is moved by up to ``most_shift_px`` along each axis; what is uncovered is black.
    """
    rng = _rng(key)
    brightness, contrast, saturation = rng.uniform(1 - jitter, 1 + jitter, 3)
    turn = rng.uniform(-jitter, jitter)
    changes: list[Callable[[Tensor], Tensor]] = [
        lambda x: functional.adjust_brightness(x, brightness),
        lambda x: functional.adjust_contrast(x, contrast),
        lambda x: functional.adjust_saturation(x, saturation),
        lambda x: functional.adjust_hue(x, turn),
    ]
    x_CHW = torch.from_numpy(photo_HWC).permute(2, 0, 1)
    for place in rng.permutation(len(changes)):
        x_CHW = changes[place](x_CHW)
    right, down = (round(shift) for shift in rng.uniform(-most_shift_px, most_shift_px, 2))
    return shifted(x_CHW.permute(1, 2, 0).numpy(), right=right, down=down)


def brightened_and_shifted(
    photo_HWC: NDArray[np.uint8], *, key: str, most_shift_px: int
) -> NDArray[np.uint8]:
    """Change the brightness of a photograph and move it as attention sampling does, the same for the same ``key``.

    Values are multiplied by 0.8 to 1.2, and -0.1 to 0.1 of the full range is added; the photograph is moved by up
    to ``most_shift_px`` along each axis, and what is uncovered is black. Each of the two happens in 8 of 10 cases.
    ``photo_HWC`` is (H, W, C) uint8 and is not changed.
    """
    rng = _rng(key)
    change, factor, offset = rng.random() < OFTEN, rng.uniform(0.8, 1.2), rng.uniform(-0.1, 0.1)
    move, shifts = rng.random() < OFTEN, rng.uniform(-most_shift_px, most_shift_px, 2)
    if change:
        photo_HWC = np.rint(photo_HWC * factor + 255 * offset).clip(0, 255).astype(np.uint8)
    right, down = (round(shift) if move else 0 for shift in shifts)
    return shifted(photo_HWC, right=right, down=down)


def seen_small(photo_HWC: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    """The small view, (round(H * scale), round(W * scale), C) uint8.

    It is bilinear without anti-aliasing, as TensorFlow resizes.
    """
    height, width = (max(1, round(side * scale)) for side in photo_HWC.shape[:2])
    x_1CHW = torch.from_numpy(photo_HWC).permute(2, 0, 1)[None].float()
    small_1Chw = torch.nn.functional.interpolate(x_1CHW, (height, width), mode="bilinear", antialias=False)
    return small_1Chw[0].permute(1, 2, 0).round().to(torch.uint8).numpy()


def _rng(key: str) -> np.random.Generator:
    return np.random.default_rng(np.frombuffer(sha256(key.encode()).digest(), np.uint32))


def shifted(image_HWC: NDArray[np.uint8], *, right: int, down: int) -> NDArray[np.uint8]:
    """A copy of the image moved by whole pixels; what is uncovered is black."""
    height, width = image_HWC.shape[:2]
    result = np.zeros_like(image_HWC, order="C")
    if abs(down) < height and abs(right) < width:
        result[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = image_HWC[
            max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)
        ]
    return result


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
    """Draw a data set of ``Set1`` and ``Set2`` (``annotations.txt`` and JPEGs) below ``root``, which is returned.

    Classes take turns: nothing, 50, 70, 80. Every fifth image is one that the paper does not use (its sign is
    occluded), and every image that is not empty also names a sign that does not count.
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
    """Draw a speed limit as Swedish ones are: a yellow disc with a red rim. ``corner`` is its top left (x, y)."""
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
