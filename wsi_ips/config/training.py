"""The settings of how a network learns: :class:`TrainingConfig`."""

import math
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


def _weights_of_classes(value: Any) -> Any:
    """Say of weights that cannot be what is wrong with them, which the union below would not."""
    if not isinstance(value, Mapping):
        if value not in ("none", "balanced"):
            raise ValueError(f"write none, balanced, or {{task: {{class: weight}}}}, not {str(value)[:60]!r}")
        return value
    for task, given in value.items():
        if not isinstance(given, Mapping):
            raise ValueError(f"task {task}: write {{class: weight}}, not {str(given)[:60]!r}")
        for name, weight in given.items():
            try:
                fits = 0 < float(weight) < math.inf
            except (TypeError, ValueError, OverflowError):
                fits = False
            if not fits:
                raise ValueError(
                    f"task {task}, class {name}: a weight is a finite number greater than 0, not "
                    f"{str(weight)[:60]!r}"
                )
    return value


ClassWeights = Annotated[
    Literal["none", "balanced"] | dict[str, dict[str, PositiveFloat]], BeforeValidator(_weights_of_classes)
]
"""``balanced``: rare classes weigh as much as frequent ones, by the training labels. Or ``{task: {class:
weight}}``, where classes that are left out weigh 1.
"""


LATER_FIELDS = ("layer_decay", "encoder_checkpointing", "ema", "nodes")
"""Fields that are written only if they are set, so that runs of earlier versions can be continued."""
Monitor = Literal["loss", "refined_loss", "auc", "c_index", "kappa", "last"]
"""What the best epoch is chosen by."""


class AugmentConfig(Section):
    """Changes of stain and colour in training, drawn anew in every epoch. With all strengths 0 there are none."""

    per: Literal["slide", "patch"] = "slide"
    """One draw for all patches of a slide, because stain differs between slides; or one for every patch."""
    stain: Fraction = 0.0
    """The concentration of each stain (haematoxylin, eosin, the rest) is multiplied by 1 ± this. 0.2 is a lot."""
    stain_offset: Fraction = 0.0
    """And ± this is added, in optical density (base 10), which colours the background too. 0.02 is a lot."""
    brightness: Fraction = 0.0
    """Colour values are multiplied by 1 ± this."""
    contrast: Fraction = 0.0
    """The distance from middle grey is multiplied by 1 ± this."""
    saturation: Fraction = 0.0
    """The distance from the pixel's own grey is multiplied by 1 ± this."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Hue is turned by ± this share of the colour circle."""


class HeadStartConfig(Section):
    """The head start: what follows the encoder learns first, from features that the unchanged encoder computes
    of every patch once.

    It costs one pass over the slides and then seconds. When everything learns together afterwards, the patches
    are chosen by a scorer that already knows something.
    """

    epochs: NonNegativeInt | None = None
    """Epochs on the stored features. 0: no head start. None: 40 if the encoder has pretrained weights and
    ``model.attention`` is direct, otherwise 0.
    """
    lr: PositiveFloat = 3e-4
    weight_decay: NonNegativeFloat = 0.01
    slides_per_step: PositiveInt = 1
    views: Annotated[PositiveInt, Field(le=64)] = 4
    """Looks of every training patch that features are made of: the patch itself, and the others flipped, turned
    and coloured as ``training.flips`` and ``training.augment`` say. Each time that a slide is learned from, one of
    them is drawn for every patch. Costs so many passes over the training slides, and so much room; 1: the patches
    themselves alone."""
    keep_features: bool = False
    """Leave the features (float16) in the folder of the run. Otherwise they are deleted after the head start."""


