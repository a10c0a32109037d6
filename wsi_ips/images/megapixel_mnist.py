"""Megapixel MNIST: five digits and many line patterns on a large black image, and four questions about them.

Start with :func:`make_megapixel_mnist`, :func:`read_split` and :func:`image_bags`. Source: the generator of the
IPS reference code (Bergner et al. 2023), a variant of that of attention sampling (Katharopoulos and Fleuret 2019),
whose noise covers the digits and which also has a small view of every image. Random numbers are drawn as there:
one ``numpy.random.RandomState`` per split; first all digits, then all positions, then all noise.

On disk a split is an HDF5 file with the pixels that are not black. Nothing is unpickled (the reference stores
pickled dictionaries), and sizes are checked before memory is allocated.

Shape suffixes: n images, d digits of an image (5), w noise patterns, p pixels that are not black; S side of a
small view.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_ips.config import TaskConfig, TilingConfig
from wsi_ips.datasets.checksums import claim
from wsi_ips.datasets.manifest import NONE, SPLITS, Target, target_of
from wsi_ips.errors import ConfigError, DatasetError
from wsi_ips.images.bags import ImageBag, ImageGrid
from wsi_ips.images.config import MegapixelMnistConfig
from wsi_ips.progress import Progress, silent
from wsi_ips.storage.files import system_cause
from wsi_ips.storage.hdf5 import fixed_text, opened_hdf5, stated_text, streamed_hdf5

DIGIT_PX = 28
"""Side of a digit."""

SAME, OTHERS = 3, 2
"""Digits of the same class, and other digits, in an image."""

DIGITS = SAME + OTHERS
"""Digits in an image."""

CLASSES = tuple(str(digit) for digit in range(10))
"""The classes of digits."""

TASKS = ("majority", "max", "top", "multi")
"""The questions about an image."""

SMALLEST_SIDE_PX = 140
"""Smallest side of an image: four digits cannot block every place of a fifth, as 4 * 55**2 < (140 - 28 + 1)**2."""

FORMAT = "wsi_ips megapixel mnist 1"
"""Name of the file format."""

MARK = "parameters.json"
"""The file that says with which settings a folder was made."""

LARGEST_SIDE_PX = 20_000
"""The largest side of an image that is read."""

MOST_IMAGES = 1_000_000
"""The most images of a split that are read."""

MOST_PIXELS = 2_000_000_000
"""The most pixels of a split that are read."""

REMAKE = "remove the folder and make it again"
"""What to do about a broken file."""


class SparseImage(NamedTuple):
    """A square image as raster indices (p,) of its pixels that are not black, and their values (p,)."""

    side_px: int
    index_p: NDArray[np.int32]
    value_p: NDArray[np.uint8]

    def dense(self) -> NDArray[np.uint8]:
        """The image's pixels, (side, side) uint8."""
        image = np.zeros(self.side_px**2, np.uint8)
        image[self.index_p] = self.value_p
        return image.reshape(self.side_px, self.side_px)


@dataclass(frozen=True, slots=True)
class DigitPool:
    """Digits to draw from: images (n, 28, 28) uint8 and classes (n,) int64."""

    images_n28: NDArray[np.uint8]
    class_n: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Labels:
    """The answers for each image.

    ``majority_n`` is the class of three of its five digits, ``max_n`` the largest digit, ``top_n`` the digit whose
    first row is the smallest (of equal ones the first drawn), all (n,) int64. ``multi_n10``, (n, 10) of 0 and 1,
    says which classes occur.
    """

    majority_n: NDArray[np.int64]
    max_n: NDArray[np.int64]
    top_n: NDArray[np.int64]
    multi_n10: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Split:
    """The images of a split.

    Images are sparse: pixels ``start_n[i]`` to ``start_n[i + 1]`` of ``index_p`` and ``value_p`` are image i's.
    ``class_nd`` and ``place_nd2`` (row, column) describe the five digits. ``small_nSS``, uint8, holds the small
    views, if the set has them.
    """

    name: str
    side_px: int
    start_n: NDArray[np.int64]
    index_p: NDArray[np.int32]
    value_p: NDArray[np.uint8]
    labels: Labels
    class_nd: NDArray[np.int64]
    place_nd2: NDArray[np.int64]
    small_nSS: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.class_nd)

    def image(self, number: int) -> SparseImage:
        """One image of the split."""
        pixels = slice(self.start_n[number], self.start_n[number + 1])
        return SparseImage(self.side_px, self.index_p[pixels], self.value_p[pixels])


