"""From what is to be read and how fast a machine is to hours, memory and disk: :func:`cost_of`.

One pass over a slide takes the longer one of decoding and encoding, and that part of the shorter one which the
machine does not hide behind it. A training is passes (a selection in each epoch, validation, the head start's
looks) and kept patches that are learned from. :func:`halvings` asks the same function about recipes that
differ in one setting.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from wsi_ips.config import FinetuneConfig
from wsi_ips.models.encoders.registry import entry_of
from wsi_ips.planning.rates import Rates
from wsi_ips.planning.simulated import Peaks
from wsi_ips.planning.survey import SplitSurvey, Survey
from wsi_ips.planning.work import Work

MB = 2**20
BYTES_OF_A_PATCH = 28
"""What a run remembers of where a patch lies: an id, a corner and its share of tissue."""
OVERLAY_MB = 2.0
"""An overlay of 2048 px as PNG, an estimate."""
ALMOST_HALF = 0.6
"""A setting that leaves so much of the time or memory, or less, is said to halve it."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the run.

    Attributes:
        name: What is done.
        seconds: How long, in all. None: not known.
        each_epoch: Seconds in an epoch; 0 for what is done once.
        does: ``decoding``, ``encoding``, ``learning`` or ``other``: which of these takes most of it.
    """

    name: str
    seconds: float | None
    each_epoch: float = 0.0
    does: str = "other"


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run takes.

    Attributes:
        stages: Its parts, in order.
        passes_per_epoch: Patches through the encoder in an epoch, forwards or backwards.
        passes: The same in all.
        ram_mb: Peak memory of the process. None: not known.
        vram_mb: Peak memory of a card. None on a CPU.
        disk_mb: Bytes that stay, in millions.
        scratch_mb: Bytes that are deleted again before the end.
    """

    stages: tuple[Stage, ...]
    passes_per_epoch: float
    passes: float
    ram_mb: float | None
    vram_mb: float | None
    disk_mb: float
    scratch_mb: float

    @property
    def seconds(self) -> float:
        """All stages whose time is known together."""
        return math.fsum(stage.seconds for stage in self.stages if stage.seconds is not None)

    @property
    def not_known(self) -> tuple[str, ...]:
        """The stages whose time is not known."""
        return tuple(stage.name for stage in self.stages if stage.seconds is None)

    @property
    def epoch_seconds(self) -> float:
        """An epoch, as far as it is known."""
        return math.fsum(stage.each_epoch for stage in self.stages)

    @property
    def dominating(self) -> Stage | None:
        """The stage that takes longest, of those whose time is known."""
        known = [stage for stage in self.stages if stage.seconds is not None]
        return max(known, key=lambda stage: stage.seconds or 0.0, default=None)


@dataclass(frozen=True, slots=True)
class Halving:
    """What a single other setting would do.

    Attributes:
        setting: As on a command line.
        time: The share of the time that is left; None if it is not known.
        memory: The share of the peak memory that is left (of the card's, where there is one).
        changes: Whether it changes what is computed, and not only how.
    """

    setting: str
    time: float | None
    memory: float | None
    changes: bool


def cost_of(work: Work, survey: Survey, rates: Rates, peaks: Peaks) -> Cost:
    """What the work takes on a machine.

    Args:
        work: The work.
        survey: What is to be read.
        rates: How fast the machine is.
        peaks: Simulated memory of the network.
    """
    of_kind = {"finetune": _training, "predict": _labels, "features": _features}[work.kind]
    stages, per_epoch, passes, disk_mb, scratch_mb = of_kind(work, survey, rates, peaks)
    return Cost(
        tuple(stages),
        per_epoch,
        passes,
        _ram_mb(work, survey, rates, peaks),
        _vram_mb(work, rates, peaks),
        disk_mb,
        scratch_mb,
    )


Found = tuple[list[Stage], float, float, float, float]
"""Stages, encoder passes in an epoch and in all, MB that stay and MB that do not."""


@dataclass(frozen=True, slots=True)
class _Pass:
    """Seconds of passes over slides."""

    seconds: float | None
    does: str


