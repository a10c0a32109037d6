"""The proxy task: train a candidate a little, and score it on held-back data (Du et al. 2020, section 4).

:func:`prepare` reads the pictures once; they are stored as arrays that every candidate's process opens.
:func:`proxy_score` trains and scores one network.

Shape suffixes: n pictures, s their side, B boxes, K classes.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from wsi_ips.drawn.textures import TextureFile, read_textures, split_by_group
from wsi_ips.errors import DatasetError, TrainingError
from wsi_ips.models.spinenet.registry import create_spinenet
from wsi_ips.models.spinenet.specification import Specification
from wsi_ips.nuclei.config import DetectorConfig, DetectorTrainingConfig
from wsi_ips.nuclei.data import OutlinedImage, read_outlined_images, split_off
from wsi_ips.nuclei.models import Pyramid, build_retinanet
from wsi_ips.nuclei.scores import BY_IOU, chosen_threshold, found_in_images, score_found
from wsi_ips.nuclei.training import train_detector
from wsi_ips.search.config import ProxyConfig
from wsi_ips.storage.files import whole_file

PARTS = ("train", "held_back")
"""Parts of the data."""

Arrays = Mapping[str, NDArray[np.generic]]
"""Arrays by name."""

WARMUP_SHARE = 0.2
"""Share of the steps in which the learning rate rises."""

SCORED_AT_ONCE = 256
"""Pictures that are scored at once."""


def prepare(config: ProxyConfig) -> Arrays:
    """The arrays of a proxy task.

    Raises :class:`ManifestError`, :class:`DatasetError` or :class:`AnnotationError` for data that are missing,
    broken, or too few to hold any back.
    """
    if not config.folder.is_dir():
        raise DatasetError(config.folder, "no such folder", "name the proxy's data in proxy.folder")
    return _textures(config) if config.data == "textures" else _nuclei(config)


def digest(arrays: Arrays) -> str:
    """A hash of every name, shape and value."""
    hashed = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        hashed.update(f"{name} {array.shape} {array.dtype}".encode())
        hashed.update(np.ascontiguousarray(array).tobytes())
    return hashed.hexdigest()[:16]


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write arrays as ``.npz``, whole or not at all."""
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_arrays(path: Path) -> Arrays:
    """Read what :func:`write_arrays` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _textures(config: ProxyConfig) -> Arrays:
    """``train_pixels`` (n, s, s, 3) uint8 and ``train_labels`` (n,) int64; ``held_back_...`` from other
    sources.
    """
    textures = read_textures(config.folder, classes=config.classes)
    fractions = {"train": 1 - config.held_back, "held_back": config.held_back}
    arrays: dict[str, NDArray[np.generic]] = {}
    for part, files in split_by_group(textures, fractions=fractions, seed=0).items():
        if {texture.label for texture in files} != set(config.classes):
            raise DatasetError(
                config.folder, "has too few sources to hold some of each class back", "add sources"
            )
        arrays[f"{part}_pixels"] = np.stack([_shrunk(texture, config) for texture in files])
        arrays[f"{part}_labels"] = np.array([config.classes.index(texture.label) for texture in files])
    return arrays


def _shrunk(texture: TextureFile, config: ProxyConfig) -> NDArray[np.uint8]:
    size = (config.side_px, config.side_px)
    try:
        with Image.open(texture.path) as picture:
            coloured = picture.convert("L" if config.grey else "RGB").convert("RGB")
            # Pillow's BOX will do: all candidates of a search see the same pictures, and no slide is among them.
            return np.asarray(coloured.resize(size, Image.Resampling.BOX))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(texture.path, f"is no picture that can be read ({error})") from None


def _nuclei(config: ProxyConfig) -> Arrays:
    """For each picture ``<part>_<place>_pixels`` (height, width, 3) uint8 and ``..._boxes`` (B, 4) float32."""
    images = read_outlined_images(config.folder)
    back = max(1, round(config.held_back * len(images)))
    if back >= len(images):
        raise DatasetError(config.folder, f"has {len(images)} images; training and scoring need one each")
    arrays: dict[str, NDArray[np.generic]] = {}
    for part, chosen in zip(PARTS, split_off(images, back), strict=True):
        for place, image in enumerate(chosen):
            if min(image.rgb_HWC.shape[:2]) < config.side_px:
                raise DatasetError(image.name, f"is smaller than {config.side_px} px", "lower proxy.side_px")
            arrays[f"{part}_{place:04}_pixels"] = image.rgb_HWC
            arrays[f"{part}_{place:04}_boxes"] = image.boxes_N4
    return arrays


def outlined_images(arrays: Arrays, part: str) -> Sequence[OutlinedImage]:
    """The pictures of nuclei, outlined by their boxes."""
    names = sorted(name for name in arrays if name.startswith(part) and name.endswith("_pixels"))
    return [
        OutlinedImage(
            name,
            np.asarray(arrays[name], np.uint8),
            tuple(np.asarray(arrays[name.replace("_pixels", "_boxes")], np.float64).reshape(-1, 2, 2)),
        )
        for name in names
    ]


def proxy_score(
    specification: Specification, arrays: Arrays, config: ProxyConfig, device: torch.device
) -> float:
    """Train a network on the proxy task and score it; larger is better. :class:`ProxyConfig` explains the scores.

    On a CPU, the score depends on blocks, data and config only. Raises :class:`TrainingError` if the network's
    outputs are not finite.
    """
    torch.manual_seed(config.seed)
    score = (
        _texture_score(specification, arrays, config, device)
        if config.data == "textures"
        else _nuclei_score(specification, arrays, config, device)
    )
    if not np.isfinite(score):
        raise TrainingError("the network's outputs are not finite; lower proxy.lr")
    return score


def _texture_score(
    specification: Specification, arrays: Arrays, config: ProxyConfig, device: torch.device
) -> float:
    """Mean log-likelihood of the held-back pictures' classes."""
    net = create_spinenet(
        specification,
        num_classes=len(config.classes),
        width=config.width,
        alpha=config.alpha,
        endpoint_channels=config.endpoint_channels,
    ).to(device)
    net = net.to(memory_format=torch.channels_last)  # a quarter faster on a CPU
    _learn_textures(net, arrays, config, device)
    net.eval()
    pixels, labels = _tensors(arrays, "held_back")
    with torch.no_grad():
        logits_nK = torch.cat([net(_scaled(part.to(device))).cpu() for part in pixels.split(SCORED_AT_ONCE)])
    return -float(functional.cross_entropy(logits_nK, labels))


