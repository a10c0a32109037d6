"""Which of the tokens of a transformer become the embedding of a patch.

:func:`output_of` decides when the encoder is built, :func:`token_pool` picks the tokens in each forward pass.

Shape suffixes: n patches, P patch side, T tokens (class and registers first, then patches), D width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from wsi_ips.config import EncoderConfig
from wsi_ips.errors import ConfigError
from wsi_ips.models.encoders.entry import EncoderEntry, Output


def output_of(whole: Any, config: EncoderConfig, entry: EncoderEntry | None) -> Output:
    """What becomes the embedding: ``cls``, ``cls_mean``, or ``model`` for what the network or its stages pool
    themselves.

    Args:
        whole: The network.
        config: The settings of the encoder.
        entry: Its metadata, if it is listed.

    Raises:
        ConfigError: Tokens are wanted from a network that has none, or that normalises only its pooled features;
            or the network returns tokens and nobody says which ones are meant.
    """
    if config.pooling == "levels" or config.stage is not None:
        return "model"
    wanted: Output = config.pooling
    if wanted == "model" and entry is not None:
        wanted = entry.output
    if wanted == "model":
        if getattr(whole, "global_pool", None) == "":
            raise ConfigError(f"encoder {config.name} gives tokens: set encoder.pooling: cls or cls_mean")
        return wanted
    if getattr(whole, "cls_token", None) is None or not hasattr(whole, "forward_features"):
        raise ConfigError(f"encoder.pooling: {wanted} needs a class token, which {config.name} does not have")
    if not isinstance(getattr(whole, "fc_norm", nn.Identity()), nn.Identity):
        raise ConfigError(
            f"encoder.pooling: {wanted}: {config.name} norms only its pooled features; leave encoder.pooling out, "
            "or set encoder.args: {global_pool: token}"
        )
    return wanted


def token_pool(network: Any, pixels_n3PP: Tensor, output: Output) -> Tensor:
    """Map normalised pixels (n, 3, P, P) to the class token (n, D), or to it beside the mean of the patch tokens
    (n, 2 D).

    Registers are in neither.
    """
    tokens_nTD: Tensor = network.forward_features(pixels_n3PP)
    if output == "cls":
        return tokens_nTD[:, 0]
    return torch.cat([tokens_nTD[:, 0], tokens_nTD[:, network.num_prefix_tokens :].mean(dim=1)], dim=1)
