"""The data sets of images by name, with their splits as bags: :func:`image_splits`."""

import random
from collections.abc import Sequence
from pathlib import Path

from wsi_ips.config import TaskConfig, TilingConfig
from wsi_ips.errors import ConfigError
from wsi_ips.images import megapixel_mnist as megapixel_mnist_files
from wsi_ips.images import traffic_signs
from wsi_ips.images.bags import ImageBag
from wsi_ips.images.config import MegapixelMnistConfig, TrafficSignsConfig
from wsi_ips.progress import Progress, silent

ImageSplits = dict[str, list[ImageBag]]
"""The bags of ``train``, ``val`` (which may be empty) and ``test``."""


def image_splits(
    data: MegapixelMnistConfig | TrafficSignsConfig,
    folder: Path,
    *,
    tasks: Sequence[TaskConfig],
    tiling: TilingConfig,
    progress: Progress = silent,
) -> ImageSplits:
    """The data set's bags. What has to be drawn is written into ``folder``, once.

    Raises :class:`ConfigError` for tasks that the data set does not have, and if all images of a split have the
    same label; :class:`DatasetError` for data that are missing or broken.
    """
    if isinstance(data, MegapixelMnistConfig):
        splits = _megapixel_mnist(data, folder, tasks=tasks, tiling=tiling, progress=progress)
    else:
        splits = _traffic_signs(data, tasks=tasks, tiling=tiling)
    for task in tasks:
        for name in ("train", "val"):
            labels = {bag.targets[task.name] for bag in splits[name]}
            if splits[name] and len(labels) < 2:
                raise ConfigError(
                    f"all {len(splits[name])} images of split {name!r} have the same {task.name}: "
                    "there is nothing to tell apart; take more images"
                )
    return splits


def _megapixel_mnist(
    data: MegapixelMnistConfig,
    folder: Path,
    *,
    tasks: Sequence[TaskConfig],
    tiling: TilingConfig,
    progress: Progress,
) -> ImageSplits:
    megapixel_mnist_files.make_megapixel_mnist(folder, data, progress=progress)
    there = {"train": data.train, "val": data.val, "test": data.test}
    return {
        name: megapixel_mnist_files.image_bags(
            megapixel_mnist_files.read_split(folder / f"{name}.h5"), tasks=tasks, tiling=tiling
        )
        if count
        else []
        for name, count in there.items()
    }


def _traffic_signs(
    data: TrafficSignsConfig, *, tasks: Sequence[TaskConfig], tiling: TilingConfig
) -> ImageSplits:
    train = traffic_signs.read_split(data, "train")
    order = list(train)
    random.Random(0).shuffle(order)  # noqa: S311 - not a secret
    held_out = set(order[: round(data.val_share * len(order))])
    images = {
        "train": [image for image in train if image not in held_out],
        "val": [image for image in train if image in held_out],
        "test": traffic_signs.read_split(data, "test"),
    }
    return {
        name: traffic_signs.image_bags(found, data, split=name, tasks=tasks, tiling=tiling)
        for name, found in images.items()
    }