def make_megapixel_mnist(out: Path, config: MegapixelMnistConfig, *, progress: Progress = silent) -> None:
    """Write ``train.h5``, ``val.h5`` (if wanted), ``test.h5`` and ``parameters.json`` into ``out``.

    Splits that exist are kept. As in the reference, numpy's seed is ``seed`` + 1 for train and ``seed`` for test.
    Validation images, which the reference does not have, use ``seed`` + 2 and only training digits that no
    training image shows. Raises :class:`ConfigError` if ``out`` holds another set, and :class:`DatasetError` if
    MNIST is missing.
    """
    # The folder is this config's wherever MNIST itself lies.
    drawn = config.model_copy(update={"mnist": Path(), "download": False})
    settings = drawn.model_dump(mode="json", exclude={"mnist", "download"})
    claim(out / MARK, drawn, holds="images drawn with other settings", content=settings)
    counts = {"train": config.train, "val": config.val, "test": config.test}
    missing = [name for name in SPLITS if counts[name] and not (out / f"{name}.h5").exists()]
    if not missing:
        return
    with progress("Drawing Megapixel MNIST", total=sum(counts[name] for name in missing)) as advance:
        for name in missing:
            pool = mnist_digits(config.mnist, train=name != "test", download=config.download)
            if name == "val":
                pool = _not_in_train(pool, config)
            seed = config.seed + {"train": 1, "val": 2, "test": 0}[name]
            plan = draw_plan(
                pool.class_n, images=counts[name], side_px=config.side_px, noise=config.noise, seed=seed
            )
            images, small, scale = [], [], config.small_scale
            for number in range(len(plan)):
                images.append(paint(plan, number, pool, noise_over=scale is not None))
                if scale is not None:
                    small.append(paint_small(plan, number, pool, scale=scale))
                advance(name)
            split = _packed(
                name, images, labels_of(plan, pool.class_n), pool.class_n[plan.digit_nd], plan.place_nd2
            )
            write_split(out / f"{name}.h5", replace(split, small_nSS=np.stack(small)) if small else split)


def mnist_digits(root: Path, *, train: bool, download: bool = False) -> DigitPool:
    """MNIST's digits as torchvision reads them. Raises :class:`DatasetError` if MNIST is missing or broken."""
    from torchvision.datasets import MNIST

    try:
        found = MNIST(root, train=train, download=download)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise DatasetError(
            root, f"holds no MNIST ({reason})", "set data.download=true, or data.mnist"
        ) from None
    except ValueError as error:
        raise DatasetError(root, f"holds files that are not MNIST ({error})", "download them again") from None
    return DigitPool(found.data.numpy(), found.targets.numpy())


def _not_in_train(pool: DigitPool, config: MegapixelMnistConfig) -> DigitPool:
    """The training digits that no training image shows."""
    plan = draw_plan(
        pool.class_n, images=config.train, side_px=config.side_px, noise=config.noise, seed=config.seed + 1
    )
    unused = np.setdiff1d(np.arange(len(pool.class_n)), plan.digit_nd)
    return DigitPool(pool.images_n28[unused], pool.class_n[unused])


def _packed(
    name: str,
    images: Sequence[SparseImage],
    labels: Labels,
    class_nd: NDArray[np.int64],
    place_nd2: NDArray[np.int64],
) -> Split:
    start_n = np.cumsum([0, *(len(image.index_p) for image in images)])
    index_p = np.concatenate([image.index_p for image in images])
    value_p = np.concatenate([image.value_p for image in images])
    return Split(name, images[0].side_px, start_n, index_p, value_p, labels, class_nd, place_nd2)


