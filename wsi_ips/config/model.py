"""The settings that decide the network's shape (:class:`ModelConfig`) and which patches it reads
(:class:`SelectionConfig`).

Further sections belong to them: :class:`wsi_ips.config.encoder.EncoderConfig`, :class:`AttentionConfig` and
:class:`TaskConfig` to the model, :class:`CoarseConfig` and :class:`SamplingConfig` to the selection.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import (
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
from wsi_ips.config.encoder import EncoderConfig
from wsi_ips.config.section import FILLED_IN, Fraction, LayerWidth, Section
from wsi_ips.config.specification import READ_NO_FILE
from wsi_ips.config.survival import SurvivalConfig
from wsi_ips.errors import ConfigError
from wsi_ips.registry import check_known

LETTERS: Mapping[str, str] = MappingProxyType({"m": "memory_size", "i": "iteration_size"})
"""The letters of the paper for settings of the section ``selection``, and the names of these settings."""
PAPER_BLOCK: Mapping[str, float] = {
    "heads": 8,
    "key_dim": 64,
    "value_dim": 64,
    "inner_dim": 2048,
    "attention_dropout": 0.1,
    "dropout": 0.1,
}
"""The settings of the paper's block that are not given."""
DIRECT_PROJECT = 256
"""Width of the projector in front of the direct block if ``encoder.project`` is not given."""


class SamplingConfig(Section):
    """Attention sampling (Katharopoulos and Fleuret 2019)."""

    samples: PositiveInt = 10
    """N, how many positions are drawn. For a slide with fewer patches, all of them."""
    replacement: bool = False
    gradient: Literal["unbiased", "reference"] = "unbiased"
    """Which gradient reaches the attention, without replacement. ``reference``: as published, which is too short
    for two samples or more.
    """
    entropy: NonNegativeFloat = 1e-4
    """Strength of the regulariser that keeps the attention from collapsing."""
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 1e-5
    """Share of the attention that is spread evenly, so that every position can be drawn."""


