"""One step of benchmarks/evidence.py, in a process of its own: a method on a data set of one seed.

    python -m benchmarks.evidence_steps METHOD SETTINGS.json RESULT.json

Learns on the training slides, chooses by the validation slides, reads the test slides once, and writes what it
says of them and what that took.

Shape suffixes: S slides, C classes, N patches of a slide, M kept ones, D length of a histogram.
"""

import json
import math
import resource
import sys
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.evidence_data import CPU, EvidenceData
from benchmarks.evidence_settings import (
    AGGREGATORS,
    BEGINS_FROM,
    FROZEN_MODELS,
    QUICK_EPOCHS,
    QUICK_HEAD_START,
    features_width,
    frozen_model,
    settings_of,
)
from benchmarks.frozen_bags import FeatureBag, FrozenNet, Learning, train
from benchmarks.random_patches import RandomPatches
from benchmarks.slide_scores import macro_auc, slide_hits
from wsi_ips.config import AttentionConfig, FinetuneConfig, SelectionConfig, TurnsConfig
from wsi_ips.datasets.annotations import lesion_area
from wsi_ips.datasets.manifest import SPLITS, SlideRecord
from wsi_ips.evaluation.froc import froc_curve
from wsi_ips.evaluation.slide_level import roc_auc
from wsi_ips.models.build import build_net
from wsi_ips.models.checkpoint import begin_from, load_checkpoint
from wsi_ips.models.encoders.network import Compute, compute_in
from wsi_ips.models.ips_net import BagNet
from wsi_ips.selection.reading import read_bag
from wsi_ips.selection.slide_reading import SlideReading
from wsi_ips.storage.files import whole_file
from wsi_ips.training.fit import train_bags
from wsi_ips.training.head_start import EncodedBag, head_start_config
from wsi_ips.training.run_state import BEST_NAME, HEAD_START

TRAINING = (
    *("epochs", "warmup_epochs", "lr", "encoder_lr", "coarse_lr", "slides_per_step"),
    *("all_patches_first", "head_start", "monitor"),
)
"""What of a method's settings is the training's."""
OTHER_START = 1000
"""How far the seeds of several starts are apart, so that none is another data set's."""


