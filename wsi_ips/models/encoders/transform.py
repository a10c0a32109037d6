"""How an encoder gets its picture from a patch: resize and crop, on the device of the patch.

:class:`PatchTransform` gives exactly the grey levels of Pillow, on any device.

Shape suffixes: n patches, P patch side, Q side of the picture.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from wsi_ips.config import EncoderConfig, TransformConfig
from wsi_ips.errors import ConfigError
from wsi_ips.models.encoders.entry import EncoderEntry

PRECISION_BITS = 22
"""Bits of Pillow's fixed-point weights for 8-bit pictures (``Resample.c``: 32 - 8 - 2)."""
CUBIC_A = -0.5
"""Parameter of Pillow's bicubic kernel."""
PATCHES_AT_ONCE = {"cpu": 4}
"""How many patches are resampled at a time by kind of device, so that the data stays in the cache of a
processor. Devices that are not listed take all patches at once.
"""
Taps = list[tuple[Tensor, Tensor]]
"""Pairs of places and weights, see :func:`pillow_taps`."""


@dataclass(frozen=True, slots=True)
class PatchTransform:
    """Resize to ``config.resize`` pixels, then keep the central ``config.crop`` pixels.

    The result is the same integers on any device. With ``antialias`` they are those that ``Image.resize`` of
    Pillow gives for an 8-bit picture, and so those of the ``torchvision`` transforms that the authors of
    encoders publish.
    """

    config: TransformConfig
    _taps: dict[tuple[int, str], Taps] = field(default_factory=dict, compare=False, repr=False)

    def __call__(self, pixels_n3PP: Tensor) -> Tensor:
        """Map patches (n, 3, P, P) to pictures (n, 3, Q, Q).

        A patch that is resized becomes uint8; floats in 0..1 are rounded to grey levels first. A patch that has
        its size already is returned as it is.

        Raises:
            ConfigError: A patch is smaller than the crop.
        """
        resize, crop = self.config.resize, self.config.crop
        if resize is not None and resize != pixels_n3PP.shape[-1]:
            pixels_n3PP = self._resized(_grey_levels(pixels_n3PP), resize)
        side = pixels_n3PP.shape[-1]
        if crop is None or crop == side:
            return pixels_n3PP
        if crop > side:
            raise ConfigError(
                f"encoder.transform: crop {crop} is larger than the patches of {side} px; set its resize"
            )
        first = round((side - crop) / 2)
        return pixels_n3PP[..., first : first + crop, first : first + crop]

    def _resized(self, pixels_n3PP: Tensor, side: int) -> Tensor:
        if not self.config.antialias:
            resized = functional.interpolate(
                pixels_n3PP.float(), size=(side, side), mode=self.config.interpolation, align_corners=False
            )
            return resized.round_().clamp_(0, 255).to(torch.uint8)
        taps = self._taps_for(pixels_n3PP.shape[-1], side, pixels_n3PP.device)
        at_once = PATCHES_AT_ONCE.get(pixels_n3PP.device.type, max(1, len(pixels_n3PP)))
        return torch.cat([_resampled(part, taps) for part in pixels_n3PP.split(at_once)])

    def _taps_for(self, length: int, side: int, device: torch.device) -> Taps:
        key = (length, str(device))
        if key not in self._taps:
            self._taps[key] = [
                (places.to(device), weights.to(device))
                for places, weights in pillow_taps(length, side, self.config.interpolation)
            ]
        return self._taps[key]


def patch_transform(config: EncoderConfig, entry: EncoderEntry | None) -> PatchTransform | None:
    """What is done to patches for this encoder. None if nothing is."""
    if isinstance(config.transform, TransformConfig):
        return PatchTransform(config.transform)
    if config.transform == "none" or entry is None:
        return None
    return PatchTransform(entry.transform)


def pillow_taps(length: int, side: int, interpolation: str) -> Taps:
    """Which pixels of a line make each pixel of a resized line, and with which integer weights.

    Source: Pillow's ``Resample.c``.

    Args:
        length: Number of pixels of the line.
        side: Number of pixels of the resized line.
        interpolation: ``bilinear`` or ``bicubic``.

    Returns:
        A list of (places, weights), int64 and int32 of shape (side,). Weights sum to about 2^22 over the list.
    """
    support, kernel = (1.0, _triangle) if interpolation == "bilinear" else (2.0, _cubic)
    scale = length / side
    widening = max(1.0, scale)
    reach = support * widening
    lines = []
    for new in range(side):
        centre = (new + 0.5) * scale
        first = max(0, int(centre - reach + 0.5))
        last = min(length, int(centre + reach + 0.5))
        raw = [kernel((place - centre + 0.5) / widening) for place in range(first, last)]
        total = sum(raw)
        lines.append((first, [_fixed(weight / total) for weight in raw]))
    most = max(len(weights) for _, weights in lines)
    taps = []
    for number in range(most):
        places = [min(first + number, length - 1) for first, _ in lines]
        weights = [weights[number] if number < len(weights) else 0 for _, weights in lines]
        # On the CPU even while networks are built on the meta device.
        taps.append(
            (
                torch.tensor(places, device="cpu"),
                torch.tensor(weights, dtype=torch.int32, device="cpu"),
            )
        )
    return taps


def _resampled(pixels_n3PP: Tensor, taps: Taps) -> Tensor:
    """Resample uint8 along rows, then along columns, with uint8 in between as Pillow does.

    The axis that is resampled comes second each time, so that whole lines are copied. The result is channels
    last in memory.
    """
    n, channels, height, width = pixels_n3PP.shape
    columns = _pass(pixels_n3PP.permute(0, 3, 2, 1).reshape(n, width, height * channels), taps)
    narrow = columns.shape[1]
    rows = columns.view(n, narrow, height, channels).transpose(1, 2).reshape(n, height, narrow * channels)
    return _pass(rows, taps).view(n, narrow, narrow, channels).permute(0, 3, 1, 2)


def _pass(lines: Tensor, taps: Taps) -> Tensor:
    """Map (n, lines, length) uint8 to other lines, each the rounded and clipped weighted sum of some lines."""
    total = torch.full((), 1 << (PRECISION_BITS - 1), dtype=torch.int32, device=lines.device)
    for places, weights in taps:
        term = lines.index_select(1, places).to(torch.int32)
        total = torch.addcmul(total, term, weights.view(1, -1, 1))
    return total.bitwise_right_shift_(PRECISION_BITS).clamp_(0, 255).to(torch.uint8)


def _grey_levels(pixels: Tensor) -> Tensor:
    if pixels.dtype == torch.uint8:
        return pixels
    return (pixels.float() * 255).round_().clamp_(0, 255).to(torch.uint8)


def _fixed(weight: float) -> int:
    """The weight as an integer, rounded half away from zero as a cast in C does."""
    scaled = weight * (1 << PRECISION_BITS)
    return int(scaled - 0.5) if weight < 0 else int(scaled + 0.5)


def _triangle(at: float) -> float:
    return max(0.0, 1 - abs(at))


def _cubic(at: float) -> float:
    at = math.fabs(at)
    if at < 1:
        return ((CUBIC_A + 2) * at - (CUBIC_A + 3)) * at * at + 1
    if at < 2:
        return (((at - 5) * at + 8) * at - 4) * CUBIC_A
    return 0.0
