"""Real weights, of those encoders that this machine's hub cache holds: ``make encoders-real``.

The authors publish no reference vectors in a form that could be read here, so what is checked is that the file
fits the network strictly, that it is finite, and that the encoder's vectors are those of the plain network by the
published rule with Pillow.
"""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from wsi_ips.config import EncoderConfig
from wsi_ips.models.encoders.listing import cached_weights
from wsi_ips.models.encoders.registry import ENCODERS
from wsi_ips.models.encoders.timm_encoder import TimmEncoder

KERNELS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def stained_patch(side: int) -> Image.Image:
    """The immunohistochemistry picture that ships inside scikit-image."""
    return Image.fromarray(data.immunohistochemistry()).crop((100, 100, 100 + side, 100 + side))


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
def test_real_weights_fit_and_give_the_published_rule_s_vectors(name: str) -> None:
    entry = ENCODERS[name]
    if cached_weights(entry) is None:
        pytest.skip(f"the weights of {name} are not in the hub's cache: wsi-ips encoders {name}")
    encoder: Any = TimmEncoder(EncoderConfig(name=name)).eval()
    assert all(torch.isfinite(tensor).all() for tensor in encoder.state_dict().values())
    patch, transform = stained_patch(256), entry.transform
    pixels = torch.from_numpy(np.asarray(patch).copy()).permute(2, 0, 1)[None]
    side = transform.resize
    picture = np.asarray(patch.resize((side, side), KERNELS[transform.interpolation]))
    first = round((side - entry.input_px) / 2)
    centre = torch.from_numpy(picture[first : first + entry.input_px, first : first + entry.input_px].copy())
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (entry.mean, entry.std))
    x = (centre.permute(2, 0, 1)[None] / 255 - mean) / std
    with torch.no_grad():
        found = encoder(pixels)
        assert found.shape == (1, entry.width)
        assert (found - encoder._features(x)).abs().max() <= 1e-4
        if entry.output != "model":
            tokens = encoder.backbone.forward_features(x)
            assert (found[:, : tokens.shape[2]] - tokens[:, 0]).abs().max() <= 1e-4
    assert found.std() > 0
