"""Training of detectors on outlined images (:func:`train_detector`), and detection in a single image.

Shape suffixes: H rows, W columns, C colours, N boxes.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN

from wsi_ips.errors import DatasetError, TrainingError
from wsi_ips.nuclei.config import DetectorTrainingConfig
from wsi_ips.nuclei.data import OutlinedImage, boxes_within, drawn, rows_within

Target = dict[str, Tensor]
"""torchvision's targets: boxes (N, 4) float, labels (N,) int64 and, for Mask R-CNN, masks (N, H, W) uint8."""


def train_detector(
    detector: nn.Module, images: Sequence[OutlinedImage], config: DetectorTrainingConfig
) -> Iterator[float]:
    """Train a detector in place, on the device that it is on. Yields the loss of each step.

    The result depends only on ``config`` and its seed. Raises :class:`DatasetError` for an image smaller than a
    crop, and :class:`TrainingError` for a loss that is not finite.
    """
    for image in images:
        if min(image.rgb_HWC.shape[:2]) < config.crop_px:
            raise DatasetError(image.name, f"is smaller than a crop of {config.crop_px} px", "lower crop_px")
    device = next(detector.parameters()).device
    optimizer = torch.optim.AdamW(detector.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, config))
    rng = np.random.default_rng(config.seed)
    masks = isinstance(detector, MaskRCNN)
    detector.train()
    for step in range(config.steps):
        crops = [
            random_crop(images[int(rng.integers(len(images)))], config, rng, masks=masks)
            for _ in range(config.crops_per_step)
        ]
        pixels = [pixels.to(device) for pixels, _ in crops]
        targets = [{name: tensor.to(device) for name, tensor in target.items()} for _, target in crops]
        loss = torch.stack(list(detector(pixels, targets).values())).sum()
        if not torch.isfinite(loss):
            raise TrainingError(f"the detector's loss is not finite in step {step}; lower lr")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(detector.parameters(), config.gradient_clip)
        optimizer.step()
        schedule.step()
        yield loss.item()


def random_crop(
    image: OutlinedImage, config: DetectorTrainingConfig, rng: np.random.Generator, *, masks: bool = False
) -> tuple[Tensor, Target]:
    """A crop that is turned, mirrored and recoloured at random: (3, side, side) float in 0..1, and its targets.

    ``masks`` adds masks to the targets, for Mask R-CNN.
    """
    side = config.crop_px
    height, width = image.rgb_HWC.shape[:2]
    left, top = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
    rgb = image.rgb_HWC[top : top + side, left : left + side].astype(np.float32) / 255
    boxes = boxes_within(image.boxes_N4, left=left, top=top, side=side)
    rows = rows_within(image.boxes_N4, left=left, top=top, side=side) if masks else ()
    masks_NHW = drawn([image.outlines[row] for row in rows], left=left, top=top, side=side)
    for _ in range(int(rng.integers(4))):
        rgb, boxes, masks_NHW = np.rot90(rgb), _turned(boxes, side), np.rot90(masks_NHW, axes=(1, 2))
    if rng.integers(2):
        rgb, masks_NHW = rgb[:, ::-1], masks_NHW[:, :, ::-1]
        boxes = np.stack([side - boxes[:, 2], boxes[:, 1], side - boxes[:, 0], boxes[:, 3]], axis=1)
    factors = 1 + config.colour_jitter * rng.uniform(-1, 1, 3).astype(np.float32)
    pixels = torch.from_numpy(np.ascontiguousarray((rgb * factors).clip(0, 1).transpose(2, 0, 1)))
    labels = torch.ones(len(boxes), dtype=torch.int64)
    target = {"boxes": torch.from_numpy(np.ascontiguousarray(boxes)), "labels": labels}
    if masks:
        target["masks"] = torch.from_numpy(np.ascontiguousarray(masks_NHW))
    return pixels, target


def _turned(boxes_N4: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Boxes turned by a quarter counterclockwise, as ``np.rot90`` turns pixels: (x, y) to (y, side - x)."""
    left, top, right, bottom = boxes_N4.T
    return np.stack([top, side - right, bottom, side - left], axis=1)


def _rate(step: int, config: DetectorTrainingConfig) -> float:
    """Share of the learning rate at a step: a linear rise, then a cosine to zero."""
    warmup = config.warmup_share * config.steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, config.steps - warmup)))


@torch.no_grad()
def detect_in_image(
    detector: nn.Module, rgb_HWC: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What a detector in eval mode finds in an image, (H, W, 3) uint8: boxes (N, 4) and scores (N,), float32."""
    device = next(detector.parameters()).device
    pixels = torch.from_numpy(rgb_HWC.copy()).to(device).permute(2, 0, 1).float() / 255
    (found,) = detector([pixels])
    return found["boxes"].cpu().numpy(), found["scores"].cpu().numpy()
