"""How an encoder sees a patch, computes and learns.

:class:`Computing` says how exactly, and how fast, it computes where nothing is learned; :class:`LoraConfig` how
a large encoder learns with few weights.
"""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, field_validator

from wsi_ips.config.section import Section

Precision = Annotated[
    Literal["auto", "32", "bf16", "fp16"], BeforeValidator(lambda value: "32" if value == 32 else value)
]
"""``32`` is float32, ``bf16`` and ``fp16`` are mixed precision, ``auto`` is decided by encoder and device."""

IDENTITY = r"^[A-Za-z0-9._-]{1,120} [0-9a-f]{12} (file:[0-9a-f]{12}|[A-Za-z0-9._-]{1,120})$"
"""The form in which files of features say which encoder made them: its name, a digest of its settings, its weights
(:class:`wsi_ips.models.encoders.identity.EncoderIdentity`).
"""


class Computing(Section):
    """Settings of the jobs that run an encoder without learning, ``predict`` and ``features``."""

    precision: Precision = "auto"
    """What the encoder computes in; everything behind it stays float32. ``auto``: on a CUDA device the precision
    that ``wsi-ips encoders NAME`` states for a listed encoder, anywhere else and for any other encoder float32.
    ``bf16`` and ``fp16`` also run on CPUs without instructions for them, where they save no time.
    """
    compile: bool = False
    """Compile the encoder with ``torch.compile``, which takes a minute once and needs a C++ compiler (on a CPU)
    or Triton (on a GPU). Batches are filled up to ``streaming.batch``, so one program serves all of them.
    """


LARGEST_SIDE_PX = 4096
"""Largest side of a picture, in pixels."""
Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE_PX)]
"""A side of a picture, in pixels."""


class TransformConfig(Section):
    """Resize a square patch, then cut out its centre, both on grey levels 0 to 255."""

    resize: Side | None = None
    """Side in pixels that a patch is resized to. None: it is not resized."""
    crop: Side | None = None
    """Side in pixels of the centre that is kept after resizing. None: all of it."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """The kernel: Pillow's triangle, or its cubic with a = -0.5. (Without ``antialias``, that of PyTorch, a =
    -0.75.)
    """
    antialias: bool = True
    """Widen the kernel by the factor that the patch shrinks by, as Pillow always does."""


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
