"""One method of benchmarks/learning.py on composite slides, in a process of its own.

    python -m benchmarks.composite_methods METHOD SETTINGS.json

Learns on the manifest's training slides, chooses by its validation slides, and writes what it says of the test
slides, and what that took, to ``OUT/METHOD/result.json``.

Shape suffixes: S slides, C classes, N patches, D feature width.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PositiveInt
from torch import nn

from benchmarks.bag_models import BagModel, FeatureBag, FrozenIPS, GatedAttention, Learning, MeanPool, best_of
from benchmarks.random_patches import RandomPatches
from benchmarks.slide_scores import auc_interval, macro_auc, slide_hits
from wsi_ips.config import EncoderConfig, FinetuneConfig, ModelConfig, Section, fingerprint
from wsi_ips.datasets.annotations import lesion_area
from wsi_ips.datasets.composite import BENIGN, CLASSES, LABEL, TUMOR, CompositeConfig, make_composite
from wsi_ips.datasets.manifest import Manifest, SlideRecord, read_manifest
from wsi_ips.evaluation.froc import froc_curve
from wsi_ips.files import whole_file
from wsi_ips.inference.in_turn import predict_slides
from wsi_ips.inference.predict import Predictor
from wsi_ips.inference.results import read_result
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.inference.slide_work import SlideJob
from wsi_ips.models.build import build_net
from wsi_ips.models.checkpoint import load_checkpoint, save_checkpoint
from wsi_ips.models.ips_net import scoring
from wsi_ips.slides.resolution import SlideMpp
from wsi_ips.training.bags import SlideBag, tile_bag
from wsi_ips.training.finetune import finetune

CPU = torch.device("cpu")
COLD = {"epochs": 8, "lr": 1e-3}
"""Of a method without a head start."""
BINS = 16
"""Of a colour histogram, per channel."""


class Settings(Section):
    """Everything that a method needs to know. ``frozen_epochs``: for models on frozen features."""

    textures: Path
    outlines: Path
    out: Path
    data: CompositeConfig
    finetune: FinetuneConfig
    frozen_epochs: PositiveInt = 40
    processes: PositiveInt = 2

    @property
    def manifest(self) -> Manifest:
        return read_manifest(self.out / "data" / "manifest.csv", tasks=self.finetune.model.tasks)

    def features(self, slide_id: str) -> Path:
        """Where a slide's features lie; other slides, patches or encoders have a folder of their own."""
        encoder = self.finetune.model.encoder.model_copy(update={"project": None})
        parts = (self.data, self.finetune.tiling, encoder)
        return self.out / "features" / "-".join(fingerprint(part) for part in parts) / f"{slide_id}.npz"

    def annotation(self, record: SlideRecord) -> Path | None:
        path = self.out / "data" / "annotations" / f"{record.slide_id}.xml"
        return path if path.exists() else None


@dataclass(slots=True)
class Said:
    """What a method says of the test slides. attention: slide to (N,) over ``patches[slide]``; may be empty.

    encoder_passes: patches that went through the encoder, training, validation and test together. notes: what it
    learned, for people.
    """

    probabilities: dict[str, list[float]] = field(default_factory=dict)
    attention: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    encoder_passes: int = 0
    notes: dict[str, object] = field(default_factory=dict)


def main() -> None:
    """Run the method named on the command line."""
    method, path = sys.argv[1], Path(sys.argv[2])
    settings = Settings.model_validate_json(path.read_text())
    run(method, settings)


def run(method: str, settings: Settings) -> None:
    """Do one step and write its result.json."""
    folder = settings.out / method
    before = _bytes_below(folder)
    started = time.perf_counter()
    said = METHODS[method](settings, folder)
    figures: dict[str, object] = {
        "seconds": time.perf_counter() - started,
        "encoder_passes": said.encoder_passes if said else 0,
        "notes": said.notes if said else {},
    }
    if said and said.probabilities:
        figures |= _scores(settings, said)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures["peak_rss_mb"] = peak / (1024**2 if sys.platform == "darwin" else 1024)
    figures["bytes_written"] = _bytes_below(folder) - before
    with whole_file(folder / "result.json") as partial:
        partial.write_text(json.dumps(figures, indent=1) + "\n")


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def _scores(settings: Settings, said: Said) -> dict[str, object]:
    """AUC with its interval; FROC where the method attends."""
    records = settings.manifest.split("test")
    probabilities_SC = np.array([said.probabilities[record.slide_id] for record in records])
    target_S = np.array([_target(record) for record in records])
    low, high = auc_interval(probabilities_SC, target_S)
    figures: dict[str, object] = {
        "auc": macro_auc(probabilities_SC, target_S),
        "auc_low": low,
        "auc_high": high,
        "probabilities": probabilities_SC.tolist(),
        "target": target_S.tolist(),
        "froc": None,
    }
    if not said.attention:
        return figures
    hits = []
    for record, p_C in zip(records, probabilities_SC, strict=True):
        annotation = settings.annotation(record)
        hits.append(
            slide_hits(
                _tiled(settings, record).coords,
                said.attention[record.slide_id],
                p_tumor=1 - float(p_C[CLASSES.index(BENIGN)]),
                lesions=lesion_area(annotation) if annotation else None,
            )
        )
    if not any(slide.lesions for slide in hits):  # all too small to count
        return figures
    curve = froc_curve(hits)
    return figures | {"froc": curve.score, "lesions": curve.lesions}


