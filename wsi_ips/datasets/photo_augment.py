"""Colour jitter and a shift of a whole photograph, drawn from a key: the same key, the same picture.

What torchvision's ColorJitter and RandomAffine(degrees=0) do, but not from its global random state: a photograph
is opened once to score its patches and again to learn from some of them.
"""

from collections.abc import Callable
from hashlib import sha256

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional

OFTEN = 0.8
"""How often attention sampling changes a training image, in each way."""


def jitter_and_shift(
    photo_HWC: NDArray[np.uint8], *, key: str, jitter: float, most_shift_px: int
) -> NDArray[np.uint8]:
    """Brightness, contrast and saturation times 1 - ``jitter`` to 1 + ``jitter``, hue turned by up to ``jitter``
    of the circle, in random order; then moved by up to ``most_shift_px`` along each axis, black where it left.

    photo_HWC: (H, W, 3) uint8; a new array is returned.
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
    """Attention sampling's: values times 0.8 to 1.2 plus -0.1 to 0.1 of full, and a shift by up to
    ``most_shift_px`` along each axis, black where it left; each of the two in 8 of 10 draws. A new array."""
    rng = _rng(key)
    change, factor, offset = rng.random() < OFTEN, rng.uniform(0.8, 1.2), rng.uniform(-0.1, 0.1)
    move, shifts = rng.random() < OFTEN, rng.uniform(-most_shift_px, most_shift_px, 2)
    if change:
        photo_HWC = np.rint(photo_HWC * factor + 255 * offset).clip(0, 255).astype(np.uint8)
    right, down = (round(shift) if move else 0 for shift in shifts)
    return shifted(photo_HWC, right=right, down=down)


def seen_small(photo_HWC: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    """(round(H * scale), round(W * scale), C) uint8, bilinear without anti-aliasing, as TensorFlow resizes."""
    height, width = (max(1, round(side * scale)) for side in photo_HWC.shape[:2])
    x_1CHW = torch.from_numpy(photo_HWC).permute(2, 0, 1)[None].float()
    small_1Chw = torch.nn.functional.interpolate(x_1CHW, (height, width), mode="bilinear", antialias=False)
    return small_1Chw[0].permute(1, 2, 0).round().to(torch.uint8).numpy()


def _rng(key: str) -> np.random.Generator:
    return np.random.default_rng(np.frombuffer(sha256(key.encode()).digest(), np.uint32))


def shifted(image_HWC: NDArray[np.uint8], *, right: int, down: int) -> NDArray[np.uint8]:
    """The image moved by whole pixels, black where it left. A new array."""
    height, width = image_HWC.shape[:2]
    result = np.zeros_like(image_HWC, order="C")
    if abs(down) < height and abs(right) < width:
        result[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = image_HWC[
            max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)
        ]
    return result
