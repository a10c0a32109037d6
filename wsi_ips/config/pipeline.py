"""Sections put together: what a checkpoint remembers (:class:`PipelineConfig`), and all of a training
(:class:`FinetuneConfig`).

:class:`BatchConfig` says how the slides of a folder are shared out among processes.
"""

import math
from typing import Any, Literal, Self

from pydantic import (
    NonNegativeInt,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from wsi_ips.config.model import ModelConfig, SelectionConfig, TurnsConfig
from wsi_ips.config.section import Section
from wsi_ips.config.slides import StreamingConfig, TilingConfig
from wsi_ips.config.survival import FEWEST_PER_STEP
from wsi_ips.config.training import TrainingConfig
from wsi_ips.errors import ConfigError

HEAD_START_EPOCHS = 40
"""Epochs of the head start if they are not given."""
ALL_PATCHES_FIRST = 0.4
"""Share of the epochs that read all patches, if it is not given and the encoder does not learn."""
GENTLE_LR = 3e-5
"""Of an encoder behind a head that has learned on its features already."""
GENTLE_LORA_LR = 1e-4
"""Of the adapters of such an encoder."""


class PipelineConfig(Section):
    """What a checkpoint has to remember to predict as it was trained."""

    tiling: TilingConfig = TilingConfig()
    selection: SelectionConfig = SelectionConfig()
    model: ModelConfig = ModelConfig()
    bag: Literal["slide", "case"] = "slide"
    """What is one bag, with one label. ``slide``: every slide by itself; slides of a patient meet only when their
    answers are pooled. ``case``: all slides of a patient are streamed as one bag (early fusion): patches are
    selected among all of them, and the patient has one answer. See docs/patients.md.
    """

    @model_serializer(mode="wrap")
    def _as_before_where_a_slide_is_a_bag(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Store a configuration of slides as earlier versions did, so that fingerprints stay the same."""
        stored: dict[str, Any] = handler(self)
        if stored.get("bag") == "slide":
            stored.pop("bag")
        return stored

    @model_validator(mode="after")
    def _cases_can_be_bags(self) -> Self:
        if self.bag == "slide":
            return self
        if self.selection.is_coarse_to_fine or self.selection.way == "image_attention":
            raise ValueError(
                f"bag: case is read by selection.selector ips or all, not {self.selection.selector}: set one of "
                "these, or bag: slide"
            )
        if self.model.attention.positions == "raster":
            raise ValueError(
                "attention.positions: raster is a place in the grid of one slide, and bag: case has several: set "
                "positions to slide or none"
            )
        return self

    @model_validator(mode="after")
    def _kept_patches_can_be_turned(self) -> Self:
        if self.selection.turns != 1 and self.model.encoder.name == "features":
            raise ValueError(
                f"selection.turns: {self.selection.turns} turns the pixels of patches, and stored features have "
                "none: leave it out"
            )
        return self

    @model_validator(mode="after")
    def _coarse_look_can_be(self) -> Self:
        selection = self.selection
        if selection.selector == "attention_sampling" and self.model.aggregator is not None:
            raise ValueError(
                "attention sampling reads the mean of the patches that it draws: leave model.aggregator out, or "
                "take selection.selector: ips"
            )
        if not selection.is_coarse_to_fine:
            return self
        if self.model.encoder.name == "features":
            raise ValueError(
                f"selection.selector: {selection.selector} needs slides for its coarse scorer; stored features "
                "are read by ips, all and random"
            )
        if selection.selector == "attention_sampling" and self.model.attention.positions != "none":
            raise ValueError("attention sampling uses no positions: leave model.attention.positions at none")
        if selection.selector == "attention_sampling" and self.model.attention.layer_norm is not None:
            raise ValueError(
                "attention sampling has no head of attention: leave model.attention.layer_norm out"
            )
        coarse = selection.coarse
        if coarse.scorer in ("conv", "encoder") and coarse.mpp < self.tiling.patch_mpp:
            raise ValueError(
                f"selection.coarse.mpp {coarse.mpp:g} is finer than the patches' tiling.patch_mpp "
                f"{self.tiling.patch_mpp:g}: set it to {self.tiling.patch_mpp:g} or more"
            )
        return self

    def with_turns(self, asked: TurnsConfig) -> Self:
        """The same configuration with the turns that are asked for.

        Raises:
            ConfigError: The selector keeps no patches, or survival is told with a baseline hazard that was
                estimated with other turns.
        """
        selection = asked.added_to(self.selection)
        fitted = [
            task.name for task in self.model.tasks if task.survival and task.survival.baseline is not None
        ]
        if fitted and selection.turns != self.selection.turns:
            raise ConfigError(
                f"selection.turns: {selection.turns} does not go with task {fitted[0]!r}: its baseline hazard was "
                f"estimated with turns {self.selection.turns}, and survival would be wrong; leave it out"
            )
        return self.model_copy(update={"selection": selection})


class FinetuneConfig(PipelineConfig):
    """All settings of a training except its files: patches, selection, network, how slides are read, how it
    learns.

    The sections have the names that they have in a recipe of ``wsi-ips finetune``.

    >>> import wsi_ips as wi
    >>> config = wi.FinetuneConfig(tiling={"patch_px": 224}, training={"epochs": 30, "seed": 1})
    >>> config.training.epochs, config.tiling.patch_mpp, config.model.encoder.name
    (30, 0.5, 'resnet18')
    """

    streaming: StreamingConfig = StreamingConfig()
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _balance_has_classes(self) -> Self:
        tasks = self.model.tasks
        if self.training.sampling == "balanced" and not any(
            task.activation == "softmax" or (task.activation == "sigmoid" and len(task.classes) == 1)
            for task in tasks
        ):
            raise ValueError(
                "training.sampling: balanced needs a softmax task, or a sigmoid task of one class"
            )
        return self

    @model_validator(mode="after")
    def _weights_name_classes(self) -> Self:
        weights = self.training.class_weights
        if weights == "none":
            return self
        weighed = [task for task in self.model.tasks if task.activation != "linear"]
        if isinstance(weights, dict):
            classes = {task.name: task.classes for task in weighed}
            for task, given in weights.items():
                if task not in classes:
                    raise ValueError(
                        f"training.class_weights: no task {task!r} with classes; known: {[*classes]}"
                    )
                for name in set(given) - set(classes[task]):
                    known = ", ".join(classes[task])
                    raise ValueError(
                        f"training.class_weights: task {task} has no class {name!r}; known: {known}"
                    )
        return self

    @model_validator(mode="after")
    def _survival_can_be_learned(self) -> Self:
        tasks, training = self.model.tasks, self.training
        for wanted, kind in (("c_index", "survival"), ("kappa", "ordinal")):
            if training.monitor == wanted and all(task.kind != kind for task in tasks):
                raise ValueError(f"training.monitor: {wanted} needs a task of kind: {kind}")
        for task in tasks:
            its = task.survival
            if its is None or its.loss != "cox" or its.risk_set != "step":
                continue
            if training.slides_per_step < FEWEST_PER_STEP:
                raise ValueError(
                    f"task {task.name}: survival.risk_set: step compares the slides of a step alone, and "
                    f"training.slides_per_step is {training.slides_per_step}: set {FEWEST_PER_STEP} or more, or "
                    "risk_set: epoch"
                )
        return self

    @model_validator(mode="after")
    def _batch_statistics_need_one_graph(self) -> Self:
        encoder, training = self.model.encoder, self.training
        if encoder.batch_norm == "batch" and encoder.trainable and training.micro_batch is not None:
            raise ValueError(
                "batch_norm: batch takes its statistics over all patches of a step: set training.micro_batch=null"
            )
        return self

    @model_validator(mode="after")
    def _the_encoder_learns(self) -> Self:
        encoder, training = self.model.encoder, self.training
        learns = encoder.trainable and encoder.name != "features"
        for name in ("layer_decay", "encoder_checkpointing"):
            if getattr(training, name) and not learns:
                raise ValueError(
                    f"training.{name} is for an encoder that learns, and this one does not: leave it out"
                )
        return self

    @model_validator(mode="after")
    def _a_scorer_knows_the_encoder(self) -> Self:
        encoder = self.model.encoder
        if self.selection.scorer is None or encoder.features is not None:
            return self
        if encoder.trainable or encoder.batch_norm == "batch":
            raise ValueError(
                "selection.scorer scores the features of an encoder that does not change: set "
                "model.encoder.trainable=false and batch_norm: frozen, or leave selection.scorer out"
            )
        return self

    @model_validator(mode="after")
    def _selection_is_of_every_epoch(self) -> Self:
        if self.selection.selector != "ips" and self.training.select_every > 1:
            raise ValueError(
                f"selection.selector: {self.selection.selector} selects in every epoch: set "
                "training.select_every=1"
            )
        return self

    @model_validator(mode="after")
    def _collapse_is_of_attention_over_patches(self) -> Self:
        if self.training.against_collapse.is_on and self.selection.selector == "attention_sampling":
            raise ValueError(
                "training.against_collapse works on the attention over kept patches, which attention sampling "
                "does not have: leave it out"
            )
        return self

    @model_validator(mode="after")
    def _patience_waits_for_something(self) -> Self:
        if self.training.patience is not None and self.training.monitor == "last":
            raise ValueError(
                "training.patience waits for a better epoch, and with training.monitor: last every one is"
            )
        return self

    @model_validator(mode="after")
    def _restarts_are_cheap(self) -> Self:
        if self.training.restarts > 1 and not self.can_restart:
            raise ValueError(
                "training.restarts begins several times on stored features or in the head start, and this run has "
                "neither: set training.head_start.epochs, or leave restarts at 1"
            )
        return self

    @property
    def can_restart(self) -> bool:
        """Whether there is something that can be begun several times: the head start, or stored features."""
        return self.model.encoder.name == "features" or self.head_start_epochs > 0

    @property
    def head_start_epochs(self) -> int:
        """Epochs of the head start. 0: there is none."""
        asked, encoder = self.training.head_start.epochs, self.model.encoder
        if encoder.name == "features" or self.selection.selector == "attention_sampling":
            return 0
        if asked is not None:
            return asked
        begins = encoder.weights != "none" and self.training.start is None
        return HEAD_START_EPOCHS if begins and self.model.attention.block == "direct" else 0

    @property
    def encoder_lr(self) -> float:
        """Peak learning rate of the encoder, as ``training.encoder_lr`` says where it is given."""
        training = self.training
        if training.encoder_lr is not None:
            return training.encoder_lr
        knows_something = bool(self.head_start_epochs) or training.start is not None
        gentle = GENTLE_LR if self.model.encoder.lora is None else GENTLE_LORA_LR
        return min(training.lr, gentle) if knows_something else training.lr

    @property
    def all_patches_epochs(self) -> int:
        """How many epochs, from the first on, read all patches of a slide. Attention sampling has none."""
        share, encoder = self.training.all_patches_first, self.model.encoder
        if self.selection.selector != "ips":
            return 0
        if share is None and self.selection.scorer is not None:
            share = 0.0  # the scores are good from the beginning
        if share is None:
            learns = encoder.trainable and encoder.name != "features"
            share = 0.0 if learns or self.model.attention.block == "paper" else ALL_PATCHES_FIRST
        return math.ceil(share * self.training.epochs)

    @property
    def pipeline(self) -> PipelineConfig:
        """The sections that a checkpoint remembers."""
        return PipelineConfig(tiling=self.tiling, selection=self.selection, model=self.model, bag=self.bag)


class WorkersConfig(Section):
    """Which processes work on slides, one slide each at a time.

    Nothing here changes a result, except ``threads``: sums of floats have an order, so another number of threads
    may change a last bit.
    """

    workers: PositiveInt | None = None
    """Processes that work on a slide each. None: one per GPU if there are several, otherwise only this process."""
    threads: PositiveInt | None = None
    """CPU threads of a worker, to compute and to decode. None: workers of our own share the cores, and any other
    process keeps its defaults.
    """
    scheduler: str | None = None
    """Address of a running dask scheduler (``tcp://host:8786``) whose workers do it. None: workers of our own."""
    retries: NonNegativeInt = 2
    """How often a slide is given to another worker after the one that had it died."""


class BatchConfig(WorkersConfig):
    """Where slides are labelled, and what happens where one fails."""

    on_error: Literal["report", "stop"] = "report"
    """``report``: a slide that fails becomes a row, and the others finish. ``stop``: end with the first failure,
    once the slides in progress are done.
    """
    shard_patches: PositiveInt | None = None
    """Slides with more patches are scored in parts by several workers (only with ``selection.rule: global``).
    None: never.
    """