def write_split(path: Path, split: Split) -> None:
    """Write a split as an HDF5 file that :func:`read_split` reads."""
    with streamed_hdf5(path) as file:
        file.attrs["format"] = fixed_text(FORMAT)
        file.attrs["side_px"] = split.side_px
        for name, values in _arrays(split).items():
            file.create_dataset(name, data=values, compression="gzip", compression_opts=1, shuffle=True)


def _arrays(split: Split) -> Mapping[str, NDArray[np.integer]]:
    labels = split.labels
    small = {} if split.small_nSS is None else {"small": split.small_nSS}
    return small | {
        "start": split.start_n,
        "index": split.index_p,
        "value": split.value_p,
        "majority": labels.majority_n,
        "max": labels.max_n,
        "top": labels.top_n,
        "multi": labels.multi_n10,
        "digit_class": split.class_nd,
        "digit_place": split.place_nd2,
    }


def read_split(path: Path) -> Split:
    """Read a split.

    Raises :class:`DatasetError` for a file that is missing, has another format, or contradicts itself.
    """
    if not path.is_file():
        raise DatasetError(path, "no such split", "make the data set first")
    try:
        with opened_hdf5(path) as file:
            if stated_text(file.attrs, "format") != FORMAT:
                raise DatasetError(path, "is not Megapixel MNIST of this version", REMAKE)
            side_px = int(file.attrs["side_px"])
            _check_shapes(path, side_px, {name: data.shape for name, data in file.items()})
            held = {name: data[...] for name, data in file.items()}
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, DatasetError):
            raise
        if cause := system_cause(error):
            raise DatasetError(path, cause.problem, cause.fix) from None
        raise DatasetError(path, f"cannot be read ({error})", REMAKE) from None
    start_n, index_p = held["start"], held["index"]
    if start_n[0] != 0 or start_n[-1] != len(index_p) or (np.diff(start_n) < 0).any():
        raise DatasetError(path, "has images that overlap", REMAKE)
    if len(index_p) and not 0 <= index_p.min() <= index_p.max() < side_px**2:
        raise DatasetError(path, "has pixels outside its images", REMAKE)
    labels = Labels(*(held[name] for name in TASKS))
    return Split(
        path.stem,
        side_px,
        start_n,
        index_p,
        held["value"],
        labels,
        held["digit_class"],
        held["digit_place"],
        held.get("small"),
    )


def _check_shapes(path: Path, side_px: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check the shapes of a file's arrays before they are read, so that a file does not decide how much memory is
    used.
    """
    (n,), (pixels,) = shapes["majority"], shapes["index"]
    wanted: dict[str, tuple[int, ...]] = {
        "start": (n + 1,),
        "index": (pixels,),
        "value": (pixels,),
        "multi": (n, 10),
    }
    wanted |= dict.fromkeys(("majority", "max", "top"), (n,))
    wanted |= {"multi": (n, 10), "digit_class": (n, DIGITS), "digit_place": (n, DIGITS, 2)}
    if "small" in shapes:
        side = shapes["small"][-1]
        wanted["small"] = (n, side, side)
        if not 1 <= side <= side_px or n * side**2 > MOST_PIXELS:
            raise DatasetError(path, f"claims small views of {side} px", REMAKE)
    unfit = [name for name in wanted.keys() | shapes.keys() if wanted.get(name) != shapes.get(name)]
    if unfit or not 1 <= n <= MOST_IMAGES or pixels > MOST_PIXELS or not 1 <= side_px <= LARGEST_SIDE_PX:
        raise DatasetError(path, f"has arrays that do not fit together ({', '.join(sorted(unfit))})", REMAKE)


def image_bags(split: Split, *, tasks: Sequence[TaskConfig], tiling: TilingConfig) -> list[ImageBag]:
    """The images as bags; they stay sparse until one is opened.

    A task's column is ``majority``, ``max``, ``top`` or ``multi``. Raises :class:`ConfigError` for any other.
    """
    grid = ImageGrid.cover(split.side_px, split.side_px, tiling)
    small_nSS = split.small_nSS

    def pixels(number: int) -> NDArray[np.uint8]:
        return split.image(number).dense()[..., None]

    return [
        ImageBag(
            bag_id=f"{split.name}_{number:05d}",
            targets={task.name: _target(task, split.labels, number) for task in tasks},
            grid=grid,
            load=lambda _key, number=number: pixels(number),  # type: ignore[misc]
            small=None if small_nSS is None else lambda _, number=number: small_nSS[number][..., None],  # type: ignore[misc]
        )
        for number in range(len(split))
    ]


def _target(task: TaskConfig, labels: Labels, number: int) -> Target:
    column = task.column_name
    if column not in TASKS:
        raise ConfigError(f"task {task.name}: Megapixel MNIST has no {column!r}; known: {', '.join(TASKS)}")
    if column == "multi":
        cell = ";".join(CLASSES[digit] for digit in np.flatnonzero(labels.multi_n10[number])) or NONE
    else:
        cell = CLASSES[
            {"majority": labels.majority_n, "max": labels.max_n, "top": labels.top_n}[column][number]
        ]
    try:
        return target_of(task, cell)
    except ValueError as error:
        raise ConfigError(f"task {task.name}: {error}") from None


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything random about a split: which digits (rows of the pool), their places (row, column), and the noise.

    ``pattern_w28`` is (w, 28, 28) float32 in 0..1, ``noise_place_nw2`` (row, column) of each pattern,
    ``noise_kind_nw`` which pattern it is.
    """

    side_px: int
    target_n: NDArray[np.int64]
    digit_nd: NDArray[np.int64]
    place_nd2: NDArray[np.int64]
    pattern_w28: NDArray[np.float32]
    noise_place_nw2: NDArray[np.int64]
    noise_kind_nw: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.digit_nd)