def _target(record: SlideRecord) -> int:
    return CLASSES.index(record.labels[LABEL])


def _targets(record: SlideRecord) -> dict[str, int]:
    return {LABEL: _target(record), TUMOR: int(record.labels[LABEL] != BENIGN)}


def _tiled(settings: Settings, record: SlideRecord) -> SlideBag:
    config = settings.finetune
    return tile_bag(record, tasks=config.model.tasks, tiling=config.tiling, slide_mpp=SlideMpp())


def compose(settings: Settings, _: Path) -> None:
    """Compose the slides."""
    make_composite(
        settings.out / "data",
        settings.data,
        textures=settings.textures,
        outlines=settings.outlines,
        processes=settings.processes,
    )


@torch.no_grad()
def features(settings: Settings, _: Path) -> Said:
    """Frozen features of all patches of all slides, once; those that are there stay."""
    net = build_net(settings.finetune.model)
    passes = 0
    with scoring(net):
        for record in settings.manifest.records:
            path, bag = settings.features(record.slide_id), _tiled(settings, record)
            passes += len(bag)
            if path.exists():
                continue
            with bag.open(settings.finetune.streaming, CPU) as stream:
                features_ND = torch.cat([net.encoder(chunk.pixels_n3PP) for chunk in stream])
            with whole_file(path) as partial:
                np.savez(partial, features=features_ND.numpy())
    return Said(encoder_passes=passes)


def colour(settings: Settings, _: Path) -> Said:
    """Each slide as its colours' histograms, told apart by logistic regression: must fail."""
    manifest = settings.manifest
    records = {split: manifest.split(split) for split in ("train", "val", "test")}
    seen = {split: _histograms(settings, records[split]) for split in records}
    x_SD = torch.cat([seen["train"], seen["val"]])
    mean, deviation = x_SD.mean(0), x_SD.std(0) + 1e-8
    target_S = torch.tensor([_target(record) for split in ("train", "val") for record in records[split]])
    layer = nn.Linear(x_SD.shape[1], len(CLASSES))
    nn.init.zeros_(layer.weight)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(layer((x_SD - mean) / deviation), target_S)
        penalised = loss + 0.5 * layer.weight.square().sum() / len(x_SD)
        penalised.backward()
        return penalised

    optimizer.step(closure)
    with torch.no_grad():
        p_SC = layer((seen["test"] - mean) / deviation).softmax(dim=1).tolist()
    return Said(dict(zip([record.slide_id for record in records["test"]], p_SC, strict=True)))


def _histograms(settings: Settings, records: Sequence[SlideRecord]) -> torch.Tensor:
    """(S, 3 * BINS) float: shares of every other pixel each way of all tissue patches."""
    rows = []
    for record in records:
        counts = np.zeros((3, BINS))
        with _tiled(settings, record).open(settings.finetune.streaming, CPU) as stream:
            for chunk in stream:
                pixels_3V = chunk.pixels_n3PP[..., ::2, ::2].transpose(0, 1).reshape(3, -1).numpy() // (
                    256 // BINS
                )
                counts += [np.bincount(pixels_V, minlength=BINS) for pixels_V in pixels_3V]
        rows.append((counts / counts.sum(axis=1, keepdims=True)).ravel())
    return torch.from_numpy(np.array(rows)).float()


def head_start(settings: Settings, path: Path) -> None:
    """A checkpoint of everything but the encoder, learned on frozen features: the best beginning by validation.

    From a cold start the attention has to find lesions of a few patches by chance; on features that costs
    seconds a try, end to end minutes.
    """
    bags = {split: _feature_bags(settings, split) for split in ("train", "val")}
    dim = bags["train"][0].features_ND.shape[1]
    learning = FROZEN_IPS.at_most(settings.frozen_epochs)
    model, _ = best_of(lambda: _frozen_ips(dim, settings), bags["train"], bags["val"], learning)
    assert isinstance(model, FrozenIPS)
    reads_features = _on_stored_features(dim, settings)
    save_checkpoint(path, model.net, settings.finetune.pipeline.model_copy(update={"model": reads_features}))


