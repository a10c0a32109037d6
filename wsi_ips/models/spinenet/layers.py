"""The pieces of a scale-permuted network: blocks, and what brings one block's output to another's scale.

Convolutions pad symmetrically, the pooling like TensorFlow's "SAME" (right and bottom first), as in the
reference (tensorflow/tpu, ``models/official/detection``). Both give ceil(width / stride).

Shape suffixes: n images, C channels, h rows, w columns.
"""

from collections.abc import Callable, Sequence
from functools import partial

from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.nn import functional

from wsi_ips.models.spinenet.specification import Kind

Norm = Callable[[int], nn.Module]
"""A layer that normalises so many channels."""
RowsColumns = tuple[int, int]

EXPANSION = {"bottleneck": 4, "residual": 1}
"""Channels that a block gives, over those of its 3x3 convolution."""


def activation(name: str) -> nn.Module:
    """``relu`` or ``swish`` (also called ``silu``)."""
    return nn.ReLU(inplace=True) if name == "relu" else nn.SiLU(inplace=True)


class ConvNorm(nn.Sequential):
    """Convolution without bias, norm, and the activation if there is one."""

    def __init__(
        self, n_in: int, n_out: int, *, kernel: int = 1, stride: int = 1, norm: Norm, act: str | None = None
    ) -> None:
        conv = nn.Conv2d(n_in, n_out, kernel, stride=stride, padding=(kernel - 1) // 2, bias=False)
        layers = [conv, norm(n_out)]
        if act is not None:
            layers.append(activation(act))
        super().__init__(*layers)


class ConvBlock(nn.Module):
    """A bottleneck or residual block with its shortcut, (n, C, h, w) to (n, C', h / stride, w / stride).

    drop_path: probability that a sample skips the convolutions in training.
    """

    def __init__(
        self, n_in: int, width: int, *, kind: Kind, stride: int, norm: Norm, act: str, drop_path: float
    ) -> None:
        super().__init__()
        n_out = width * EXPANSION[kind]
        layer = partial(ConvNorm, norm=norm)
        if kind == "bottleneck":
            self.convs = nn.Sequential(
                layer(n_in, width, act=act),
                layer(width, width, kernel=3, stride=stride, act=act),
                layer(width, n_out),
            )
        else:
            self.convs = nn.Sequential(
                layer(n_in, width, kernel=3, stride=stride, act=act), layer(width, n_out, kernel=3)
            )
        plain = n_in == n_out and stride == 1
        self.shortcut = nn.Identity() if plain else layer(n_in, n_out, stride=stride)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.act = activation(act)

    def forward(self, x_nChw: Tensor) -> Tensor:
        out: Tensor = self.act(self.drop_path(self.convs(x_nChw)) + self.shortcut(x_nChw))
        return out


class Resample(nn.Module):
    """A parent's output to the target's resolution and channels (Du et al. 2020, section 3.3).

    n_squeezed: channels in between, alpha times the parent's 3x3 width. steps: levels from parent to target,
    positive where the target is coarser.
    """

    def __init__(self, n_in: int, n_squeezed: int, n_out: int, *, steps: int, norm: Norm, act: str) -> None:
        super().__init__()
        self.steps = steps
        self.squeeze = ConvNorm(n_in, n_squeezed, norm=norm, act=act)
        self.down = (
            ConvNorm(n_squeezed, n_squeezed, kernel=3, stride=2, norm=norm, act=act) if steps > 0 else None
        )
        self.expand = ConvNorm(n_squeezed, n_out, norm=norm)

    def forward(self, x_nChw: Tensor, size: RowsColumns) -> Tensor:
        """(n, C, h, w) to (n, n_out, *size), without activation."""
        before = (x_nChw.shape[-2], x_nChw.shape[-1])
        x = self.squeeze(x_nChw)
        if self.down is not None:
            x = self.down(x)
            if self.steps > 1:
                x = pool_towards(x, before=before, size=size)
        if tuple(x.shape[-2:]) != size:
            x = functional.interpolate(x, size=size, mode="nearest")
        out: Tensor = self.expand(x)
        return out


def pool_towards(x_nChw: Tensor, *, before: RowsColumns, size: RowsColumns) -> Tensor:
    """One max-pool that brings a map, halved already from ``before``, close to ``size``.

    Per axis: stride half of before / size where that is whole, else 2; window 3 up to a factor of 4, else 5.
    """
    strides, windows = [], []
    for parent, target in zip(before, size, strict=True):
        if parent // target <= 2:
            strides.append(1)
            windows.append(1)
            continue
        strides.append(parent // target // 2 if parent % target == 0 else 2)
        windows.append(3 if parent / target <= 4 else 5)
    return max_pool_same(x_nChw, windows=windows, strides=strides)


def max_pool_same(x_nChw: Tensor, *, windows: Sequence[int], strides: Sequence[int]) -> Tensor:
    """Max-pool to ceil(size / stride) per axis (rows, columns); where padding is odd, more at the far end."""
    edges: list[int] = []
    for length, window, stride in zip(x_nChw.shape[-2:], windows, strides, strict=True):
        whole = max((-(-length // stride) - 1) * stride + window - length, 0)
        edges = [whole // 2, whole - whole // 2, *edges]  # functional.pad starts with the last axis
    if any(edges):
        x_nChw = functional.pad(x_nChw, edges, value=float("-inf"))
    return functional.max_pool2d(x_nChw, tuple(windows), tuple(strides))
