"""Megapixel MNIST on disk and as bags: an HDF5 file per split, images as the pixels that are not black.

Nothing is unpickled (the reference stores pickled dictionaries), and sizes are checked before memory is given.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_ips.config import MegapixelMnistConfig, TaskConfig, TilingConfig
from wsi_ips.datasets.image_bags import ImageBag, ImageGrid
from wsi_ips.datasets.made_sets import claim
from wsi_ips.datasets.manifest import SPLITS
from wsi_ips.datasets.megapixel_mnist import (
    CLASSES,
    DIGITS,
    TASKS,
    DigitPool,
    Labels,
    SparseImage,
    draw_plan,
    labels_of,
    paint,
    paint_small,
)
from wsi_ips.datasets.targets import NONE, Target, target_of
from wsi_ips.errors import ConfigError, DatasetError
from wsi_ips.hdf5 import fixed_text, opened_hdf5, stated_text, streamed_hdf5
from wsi_ips.outside_causes import system_cause
from wsi_ips.progress import Progress, silent

FORMAT = "wsi_ips megapixel mnist 1"
MARK = "parameters.json"
LARGEST_SIDE_PX = 20_000
MOST_IMAGES = 1_000_000
MOST_PIXELS = 2_000_000_000
REMAKE = "remove the folder and make it again"


@dataclass(frozen=True, slots=True)
class Split:
    """The images of a split, sparse; their labels; class_nd and place_nd2 (row, column): their five digits.
    small_nSS: the images seen small, uint8, where the set has such views."""

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
        pixels = slice(self.start_n[number], self.start_n[number + 1])
        return SparseImage(self.side_px, self.index_p[pixels], self.value_p[pixels])


def mnist_digits(root: Path, *, train: bool, download: bool = False) -> DigitPool:
    """MNIST as torchvision reads it. Raises :class:`DatasetError` where it is not there."""
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


def make_megapixel_mnist(out: Path, config: MegapixelMnistConfig, *, progress: Progress = silent) -> None:
    """Write ``train.h5``, ``val.h5`` (if wanted), ``test.h5`` and ``parameters.json`` into ``out``.

    Splits that are there are kept. The numpy seed of a split is ``seed`` + 1 for train and ``seed`` for test, as
    in the reference; validation images (ours) have ``seed`` + 2 and only training digits that no training image
    shows. Raises :class:`ConfigError` where ``out`` holds another set, :class:`DatasetError` without MNIST.
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


def write_split(path: Path, split: Split) -> None:
    """As :func:`read_split` reads it."""
    with streamed_hdf5(path) as file:
        file.attrs["format"] = fixed_text(FORMAT)
        file.attrs["side_px"] = split.side_px
        for name, values in _arrays(split).items():
            file.create_dataset(name, data=values, compression="gzip", compression_opts=1, shuffle=True)


def read_split(path: Path) -> Split:
    """Raises :class:`DatasetError` for a file that is missing, not ours, or contradicts itself."""
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
            raise DatasetError(path, cause.problem, cause.mend) from None
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


def image_bags(split: Split, *, tasks: Sequence[TaskConfig], tiling: TilingConfig) -> list[ImageBag]:
    """The images as bags; they stay sparse until one is opened.

    A task's column is ``majority``, ``max``, ``top`` or ``multi``. Raises :class:`ConfigError` for another.
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


def _check_shapes(path: Path, side_px: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Before anything is read: a file decides over no memory."""
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