@dataclass(frozen=True, slots=True)
class Step:
    """data: the set. out: the step's own folder. start: the checkpoint that it goes on from, if it does.
    processes: that compose slides."""

    method: str
    data: EvidenceData
    out: Path
    start: Path | None
    processes: int

    @property
    def settings(self) -> dict[str, Any]:
        return settings_of(self.method)

    def training(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of training among these; few epochs of a quick run."""
        training = {name: given[name] for name in TRAINING if name in given}
        if self.data.quick:
            training["epochs"] = QUICK_EPOCHS
            training |= {"head_start": QUICK_HEAD_START} if "head_start" in training else {}
        return training


@dataclass(slots=True)
class Said:
    """What a method says of the test slides.

    maps: {name: {slide: (N,) not negative}}, where lesions are said to be. encoder_passes: patches that went
    through the encoder, in training, validation and test together. notes: what it learned, for people.
    """

    probabilities: dict[str, list[float]] = field(default_factory=dict)
    maps: dict[str, dict[str, NDArray[np.float32]]] = field(default_factory=dict)
    encoder_passes: int = 0
    encoder_passes_test: int = 0
    notes: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def mean(cls, of: Sequence["Said"]) -> "Said":
        """The mean of what several networks say."""
        first = of[0]
        return cls(
            probabilities={
                slide_id: np.mean([said.probabilities[slide_id] for said in of], axis=0).tolist()
                for slide_id in first.probabilities
            },
            maps={
                name: {
                    slide_id: np.mean([said.maps[name][slide_id] for said in of], axis=0)
                    for slide_id in of_slide
                }
                for name, of_slide in first.maps.items()
            },
            encoder_passes_test=first.encoder_passes_test,
            notes={"starts": [said.notes for said in of]},
        )

    def add(self, slide_id: str, reading: SlideReading, ids_N: NDArray[np.int64]) -> None:
        """Take in what a network of ours says of a slide with these patches; those it never read get 0."""
        p_C = reading.bag.probabilities["label"][0]
        self.probabilities[slide_id] = p_C.tolist()
        attention_N = np.zeros(len(ids_N), np.float32)
        rows_n = np.searchsorted(ids_N, reading.store.ids().numpy())
        attention_N[rows_n] = reading.store.attention().mean(dim=(1, 2)).numpy()
        self.maps.setdefault("attention", {})[slide_id] = attention_N
        told = reading.bag.contributions
        if told is None:
            return
        # Of the likeliest class that is a lesion, against the mean of all classes.
        lesion = 1 + int(p_C[1:].argmax())
        share_MC = told["label"] - told["label"].mean(dim=1, keepdim=True)
        contribution_N = np.zeros(len(attention_N), np.float32)
        rows_M = np.searchsorted(ids_N, reading.kept.ids_M.cpu().numpy())
        contribution_N[rows_M] = share_MC[:, lesion].clamp(min=0).numpy()
        self.maps.setdefault("contribution", {})[slide_id] = contribution_N


def main() -> None:
    """Run the step named on the command line."""
    method, settings, result = sys.argv[1], json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3])
    torch.set_num_threads(1)
    data = EvidenceData(
        settings["data"],
        settings["seed"],
        {name: Path(folder) for name, folder in settings["sources"].items()},
        Path(settings["work"]),
        quick=settings["quick"],
    )
    runs = data.folder / "runs"
    start = runs / f"{data.name}_{BEGINS_FROM[method]}" / BEST_NAME if method in BEGINS_FROM else None
    step = Step(method, data, runs / f"{data.name}_{method}", start, int(settings["processes"]))
    resumed = bytes_below(data.features if method == "features" else step.out) > 0
    before, started = bytes_below(data.folder), time.perf_counter()
    said = STEPS[method](step)
    figures: dict[str, Any] = {"seconds": time.perf_counter() - started}
    if said is not None:
        figures |= {"encoder_passes": said.encoder_passes, "encoder_passes_test": said.encoder_passes_test}
        figures["notes"] = said.notes
        figures |= scores(data, said) if said.probabilities else {}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures["peak_rss_mb"] = peak / (1024**2 if sys.platform == "darwin" else 1024)
    figures["bytes_written"] = bytes_below(data.folder) - before
    if resumed:  # a killed call had done a part: what this one took says nothing of the step
        figures |= {"resumed": True, "seconds": None, "peak_rss_mb": None, "bytes_written": None}
    with whole_file(result) as partial:
        partial.write_text(json.dumps(figures) + "\n")


def bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def scores(data: EvidenceData, said: Said) -> dict[str, Any]:
    """AUC over all test slides and by lesion size; FROC by every map."""
    records, sizes = data.manifest.split("test"), data.sizes()
    p_SC = np.array([said.probabilities[record.slide_id] for record in records])
    target_S = np.array([data.classes.index(record.labels["label"]) for record in records])
    size_S = np.array([sizes[record.slide_id] for record in records])
    figures: dict[str, Any] = {
        "auc": macro_auc(p_SC, target_S),
        "auc_by_size": {
            size: float(roc_auc(1 - p_SC[either, 0], target_S[either] > 0))
            for size in ("macro", "micro", "small")
            if (size_S == size).any()
            for either in [(target_S == 0) | (size_S == size)]
        },
        "probabilities": np.round(p_SC, 6).tolist(),
        "target": target_S.tolist(),
        "size": size_S.tolist(),
    }
    for name, of_slide in said.maps.items():
        hits = [
            slide_hits(
                data.tile(record).coords,
                of_slide[record.slide_id],
                p_tumor=1 - float(p_C[0]),
                lesions=lesion_area(path) if (path := data.annotation(record.slide_id)) else None,
            )
            for record, p_C in zip(records, p_SC, strict=True)
        ]
        if any(slide.lesions for slide in hits):  # else all are too small to count
            figures[f"froc_{name}"] = froc_curve(hits).score
    return figures


def compose(step: Step) -> None:
    """Compose the slides."""
    step.data.compose(processes=step.processes)


def features(step: Step) -> Said:
    """Frozen features of all patches of all slides, once; those that are there stay."""
    bags = step.data.encoded_bags()
    streaming, passes = step.data.finetune().streaming, 0
    for bag in [bag for split in SPLITS for bag in bags[split]]:
        with bag.open(streaming, CPU):
            passes += len(bag)
    return Said(encoder_passes=passes)


def colour(step: Step) -> Said:
    """Each slide as its colours' histograms, told apart by logistic regression."""
    data, manifest = step.data, step.data.manifest
    records = {split: manifest.split(split) for split in SPLITS}
    seen = {split: _histograms(data, records[split], bins=step.settings["bins"]) for split in SPLITS}
    x_SD = torch.cat([seen["train"], seen["val"]])
    mean, deviation = x_SD.mean(0), x_SD.std(0) + 1e-8
    labels = [record.labels["label"] for split in ("train", "val") for record in records[split]]
    target_S = torch.tensor([data.classes.index(label) for label in labels])
    layer = nn.Linear(x_SD.shape[1], len(data.classes))
    nn.init.zeros_(layer.weight)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(layer((x_SD - mean) / deviation), target_S)
        penalised = loss + 0.5 * layer.weight.square().sum() / len(x_SD)
        penalised.backward()
        return penalised

    optimizer.step(closure)
    with torch.no_grad():
        p_SC = layer((seen["test"] - mean) / deviation).softmax(dim=1).tolist()
    return Said(dict(zip([record.slide_id for record in records["test"]], p_SC, strict=True)))


def _histograms(data: EvidenceData, records: Sequence[SlideRecord], *, bins: int) -> Tensor:
    """(S, 3 * bins) float: shares of every other pixel each way of all patches."""
    rows, streaming = [], data.finetune().streaming
    for record in records:
        counts = np.zeros((3, bins))
        with data.tile(record).open(streaming, CPU) as stream:
            for chunk in stream:
                thinned = chunk.pixels_n3PP[..., ::2, ::2].transpose(0, 1).reshape(3, -1).numpy()
                bins_3V = thinned // (256 // bins)
                counts += [np.bincount(bins_V, minlength=bins) for bins_V in bins_3V]
        rows.append((counts / counts.sum(axis=1, keepdims=True)).ravel())
    return torch.from_numpy(np.array(rows)).float()


def on_features(model: Mapping[str, Any], *, maps: Container[str]) -> "Method":
    """Train the network that ``model`` describes on all frozen features of a slide; one start.

    Args:
        model: See :class:`FrozenNet`.
        maps: The names of its maps that lesions are looked for with.
    """

    def method(step: Step) -> Said:
        bags = {split: _feature_bags(step.data, bags) for split, bags in step.data.encoded_bags().items()}
        training = step.training(step.settings)
        learning = Learning(training["epochs"], training["lr"], step.settings["weight_decay"])
        torch.manual_seed(step.data.seed)
        width = features_width(step.data.name)
        frozen = FrozenNet(frozen_model(step.data.name, model), width=width, task=step.data.tasks[0])
        started, busy = time.perf_counter(), time.process_time()
        losses = train(frozen, bags["train"], bags["val"], learning, seed=step.data.seed)
        said = Said(notes={"val_loss": losses})
        if step.method in AGGREGATORS:  # evidence.py counts the features of its own methods
            said.notes["learning_seconds"] = time.perf_counter() - started
            said.notes["learning_cpu_seconds"] = time.process_time() - busy
            patches = {split: sum(len(bag.ids_N) for bag in bags[split]) for split in bags}
            said.encoder_passes, said.encoder_passes_test = sum(patches.values()), patches["test"]
        for bag in bags["test"]:
            said.probabilities[bag.slide_id], told = frozen.told(bag)
            for name in [name for name in told if name in maps]:
                said.maps.setdefault(name, {})[bag.slide_id] = told[name]
        return said

    return method


def _feature_bags(data: EvidenceData, bags: Sequence[EncodedBag]) -> list[FeatureBag]:
    streaming, held = data.finetune().streaming, []
    for bag in bags:
        with bag.open(streaming, CPU) as source:
            chunk = source.read(source.ids())
        targets = {task: int(target) for task, target in bag.targets.items() if isinstance(target, int)}
        held.append(FeatureBag(bag.bag_id, chunk.pixels_n3PP, chunk.ids_n, targets))
    return held


def ips_frozen(step: Step) -> Said:
    """The project's own selection and head on frozen features, with its defaults but for the settings; one
    start."""
    return _frozen_start(step, step.data.encoded_bags(), step.out, seed=step.data.seed)


def ips_five(step: Step) -> Said:
    """The mean of several starts. The first one is that of the method ips."""
    seeds = [step.data.seed + OTHER_START * start for start in range(step.settings["starts"])]
    bags = step.data.encoded_bags()
    told = [_frozen_start(step, bags, step.out / f"start_{seed}", seed=seed) for seed in seeds]
    said = Said.mean(told)
    target_S = [step.data.classes.index(slide.labels["label"]) for slide in step.data.manifest.split("test")]
    said.notes["auc_of_starts"] = [
        macro_auc(np.array([each.probabilities[slide] for slide in said.probabilities]), np.array(target_S))
        for each in told
    ]
    return said


def _frozen_start(step: Step, bags: Mapping[str, Sequence[EncodedBag]], out: Path, *, seed: int) -> Said:
    """Train the head on frozen features from one start, and read the test slides."""
    base, settings = step.data.finetune(head_start={"epochs": 40}, seed=seed), step.settings
    width = features_width(step.data.name)
    config = frozen_config(base, settings, step.training(settings["training"]), width=width)
    report = train_bags(bags["train"], bags["val"], config, out, device=CPU)
    net, _ = load_checkpoint(report.checkpoint)
    return _read(step, net, config, bags["test"], history=report.history)


def frozen_config(
    config: FinetuneConfig, settings: Mapping[str, Any], training: Mapping[str, Any], *, width: int
) -> FinetuneConfig:
    """The head start of ``config`` as a training of its own, on features of this width, with a method's settings
    over it."""
    config = head_start_config(config, width=width)
    changes: dict[str, Any] = {"training": config.training.model_copy(update=dict(training))}
    if "attention" in settings:
        encoder = config.model.encoder.model_copy(update={"project": settings["project"]})
        attention = AttentionConfig.model_validate(settings["attention"])
        changes["model"] = config.model.model_copy(update={"attention": attention, "encoder": encoder})
    return config.model_copy(update=changes)


def _read(
    step: Step,
    net: BagNet,
    config: FinetuneConfig,
    bags: Sequence[Any],
    *,
    history: Sequence[Mapping[str, float]],
) -> Said:
    said = Said(notes={"history": [dict(row) for row in history]})
    compute_in(net, Compute(step.data.precision))
    for bag in bags:
        with bag.open(config.streaming, CPU) as source:
            reading = read_bag(net, source, config.selection)
        tiled = bag.bag if isinstance(bag, EncodedBag) else bag
        said.add(bag.bag_id, reading, tiled.coords.ids_N)
        said.encoder_passes_test += passes_of(config, len(bag), epoch=None)
        if config.selection.turns > 1:
            said.encoder_passes_test += config.selection.turns * len(reading.kept.ids_M)
    return said


def passes_of(config: FinetuneConfig, patches: int, *, epoch: int | None) -> int:
    """How many patches of a bag go through the encoder before some are kept; ``epoch``: of training, None:
    outside."""
    selection = config.selection
    if selection.selector == "attention_sampling":
        return min(patches, selection.sampling.samples)
    if selection.selector == "cascade" and (epoch is None or epoch >= selection.coarse.full_epochs):
        return max(1, math.ceil(round(float(selection.coarse.share or 1) * patches, 6)))
    return patches


def e2e(step: Step) -> Said:
    """Everything learns, after a head start on frozen features."""
    return _end_to_end(step)


def e2e_all(step: Step) -> Said:
    """Everything learns, after a head start on frozen features. The memory has room for all patches of a slide,
    so that none is left out: attention reads all of them, and all are taken back through the encoder.
    """
    return _end_to_end(step, {"memory_size": step.settings["memory"]})


def in_turns(step: Step) -> Said:
    """Nothing is learned: the kept patches of the test slides are read in several orientations."""
    assert step.start is not None
    config = step.data.finetune().with_turns(TurnsConfig(turns=step.settings["turns"]))
    net = build_net(config.model)
    begin_from(net, step.start)
    said = _read(step, net, config, step.data.slide_bags()["test"], history=())
    said.encoder_passes = said.encoder_passes_test
    return said


def cascade(step: Step) -> Said:
    """A coarse scorer chooses which patches are read. Training goes on from the end-to-end checkpoint of IPS."""
    mpp = 2 * step.data.finetune().tiling.patch_mpp
    return _end_to_end(step, {"selector": "cascade", "coarse": {**step.settings["coarse"], "mpp": mpp}})


def sampling(step: Step) -> Said:
    """Attention sampling: patches are drawn by an attention map that is made at a coarser resolution.

    The encoder begins with its pretrained weights.
    """
    mpp = 2 * step.data.finetune().tiling.patch_mpp
    selection = {
        "selector": "attention_sampling",
        "sampling": {"samples": step.settings["samples"]},
        "coarse": {"scorer": "conv", "mpp": mpp},
    }
    return _end_to_end(step, selection)


def _end_to_end(step: Step, selection: Mapping[str, Any] | None = None) -> Said:
    training = {"head_start": {"epochs": 0}, **step.training(step.settings), "start": step.start}
    config = step.data.finetune(**training)
    if selection is not None:
        merged = {**config.selection.model_dump(), **selection}
        config = config.model_copy(update={"selection": SelectionConfig.model_validate(merged)})
    bags = step.data.slide_bags()
    report = train_bags(bags["train"], bags["val"], config, step.out, device=CPU)
    net, _ = load_checkpoint(report.checkpoint)
    said = _read(step, net, config, bags["test"], history=report.history)
    said.encoder_passes = said.encoder_passes_test
    if config.head_start_epochs:
        views = config.training.head_start.views
        said.notes["head_start"] = _head_start_scores(step, config, bags["test"])
        for split, each in (("train", views), ("val", 1)):
            said.encoder_passes += each * sum(len(bag) for bag in bags[split])
    for epoch in range(len(report.history)):
        for bag in bags["train"]:
            read = passes_of(config, len(bag), epoch=epoch)
            said.encoder_passes += read + min(read, config.selection.memory_size)
        said.encoder_passes += sum(passes_of(config, len(bag), epoch=None) for bag in bags["val"])
    return said


def _head_start_scores(step: Step, config: FinetuneConfig, bags: Sequence[Any]) -> dict[str, Any]:
    """What the head start alone says of the test slides. Nothing is chosen by it."""
    net = build_net(config.model)
    begin_from(net, step.out / HEAD_START / BEST_NAME)
    figures = scores(step.data, _read(step, net, config, bags, history=()))
    return {name: figures[name] for name in ("auc", "auc_by_size")}


def random(step: Step) -> Said:
    """As many patches learned from, drawn at random, end to end from a cold start."""
    config = step.data.finetune(**step.training(step.settings), head_start={"epochs": 0})
    model, bags = RandomPatches(config), step.data.slide_bags()
    losses = model.fit(bags["train"], bags["val"])
    said = Said(notes={"val_loss": losses})
    for bag in bags["test"]:
        reading, _ = model.read(bag)
        said.probabilities[bag.bag_id] = reading.probabilities["label"][0].tolist()
    seen = {split: sum(min(len(bag), config.selection.memory_size) for bag in bags[split]) for split in bags}
    said.encoder_passes = config.training.epochs * (seen["train"] + seen["val"]) + seen["test"]
    return said


Method = Callable[[Step], Said | None]
STEPS: Mapping[str, Method] = {
    "data": compose,
    "features": features,
    "colour": colour,
    "mean": on_features(FROZEN_MODELS["mean"], maps=()),
    "abmil": on_features(FROZEN_MODELS["abmil"], maps=("attention",)),
    "ips_paper": ips_frozen,
    "ips": ips_frozen,
    "ips_norm": ips_frozen,
    "ips_five": ips_five,
    "ips_turns": in_turns,
    "e2e": e2e,
    "e2e_all": e2e_all,
    "e2e_turns": in_turns,
    "cascade": cascade,
    "sampling": sampling,
    "random": random,
    **{
        method: on_features(settings["model"], maps=settings["maps"])
        for method, settings in AGGREGATORS.items()
    },
}


if __name__ == "__main__":
    main()
