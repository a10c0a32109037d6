"""How a network learns."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from wsi_ips.config.aggregator import AgainstCollapseConfig
from wsi_ips.config.section import Fraction, Section

ClassWeights = Literal["none", "balanced"] | dict[str, dict[str, PositiveFloat]]
"""``balanced``: rare classes weigh as much as frequent ones, by the training labels. Or {task: {class: weight}};
classes left out weigh 1."""


Monitor = Literal["loss", "refined_loss", "auc", "c_index", "kappa", "last"]
"""What an epoch is chosen by."""


class AugmentConfig(Section):
    """Changes of stain and colour in training, drawn anew in every epoch. All strengths 0: none."""

    per: Literal["slide", "patch"] = "slide"
    """One draw for all patches of a slide, as stain differs between slides; or one for every patch."""
    stain: Fraction = 0.0
    """The concentration of each stain (haematoxylin, eosin, the rest) times 1 ± this. 0.2 is a lot."""
    stain_offset: Fraction = 0.0
    """And plus or minus this, in optical density (base 10); colours the background too. 0.02 is a lot."""
    brightness: Fraction = 0.0
    """Colour values times 1 ± this."""
    contrast: Fraction = 0.0
    """Distance from middle grey times 1 ± this."""
    saturation: Fraction = 0.0
    """Distance from the pixel's own grey times 1 ± this."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Hue turned by ± this share of the colour circle."""


class HeadStartConfig(Section):
    """What follows the encoder learns first, from features that the untouched encoder makes of every patch once.

    It costs one pass over the slides and then seconds, and what everything learns from together afterwards are
    patches that were chosen by a scorer that knows something already.
    """

    epochs: NonNegativeInt | None = None
    """Epochs on the stored features; 0: no head start. none: 40 where the encoder has weights to begin with and
    ``model.attention`` is direct, else 0."""
    lr: PositiveFloat = 3e-4
    weight_decay: NonNegativeFloat = 0.01
    slides_per_step: PositiveInt = 1
    views: Annotated[PositiveInt, Field(le=64)] = 4
    """Looks of every training patch that features are made of: the patch itself, and the others flipped, turned
    and coloured as ``training.flips`` and ``training.augment`` say. Each time that a slide is learned from, one of
    them is drawn for every patch. Costs so many passes over the training slides, and so much room; 1: the patches
    themselves alone."""
    keep_features: bool = False
    """Leave the features (float16) in the run's folder; they are deleted when the head start is over."""


