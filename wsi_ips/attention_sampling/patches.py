"""From positions of an attention map to patches of the image in full resolution.

Source: the reference code of Katharopoulos and Fleuret 2019. Sizes are (height, width), places (row, column).

Shape suffixes: B images, N samples, C channels, H height, W width, P patch side.
"""

import torch
from torch import Tensor


def patch_corners(
    positions_BN2: Tensor,
    *,
    map_size: tuple[int, int],
    low_size: tuple[int, int],
    high_size: tuple[int, int],
    patch_size: tuple[int, int],
    receptive_field: int = 0,
) -> Tensor:
    """Top-left corners (B, N, 2) int64 (row, column) in the image of ``high_size``.

    A cell of the map covers (low - r) * scale / map pixels of it; the patch is centred on the cell, and the
    border of r / 2 that a network without padding does not see is skipped. receptive_field: r, in pixels of the
    image of ``low_size`` that the network saw; 0 for one that pads. Corners may lie outside the image.
    """

    def along(axis: int) -> Tensor:
        scale = high_size[axis] / low_size[axis]
        step = (low_size[axis] - receptive_field) * scale / map_size[axis]
        start = receptive_field / 2 * scale + step / 2 - patch_size[axis] / 2
        # torch.round rounds halves to even, as the reference does.
        return (start + positions_BN2[..., axis].double() * step).round().long()

    return torch.stack([along(0), along(1)], dim=-1)


def extract_patches(image_BCHW: Tensor, corners_BN2: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """(B, N, C, P, P), of the image's dtype and device: the patches at these corners, 0 outside the image."""
    height, width = image_BCHW.shape[-2:]
    corners_BN2 = corners_BN2.to(image_BCHW.device)
    rows_BNP = corners_BN2[..., :1] + torch.arange(patch_size[0], device=image_BCHW.device)
    columns_BNP = corners_BN2[..., 1:] + torch.arange(patch_size[1], device=image_BCHW.device)
    image_B = torch.arange(len(image_BCHW), device=image_BCHW.device)[:, None, None, None]
    patches_BNPPC = image_BCHW[
        image_B,
        :,
        rows_BNP.clamp(0, height - 1)[..., :, None],
        columns_BNP.clamp(0, width - 1)[..., None, :],
    ]
    inside_BNPP = ((rows_BNP >= 0) & (rows_BNP < height))[..., :, None] & (
        (columns_BNP >= 0) & (columns_BNP < width)
    )[..., None, :]
    return (patches_BNPPC * inside_BNPP[..., None]).permute(0, 1, 4, 2, 3)