def _learn_textures(net: nn.Module, arrays: Arrays, config: ProxyConfig, device: torch.device) -> None:
    pixels, labels = _tensors(arrays, "train")
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / config.steps))
    net.train()
    for drawn in _batches(len(labels), config):
        batch = _turned(_scaled(pixels[drawn].to(device)), generator_seed=int(drawn[0]))
        loss = functional.cross_entropy(net(batch), labels[drawn].to(device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimizer.step()
        schedule.step()


def _rate(done: float) -> float:
    """Share of the learning rate after this share of the steps: a rise, then a cosine to zero."""
    if done < WARMUP_SHARE:
        return 0.1 + 0.9 * done / WARMUP_SHARE
    return 0.5 * (1 + math.cos(math.pi * (done - WARMUP_SHARE) / (1 - WARMUP_SHARE)))


def _batches(count: int, config: ProxyConfig) -> Iterator[Tensor]:
    """Indices of the pictures of each step; all pictures are used once before any is used again."""
    generator = torch.Generator().manual_seed(config.seed)
    left = torch.randperm(count, generator=generator)
    for _ in range(config.steps):
        while len(left) < config.batch:
            left = torch.cat([left, torch.randperm(count, generator=generator)])
        yield left[: config.batch]
        left = left[config.batch :]


def _turned(x_n3ss: Tensor, *, generator_seed: int) -> Tensor:
    """A whole batch, turned and mirrored in one of eight ways."""
    way = generator_seed % 8
    x_n3ss = torch.rot90(x_n3ss, way % 4, (2, 3))
    return x_n3ss.flip(3) if way >= 4 else x_n3ss


def _scaled(pixels_nss3: Tensor) -> Tensor:
    """uint8 pixels as (n, 3, s, s) float around 0, channels last."""
    return pixels_nss3.permute(0, 3, 1, 2).float().div(127.5).sub(1.0)


def _tensors(arrays: Arrays, part: str) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(arrays[f"{part}_pixels"]), torch.from_numpy(arrays[f"{part}_labels"])


def _nuclei_score(
    specification: Specification, arrays: Arrays, config: ProxyConfig, device: torch.device
) -> float:
    """F1 over the held-back pictures at the threshold that is best there: good for comparing, not for
    publishing.
    """
    detector = _detector(specification, config).to(device)
    training = DetectorTrainingConfig(
        steps=config.steps,
        crops_per_step=config.batch,
        crop_px=config.side_px,
        lr=config.lr,
        seed=config.seed,
    )
    for _ in train_detector(detector, outlined_images(arrays, "train"), training):
        pass
    held_back = outlined_images(arrays, "held_back")
    found = found_in_images(detector, held_back)
    threshold = chosen_threshold(found, held_back, BY_IOU)
    return score_found(found, held_back, BY_IOU, threshold=threshold).matches.f1


def _detector(specification: Specification, config: ProxyConfig) -> nn.Module:
    features = create_spinenet(
        specification,
        features_only=True,
        width=config.width,
        alpha=config.alpha,
        endpoint_channels=config.endpoint_channels,
    )
    pyramid = Pyramid(features, fpn=None, out_channels=config.endpoint_channels)
    heads = DetectorConfig(
        head_channels=config.head_channels,
        head_convs=config.head_convs,
        anchor_base=config.anchor_base,
    )
    detector: nn.Module = build_retinanet(heads, pyramid)
    return detector
