"""Attention sampling as a network: a look from afar, an encoder of sampled patches, heads on their expectation.

Source: Katharopoulos and Fleuret, ICML 2019, and its reference code.

Shape suffixes: B bags, C channels, N samples, K all positions of a bag, D feature width, P patch side, T queries,
h and w of the map.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wsi_ips.attention_sampling.attention_map import l2_normalised, sample_softmax
from wsi_ips.attention_sampling.expectation import expectation
from wsi_ips.attention_sampling.patches import extract_patches, patch_corners
from wsi_ips.attention_sampling.sampling import Samples, rows_and_columns, sample
from wsi_ips.config import SamplingConfig
from wsi_ips.errors import ConfigError
from wsi_ips.models.attention_nets import AttentionNet
from wsi_ips.models.bag_net import BagNet, BagReading
from wsi_ips.models.coarse import Coarse
from wsi_ips.models.heads import Heads


class Sampled(NamedTuple):
    """features_BD: the expectation of the patches' features under the attention. attention_Bhw: the whole map.
    patches_BNCPP: what was looked at, in the order in which it was drawn."""

    features_BD: Tensor
    attention_Bhw: Tensor
    patches_BNCPP: Tensor


class SamplingNet(BagNet):
    """encoder: patches (n, ...) to features (n, C). coarse: of images, a small view to a map of logits; of slides,
    windows to a logit each. heads read the expectation of the normalised features, all of them the same."""

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
        """Look at the small views, draw, and look at the patches drawn: features, attention, patches.

        Of networks with an :class:`AttentionNet`. uint8, or float in 0..1; images of any size. ``generator``:
        on the images' device. Raises :class:`ConfigError` for more samples than the map has positions.
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

    def encode(self, pixels: Tensor) -> Tensor:
        """Patches (n, ...) to features (n, D) of length 1."""
        return l2_normalised(self.projector(self.encoder(pixels)))

    def draw(self, logits_K: Tensor, *, generator: torch.Generator | None = None) -> tuple[Tensor, Samples]:
        """A slide's attention (K,) and its samples (B = 1): all of its positions where it has fewer than N."""
        attention_K = sample_softmax(logits_K[None], smoothing=self.sampling.smoothing)[0]
        n = self.sampling.samples if self.sampling.replacement else min(self.sampling.samples, len(logits_K))
        return attention_K, self._drawn(attention_K[None], n, generator)

    def read_samples(
        self, features_KC: Tensor, attention_B: Sequence[Tensor], *, encoded: bool = False
    ) -> BagReading:
        """Read bags from their sampled patches.

        features_KC: what the encoder made of the patches of all bags in a row, each bag's in the order of its
        draw; ``encoded``: what :meth:`encode` made of them. attention_B: (N,) of each bag, of its samples.
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
        """What the heads say of an expectation. attention_BN: the map at the samples, or all of it."""
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