class TrainingConfig(Section):
    """Optimisation. The schedule is IPS's: linear warm-up, then cosine to 0.001 of the peak; or steps."""

    epochs: PositiveInt = 40
    warmup_epochs: NonNegativeFloat = 0.5
    slides_per_step: PositiveInt = 1
    """Slides whose kept patches are learned from together (the paper's B, which is 16 there); with several
    ``devices`` as many as these, if not given."""
    head_start: HeadStartConfig = HeadStartConfig()
    """Before anything is learned end to end."""
    all_patches_first: Fraction | None = None
    """Share of the epochs, from the first on, in which a label is read from all patches of a slide instead of
    the M that selection keeps, while the encoder stays as it is: a memory that is filled by a scorer that knows
    nothing can stay wrong. none: 0.4 in the head start, on stored features and where the encoder does not learn,
    with ``model.attention`` direct; else 0, as in the paper."""
    most_patches: PositiveInt = 20_000
    """Of a slide with more patches, so many are drawn anew each time that a label is read from all of them: what
    the head needs in memory does not grow with the slide."""
    restarts: PositiveInt = 1
    """Beginnings from other random weights on stored features, or in the head start; what goes on is the one that
    validation prefers (``monitor``). Each takes seconds there."""
    lr: PositiveFloat = 3e-4
    encoder_lr: PositiveFloat | None = None
    """Peak learning rate of the encoder. none: 3e-5, or ``lr`` where that is lower, after a head start or from a
    checkpoint (``start``), since larger steps undo what the head has learned; else the same as ``lr``."""
    coarse_lr: PositiveFloat | None = None
    """Peak learning rate of what looks from afar, which begins from nothing even where the rest is gently
    fine-tuned; none: the same as ``lr``."""
    weight_decay: NonNegativeFloat = 0.01
    gradient_clip: NonNegativeFloat = 0.0
    """Largest gradient norm; 0 leaves gradients alone."""
    clip: Literal["all", "weight"] = "all"
    """``all``: the norm of all gradients together; ``weight``: of each weight tensor by itself (Keras's
    clipnorm)."""
    schedule: Literal["cosine", "steps"] = "cosine"
    """``steps``: after the warm-up the peak, a tenth of it from each of ``drop_epochs`` on."""
    drop_epochs: tuple[PositiveInt, ...] = ()
    micro_batch: PositiveInt | None = 32
    """Patches taken back through the encoder at a time (gradient cache): bounds memory, changes no gradient.
    none: all patches of a step in one graph, which an encoder with ``batch_norm: batch`` needs."""
    precision: Annotated[
        Literal["32", "bf16", "fp16"], BeforeValidator(lambda value: "32" if value == 32 else value)
    ] = "32"
    """``bf16``, ``fp16``: mixed precision (fp16 with loss scaling, on a GPU only)."""
    deterministic: bool = False
    """The same bits each time on the same kind of card: no TF32 in convolutions, deterministic algorithms only;
    slower. Without it PyTorch's defaults hold: convolutions in TF32 on NVIDIA cards that have it, matrix products
    in float32."""
    select_every: PositiveInt = 1
    """Epochs from one selection to the next; in between the patches kept last are learned from again."""
    patience: PositiveInt | None = None
    """Epochs without a better one after which training stops; none: never."""
    start: Path | None = None
    """Checkpoint to begin from: all of its weights, or, of one that reads stored features, all but the encoder's.
    none: the encoder's own weights, and the rest at random."""
    monitor: Monitor = "refined_loss"
    """What makes an epoch the best. ``loss``: the lowest validation loss. ``refined_loss``: the lowest validation
    loss at the best temperature (Berta et al. 2025), which does not hold it against a network that it has become
    too sure of itself; ``wsi-ips calibrate`` corrects that afterwards. Where a task has no classes it is the loss.
    ``auc``: the highest mean AUC over the tasks, coarse where validation slides are few. ``last``: that it is the
    last one; a few dozen validation slides say less than epochs differ. ``c_index``: the highest mean over the
    survival tasks of Harrell's C-index. ``kappa``: of the ordinal tasks' quadratic kappa. A head start keeps its
    last epoch."""
    save_minutes: NonNegativeFloat = 5.0
    """Time between two saves of the state that a killed run resumes from; 0: after every step."""
    max_bad_slides: Fraction = 0.1
    """Share of the slides that may turn out unreadable, and are replaced, before training fails."""
    tensorboard: bool = False
    """Log losses and learning rates for TensorBoard too (needs the package tensorboard)."""
    devices: PositiveInt = 1
    """Processes to train with, one per GPU; each learns from its share of every step's slides."""
    flips: bool = True
    """Flip and rotate patches by quarter turns, seeded by (seed, epoch, slide, patch)."""
    augment: AugmentConfig = AugmentConfig()
    class_weights: ClassWeights = "none"
    """What classes weigh in the loss. softmax: the weight of a class's slides; sigmoid: the weight of a class's
    presence against its absence. ``balanced``: by how rare they are among the training slides."""
    sampling: Literal["shuffle", "balanced"] = "shuffle"
    """``shuffle``: every slide once an epoch. ``balanced``: every class equally often, slides of rare ones several
    times; by the first softmax task, or else the first sigmoid task of one class."""
    against_collapse: AgainstCollapseConfig = AgainstCollapseConfig()
    """What keeps attention from settling on a few patches early; nothing by default."""
    seed: int = 0

    @model_serializer(mode="wrap")
    def _as_before_where_nothing_is_on(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Stored as earlier versions stored it where nothing is on, so that runs of theirs can go on."""
        stored: dict[str, Any] = handler(self)
        if self.against_collapse == AgainstCollapseConfig():
            stored.pop("against_collapse", None)
        return stored

    @model_validator(mode="before")
    @classmethod
    def _a_slide_for_each_device(cls, value: Any) -> Any:
        if (
            not isinstance(value, Mapping)
            or "slides_per_step" in value
            or not isinstance(value.get("devices"), int)
        ):
            return value
        return {**value, "slides_per_step": max(1, value["devices"])}
