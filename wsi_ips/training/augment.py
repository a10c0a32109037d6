"""Augmentation of patches: :func:`augment` flips, turns and colours them.

What happens to a patch is drawn from (seed, epoch, slide, patch) alone, so that the pass that scores a patch and
the one that learns from it see the same pixels. Stain and colour change each pixel by its own colour and the
draw; no mean over a patch enters, so that all patches of a slide can be changed alike.

Shape suffixes: n patches, P patch side, k draws, S stains, R G B colours, Y coordinates in YIQ.
"""

import math
from collections.abc import Sequence
from hashlib import sha256

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.color import hed_from_rgb, rgb_from_hed
from torch import Tensor

from wsi_ips.config import AugmentConfig
from wsi_ips.models.ips_net import turned

GREY = 127.5
"""The grey level that a change of contrast leaves alone."""
LUMA = (0.299, 0.587, 0.114)
"""What red, green and blue add to the brightness of a pixel."""
YIQ_FROM_RGB = np.array([LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)])
"""Matrix from RGB to YIQ, the colour space in which hue is turned."""
STAINS = 3
"""Number of stains: haematoxylin, eosin and a rest."""
DRAWS = 2 * STAINS + 4
"""Random numbers that a change of colour takes: a factor and an offset for each stain, and the four of colour
jitter.
"""


def augment(pixels: Tensor, ids_n: Tensor, *, key: str, config: AugmentConfig, flips: bool) -> Tensor:
    """Flip and turn patches, and change their stain and colour, as ``config`` says.

    What happens to a patch depends only on ``key`` and its id, or with ``per: slide`` its stain and colour only
    on ``key``; it does not depend on the chunk that the patch came in.

    Args:
        pixels: (n, 3, P, P) uint8 RGB on any device. Stored features (n, C) have no such symmetries and are
            returned as they are.
        ids_n: (n,) int64, the grid ids of the patches.
        key: Text made of seed, epoch and slide.
        config: Strengths of the changes of stain and colour.
        flips: Whether patches are flipped and turned.

    Returns:
        Pixels of the same shape, dtype and memory order, in a new tensor if anything changed.
    """
    if pixels.ndim != 4:
        return pixels
    if flips:
        pixels = quarter_turns_and_flips(pixels, ids_n, key=key)
    return stained_and_coloured(pixels, ids_n, key=key, config=config)


def quarter_turns_and_flips(pixels_n3PP: Tensor, ids_n: Tensor, *, key: str) -> Tensor:
    """Turn and mirror each patch by one of the eight symmetries of the square, drawn uniformly.

    Args:
        pixels_n3PP: Patches of any dtype.
        ids_n: (n,) int64, the grid ids of the patches.
        key: Text that the draw depends on.

    Returns:
        A new tensor of the same shape and dtype.
    """
    counters_n = ids_n.cpu().numpy().astype(np.uint64)
    symmetry_n = (_random_bits(counters_n, key) >> np.uint64(61)).astype(np.int64)
    shown = torch.empty_like(pixels_n3PP)
    if (
        pixels_n3PP.device.type == "cpu"
    ):  # one patch at a time stays in the processor's cache: 8 times as fast
        for row, symmetry in enumerate(symmetry_n):
            shown[row] = turned(pixels_n3PP[row], int(symmetry))
        return shown
    for symmetry in range(8):
        rows = torch.from_numpy(np.flatnonzero(symmetry_n == symmetry)).to(pixels_n3PP.device)
        shown[rows] = turned(pixels_n3PP[rows], symmetry)
    return shown


def stained_and_coloured(pixels_n3PP: Tensor, ids_n: Tensor, *, key: str, config: AugmentConfig) -> Tensor:
    """Change the stain of patches, then their colour.

    Stain (Tellez et al. 2019, "HED"): the optical density is unmixed into haematoxylin, eosin and a rest
    (Ruifrok and Johnston 2001); each concentration is multiplied by 1 ± ``stain``, ± ``stain_offset`` is added,
    and they are mixed again. Colour: brightness, contrast (about middle grey), saturation and hue (turned in
    YIQ), one after the other.

    Args:
        pixels_n3PP: uint8 RGB patches.
        ids_n: (n,) int64, the grid ids of the patches.
        key: Text that the draws depend on.
        config: Strengths of the changes.

    Returns:
        uint8 patches of the same shape; the very same tensor if all strengths are 0.
    """
    stain, colour = _strengths(config)
    if not (any(stain) or any(colour)) or not len(pixels_n3PP):
        return pixels_n3PP
    draws_nk = _draws(ids_n, key, per_slide=config.per == "slide")
    steps = {}
    if any(stain):
        steps["stain"] = _stain_changes(draws_nk[:, : 2 * STAINS] * stain)
    if any(colour):
        steps["colour"] = _colour_changes(draws_nk[:, 2 * STAINS :] * colour)
    device = pixels_n3PP.device
    changes = {
        name: torch.from_numpy(np.ascontiguousarray(matrix_n34, np.float32)).to(device)
        for name, matrix_n34 in steps.items()
    }
    changed = torch.empty_like(pixels_n3PP)
    # One patch at a time stays in the processor's cache, and is computed alike whatever chunk it came in.
    at_once = 1 if device.type == "cpu" else len(pixels_n3PP)
    for start in range(0, len(pixels_n3PP), at_once):
        rows = slice(start, start + at_once)
        _recolour(pixels_n3PP[rows], changed[rows], {name: change[rows] for name, change in changes.items()})
    return changed


