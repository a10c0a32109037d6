"""One method of benchmarks/selection.py, in a process of its own.

    python -m benchmarks.selection_methods METHOD SETTINGS.json

Learns on training bags, chooses the epoch by validation bags, and writes what it says of the test bags, and
what that took, to ``OUT/METHOD/result.json``. ``encoder_passes``: patches that went through the patch
encoder, training, validation, calibration and test; ``…_test``: to label the test bags.
``patches_decoded_test``: patches that were read in full resolution for that.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import composite_methods as composite
from benchmarks.image_baselines import RandomPatches as RandomImagePatches
from benchmarks.image_baselines import fit as fit_images
from benchmarks.slide_scores import auc_interval, macro_auc, slide_hits
from wsi_ips.config import FinetuneConfig, MegapixelMnistConfig, SelectionConfig
from wsi_ips.datasets.annotations import lesion_area
from wsi_ips.datasets.composite import BENIGN, CLASSES
from wsi_ips.datasets.image_sets import ImageSplits, image_splits
from wsi_ips.evaluation.bag_scores import score_bags
from wsi_ips.evaluation.froc import froc_curve
from wsi_ips.files import whole_file
from wsi_ips.inference.in_turn import predict_slides
from wsi_ips.inference.predict import Predictor
from wsi_ips.inference.results import SlideResult, read_result
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.inference.slide_work import SlideJob
from wsi_ips.models.checkpoint import load_checkpoint
from wsi_ips.slides.resolution import SlideMpp
from wsi_ips.training.finetune import finetune
from wsi_ips.training.fit import train_bags

CPU = torch.device("cpu")


def main() -> None:
    """Run the method named on the command line."""
    name, settings = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    domain, method = name.split("_", 1)
    folder = Path(settings["out"]) / name
    started = time.perf_counter()
    figures = (on_images if domain == "mnist" else on_slides)(method, settings, folder)
    figures.setdefault("seconds", time.perf_counter() - started)
    with whole_file(folder / "result.json") as partial:
        partial.write_text(json.dumps(figures, indent=1) + "\n")


def on_images(method: str, settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Megapixel MNIST, attention sampling's variant, which every method is given."""
    mnist = dict(settings["mnist"])
    data = MegapixelMnistConfig.model_validate(mnist.pop("data"))
    config = FinetuneConfig.model_validate({**mnist, "selection": settings["mnist_selection"][method]})
    splits = image_splits(data, folder.parent / "mnist_data", tasks=config.model.tasks, tiling=config.tiling)
    counts = {name: len(bags) for name, bags in splits.items()}
    size = {"side_px": data.side_px, "noise": data.noise, "patch_px": config.tiling.patch_px, **counts}
    size |= {"samples": config.selection.sampling.samples if method == "ats" else config.selection.m}
    size |= {
        "epochs": config.training.epochs,
        "steps": -(-counts["train"] // config.training.slides_per_step),
    }
    figures = _learned_images(method, config, splits, folder)
    return figures | {"size": size}


def _learned_images(method: str, config: FinetuneConfig, splits: ImageSplits, folder: Path) -> dict[str, Any]:
    counts = {name: len(bags) for name, bags in splits.items()}
    if method == "random":
        torch.manual_seed(config.training.seed)
        found = fit_images(RandomImagePatches(config), splits, config, device=CPU)
        m = config.selection.m
        passes = config.training.epochs * m * (counts["train"] + counts["val"]) + m * counts["test"]
        return {
            "accuracy": found["accuracy"],
            "encoder_passes": passes,
            "encoder_passes_test": m * counts["test"],
            "patches_decoded_test": m * counts["test"],
        }
    report = train_bags(splits["train"], splits["val"], config, folder / "model", device=CPU)
    net, pipeline = load_checkpoint(report.checkpoint)
    started = time.perf_counter()
    scores = score_bags(net, splits["test"], pipeline, streaming=config.streaming, device=CPU)
    seconds = time.perf_counter() - started
    patches, selection = len(splits["train"][0]), config.selection
    if method == "ats":
        scored, learned = selection.sampling.samples, 0
    else:
        share = float(net.looks_from_afar.share) if method == "cascade" else 1.0
        scored, learned = int(np.ceil(share * patches)), selection.m
    full = selection.coarse.full_epochs if method == "cascade" else 0
    epochs = len(report.history)
    train_passes = epochs * (scored + learned) + min(full, epochs) * (patches - scored) * (
        method == "cascade"
    )
    calibration = counts["val"] * patches if method == "cascade" else 0
    return {
        "accuracy": scores.figures["accuracy"],
        "history": [dict(epoch) for epoch in report.history],
        "encoder_passes": counts["train"] * train_passes
        + (epochs * counts["val"] + counts["test"]) * scored
        + calibration,
        "encoder_passes_test": counts["test"] * scored,
        "patches_decoded_test": counts["test"] * scored,
        "seconds_test": seconds,
    }


def on_slides(method: str, settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The composite slides."""
    held = composite.Settings.model_validate(settings["composite"])
    if not (held.out / "data" / "manifest.csv").exists():
        composite.compose(held, folder)
    if method == "random":
        said = composite.random(held, folder)
        return composite._scores(held, said) | {"encoder_passes": said.encoder_passes}
    checkpoint = _ips_checkpoint(held)
    config = held.finetune
    learned: dict[str, Any] = {}
    if method != "ips":
        changes = {"training": config.training.model_copy(update=_training(method, settings, checkpoint))}
        changes["selection"] = SelectionConfig.model_validate(settings[method])
        config = FinetuneConfig.model_validate(config.model_copy(update=changes).model_dump())
        started = time.perf_counter()
        report = finetune(held.manifest, config, folder / "model", device=CPU, slide_mpp=SlideMpp())
        checkpoint = report.checkpoint
        learned = {
            "history": [dict(epoch) for epoch in report.history],
            "seconds_training": time.perf_counter() - started,
        }
    return learned | _predicted(held, checkpoint, folder)


def _training(method: str, settings: Mapping[str, Any], start: Path) -> dict[str, Any]:
    if method == "cascade":
        return {**settings["cascade_training"], "start": start}
    return {**settings["ats_training"], "start": None}


def _ips_checkpoint(held: composite.Settings) -> Path:
    """End-to-end IPS of benchmarks/learning.py, learned now where it is not there."""
    path = held.out / "ips_e2e" / "model" / "model.safetensors"
    if not path.exists():
        composite.features(held, held.out / "features")
        composite.run("ips_e2e", held)
    return path


def _predicted(held: composite.Settings, checkpoint: Path, folder: Path) -> dict[str, Any]:
    """Label the test slides, as anyone would."""
    net, pipeline = load_checkpoint(checkpoint)
    predictor = Predictor(net, pipeline, streaming=held.finetune.streaming, device=CPU)
    run, test = RunFolder(folder / "predictions"), held.manifest.split("test")
    started = time.perf_counter()
    rows = predict_slides([SlideJob(r.slide_id, r.path) for r in test], predictor, run, on_error="stop").rows
    seconds = time.perf_counter() - started
    results = {row.slide_id: read_result(run.attention(row.slide_id)) for row in rows}
    task = held.finetune.model.tasks[0].name
    probabilities_SC = np.array(
        [[results[r.slide_id].probabilities[task][name] for name in CLASSES] for r in test]
    )
    target_S = np.array([composite._target(record) for record in test])
    low, high = auc_interval(probabilities_SC, target_S)
    figures = {
        "auc": macro_auc(probabilities_SC, target_S),
        "auc_low": low,
        "auc_high": high,
        "probabilities": probabilities_SC.tolist(),
        "target": target_S.tolist(),
        "seconds_test": seconds,
        "froc": _froc(held, results, probabilities_SC),
    }
    return figures | _counts(list(results.values()))


def _counts(results: Sequence[SlideResult]) -> dict[str, Any]:
    """Patches that went through the encoder, and that were read closely, over all test slides."""
    passes = decoded = tissue = 0
    recalls = []
    for result in results:
        seen = result.coarse
        read = len(result.coords) if seen is None else seen.let_through
        decoded += read
        passes += read + (0 if seen is None else seen.encoder_windows)
        tissue += len(result.coords) if seen is None else seen.patches
        if seen is not None and seen.recall is not None:
            recalls.append(seen.recall)
    return {
        "encoder_passes_test": passes,
        "patches_decoded_test": decoded,
        "let_through": decoded / tissue,
        "recall": float(np.mean(recalls)) if recalls else None,
    }


def _froc(
    held: composite.Settings, results: Mapping[str, SlideResult], probabilities_SC: NDArray[np.floating]
) -> float | None:
    hits = []
    for record, p_C in zip(held.manifest.split("test"), probabilities_SC, strict=True):
        annotation, result = held.annotation(record), results[record.slide_id]
        hits.append(
            slide_hits(
                result.coords,
                result.attention_NHT.mean(axis=(1, 2)),
                p_tumor=1 - float(p_C[CLASSES.index(BENIGN)]),
                lesions=lesion_area(annotation) if annotation else None,
            )
        )
    return froc_curve(hits).score if any(slide.lesions for slide in hits) else None


if __name__ == "__main__":
    main()
