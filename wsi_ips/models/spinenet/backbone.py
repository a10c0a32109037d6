"""A scale-permuted network as a timm model, built from its specification: :class:`SpineNet`.

Its pieces come first: blocks, and :class:`Resample`, which brings the output of one block to the scale of
another. Convolutions pad symmetrically; the pooling pads like TensorFlow's "SAME", the odd one at the right and
the bottom, as in the reference (tensorflow/tpu, ``models/official/detection``). Both give ceil(width / stride).

Shape suffixes: n images, C channels, h rows, w columns, E channels of the outputs, K classes.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from timm.layers.drop import DropPath
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.nn import functional

from wsi_ips.errors import ConfigError
from wsi_ips.models.spinenet.specification import Kind, Specification

Norm = Callable[[int], nn.Module]
"""A function that makes a normalisation layer for so many channels."""
RowsColumns = tuple[int, int]
"""A size as (rows, columns)."""

EXPANSION = {"bottleneck": 4, "residual": 1}
"""Output channels of a kind of block, as a multiple of those of its 3x3 convolution."""
STEM_CHANNELS = 64
"""Channels of the first convolution, whatever the width factor."""
TRUNCATED_AT_2 = 0.87962566103423978
"""Standard deviation of a standard normal that is cut off at 2, by which the initialiser of TensorFlow divides."""


def activation(name: str) -> nn.Module:
    """The activation of this name: ``relu``, or ``swish`` (also called ``silu``)."""
    return nn.ReLU(inplace=True) if name == "relu" else nn.SiLU(inplace=True)


class ConvNorm(nn.Sequential):
    """A convolution without bias, its norm, and the activation ``act`` if there is one."""

    def __init__(
        self, n_in: int, n_out: int, *, kernel: int = 1, stride: int = 1, norm: Norm, act: str | None = None
    ) -> None:
        conv = nn.Conv2d(n_in, n_out, kernel, stride=stride, padding=(kernel - 1) // 2, bias=False)
        layers = [conv, norm(n_out)]
        if act is not None:
            layers.append(activation(act))
        super().__init__(*layers)


class ConvBlock(nn.Module):
    """A bottleneck or residual block with its shortcut: (n, C, h, w) to (n, C', h / stride, w / stride).

    ``drop_path`` is the probability that a sample skips the convolutions in training.
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
    """Brings the output of a parent to the resolution and the channels of its target (Du et al. 2020, section
    3.3).

    Args:
        n_in: Channels of the parent.
        n_squeezed: Channels in between: alpha times the width of the parent's 3x3 convolution.
        n_out: Channels of the target.
        steps: Levels from parent to target, positive if the target is coarser.
        norm: Makes the norms.
        act: Name of the activation.
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
        """Map (n, C, h, w) to (n, n_out, *size), without activation."""
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
    """One max-pool that brings a map, which was halved already from ``before``, close to ``size``.

    For each axis the stride is half of before / size if that is an integer, otherwise 2; the window is 3 up to a
    factor of 4, otherwise 5.
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
    """Max-pool to ceil(size / stride) for each axis (rows, columns). An odd padding is larger at the far end."""
    edges: list[int] = []
    for length, window, stride in zip(x_nChw.shape[-2:], windows, strides, strict=True):
        whole = max((-(-length // stride) - 1) * stride + window - length, 0)
        edges = [whole // 2, whole - whole // 2, *edges]  # functional.pad starts with the last axis
    if any(edges):
        x_nChw = functional.pad(x_nChw, edges, value=float("-inf"))
    return functional.max_pool2d(x_nChw, tuple(windows), tuple(strides))


class PermutedBlock(nn.Module):
    """Fuses the outputs of other blocks at its own scale, then runs its convolutions.

    Args:
        resamples: For each parent the module that brings its output here.
        loose: Blocks of the same scale whose outputs are added as they are.
        group: The convolutions.
        act: The activation behind the sum.
    """

    def __init__(
        self, resamples: Mapping[int, nn.Module], loose: Sequence[int], group: nn.Module, act: nn.Module
    ):
        super().__init__()
        self.resamples = nn.ModuleDict({str(parent): module for parent, module in resamples.items()})
        self.loose = tuple(loose)
        self.act = act
        self.group = group

    def forward(self, outputs: dict[int, Tensor], size: RowsColumns) -> Tensor:
        """The output (n, C, *size). ``outputs`` are those of the blocks built so far, by number."""
        inputs = [module(outputs[int(parent)], size) for parent, module in self.resamples.items()]
        inputs += [outputs[number] for number in self.loose]
        fused = inputs[0]
        for further in inputs[1:]:
            fused = fused + further
        out: Tensor = self.group(self.act(fused))
        return out


class SpineNet(nn.Module):
    """A scale-permuted network: images (n, ``in_chans``, h, w) float to logits (n, ``num_classes``).

    With ``num_classes=0`` it returns the pooled features. As published, the outputs P_l are brought to the
    finest scale by nearest-neighbour steps, averaged, and pooled to (n, E).

    Args:
        specification: Its blocks.
        num_classes: K, the number of classes.
        in_chans: Channels of a pixel.
        width: Factor on all channels but those of the first convolution.
        alpha: Channels inside a resampling, as a multiple of those of the parent.
        repeats: How many blocks follow each other in place of each.
        endpoint_channels: E, channels of every output. None leaves the outputs as they are, and only the
            coarsest one is pooled and classified.
        act_layer: ``relu``, ``swish`` or ``silu``.
        drop_rate: Dropout in front of the classifier.
        drop_path_rate: Probability that a sample skips the last block in training; it rises to this from block
            to block.
        norm_eps, norm_momentum: Of BatchNorm.
        global_pool: ``avg``, or empty for none.

    Raises:
        ConfigError: An option is not possible.
    """

    def __init__(
        self,
        specification: Specification,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        width: float = 1.0,
        alpha: float = 0.5,
        repeats: int = 1,
        endpoint_channels: int | None = 256,
        act_layer: str = "relu",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_eps: float = 1e-5,
        norm_momentum: float = 0.1,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        _check_options(act_layer, global_pool)
        self.specification = specification
        self.widths = {level: int(width * c) for level, c in specification.widths.items()}
        if min(self.widths.values()) < 1 or alpha <= 0 or repeats < 1:
            raise ConfigError(
                f"width {width}, alpha {alpha} and repeats {repeats} leave nothing of the network"
            )
        norm = partial(nn.BatchNorm2d, eps=norm_eps, momentum=norm_momentum)
        self.stem = ConvNorm(in_chans, STEM_CHANNELS, kernel=7, stride=2, norm=norm, act=act_layer)
        self._act, self._alpha, self._repeats = act_layer, alpha, repeats
        self.blocks = nn.ModuleDict(self._built(norm, drop_path_rate))
        self.endpoints = nn.ModuleDict(self._endpoints(endpoint_channels, norm))
        self.levels = self.kept_levels = tuple(specification.outputs)
        self.averaged = endpoint_channels is not None
        self.feature_info = self._feature_info(endpoint_channels)
        self.num_features = self.head_hidden_size = int(self.feature_info[-1]["num_chs"])
        self.in_chans, self.drop_rate, self.global_pool = in_chans, drop_rate, global_pool
        self.reset_classifier(num_classes)
        self.apply(_initialise)

    def forward(self, x_nChw: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x_nChw))

    def forward_features(self, x_nChw: Tensor) -> Tensor:
        """The average of all outputs at the scale of the finest one (n, E, h, w), or the coarsest output."""
        maps = self._maps(x_nChw, self.kept_levels)
        total = maps[-1]
        if not self.averaged:
            return total
        for finer in reversed(maps[:-1]):
            total = finer + functional.interpolate(total, size=finer.shape[-2:], mode="nearest")
        return total / len(maps)

    def forward_head(self, x_nEhw: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool, and classify unless ``pre_logits``: (n, E) or (n, K)."""
        x = x_nEhw.mean(dim=(2, 3)) if self.global_pool else x_nEhw
        x = functional.dropout(x, self.drop_rate, self.training)
        out: Tensor = x if pre_logits else self.fc(x)
        return out

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The interface of timm to the outputs by index, the finest being 0. ``norm`` and ``stop_early`` have no
        effect.
        """
        assert output_fmt == "NCHW", "output_fmt is NCHW"
        wanted, _ = feature_take_indices(len(self.levels), indices)
        maps = self._maps(x, [self.levels[index] for index in wanted])
        if intermediates_only:
            return maps
        return self.forward_features(x), maps

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop whatever these outputs do not depend on. Indices mean the same afterwards. Part of the interface
        of timm.
        """
        wanted, _ = feature_take_indices(len(self.levels), indices)
        self.kept_levels = tuple(self.levels[index] for index in sorted(set(wanted)))
        needed = self.specification.needed(self.kept_levels)
        for name in [name for name in self.blocks if int(name) not in needed]:
            del self.blocks[name]
        for name in [name for name in self.endpoints if int(name) not in self.kept_levels]:
            del self.endpoints[name]
        if prune_head:
            self.reset_classifier(0)
        return wanted

    def get_classifier(self) -> nn.Module:
        """The classifier. Part of the interface of timm."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by an untrained one, or by none for 0 classes. Part of the interface of timm."""
        self.num_classes = num_classes
        self.global_pool = self.global_pool if global_pool is None else global_pool
        self.fc: nn.Module = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def _maps(self, x_nChw: Tensor, levels: Sequence[int]) -> list[Tensor]:
        """The outputs of these levels in this order, (n, E, h / 2**level, w / 2**level), rounded up."""
        rows, columns = x_nChw.shape[-2:]
        sizes = {
            level: (-(-rows // 2**level), -(-columns // 2**level)) for level in set(self.specification.levels)
        }
        x = max_pool_same(self.stem(x_nChw), windows=(3, 3), strides=(2, 2))
        outputs: dict[int, Tensor] = {}
        stem = len(self.specification.stem)
        for name, block in self.blocks.items():
            number = int(name)
            if number < stem:
                outputs[number] = x = block(x)
            else:
                outputs[number] = block(outputs, sizes[self.specification.levels[number]])
        return [self.endpoints[str(level)](outputs[self.specification.outputs[level]]) for level in levels]

    def _channels(self, number: int) -> int:
        specification = self.specification
        return self.widths[specification.levels[number]] * EXPANSION[specification.kinds[number]]

    def _endpoints(self, endpoint_channels: int | None, norm: Norm) -> dict[str, nn.Module]:
        if endpoint_channels is None:
            return {str(level): nn.Identity() for level in self.specification.outputs}
        return {
            str(level): ConvNorm(self._channels(number), endpoint_channels, norm=norm, act=self._act)
            for level, number in self.specification.outputs.items()
        }

    def _feature_info(self, endpoint_channels: int | None) -> list[dict[str, Any]]:
        """The description of the outputs that timm wants, finest first."""
        return [
            {
                "num_chs": endpoint_channels or self._channels(number),
                "reduction": 2**level,
                "module": f"endpoints.{level}",
            }
            for level, number in self.specification.outputs.items()
        ]

    def _built(self, norm: Norm, drop_path_rate: float) -> dict[str, nn.Module]:
        specification, blocks = self.specification, dict[str, nn.Module]()
        n_in = STEM_CHANNELS
        for number, level in enumerate(specification.stem):
            rises = number > 0 and specification.stem[number - 1] < level
            blocks[str(number)] = self._group(number, n_in, norm, stride=2 if rises else 1, drop_path=0.0)
            n_in = self._channels(number)
        first, count = len(specification.stem), len(specification.blocks)
        for place, block in enumerate(specification.blocks):
            number = first + place
            group = self._group(
                number, self._channels(number), norm, stride=1, drop_path=drop_path_rate * (place + 1) / count
            )
            resamples = {parent: self._resample(parent, number, norm) for parent in block.parents}
            loose = specification.sources[number][len(block.parents) :]
            act = activation(self._act)
            blocks[str(number)] = PermutedBlock(resamples, loose, group, act)
        return blocks

    def _group(self, number: int, n_in: int, norm: Norm, *, stride: int, drop_path: float) -> nn.Module:
        """``repeats`` blocks in sequence. Only the first one changes channels or scale."""
        kind, width = self.specification.kinds[number], self.widths[self.specification.levels[number]]
        block = partial(ConvBlock, width=width, kind=kind, norm=norm, act=self._act, drop_path=drop_path)
        further = [block(self._channels(number), stride=1) for _ in range(self._repeats - 1)]
        return nn.Sequential(block(n_in, stride=stride), *further)

    def _resample(self, parent: int, target: int, norm: Norm) -> Resample:
        levels = self.specification.levels
        squeezed = max(1, int(self.widths[levels[parent]] * self._alpha))
        return Resample(
            self._channels(parent),
            squeezed,
            self._channels(target),
            steps=levels[target] - levels[parent],
            norm=norm,
            act=self._act,
        )


def _check_options(act_layer: str, global_pool: str) -> None:
    if act_layer not in ("relu", "swish", "silu"):
        raise ConfigError(f"act_layer is relu or swish, not {act_layer!r}")
    if global_pool not in ("", "avg"):
        raise ConfigError(f"global_pool is avg or nothing, not {global_pool!r}")


def _initialise(module: nn.Module) -> None:
    """Initialise as the reference does: convolutions normal, cut off at 2, with variance 1 / (inputs of an
    output).
    """
    if isinstance(module, nn.Conv2d):
        deviation = (module.weight[0].numel() ** -0.5) / TRUNCATED_AT_2
        nn.init.trunc_normal_(module.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)