def pass_over(
    survey: Survey, rates: Rates, config: FinetuneConfig, *splits: str, looks: float = 1.0, shown: float = 0.0
) -> _Pass:
    """One pass over the slides of these splits: every patch is decoded once and encoded ``looks`` times, of which
    ``shown`` times augmented."""
    patches = survey.total("patches", *splits).value
    if rates.forward_s is None or rates.megapixel_s is None:
        return _Pass(None, "other")
    threads = min(config.streaming.threads, rates.cores)
    megapixels = survey.total("megapixels", *splits).value
    decoding = (rates.megapixel_s * megapixels + rates.patch_s * patches) / threads
    encoding = patches * (looks * rates.forward_s + shown * rates.shown_s)
    longer, shorter = max(decoding, encoding), min(decoding, encoding)
    opening = rates.open_s * survey.readable(*splits)
    return _Pass(
        longer + (1 - rates.hidden) * shorter + opening, "decoding" if decoding > encoding else "encoding"
    )


def _tissue(survey: Survey, rates: Rates, *splits: str) -> Stage:
    """Opening slides and finding tissue. Imagined slides took the survey no time."""
    seconds = survey.total("cpu_seconds" if rates.clock == "cpu" else "seconds", *splits).value
    if rates.tissue_s is not None:
        seconds = rates.tissue_s * survey.readable(*splits)
    return Stage("finding tissue", None if math.isnan(seconds) else seconds)


def _start(rates: Rates) -> Stage:
    return Stage("starting", rates.start_s or 0.0)


def _scaled(stage: _Pass, name: str, times: float) -> Stage:
    return Stage(name, None if stage.seconds is None else stage.seconds * times, does=stage.does)


def _labels(work: Work, survey: Survey, rates: Rates, peaks: Peaks) -> Found:
    slides, patches = survey.readable(), survey.total("patches").value
    one = pass_over(survey, rates, work.config)
    share = work.networks / work.workers
    kept = slides * kept_of(work.config, survey)
    again, passes = _again(work.config, rates, kept)
    after = slides * (rates.store_s + (rates.overlay_s if work.overlays else 0.0)) / work.workers
    stages = [
        _start(rates),
        replace(
            tissue := _tissue(survey, rates),
            seconds=None if tissue.seconds is None else tissue.seconds / work.workers,
        ),
        _scaled(one, "selecting and labelling", share),
        Stage("reading kept patches again", again * share),
        Stage("storing and drawing", after),
    ]
    return (
        [stage for stage in stages if stage.seconds is None or stage.seconds > 0],
        patches,
        (patches + passes) * work.networks,
        labels_disk_mb(work, survey),
        0.0,
    )


def _again(config: FinetuneConfig, rates: Rates, kept: float) -> tuple[float, float]:
    """Seconds and encoder passes for ``kept`` patches that a slide's label is read from, where selection does not
    hold their embeddings, or where they are read in several orientations."""
    selection = config.selection
    if selection.rule != "global" and selection.turns == 1:
        return 0.0, 0.0
    return kept * (selection.turns * (rates.forward_s or 0.0) + rates.reread_s), kept * selection.turns


def labels_disk_mb(work: Work, survey: Survey) -> float:
    """MB of the stored attention of these slides, and of their pictures."""
    queries = sum(max(1, len(task.classes)) for task in work.config.model.tasks)
    heads = work.config.model.attention.heads
    each = BYTES_OF_A_PATCH + 4 * (heads * queries + queries)
    pictures = survey.readable() * (OVERLAY_MB if work.overlays else 0.0)
    return survey.total("patches").value * each / 1e6 + pictures


def _features(work: Work, survey: Survey, rates: Rates, peaks: Peaks) -> Found:
    patches = survey.total("patches").value
    one = pass_over(survey, rates, work.config)
    stages = [_start(rates), _tissue(survey, rates), _scaled(one, "encoding every patch", 1.0)]
    size = 2 if work.half else 4
    disk = patches * (peaks.width * size * work.copies + BYTES_OF_A_PATCH) / 1e6
    return stages, patches, patches, disk, 0.0


def kept_of(config: FinetuneConfig, survey: Survey, *splits: str) -> float:
    """Patches of a slide that are learned from, in the mean."""
    mean = survey.mean_patches(*splits)
    if config.selection.selector == "all":
        return min(mean, config.training.most_patches)
    return min(mean, config.selection.memory_size)


