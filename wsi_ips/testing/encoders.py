"""What every patch encoder must do, whatever it computes.

Shape suffixes: n patches, P patch side, D width of embeddings.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wsi_ips.config import EncoderConfig
from wsi_ips.models.encoders.registry import ENCODER_REGISTRY
from wsi_ips.models.encoders.timm_encoder import TimmEncoder
from wsi_ips.registry import Registry
from wsi_ips.testing.own_names import OwnNameContract

PATCHES = 5


class EncoderContract(OwnNameContract):
    """Subclass with ``name``, as ``model.encoder.name`` has it; or override :meth:`made`.

    patch_px: P, a side that the encoder takes.
    """

    name: str
    patch_px = 64

    def registry(self) -> Registry[Any]:
        return ENCODER_REGISTRY

    def made(self) -> nn.Module:
        """The encoder, with random weights; called twice it may give two networks with different weights."""
        return TimmEncoder(EncoderConfig(name=self.name, weights="none"))

    @pytest.fixture
    def encoder(self) -> nn.Module:
        """The encoder as it is used in prediction."""
        return self.made().eval()

    @pytest.fixture
    def pixels(self) -> Tensor:
        """(5, 3, P, P) uint8, in the order that patches have in memory: channels last."""
        size = (PATCHES, 3, self.patch_px, self.patch_px)
        drawn = torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
        return drawn.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def test_a_patch_becomes_a_vector_of_the_width_that_it_says(
        self, encoder: nn.Module, pixels: Tensor
    ) -> None:
        emb_nD = encoder(pixels)
        assert emb_nD.shape == (PATCHES, encoder.dim)
        assert emb_nD.dtype == torch.float32
        assert torch.isfinite(emb_nD).all()

    @torch.no_grad()
    def test_the_same_patch_has_the_same_embedding(self, encoder: nn.Module, pixels: Tensor) -> None:
        before = pixels.clone()
        first, second = encoder(pixels), encoder(pixels)
        assert torch.equal(first, second)
        assert torch.equal(pixels, before)

    @torch.no_grad()
    def test_other_pixels_have_another_embedding(self, encoder: nn.Module, pixels: Tensor) -> None:
        emb_nD = encoder(pixels)
        apart_nn = torch.cdist(emb_nD, emb_nD) + torch.eye(PATCHES)
        assert (apart_nn > 0).all()

    @torch.no_grad()
    def test_a_patch_is_encoded_by_itself(self, encoder: nn.Module, pixels: Tensor) -> None:
        """Neither the number nor the order of the patches that it comes with matters."""
        together = encoder(pixels)
        one_by_one = torch.cat([encoder(patch[None]) for patch in pixels])
        backwards = encoder(pixels.flip(0)).flip(0)
        scale = float(together.abs().max())
        torch.testing.assert_close(one_by_one, together, rtol=1e-4, atol=1e-5 * scale)
        torch.testing.assert_close(backwards, together, rtol=1e-4, atol=1e-5 * scale)

    @torch.no_grad()
    def test_pixels_may_be_bytes_or_shares_of_one(self, encoder: nn.Module, pixels: Tensor) -> None:
        as_bytes, as_shares = encoder(pixels), encoder(pixels.float() / 255)
        torch.testing.assert_close(as_shares, as_bytes, rtol=1e-3, atol=1e-4 * float(as_bytes.abs().max()))

    @torch.no_grad()
    def test_its_weights_are_all_that_a_checkpoint_needs(self, encoder: nn.Module, pixels: Tensor) -> None:
        again = self.made()
        again.load_state_dict(encoder.state_dict())
        assert torch.equal(again.eval()(pixels), encoder(pixels))

    def test_gradients_reach_its_weights(self, encoder: nn.Module, pixels: Tensor) -> None:
        weights = [weight for weight in encoder.parameters() if weight.requires_grad]
        if not weights:
            pytest.skip("nothing in it can be learned")
        encoder(pixels).square().sum().backward()
        given = [weight.grad for weight in weights if weight.grad is not None]
        assert given
        assert all(torch.isfinite(gradient).all() for gradient in given)
        assert any(gradient.any() for gradient in given)
