"""How a large encoder learns with few weights: :class:`LoraConfig`."""

from typing import Annotated

from pydantic import Field, PositiveFloat, field_validator

from wsi_ips.config.section import Section

LARGEST_RANK = 1024
"""Largest rank of an adapter."""
MOST_TARGETS = 64
"""Most names of layers that get an adapter."""


class LoraConfig(Section):
    """Low-rank adapters (LoRA: Hu et al. 2021) on an encoder whose own weights stay as they are.

    A layer with weights W returns W x + (alpha / rank) B A x, where A is (rank, inputs) and B is (outputs, rank).
    B begins at zero, so training begins with exactly the features of the encoder. A checkpoint holds A and B, and
    not the weights of the encoder.
    """

    rank: Annotated[int, Field(ge=1, le=LARGEST_RANK)] = 8
    """Width of the adapters."""
    alpha: PositiveFloat | None = None
    """The adapters count alpha / rank times. None: the same as ``rank``, so that they count once."""
    targets: Annotated[tuple[str, ...], Field(min_length=1, max_length=MOST_TARGETS)] = ("qkv", "proj")
    """Which layers get an adapter: the last part or parts of their names, such as ``qkv``, ``fc1`` or
    ``attn.proj``; ``*`` stands for any letters. Linear layers and 1x1 convolutions can have one; other layers of
    these names are left alone. The default are the attention layers of timm's transformers.
    """
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of what an adapter reads that is dropped in training."""
    norms: bool = False
    """Whether weight and bias of the normalisation layers learn as well."""
    base_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """SHA-256 of the encoder's own weights. Training fills it in, and a checkpoint is then refused on any other
    weights.
    """

    @field_validator("targets")
    @classmethod
    def _targets_are_names(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        for target in targets:
            if not target or len(target) > 200 or not all(part for part in target.split(".")):
                raise ValueError(f"{target[:80]!r} is not the name of a layer, such as qkv or attn.proj")
        return targets