def _training(work: Work, survey: Survey, rates: Rates, peaks: Peaks) -> Found:
    config, training = work.config, work.config.training
    epochs, devices = training.epochs, max(1, training.devices)
    slides, val = survey.readable("train"), survey.readable("val")
    patches, val_patches = (survey.total("patches", split).value for split in ("train", "val"))
    selecting = config.selection.selector in ("ips", "cascade", "attention_sampling")
    selections = math.ceil(epochs / training.select_every) if selecting else 0
    selections = max(0, selections - config.all_patches_epochs)
    augmented = 1.0 if training.flips or training.augment != type(training.augment)() else 0.0
    share = config.selection.coarse.share if config.selection.selector == "cascade" else 1.0
    one = pass_over(survey, rates, config, "train", shown=augmented)
    check = pass_over(survey, rates, config, "val") if val else _Pass(0.0, "encoding")
    again, val_passes = _again(config, rates, val * kept_of(config, survey, "val") if val else 0.0)
    check = replace(check, seconds=None if check.seconds is None else check.seconds + again)
    kept = slides * kept_of(config, survey, "train")
    learning, reads = _learning(config, rates, kept, again=selections < epochs)
    steps = math.ceil(slides / training.slides_per_step)
    epoch_end = (rates.head.epoch_s if rates.head else 0.0) + 5 * rates.save_s
    stages = [
        _start(rates),
        _tissue(survey, rates, "train", "val"),
        *_head_start(config, survey, rates),
        _each_epoch("selecting", one, selections * share / devices, epochs),
        Stage("learning from kept patches", *_times(learning, epochs, devices), does="learning"),
        Stage(
            "steps of the optimiser and checkpoints",
            *_times(steps * rates.optimizer_s + epoch_end, epochs, 1),
        ),
        _each_epoch("validating", check, epochs / devices, epochs),
    ]
    read_again = kept * ((2 if config.model.encoder.trainable else 1) if reads else 0)
    per_epoch = patches * share * selections / epochs + val_patches + val_passes + read_again
    views = training.head_start.views if config.head_start_epochs else 0
    once = patches * views + (val_patches if views else 0)
    disk, scratch = training_disk(config, peaks, patches * max(views, 0), val_patches if views else 0)
    stages = [_of_folds(stage, work.folds) for stage in stages if stage.seconds is None or stage.seconds > 0]
    return stages, per_epoch, (per_epoch * epochs + once) * work.folds, disk * work.folds, scratch


def _of_folds(stage: Stage, folds: int) -> Stage:
    """Tissue is found once for all folds; the rest is done in each."""
    if folds == 1 or stage.seconds is None:
        return stage
    return replace(stage, seconds=stage.seconds * folds)


def _times(seconds: float | None, epochs: int, devices: int) -> tuple[float | None, float]:
    return (None, 0.0) if seconds is None else (seconds * epochs / devices, seconds / devices)


def _each_epoch(name: str, one: _Pass, times: float, epochs: int) -> Stage:
    if one.seconds is None:
        return Stage(name, None, does=one.does)
    return Stage(name, one.seconds * times, one.seconds * times / epochs, one.does)


def _learning(config: FinetuneConfig, rates: Rates, kept: float, *, again: bool) -> tuple[float | None, int]:
    """Seconds of an epoch on ``kept`` patches, and how often each is read. They are read twice where the selection
    does not know their features already."""
    if rates.learn_s is None:
        return None, 1
    drops = config.model.encoder.drop_path > 0 or config.model.encoder.batch_norm == "batch"
    lora = config.model.encoder.lora
    twice = (
        again
        or drops
        or (lora is not None and lora.dropout > 0)
        or config.selection.selector in ("all", "random")
    )
    reads = 2 if twice else 1
    each = rates.learn_s + reads * (rates.reread_s + rates.shown_s)
    if twice:
        each += rates.relearn_s if rates.relearn_s is not None else (rates.forward_s or 0.0)
    return kept * each, reads


def _head_start(config: FinetuneConfig, survey: Survey, rates: Rates) -> Iterator[Stage]:
    """Features of all patches in several looks, then epochs on them."""
    epochs = config.head_start_epochs
    if not epochs:
        return
    views = config.training.head_start.views
    train = pass_over(survey, rates, config, "train", looks=views, shown=views - 1)
    val = pass_over(survey, rates, config, "val") if survey.readable("val") else _Pass(0.0, "encoding")
    together = None if train.seconds is None or val.seconds is None else train.seconds + val.seconds
    yield Stage("features for the head start", together, does=train.does)
    bags = survey.readable("train") + survey.readable("val")
    starts = config.training.restarts
    learned = None
    if rates.head is not None:
        learned = starts * (rates.head.start_s + epochs * (rates.head.epoch_s + bags * rates.head.bag_s))
    yield Stage("head start on features", learned, does="learning")


def training_disk(
    config: FinetuneConfig, peaks: Peaks, views: float, val_patches: float
) -> tuple[float, float]:
    """MB of checkpoints and state that stay, and of features that do not."""
    stored = peaks.learning if config.model.encoder.lora is not None else peaks.weights
    checkpoints = 2 * 4 * stored + 4 * (stored + 2 * peaks.learning)
    features = 2 * peaks.width * (views + val_patches)
    kept = config.training.head_start.keep_features
    return (checkpoints + (features if kept else 0)) / 1e6, 0.0 if kept else features / 1e6