def _draws(ids_n: Tensor, key: str, *, per_slide: bool) -> NDArray[np.float64]:
    """Random numbers (n, DRAWS) float64, uniform in -1..1."""
    counters_n = ids_n.cpu().numpy().astype(np.uint64)
    if per_slide:
        counters_n = np.zeros_like(counters_n)
    counters_nk: NDArray[np.uint64] = counters_n[:, None] * np.uint64(DRAWS) + np.arange(DRAWS).astype(
        np.uint64
    )
    # 53 bits fill the mantissa of a double.
    shares_nk = (_random_bits(counters_nk, f"{key}/colour") >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return 2 * shares_nk - 1


def _random_bits(counters: NDArray[np.uint64], key: str) -> NDArray[np.uint64]:
    """64 random bits for every counter under this key."""
    seed = np.uint64(int.from_bytes(sha256(key.encode()).digest()[:8], "little"))
    mixed = counters * np.uint64(0x9E3779B97F4A7C15) + seed
    # SplitMix64's finaliser (Steele, Lea, Flood 2014): neighbouring counters give unrelated bits.
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _recolour(pixels_n3PP: Tensor, changed_n3PP: Tensor, changes: dict[str, Tensor]) -> None:
    planes = [pixels_n3PP[:, channel].float() for channel in range(3)]
    if "stain" in changes:
        # +1, so that black has a density too. These are logarithms of intensity: density with the other sign.
        logs = [plane.add_(1).log_() for plane in planes]
        planes = [plane.exp_().sub_(1).clamp_(0, 255) for plane in _mixed(logs, changes["stain"])]
    if "colour" in changes:
        planes = _mixed(planes, changes["colour"])
    for channel, plane in enumerate(planes):
        changed_n3PP[:, channel] = plane.round_().clamp_(0, 255)


def _mixed(planes: Sequence[Tensor], change_n34: Tensor) -> list[Tensor]:
    """Each new plane (n, P, P) as a sum of the three planes and a constant.

    This is not a matrix product: those of three numbers are slow, and may round otherwise in another chunk.
    """
    factor = change_n34[:, :, :, None, None]
    return [
        torch.addcmul(factor[:, new, 3], planes[0], factor[:, new, 0])
        .addcmul_(planes[1], factor[:, new, 1])
        .addcmul_(planes[2], factor[:, new, 2])
        for new in range(3)
    ]


def _strengths(config: AugmentConfig) -> tuple[list[float], list[float]]:
    """Half-widths of what is drawn: factor and offset for each stain; the four of colour jitter."""
    stain = [config.stain] * STAINS + [config.stain_offset] * STAINS
    return stain, [config.brightness, config.contrast, config.saturation, config.hue]


def _stain_changes(change_nk: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 3, 4): the map of ln(value + 1) of the three colours, from factors - 1 and offsets of the stains."""
    factor_nS, offset_nS = 1 + change_nk[:, :STAINS], change_nk[:, STAINS:]
    mix_nRR = np.einsum("rs,ns,sc->ncr", hed_from_rgb, factor_nS, rgb_from_hed)
    white = math.log(256)
    shift_nR = white * (1 - mix_nRR.sum(axis=2)) - math.log(10) * offset_nS @ rgb_from_hed
    return np.concatenate([mix_nRR, shift_nR[:, :, None]], axis=2)


def _colour_changes(change_nk: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 3, 4): the map of colour values, from factors - 1 (for hue: the turn, as a share of the circle)."""
    brightness_n, contrast_n, saturation_n = (1 + change_nk[:, column] for column in range(3))
    angle_n = 2 * math.pi * change_nk[:, 3]
    turn_nYY = np.zeros((len(change_nk), 3, 3))
    turn_nYY[:, 0, 0] = 1
    turn_nYY[:, 1, 1] = turn_nYY[:, 2, 2] = np.cos(angle_n)
    turn_nYY[:, 2, 1] = np.sin(angle_n)
    turn_nYY[:, 1, 2] = -turn_nYY[:, 2, 1]
    hue_nRR = np.linalg.inv(YIQ_FROM_RGB) @ turn_nYY @ YIQ_FROM_RGB
    grey_RR = np.ones((3, 1)) * np.array(LUMA)
    saturation_nRR = saturation_n[:, None, None] * (np.eye(3) - grey_RR) + grey_RR
    mix_nRR = hue_nRR @ saturation_nRR * (brightness_n * contrast_n)[:, None, None]
    # Saturation and hue leave greys alone, so the grey of contrast goes through them unchanged.
    shift_nR = np.repeat((GREY * (1 - contrast_n))[:, None], 3, axis=1)
    return np.concatenate([mix_nRR, shift_nR[:, :, None]], axis=2)