def ips_e2e(settings: Settings, folder: Path) -> Said:
    """The project itself, through its public functions: a head start, fine-tune, then predict."""
    manifest, start = settings.manifest, folder / "head_start.safetensors"
    if not start.exists():
        head_start(settings, start)
    training = settings.finetune.training.model_copy(update={"start": start})
    config = settings.finetune.model_copy(update={"training": training})
    report = finetune(manifest, config, folder / "model", device=CPU, slide_mpp=SlideMpp())
    net, pipeline = load_checkpoint(report.checkpoint)
    predictor = Predictor(net, pipeline, streaming=config.streaming, device=CPU)
    folder_of = RunFolder(folder / "predictions")
    test = manifest.split("test")
    rows = predict_slides(
        [SlideJob(r.slide_id, r.path) for r in test], predictor, folder_of, on_error="stop"
    ).rows
    task = config.model.tasks[0].name
    said = Said(notes={"history": [dict(epoch) for epoch in report.history], "best": report.best_epoch})
    for row in rows:
        said.probabilities[row.slide_id] = [row.probabilities[task][name] for name in CLASSES]
        result = read_result(folder_of.attention(row.slide_id))
        said.attention[row.slide_id] = result.attention_NHT.mean(axis=(1, 2))
    patches = {split: [len(_tiled(settings, r)) for r in manifest.split(split)] for split in ("train", "val")}
    learned = sum(min(config.selection.m, count) for count in patches["train"])
    # The head start's features are counted with the step that made them.
    each_epoch = sum(patches["train"]) + learned + sum(patches["val"])
    said.encoder_passes = config.training.epochs * each_epoch + sum(row.n_patches or 0 for row in rows)
    return said


def random(settings: Settings, _: Path) -> Said:
    """As many patches learned from, drawn at random, end to end from a cold start: there is nothing to find."""
    training = settings.finetune.training.model_copy(update=COLD)
    config = settings.finetune.model_copy(update={"training": training})
    manifest, model = settings.manifest, RandomPatches(config)
    bags = {split: [_tiled(settings, r) for r in manifest.split(split)] for split in ("train", "val", "test")}
    losses = model.fit(bags["train"], bags["val"])
    said = Said(notes={"val_loss": losses})
    for bag in bags["test"]:
        reading, ids_M = model.read(bag)
        said.probabilities[bag.bag_id] = reading.probabilities[LABEL][0].tolist()
        attention_N = np.zeros(len(bag), np.float32)
        places = np.searchsorted(bag.coords.ids_N, ids_M.numpy())
        attention_N[places] = reading.attention_BHTM[0].mean(dim=(0, 1)).numpy()
        said.attention[bag.bag_id] = attention_N
    seen = {split: sum(min(len(bag), config.selection.m) for bag in bags[split]) for split in bags}
    said.encoder_passes = training.epochs * (seen["train"] + seen["val"]) + seen["test"]
    return said


def _feature_bags(settings: Settings, split: str) -> list[FeatureBag]:
    bags = []
    for record in settings.manifest.split(split):
        with np.load(settings.features(record.slide_id), allow_pickle=False) as held:
            features_ND = torch.from_numpy(held["features"])
        bags.append(FeatureBag(record.slide_id, features_ND, _targets(record)))
    return bags


def on_features(make: Callable[[int, Settings], BagModel], learning: Learning) -> "Method":
    """A method that trains ``make(dim, settings)`` on frozen features."""

    def method(settings: Settings, folder: Path) -> Said:
        bags = {split: _feature_bags(settings, split) for split in ("train", "val", "test")}
        dim, shorter = bags["train"][0].features_ND.shape[1], learning.at_most(settings.frozen_epochs)
        model, losses = best_of(lambda: make(dim, settings), bags["train"], bags["val"], shorter)
        said = Said(notes={"val_loss": losses})
        model.eval()
        for bag in bags["test"]:
            with torch.no_grad():
                logits_BC, attention_N = model(bag.features_ND)
            said.probabilities[bag.slide_id] = logits_BC.softmax(dim=1)[0].tolist()
            if attention_N is not None:
                said.attention[bag.slide_id] = attention_N.numpy()
        return said

    return method


def _frozen_ips(dim: int, settings: Settings) -> BagModel:
    return FrozenIPS(_on_stored_features(dim, settings), settings.finetune.selection)


def _on_stored_features(dim: int, settings: Settings) -> ModelConfig:
    """The network after the encoder."""
    model = settings.finetune.model
    encoder = EncoderConfig(name="features", features=dim, project=model.encoder.project)
    return model.model_copy(update={"encoder": encoder})


FROZEN_IPS = Learning(epochs=16, lr=1e-3, weight_decay=1e-2, seeds=3)
Method = Callable[[Settings, Path], Said | None]
METHODS: Mapping[str, Method] = {
    "data": compose,
    "colour": colour,
    "features": features,
    "mean_pool": on_features(
        lambda dim, _: MeanPool(dim, len(CLASSES)), Learning(epochs=50, lr=1e-3, weight_decay=1e-2)
    ),
    "abmil_frozen": on_features(
        lambda dim, _: GatedAttention(dim, len(CLASSES)), Learning(epochs=20, lr=3e-4, weight_decay=1e-2)
    ),
    "ips_frozen": on_features(_frozen_ips, FROZEN_IPS),
    "random": random,
    "ips_e2e": ips_e2e,
}


if __name__ == "__main__":
    main()