def _ram_mb(work: Work, survey: Survey, rates: Rates, peaks: Peaks) -> float | None:
    """Measured: what the measurement held, and what grows with the data. Otherwise what a process without slides
    holds, its streams, and on a CPU the simulated network."""
    grows = grows_mb(work, survey)
    if rates.peak_mb is not None:
        return rates.peak_mb + grows
    if rates.base_mb is None:
        return None
    return (
        rates.base_mb
        + grows
        + streaming_mb(work.config)
        + (network_mb(work, peaks) if rates.device_gb is None else 0.0)
    )


def grows_mb(work: Work, survey: Survey) -> float:
    """MiB that grow with the slides: where patches lie, of all slides that are learned from or of one at a time,
    and their attention."""
    training = work.kind == "finetune"
    patches = survey.total("patches").value if training else survey.largest
    heads = work.config.model.attention.heads * max(1, len(work.config.model.tasks))
    return patches * BYTES_OF_A_PATCH / MB + survey.largest * heads * 4 / MB


def streaming_mb(config: FinetuneConfig) -> float:
    """Chunks on their way, and decoded tiles that wait."""
    chunk = config.streaming.batch * config.tiling.patch_px**2 * 3 / MB
    return chunk * (config.streaming.chunks_in_flight + 2) + config.streaming.tile_cache_mb


def network_mb(work: Work, peaks: Peaks) -> float:
    return max(peaks.selection, peaks.step if work.kind == "finetune" else 0) / MB


def _vram_mb(work: Work, rates: Rates, peaks: Peaks) -> float | None:
    if rates.device.startswith("cpu"):
        return None
    chunk = work.config.streaming.batch * work.config.tiling.patch_px**2 * 3 / MB
    return network_mb(work, peaks) + chunk


Change = tuple[str, bool, Callable[[Work, Survey, Rates], tuple[Work, Survey, Rates] | None]]
"""A setting as on a command line, whether it changes what is computed, and the work with it; None: not
possible.
"""


def halvings(
    work: Work, survey: Survey, rates: Rates, peaks: Callable[[FinetuneConfig], Peaks]
) -> list[Halving]:
    """What each of a few other settings would do to time and memory, by the same model.

    Args:
        work: The work.
        survey: What is to be read.
        rates: How fast the machine is.
        peaks: Simulates the memory of a configuration.
    """
    before = peaks(work.config)
    now = cost_of(work, survey, rates, before)
    found = []
    for setting, changes, change in changes_of(work):
        changed = change(work, survey, rates)
        if changed is None:
            continue
        after = peaks(changed[0].config)
        then = cost_of(*changed, after)
        found.append(
            Halving(
                setting,
                _share(then.seconds, now),
                _memory_left(rates, now, before, after, work, then),
                changes,
            )
        )
    if work.kind == "finetune" and work.config.model.encoder.trainable:
        found.append(_frozen(work, survey, rates, before, now))
    return found


def _share(seconds: float | None, now: Cost) -> float | None:
    return seconds / now.seconds if now.seconds and seconds is not None else None


def _frozen(work: Work, survey: Survey, rates: Rates, before: Peaks, now: Cost) -> Halving:
    """Every patch is encoded once; what learns afterwards reads features, which takes the head's time."""
    then = cost_of(replace(work, kind="features", half=True), survey, rates, before)
    setting, seconds = "wsi-ips features once, then finetune --features", then.seconds
    if rates.head is not None:
        bags = survey.readable("train") + survey.readable("val")
        seconds += work.config.training.epochs * (rates.head.epoch_s + bags * rates.head.bag_s)
    else:
        setting += " (without its epochs on features, whose time is not known)"
    left = _memory_left(rates, now, before, replace(before, step=0), work, then)
    return Halving(setting, _share(seconds, now), left, changes=True)


def _memory_left(
    rates: Rates, now: Cost, before: Peaks, after: Peaks, work: Work, then: Cost
) -> float | None:
    """Of the card's memory, or of the process's, whose measured rest stays as it is."""
    if now.vram_mb is not None and then.vram_mb is not None:
        return then.vram_mb / now.vram_mb
    if now.ram_mb is None:
        return None
    saved = network_mb(work, before) - network_mb(work, after)
    return (now.ram_mb - saved) / now.ram_mb