def draw_plan(class_pool: NDArray[np.int64], *, images: int, side_px: int, noise: int, seed: int) -> Plan:
    """Draw a split of ``images`` images with ``noise`` line patterns each.

    ``class_pool`` holds the classes of the digits to choose from. Raises ``ValueError`` for a side below 140 px,
    where five digits might not fit, and for a pool that lacks a class.
    """
    if side_px < SMALLEST_SIDE_PX:
        raise ValueError(f"side_px {side_px} is below {SMALLEST_SIDE_PX}: five digits might not fit")
    absent = sorted(set(range(10)) - set(np.unique(class_pool).tolist()))
    if absent:
        raise ValueError(f"there is no digit {absent[0]} to draw")
    rng = np.random.RandomState(seed)
    target_n, digit_nd = _digits(rng, class_pool, images)
    place_nd2 = np.array([_places(rng, side_px) for _ in range(images)]).reshape(images, DIGITS, 2)
    pattern_w28 = _patterns(rng, noise)
    noise_place_nw2 = (rng.rand(images, noise, 2) * (side_px - 2 * DIGIT_PX) + DIGIT_PX).astype(np.int64)
    noise_kind_nw = (rng.rand(images, noise) * noise).astype(np.int64)
    return Plan(side_px, target_n, digit_nd, place_nd2, pattern_w28, noise_place_nw2, noise_kind_nw)


def labels_of(plan: Plan, class_pool: NDArray[np.int64]) -> Labels:
    """The four labels of every image of the plan."""
    class_nd = class_pool[plan.digit_nd]
    top_n = np.take_along_axis(class_nd, plan.place_nd2[..., :1].argmin(axis=1), axis=1)[:, 0]
    multi_n10 = (class_nd[..., None] == np.arange(10)).any(axis=1).astype(np.uint8)
    return Labels(plan.target_n, class_nd.max(axis=1), top_n, multi_n10)


def paint(plan: Plan, number: int, pool: DigitPool, *, noise_over: bool = False) -> SparseImage:
    """Paint image ``number`` of the plan: noise first and digits over it, or the reverse with ``noise_over``.

    Each digit or pattern is a whole square that covers what is below it.
    """
    image = np.zeros((plan.side_px, plan.side_px), np.uint8)
    for square, (top, left) in _squares(plan, number, pool, noise_over=noise_over):
        image[top : top + DIGIT_PX, left : left + DIGIT_PX] = square
    index_p = np.flatnonzero(image)
    return SparseImage(plan.side_px, index_p.astype(np.int32), image.ravel()[index_p])