class CoarseConfig(Section):
    """The coarse scorer: what it is, at which resolution it sees the slide, and how much of the tissue it lets
    through.
    """

    scorer: Literal["conv", "encoder", "megapixel_mnist", "speed_limits"] = "conv"
    """``conv``: a small network of its own, one window for each patch. ``encoder`` (cascade only): the encoder
    of the patches, shared, on patches of ``mpp``; each scores all fine patches within it. ``megapixel_mnist``,
    ``speed_limits`` (images only): the published attention networks.
    """
    mpp: PositiveFloat = 4.0
    """Resolution that the scorer sees, in µm per pixel; no finer than ``tiling.patch_mpp``. For images, in
    pixels.
    """
    context_px: NonNegativeInt = 0
    """``conv``: pixels of the surroundings that a window shows on each side of its patch."""
    channels: tuple[LayerWidth, ...] = (16, 32, 64)
    """``conv``: widths of its layers. Each but the first sees half as many pixels per side."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Cascade: the share of the patches of the tissue that is let through (rho)."""
    recall: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Cascade: instead of ``share``, the smallest share that lets through so much of the attention of a full
    pass, as measured on the validation split after training. None: ``share``.
    """
    explore: Fraction = 0.25
    """Cascade, in training: the part of the share that is drawn at random, so that what the scorer misses can be
    learned.
    """
    full_epochs: NonNegativeInt = 1
    """Cascade: epochs in which everything is let through, while the scorer learns what to look for."""


class ScorerConfig(Section):
    """A network that scores patches for the one that reads them. ``scorer: CHECKPOINT`` alone is the file."""

    checkpoint: Path | None = None
    """A checkpoint of ``finetune`` whose aggregator scores patches. What it learned stays as it is."""
    model: "ModelConfig | None" = Field(default=None, json_schema_extra=FILLED_IN)
    """Its network on the features of the encoder. Training fills this in, and checkpoints hold it."""
    sha256: str = Field(default="", json_schema_extra=FILLED_IN)
    """Of the checkpoint. Training fills this in."""

    @model_validator(mode="before")
    @classmethod
    def _a_file_alone(cls, value: Any) -> Any:
        return {"checkpoint": value} if isinstance(value, str | Path) else value

    @model_validator(mode="after")
    def _is_on_features(self, info: ValidationInfo) -> Self:
        if self.model is None and (self.checkpoint is None or info.context == READ_NO_FILE):
            raise ValueError(
                "selection.scorer names a checkpoint; a checkpoint holds the network of its scorer"
            )
        if self.model is not None and self.model.encoder.features is None:
            raise ValueError("selection.scorer.model works on features, so that it has no encoder of its own")
        return self


Turns = Literal[1, 4, 8]
"""The orientations that patches are read in: as they are, four quarter turns, or these and their mirror images."""
RANKING = ("ips", "cascade")
"""The selectors that rank patches and keep the first of them."""
OUR_SELECTORS = ("ips", "attention_sampling", "cascade", "all", "random")
"""The selectors that come with wsi_ips. Other packages add theirs under the entry point group
``wsi_ips.selectors``."""


class SelectionConfig(Section):
    """Which patches the label of a slide is read from."""

    selector: str = "ips"
    """``ips``: iterative patch selection over all patches (Bergner et al. 2023, section 3).
    ``attention_sampling``: patches are drawn from the attention of a coarse scorer. ``cascade``: IPS over the
    share of the tissue that a coarse scorer lets through. ``all``: every patch is read. An aggregator without a
    score for single patches needs ``all``, ``random`` or a ``scorer``; ``all`` suits stored features. Memory
    grows with the slide, in training up to ``training.most_patches``. ``random``: M patches drawn uniformly, the
    baseline that selection is compared with; in training, anew in every epoch. Or the name of a selector of
    another package.
    """
    rule: Literal["buffer", "global"] = "buffer"
    """``buffer``: the paper's running top-M memory; with several heads or queries it depends on the order of the
    patches, M and I. ``global``: the exact top M of one softmax over all patches, whatever their order; the kept
    patches are read and encoded a second time.
    """
    memory_size: PositiveInt = 64
    """M, how many patches are kept. ``m`` is the same setting."""
    iteration_size: PositiveInt = 64
    """I, how many new patches compete with the memory in one iteration of ``buffer``. ``i`` is the
    same setting.
    """
    sampling: SamplingConfig = SamplingConfig()
    """Settings of ``attention_sampling``."""
    coarse: CoarseConfig = CoarseConfig()
    """The coarse scorer of ``attention_sampling`` and ``cascade``."""
    scorer: ScorerConfig | None = None
    """``ips`` and ``cascade``: a checkpoint whose aggregator ranks the patches in place of the model's own, which
    reads those that are kept. It works on the features of the same encoder, which does not learn. None: the
    aggregator of the model.
    """
    turns: Turns = 1
    """``ips`` and ``cascade``: in how many orientations the kept patches are read: as they are, in four quarter
    turns, or in these and their mirror images. Their features are averaged. Patches are scored in one orientation
    whatever this is, and training shows them in one. Each kept patch is read a second time and encoded so often.
    """
    seed: NonNegativeInt = 0
    """``random``: seed of the draw at prediction and validation, which is the same for a slide whenever it is
    read. In training ``training.seed`` decides, with the epoch and the slide.
    """

    @model_validator(mode="before")
    @classmethod
    def _letters_of_the_paper(cls, values: Any) -> Any:
        """Take ``m`` and ``i`` as the paper has them, and as recipes and checkpoints of earlier versions do."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        for letter, name in LETTERS.items():
            if letter in values and name in values:
                raise ValueError(f"{letter} and {name} are the same setting: give one of them")
            if letter in values:
                values[name] = values.pop(letter)
        return values

    @model_serializer(mode="wrap")
    def _without_later_fields(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        dumped: dict[str, Any] = handler(self)
        # So that stored settings of earlier versions keep their fingerprints.
        for name in ("seed", "scorer", "turns"):
            if getattr(self, name) == type(self).model_fields[name].default:
                dumped.pop(name, None)
        return dumped

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
        """Whether attention sampling sees whole images, as published, with one of the published networks."""
        return self.selector == "attention_sampling" and self.coarse.scorer not in ("conv", "encoder")

    @property
    def way(self) -> str:
        """The name under which the registries know how a bag is read and learned from.

        It is the name of the selector, or ``image_attention`` for :attr:`reads_images`.
        """
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
        if self.scorer is not None and self.selector not in RANKING:
            raise ValueError(
                f"scorer goes with selector: ips or cascade, and {self.selector} ranks no patches by it: leave it "
                "out"
            )
        if self.turns != 1 and self.selector not in RANKING:
            raise ValueError(_no_turns(self.selector))
        return self


class TurnsConfig(Section):
    """The one setting that may be changed in the selection of a checkpoint."""

    turns: Turns | None = None
    """In how many orientations the kept patches are read, see :class:`SelectionConfig`. None: as the checkpoint
    says.
    """

    def added_to(self, selection: SelectionConfig) -> SelectionConfig:
        """The same selection with these turns. Raises :class:`ConfigError` if its selector keeps no patches."""
        if self.turns is None:
            return selection
        if self.turns != 1 and selection.selector not in RANKING:
            raise ConfigError(f"selection.turns: {_no_turns(selection.selector)}")
        return selection.model_copy(update={"turns": self.turns})


def _no_turns(selector: str) -> str:
    return f"turns goes with selector: ips or cascade, which keep some patches, not {selector}: leave it out"


class AttentionConfig(Section):
    """How the kept patches are read. ``attention: direct`` or ``attention: paper`` alone is the name of the
    block.
    """

    block: Literal["direct", "paper"] = "direct"
    """``direct``: the mean of the patches under each head goes straight to the classifier, and the contribution
    of each patch to a label is exact. ``paper``: the published cross-attention transformer (Bergner et al. 2023,
    section 3.2), with value projection, residual, LayerNorm and MLP in between. Settings that name ``value_dim``
    or ``inner_dim``, as those of earlier versions do, mean the paper's block.
    """
    heads: LayerWidth = 4
    """Heads of attention. The paper's block has 8 if not given."""
    key_dim: LayerWidth = 32
    """D_k, width of a key per head. The paper's block has 64 if not given."""
    value_dim: LayerWidth | None = None
    """D_v, width of a value per head, only for the paper's block: 64 if not given."""
    inner_dim: LayerWidth | None = None
    """Width of the hidden layer of the MLP, only for the paper's block: 2048 if not given."""
    attention_dropout: Fraction = 0.0
    """Share of the attention that is dropped in training. The paper's block has 0.1 if not given."""
    dropout: Fraction = 0.25
    """Share of the projected features that is dropped in training; in the paper's block, behind attention and
    MLP, 0.1 if not given.
    """
    layer_norm: bool | None = None
    """Only for the direct block: a LayerNorm without weights on each head's mean of the patches, behind which an
    encoder of random weights learns to select. A patch's contribution to a label stays exact. None: training
    decides. It turns it on with ``encoder.weights: none`` and writes that down. With ``training.start`` it does as
    that checkpoint does. A stored network without this setting has no LayerNorm there. Attention sampling and
    the networks of ``aggregator`` refuse it.
    """
    positions: Literal["none", "raster", "slide"] = "none"
    """``raster``: the paper's 1-D sinusoid over the raster index of a patch in its grid. ``slide``: 2-D
    sinusoids over its centre on the slide in µm, the same at any resolution and on a slide of any size.
    """
    wavelengths_um: tuple[PositiveFloat, PositiveFloat] = (256.0, 100_000.0)
    """Shortest and longest wavelength of ``positions: slide``, in µm. The default suits patches of 128 µm (256
    px at 0.5 µm): a wavelength shorter than two patches says nothing, and one longer than the slide tells its
    ends apart.
    """

    @model_validator(mode="before")
    @classmethod
    def _as_the_block_has_it(cls, value: Any) -> Any:
        """Fill in what differs between the blocks, so that a stored configuration is complete."""
        given = {"block": value} if isinstance(value, str) else value
        if not isinstance(given, Mapping):
            return given
        of_paper = {name for name in ("value_dim", "inner_dim") if given.get(name) is not None}
        block = given.get("block", "paper" if of_paper else "direct")
        if block == "direct" and of_paper:
            raise ValueError(
                f"{', '.join(sorted(of_paper))}: only block: paper has this, and the block is direct"
            )
        if block == "paper" and given.get("layer_norm") is not None:
            raise ValueError(
                "layer_norm: only block: direct has this; block: paper has LayerNorms of its own"
            )
        return {**(PAPER_BLOCK if block == "paper" else {}), **given, "block": block}

    @model_serializer(mode="wrap")
    def _as_before_without_layer_norm(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Store a configuration that says nothing of ``layer_norm`` as earlier versions did, so that their runs
        can be continued.
        """
        stored: dict[str, Any] = handler(self)
        if self.layer_norm is None:
            stored.pop("layer_norm", None)
        return stored

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
    """``label``: classes or numbers, as ``activation`` says. ``ordinal``: one class of several that are in
    order, lowest first, such as grades; one score decides between all of them (cumulative link). ``survival``:
    when an event happens, from the columns that ``survival`` names.
    """
    survival: SurvivalConfig | None = None
    """Only for ``kind: survival``."""
    column: str | None = None
    """The column of the manifest that holds the label. None: the one named like the task."""
    classes: tuple[str, ...] = ("normal", "tumor")
    """The classes; for a linear task, the names of its outputs."""
    activation: Literal["softmax", "sigmoid", "linear"] = "softmax"
    """``softmax``: one class of several. ``sigmoid``: each class by itself. ``linear``: numbers (regression)."""
    token: NonNegativeInt | None = None
    """Query token that the task reads. None: the one of its place among the tasks."""

    @field_validator("classes", mode="before")
    @classmethod
    def _classes_are_texts(cls, value: Any) -> Any:
        """Turn integers into texts and refuse others, because YAML reads 0 as a number and yes as a
        truth value.
        """
        if not isinstance(value, list | tuple):
            return value
        for name in value:
            if isinstance(name, bool | float):
                raise ValueError(
                    f"{name!r} is not a text: put the classes in quotes, as the manifest has them"
                )
        return [str(name) if isinstance(name, int) else name for name in value]

    @model_validator(mode="before")
    @classmethod
    def _survival_says_numbers(cls, value: Any) -> Any:
        """Derive the outputs of a survival task from its times."""
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
        """The column that the label is read from; for survival, that of the event."""
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
    """``{task: the query token that it reads}``: the one that its configuration names, or that of its
    own place.
    """
    return {task.name: place if task.token is None else task.token for place, task in enumerate(tasks)}


class ModelConfig(Section):
    """Everything that decides the shape of the network."""

    encoder: EncoderConfig = EncoderConfig()
    attention: AttentionConfig = AttentionConfig()
    aggregator: AggregatorConfig | None = None
    """What reads the kept patches in place of ``attention``: mean, max, abmil, clam_sb, clam_mb, dsmil,
    transmil, abmilx, or one of another package. ``direct`` and ``paper`` are the blocks of ``attention``. None:
    ``attention``. Of the settings of ``attention``, only the positions apply to an aggregator.
    """
    tasks: tuple[TaskConfig, ...] = (TaskConfig(),)
    """The labels that are learned, each a task with a column of the manifest."""

    @model_validator(mode="before")
    @classmethod
    def _blocks_are_aggregators(cls, value: Any) -> Any:
        """Take ``aggregator: direct`` as ``attention: direct``, so that the blocks can be listed beside the
        others.
        """
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
        """Store a configuration without an aggregator as earlier versions did, so that their runs can be
        continued.
        """
        stored: dict[str, Any] = handler(self)
        if self.aggregator is None:
            stored.pop("aggregator", None)
        return stored

    @property
    def project(self) -> int:
        """Width of the projector behind the encoder of a network with attention. 0: there is none."""
        if self.encoder.project is None:
            return DIRECT_PROJECT if self.attention.block == "direct" else 0
        return self.encoder.project

    @model_validator(mode="after")
    def _task_names_differ(self) -> Self:
        names = [task.name for task in self.tasks]
        if len(set(names)) != len(names) or not names:
            raise ValueError(f"tasks must be named and distinct, got {names}")
        return self