def _with(work: Work, section: str, **values: object) -> Work:
    held = getattr(work.config, section)
    config = work.config.model_copy(update={section: held.model_copy(update=values)})
    return replace(work, config=config)


def _set(section: str, changes: bool, **values: Any) -> Change:
    """One setting of a section."""
    ((name, value),) = values.items()
    shown = f"{section}.{name}={value:g}" if isinstance(value, float) else f"{section}.{name}={value}"
    return shown, changes, lambda work, survey, rates: (_with(work, section, **values), survey, rates)


def changes_of(work: Work) -> Iterator[Change]:
    """The settings that are tried."""
    config = work.config
    mpp = 2 * config.tiling.patch_mpp
    yield (
        f"tiling.patch_mpp={mpp:g}",
        True,
        lambda w, s, r: (_with(w, "tiling", patch_mpp=mpp), coarser(s), r),
    )
    yield _set("streaming", False, batch=max(1, config.streaming.batch // 2))
    threads, _, change = _set("streaming", False, threads=2 * config.streaming.threads)
    yield threads, False, lambda w, s, r: change(w, s, r) if config.streaming.threads < r.cores else None
    if work.kind == "predict":
        workers = 2 * work.workers
        yield (
            f"batch.workers={workers} (with as many cores or cards more)",
            False,
            lambda w, s, r: (replace(w, workers=workers), s, r),
        )
    if work.kind == "finetune":
        yield from _training_changes(work)
        yield from _encoder_changes(work)


def _training_changes(work: Work) -> Iterator[Change]:
    training, selection = work.config.training, work.config.selection
    yield _set("selection", True, memory_size=max(1, selection.memory_size // 2))
    yield _set("selection", True, iteration_size=max(1, selection.iteration_size // 2))
    if training.slides_per_step > 1:
        yield _set("training", True, slides_per_step=training.slides_per_step // 2)
    if training.micro_batch is not None and training.micro_batch > 1:
        yield _set("training", False, micro_batch=training.micro_batch // 2)
    yield _set("training", True, select_every=2 * training.select_every)
    devices, _, change = _set("training", False, devices=2 * training.devices)
    yield (
        f"{devices} (with as many cards more)",
        False,
        lambda w, s, r: change(w, s, r) if r.device_gb else None,
    )
    if work.config.head_start_epochs and training.head_start.views > 1:
        head = training.head_start.model_copy(update={"views": 1})
        yield (
            "training.head_start.views=1",
            True,
            lambda w, s, r: (_with(w, "training", head_start=head), s, r),
        )


def _encoder_changes(work: Work) -> Iterator[Change]:
    training, encoder = work.config.training, work.config.model.encoder
    if training.precision == "32":
        yield "training.precision=bf16", True, _in_half
    if encoder.trainable and not training.encoder_checkpointing:
        yield "training.encoder_checkpointing=true", False, _checkpointing


def _in_half(work: Work, survey: Survey, rates: Rates) -> tuple[Work, Survey, Rates] | None:
    """On a card whose numbers are stated. What a CPU gains from it is not known."""
    if rates.how != "estimated" or rates.forward_s is None:
        return None
    return _with(work, "training", precision="bf16"), survey, _faster(rates, rates.half_gain)


def _faster(rates: Rates, gain: float) -> Rates:
    names = ("forward_s", "relearn_s", "learn_s")
    return rates.model_copy(update={name: (getattr(rates, name) or 0.0) / gain for name in names})


def _checkpointing(work: Work, survey: Survey, rates: Rates) -> tuple[Work, Survey, Rates] | None:
    """A forward pass more for each patch that is learned from. For transformers of timm, which have blocks."""
    entry = entry_of(work.config.model.encoder.name)
    name = entry.name if entry is not None else work.config.model.encoder.name
    if rates.learn_s is None or not ("vit" in name or entry is not None):
        return None
    slower = rates.model_copy(update={"learn_s": rates.learn_s + (rates.relearn_s or rates.forward_s or 0.0)})
    return _with(work, "training", encoder_checkpointing=True), survey, slower


def coarser(survey: Survey) -> Survey:
    """The same slides at twice the µm per pixel: a quarter of the patches, and of the pixels where the slide has a
    level for them."""
    splits = {}
    for split, its in survey.splits.items():
        slides = tuple(
            replace(
                slide,
                patches=max(1, round(slide.patches / 4)),
                megapixels=slide.megapixels / (4 if slide.coarser else 1),
                stored_mb=slide.stored_mb / (4 if slide.coarser else 1),
            )
            for slide in its.looked_at
        )
        splits[split] = SplitSurvey(its.slides, slides)
    return replace(survey, splits=splits)