def paint_small(
    plan: Plan, number: int, pool: DigitPool, *, scale: float, noise_over: bool = True
) -> NDArray[np.uint8]:
    """Paint the small view of an image, (round(side * scale),) * 2 uint8.

    It is made as attention sampling's generator makes it.

    Each square is shrunk by itself (anti-aliased, bilinear) and pasted at its corner times ``scale``, rounded
    down.
    """
    side_px, digit_px = (max(1, round(side * scale)) for side in (plan.side_px, DIGIT_PX))
    image = np.zeros((side_px, side_px), np.uint8)
    for square, corner in _squares(plan, number, pool, noise_over=noise_over):
        top, left = (int(place * scale) for place in corner)
        shrunk = Image.fromarray(square).resize((digit_px, digit_px), Image.Resampling.BILINEAR)
        below = image[top : top + digit_px, left : left + digit_px]
        below[...] = np.asarray(shrunk)[: below.shape[0], : below.shape[1]]
    return image


def _squares(
    plan: Plan, number: int, pool: DigitPool, *, noise_over: bool
) -> list[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """What is painted, (28, 28) uint8 each, and at which (row, column), from the lowest layer on."""
    noise = [
        ((np.float32(255) * plan.pattern_w28[kind]).astype(np.uint8), place)
        for kind, place in zip(plan.noise_kind_nw[number], plan.noise_place_nw2[number], strict=True)
    ]
    digits = [
        (pool.images_n28[row], place)
        for row, place in zip(plan.digit_nd[number], plan.place_nd2[number], strict=True)
    ]
    return digits + noise if noise_over else noise + digits


def _digits(
    rng: np.random.RandomState, class_pool: NDArray[np.int64], images: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The target class of every image, and its rows of the pool: three of that class, then two of others."""
    rows_of = [np.flatnonzero(class_pool == digit) for digit in range(10)]
    others_of = [np.flatnonzero(class_pool != digit) for digit in range(10)]
    target_n = np.empty(images, np.int64)
    digit_nd = np.empty((images, DIGITS), np.int64)
    for number in range(images):
        target = int(10 * rng.rand())
        target_n[number] = target
        digit_nd[number, :SAME] = rng.choice(rows_of[target], SAME)
        digit_nd[number, SAME:] = rng.choice(others_of[target], OTHERS)
    return target_n, digit_nd


def _places(rng: np.random.RandomState, side_px: int) -> list[NDArray[np.int64]]:
    """Top-left corners (row, column) of one image's digits, drawn again while two would overlap."""
    placed: list[NDArray[np.int64]] = []
    while len(placed) < DIGITS:
        place = np.round(rng.rand(2) * (side_px - DIGIT_PX)).astype(np.int64)
        if not any((np.abs(place - other) < DIGIT_PX).all() for other in placed):
            placed.append(place)
    return placed


def _patterns(rng: np.random.RandomState, noise: int) -> NDArray[np.float32]:
    """Noise, (w, 28, 28): two lines each, from the corner with a random slope; the second one may be mirrored."""
    slopes = np.tan(rng.rand(noise) * np.pi / 2.5)
    first = np.zeros((noise, DIGIT_PX, DIGIT_PX))
    for pattern, slope in zip(first, slopes, strict=True):
        x = np.linspace(0, min(27.49, 27.49 / slope), 56)
        pattern[np.round(x).astype(int), np.round(slope * x).astype(int)] = 1
    second = first.copy()
    rng.shuffle(second)
    # Twice along the same axis, as the reference does: both together undo each other.
    for flip in (rng.rand(noise) < 0.33, rng.rand(noise) < 0.33):
        second[flip] = second[flip][:, :, ::-1]
    lines = ((first + second) > 0).astype(np.float64)
    lines *= rng.rand(noise, DIGIT_PX, DIGIT_PX) * 0.2 + 0.8
    return lines.astype(np.float32)
