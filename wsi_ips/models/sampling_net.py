"""The network of attention sampling: :class:`SamplingNet`, and the attention networks of the two published
models.

A coarse network looks at a small view, an encoder sees the patches that are sampled from its attention, and
heads read the expectation of their features. Source: Katharopoulos and Fleuret, ICML 2019, and its reference
code; initial weights are those of Keras.

Shape suffixes: B images or bags, C channels, H height, W width, h and w of the attention map, N samples, K all
positions of a bag, D feature width, P patch side, T queries.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wsi_ips.config import SamplingConfig
from wsi_ips.errors import ConfigError
from wsi_ips.models.coarse import Coarse
from wsi_ips.models.encoders.ats_encoders import as_keras, unit_range
from wsi_ips.models.heads import Heads
from wsi_ips.models.ips_net import BagNet, BagReading
from wsi_ips.models.sampling import (
    Samples,
    expectation,
    extract_patches,
    l2_normalised,
    patch_corners,
    rows_and_columns,
    sample,
    sample_softmax,
)


class AttentionNet(nn.Module):
    """Base class of networks that map a small view (B, C, H, W), uint8 or float in 0..1, to attention logits (B,
    h, w).

    ``receptive_field`` is that of a network without padding, in pixels of its input; 0 for a network that pads.
    """

    receptive_field = 0

    def penalty(self) -> Tensor:
        """A scalar that training adds to its loss; 0 here."""
        return torch.zeros(())


class MegapixelMnistAttention(AttentionNet):
    """Attention on Megapixel MNIST: three padded convolutions with tanh between them, one logit for each pixel.

    It has 737 weights for C = 1.
    """

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, 8, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(8, 1, 3, padding=1),
        )
        as_keras(self)

    def forward(self, low_BCHW: Tensor) -> Tensor:
        logits_B1hw: Tensor = self.layers(unit_range(low_BCHW))
        return logits_B1hw[:, 0]


class SpeedLimitsAttention(AttentionNet):
    """Attention on traffic signs: four convolutions without padding, then the maximum over 8 x 8 logits.

    It has 6,321 weights for C = 3.
    """

    receptive_field = 9
    L2 = 1e-5
    """Factor of the penalty on the weights."""

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        channels = (in_channels, 8, 16, 32)
        hidden = [nn.Conv2d(i, o, 3) for i, o in pairwise(channels)]
        self.hidden = nn.ModuleList(hidden)
        self.last = nn.Conv2d(channels[-1], 1, 3)
        self.pool = nn.MaxPool2d(8)
        as_keras(self)

    def forward(self, low_BCHW: Tensor) -> Tensor:
        x = unit_range(low_BCHW)
        for layer in self.hidden:
            x = layer(x).relu()
        logits_B1hw: Tensor = self.pool(self.last(x))
        return logits_B1hw[:, 0]

    def penalty(self) -> Tensor:
        """The L2 penalty of the reference code, on the kernels of the three hidden convolutions."""
        kernels = [weight for name, weight in self.hidden.named_parameters() if name.endswith("weight")]
        return self.L2 * torch.stack([kernel.square().sum() for kernel in kernels]).sum()


class Sampled(NamedTuple):
    """What :class:`SamplingNet` found in images.

    Attributes:
        features_BD: The expectation of the features of the patches under the attention.
        attention_Bhw: The whole attention map.
        patches_BNCPP: The patches that were looked at, in the order in which they were drawn.
    """

    features_BD: Tensor
    attention_Bhw: Tensor
    patches_BNCPP: Tensor


class SamplingNet(BagNet):
    """A network that looks only at patches sampled from a coarse attention.

    Args:
        encoder: Maps patches (n, ...) to features (n, C).
        coarse: For images an :class:`AttentionNet`, which maps a small view to a map of logits; for slides a
            :class:`Coarse`, which maps each window to a logit.
        heads: The classifiers. All of them read the same expectation of the normalised features.
        sampling: How many patches are drawn, and how.
        projector: Maps features to embeddings (n, D). None: they are the same.
    """

    def __init__(
        self,
        encoder: nn.Module,
        coarse: AttentionNet | Coarse,
        heads: Heads,
        *,
        sampling: SamplingConfig,
        projector: nn.Module | None = None,
    ) -> None:
        super().__init__(encoder, heads, projector=projector, coarse=coarse)
        self.sampling = sampling

    def forward(
        self,
        small_BCHW: Tensor,
        image_BCHW: Tensor,
        *,
        patch_px: int,
        generator: torch.Generator | None = None,
    ) -> Sampled:
        """Look at the small views, draw positions, and look at the patches there. Only for networks with an
        AttentionNet.

        Args:
            small_BCHW: Small views of the images, uint8 or float in 0..1.
            image_BCHW: The images in full resolution, of any size.
            patch_px: Patch side in pixels.
            generator: Random generator on the device of the images.

        Raises:
            ConfigError: More samples are wanted than the map has positions.
        """
        attention_net = self.coarse
        assert isinstance(attention_net, AttentionNet)
        attention_Bhw = sample_softmax(attention_net(small_BCHW), smoothing=self.sampling.smoothing)
        rows, columns = attention_Bhw.shape[1:]
        samples = self._drawn(attention_Bhw.flatten(1), self.sampling.samples, generator)
        corners_BN2 = patch_corners(
            rows_and_columns(samples.index_BN, columns),
            map_size=(rows, columns),
            low_size=(small_BCHW.shape[-2], small_BCHW.shape[-1]),
            high_size=(image_BCHW.shape[-2], image_BCHW.shape[-1]),
            patch_size=(patch_px, patch_px),
            receptive_field=attention_net.receptive_field,
        )
        patches_BNCPP = extract_patches(image_BCHW, corners_BN2, (patch_px, patch_px))
        pixels = patches_BNCPP.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        features_BND = self.encode(pixels).unflatten(0, samples.index_BN.shape)
        return Sampled(self._expected(samples.attention_BN, features_BND), attention_Bhw, patches_BNCPP)

    def encode(self, pixels: Tensor, *, turns: int = 1) -> Tensor:
        """Map patches (n, ...) to features (n, D) of length 1."""
        return l2_normalised(super().encode(pixels, turns=turns))

    def draw(self, logits_K: Tensor, *, generator: torch.Generator | None = None) -> tuple[Tensor, Samples]:
        """The attention (K,) of a slide, and its samples as a batch of one.

        Without replacement and with fewer than N positions, all positions are drawn.

        Args:
            logits_K: The logits of all positions.
            generator: Random generator on the device of the logits.
        """
        attention_K = sample_softmax(logits_K[None], smoothing=self.sampling.smoothing)[0]
        n = self.sampling.samples if self.sampling.replacement else min(self.sampling.samples, len(logits_K))
        return attention_K, self._drawn(attention_K[None], n, generator)

    def read_samples(
        self, features_KC: Tensor, attention_B: Sequence[Tensor], *, encoded: bool = False
    ) -> BagReading:
        """Read bags from their sampled patches.

        Args:
            features_KC: Output of the encoder for the patches of all bags in a row, those of each bag in the
                order of its draw. With ``encoded``, output of :meth:`encode`.
            attention_B: For each bag the attention (N,) at its samples.
            encoded: Whether the features have gone through the projector already.
        """
        features_KD = features_KC if encoded else l2_normalised(self.projector(features_KC))
        counts = [len(attention_N) for attention_N in attention_B]
        expected_BD = torch.cat(
            [
                self._expected(attention_N[None], features_ND[None])
                for attention_N, features_ND in zip(attention_B, features_KD.split(counts), strict=True)
            ]
        )
        return self.reading(expected_BD, nn.utils.rnn.pad_sequence(list(attention_B), batch_first=True))

    def reading(self, expected_BD: Tensor, attention_BN: Tensor) -> BagReading:
        """What the heads say of an expectation. ``attention_BN`` is the attention at the samples, or the whole
        map.
        """
        tokens_BTD = expected_BD[:, None].expand(-1, self.heads.queries, -1)
        logits = self.heads(tokens_BTD)
        attention_BHTN = attention_BN[:, None, None].expand(-1, 1, self.heads.queries, -1)
        return BagReading(logits, self.heads.probabilities(logits), tokens_BTD, attention_BHTN)

    def _drawn(self, attention_BK: Tensor, n: int, generator: torch.Generator | None) -> Samples:
        positions = attention_BK.shape[1]
        if n > positions and not self.sampling.replacement:
            raise ConfigError(
                f"selection.sampling.samples {n} is more than the {positions} positions of the attention map; "
                f"take {positions} or fewer, or sampling.replacement=true"
            )
        return sample(attention_BK, n, replacement=self.sampling.replacement, generator=generator)

    def _expected(self, attention_BN: Tensor, features_BND: Tensor) -> Tensor:
        return expectation(
            attention_BN,
            features_BND,
            replacement=self.sampling.replacement,
            gradient=self.sampling.gradient,
        )
