"""The encoders of the two published models of attention sampling.

:class:`MegapixelMnistEncoder` reads patches of Megapixel MNIST, :class:`SpeedLimitsEncoder` patches of traffic
scenes.

Source: Katharopoulos and Fleuret 2019, reference code. Initial weights are those of Keras: Glorot uniform,
biases 0.

Shape suffixes: n patches, C channels of a pixel, P patch side.
"""

from torch import Tensor, nn
from torch.nn import functional

from wsi_ips.models.encoders.network import ComputingModule

BATCH_NORM_EPS, BATCH_NORM_MOMENTUM = 1e-3, 0.01
"""Defaults of Keras. Its momentum, 0.99, is the share of the old value that is kept."""

WIDTH = 32
"""Width of the embeddings of both encoders, and of all their layers."""


class MegapixelMnistEncoder(ComputingModule):
    """Four convolutions without padding, then the global maximum: (n, C, P, P) to (n, 32).

    It has 29,344 weights for C = 1.
    """

    dim = WIDTH

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__()
        sizes = [(in_channels, 7), (WIDTH, 3), (WIDTH, 3), (WIDTH, 3)]
        self.layers = nn.ModuleList(nn.Conv2d(channels, WIDTH, size) for channels, size in sizes)
        as_keras(self)

    def forward(self, pixels_nCPP: Tensor) -> Tensor:
        """Encode pixels, uint8 or float in 0..1."""
        return self.computed(self._features, unit_range(pixels_nCPP))

    def _features(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        highest: Tensor = x.amax(dim=(2, 3))
        return highest


class SpeedLimitsEncoder(ComputingModule):
    """A pre-activation ResNet of three blocks: (n, C, P, P) to (n, 32).

    It has 59,680 weights for C = 3.
    """

    dim = WIDTH

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, WIDTH, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(*(_PreActivation(WIDTH, stride=2) for _ in range(3)))
        self.norm = _batch_norm(WIDTH)
        as_keras(self)

    def forward(self, pixels_nCPP: Tensor) -> Tensor:
        """Encode pixels, uint8 or float in 0..1."""
        return self.computed(self._features, unit_range(pixels_nCPP))

    def _features(self, x: Tensor) -> Tensor:
        x = self.norm(self.blocks(self.stem(x)))
        return x.relu().mean(dim=(2, 3))


class _PreActivation(nn.Module):
    def __init__(self, width: int, *, stride: int) -> None:
        super().__init__()
        self._stride = stride
        self.norm_1, self.norm_2 = _batch_norm(width), _batch_norm(width)
        self.shortcut = nn.Conv2d(width, width, 1, stride=stride, bias=False)
        self.conv_1 = nn.Conv2d(width, width, 3, stride=stride, bias=False)
        self.conv_2 = nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm_1(x).relu()
        deep: Tensor = self.conv_2(self.norm_2(self.conv_1(padded_same(x, 3, self._stride))).relu())
        shallow: Tensor = self.shortcut(x)
        return deep + shallow


def as_keras(module: nn.Module) -> None:
    """Initialise convolutions and linear layers as Keras does: Glorot uniform weights, biases 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def unit_range(pixels: Tensor) -> Tensor:
    """Pixels as float in 0..1: uint8 is divided by 255, floats stay as they are."""
    return pixels if pixels.is_floating_point() else pixels.float() / 255


def padded_same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Pad with zeros as TensorFlow's "same" does: an odd one goes to the right and the bottom."""
    pads = []
    for length in (x.shape[-1], x.shape[-2]):
        total = max((-(-length // stride) - 1) * stride + kernel - length, 0)
        pads += [total // 2, total - total // 2]
    return functional.pad(x, pads)


def _batch_norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM)