class TrainingConfig(Section):
    """How a network learns. The schedule is that of IPS: linear warm-up, then a cosine to 0.001 of the peak; or
    steps.
    """

    epochs: PositiveInt = 40
    """How often the training slides are gone through."""
    warmup_epochs: NonNegativeFloat = 0.5
    slides_per_step: PositiveInt = 1
    """Slides whose kept patches are learned from together (the paper's B, which is 16 there). If it is not
    given, it is the number of processes, ``devices`` times ``nodes``.
    """
    head_start: HeadStartConfig = HeadStartConfig()
    """What is learned before everything is learned end to end."""
    all_patches_first: Fraction | None = None
    """Share of the epochs, from the first on, in which a label is read from all patches of a slide instead of
    the M that are selected, while the encoder stays as it is: a memory that is filled by a scorer that knows
    nothing can stay wrong. None: 0.4 in the head start, on stored features and if the encoder does not learn,
    with ``model.attention`` direct; otherwise 0, as in the paper.
    """
    most_patches: PositiveInt = 20_000
    """From a slide with more patches, so many are drawn anew each time that a label is read from all of them, so
    that the memory of the head does not grow with the slide.
    """
    restarts: PositiveInt = 1
    """Starts from different random weights, on stored features or in the head start. The one that validation
    prefers (``monitor``) goes on. Each takes seconds there.
    """
    lr: PositiveFloat = 3e-4
    """Peak learning rate of everything behind the encoder."""
    encoder_lr: PositiveFloat | None = None
    """Peak learning rate of the encoder. None: after a head start or from a checkpoint (``start``) it is 3e-5
    (1e-4 for adapters, ``model.encoder.lora``), or ``lr`` if that is lower, because larger steps undo what the
    head has learned; otherwise the same as ``lr``.
    """
    layer_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Each layer of the encoder learns at this many times the rate of the layer behind it, so that the first ones
    change least. 0.65 to 0.9 is usual. None: all at the same rate.
    """
    coarse_lr: PositiveFloat | None = None
    """Peak learning rate of the coarse scorer, which learns from scratch even where the rest is gently
    fine-tuned. None: the same as ``lr``.
    """
    weight_decay: NonNegativeFloat = 0.01
    gradient_clip: NonNegativeFloat = 0.0
    """Largest gradient norm; 0 leaves gradients alone."""
    clip: Literal["all", "weight"] = "all"
    """``all``: clip by the norm of all gradients together. ``weight``: clip each weight tensor by itself
    (Keras's clipnorm).
    """
    schedule: Literal["cosine", "steps"] = "cosine"
    """``steps``: the peak after the warm-up, and a tenth of the rate from each of ``drop_epochs`` on."""
    drop_epochs: tuple[PositiveInt, ...] = ()
    micro_batch: PositiveInt | None = 32
    """Patches that are taken back through the encoder at a time (gradient cache). It bounds memory and changes
    no gradient. None: all patches of a step in one graph, as an encoder with ``batch_norm: batch`` needs.
    """
    encoder_checkpointing: bool = False
    """Compute the blocks of the encoder once more in the backward pass instead of keeping what they made: a
    micro-batch takes several times less memory, and a step about a third longer. It changes no gradient.
    """
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Validate, and store as checkpoint, an exponential moving average of the weights, of which this share is
    left after each step (less in the first steps). 0.999 is about the last thousand steps. None: the weights
    themselves.
    """
    precision: Annotated[
        Literal["32", "bf16", "fp16"], BeforeValidator(lambda value: "32" if value == 32 else value)
    ] = "32"
    """What the encoder computes in when it selects, learns and is validated: float32, or mixed precision ``bf16``
    or ``fp16`` (with loss scaling, on a GPU only). Everything behind the encoder computes in float32.
    """
    deterministic: bool = False
    """The same bits each time on the same kind of GPU: no TF32 in convolutions, and only deterministic
    algorithms; slower. Otherwise PyTorch's defaults apply: convolutions in TF32 on NVIDIA GPUs that have it,
    matrix products in float32.
    """
    select_every: PositiveInt = 1
    """Epochs from one selection to the next. In between, the patches that were kept last are learned
    from again.
    """
    patience: PositiveInt | None = None
    """Training stops after so many epochs without a better one. None: never."""
    start: Path | None = None
    """Checkpoint to begin from: all of its weights, or, if it reads stored features, all but those of the
    encoder. None: the encoder's own weights, and the rest at random.
    """
    monitor: Monitor = "refined_loss"
    """What makes an epoch the best. ``loss``: the lowest validation loss. ``refined_loss``: the lowest
    validation loss at the best temperature (Berta et al. 2025), which does not count against a network that it
    has become too sure of itself; ``wsi-ips calibrate`` corrects that afterwards. If a task has no classes, it
    is the loss. ``auc``: the highest mean AUC over the tasks, which is coarse with few validation slides.
    ``last``: the last epoch, because a few dozen validation slides say less than epochs differ. ``c_index``: the
    highest mean of Harrell's C-index over the survival tasks. ``kappa``: that of the quadratic kappa over the
    ordinal tasks. A head start keeps its last epoch.
    """
    save_minutes: NonNegativeFloat = 5.0
    """Minutes between two saves of the state that a killed run resumes from. 0: after every step."""
    max_bad_slides: Fraction = 0.1
    """Share of the slides that may turn out to be unreadable, and are replaced, before training fails."""
    tensorboard: bool = False
    """Log losses and learning rates for TensorBoard too (needs the package tensorboard)."""
    devices: PositiveInt = 1
    """Processes to train with, one per GPU; each learns from its share of every step's slides."""
    nodes: PositiveInt = 1
    """Machines with ``devices`` processes each. More than one are started with torchrun, see
    docs/how_to/cluster.md.
    """
    flips: bool = True
    """Flip and rotate patches by quarter turns, seeded by (seed, epoch, slide, patch)."""
    augment: AugmentConfig = AugmentConfig()
    class_weights: ClassWeights = "none"
    """What classes weigh in the loss. For softmax: the weight of the slides of a class; for sigmoid: the weight
    of the presence of a class against its absence. ``balanced``: by how rare they are among the training slides.
    """
    sampling: Literal["shuffle", "balanced"] = "shuffle"
    """``shuffle``: every slide once per epoch. ``balanced``: every class equally often, with slides of rare
    classes several times, by the first softmax task or else the first sigmoid task of one class.
    """
    against_collapse: AgainstCollapseConfig = AgainstCollapseConfig()
    """What keeps attention from settling on a few patches early. Nothing by default."""
    seed: int = 0
    """Decides the first weights, the order of the slides and everything else that is drawn in training."""

    @model_serializer(mode="wrap")
    def _as_before_where_nothing_is_on(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Store a configuration with nothing switched on as earlier versions did, so that their runs can be
        continued.
        """
        stored: dict[str, Any] = handler(self)
        if self.against_collapse == AgainstCollapseConfig():
            stored.pop("against_collapse", None)
        for name in LATER_FIELDS:
            if getattr(self, name) == type(self).model_fields[name].default:
                stored.pop(name, None)
        return stored

    @model_validator(mode="before")
    @classmethod
    def _a_slide_for_each_device(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or "slides_per_step" in value:
            return value
        devices, nodes = value.get("devices", 1), value.get("nodes", 1)
        if not isinstance(devices, int) or not isinstance(nodes, int) or devices * nodes == 1:
            return value
        return {**value, "slides_per_step": max(1, devices * nodes)}
