"""Detectors of nuclei, trained from scratch in the same way, scored on images that they have not seen.

    python benchmarks/nuclei_detection.py FOLDER [--only NAME …] [--seed N] [--steps 260] [--json] [--table]
                                          [--out DIR] [--keep DIR] [--again] [--quick]

FOLDER has ``train/`` and ``test/`` with PNG images and Aperio outlines (MoNuSeg). Two of the training images are
kept back to choose each detector's score threshold on. F1: boxes matched one to one at an IoU of 0.5, or
(``_12px``) centres at most 12 px apart; of detectors with masks also outlines at an IoU of 0.5 (``_mask``), at the
threshold that is best for boxes, and the mean IoU of the outlines that were matched. The backbones are
SpineNet-49S, and a ResNet-18 under a feature pyramid; each under a RetinaNet, which finds boxes, and under a Mask
R-CNN.

What a detector reaches is a small JSON, nuclei_<name>_seed<N>.json: of the shared images, with the usual steps and
crops, in benchmarks/results, committed; otherwise below --out. Nothing is run twice. --table prints Markdown over
all seeds that were run, without running any.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a script, Python looks beside it, not in the repository's root

from benchmarks.kept_results import (  # noqa: E402
    COMMITTED,
    digest_of,
    folder_of_results,
    mean_and_deviation,
    read_result,
    run_once,
    tell,
)
from wsi_ips.models.build import parameters_of  # noqa: E402
from wsi_ips.nuclei.config import DetectorConfig, DetectorTrainingConfig  # noqa: E402
from wsi_ips.nuclei.data import OutlinedImage, read_outlined_images, split_off  # noqa: E402
from wsi_ips.nuclei.models import build_detector, save_detector  # noqa: E402
from wsi_ips.nuclei.scores import (  # noqa: E402
    RULES,
    Score,
    chosen_threshold,
    found_in_images,
    match_outlines,
    outlines_in_images,
    outlines_of,
    score_found,
    summed,
)
from wsi_ips.nuclei.training import train_detector  # noqa: E402

SMALL = {"head_channels": 64, "head_convs": 2, "pyramid_channels": 128, "anchor_base": 2.0}
"""Heads for a CPU. The median nucleus at 40x has a side of 25 px: anchors begin at 16."""
DETECTORS: dict[str, dict[str, Any]] = {
    "spinenet49s": {"backbone": "spinenet49s", **SMALL},
    "resnet18_fpn": {"backbone": "resnet18", **SMALL},
    "spinenet49s_mask": {"model": "mask_rcnn", "backbone": "spinenet49s", **SMALL},
    "resnet18_fpn_mask": {"model": "mask_rcnn", "backbone": "resnet18", **SMALL},
}
BOXES = ("spinenet49s", "resnet18_fpn")
NAMES = {
    "spinenet49s": "RetinaNet, SpineNet-49S",
    "resnet18_fpn": "RetinaNet, ResNet-18-FPN",
    "spinenet49s_mask": "Mask R-CNN, SpineNet-49S",
    "resnet18_fpn_mask": "Mask R-CNN, ResNet-18-FPN",
}
KEPT_BACK = 2
STEPS, CROP_PX = 260, 256
MASK_IOU = 0.5
SHARED = "3b21add17aa0"
"""The digest of the shared images' names and sizes."""


def main() -> None:
    """Train and score what is missing, and print the figures of this seed or the table of all."""
    arguments = parsed()
    training = training_of(arguments)
    if arguments.table:
        print(markdown(read_seeds(COMMITTED)))
        return
    images = [path for split in ("train", "test") for path in sorted((arguments.folder / split).glob("*.*"))]
    usual = training == DetectorTrainingConfig(steps=STEPS, crop_px=CROP_PX, seed=arguments.seed)
    results = folder_of_results(arguments.out, shared=usual and digest_of(images) == SHARED)
    figures: dict[str, Any] = {}
    for name in arguments.only:
        held = run_once(
            results / f"nuclei_{name}_seed{arguments.seed}.json",
            {**asked_of(name, training), "images": digest_of(images)},
            lambda name=name: detection_figures(arguments.folder, training, (name,), keep=arguments.keep),  # type: ignore[misc]
            seed=arguments.seed,
            again=arguments.again,
        )
        figures |= {key: value for key, value in held.items() if key.startswith(f"{name}_")}
        figures |= {f"{name}_seconds": held["seconds"], f"{name}_cpu_seconds": held["cpu_seconds"]}
    tell(figures, as_json=arguments.json)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="with train/ and test/; not needed for --table")
    parser.add_argument("--only", nargs="+", choices=DETECTORS, default=list(DETECTORS), metavar="NAME")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--table", action="store_true", help="print the table of what was run")
    parser.add_argument("--out", type=Path, default=Path("nuclei_detection_run"))
    parser.add_argument("--keep", type=Path, help="folder to write the detectors to")
    parser.add_argument("--again", action="store_true", help="train anew")
    add_options(parser)
    arguments = parser.parse_args()
    if not arguments.table and not (arguments.folder and (arguments.folder / "train").is_dir()):
        parser.error(f"{arguments.folder}: no folder with train/ and test/ of *.png with *.xml")
    return arguments


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--crop-px", type=int, default=CROP_PX)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="two steps of small crops: does it run at all?")


def training_of(arguments: argparse.Namespace) -> DetectorTrainingConfig:
    if arguments.quick:
        return DetectorTrainingConfig(steps=2, crops_per_step=2, crop_px=128, seed=arguments.seed)
    return DetectorTrainingConfig(steps=arguments.steps, crop_px=arguments.crop_px, seed=arguments.seed)


def asked_of(name: str, training: DetectorTrainingConfig | None = None) -> dict[str, Any]:
    """All that decides what a detector reaches, but for its images and seed."""
    training = training or DetectorTrainingConfig(steps=STEPS, crop_px=CROP_PX)
    settings = training.model_dump(exclude={"seed"})
    return {"detector": DETECTORS[name], "training": settings, "kept_back": KEPT_BACK}


def detection_figures(
    folder: Path,
    training: DetectorTrainingConfig,
    names: Sequence[str] = BOXES,
    *,
    keep: Path | None = None,
) -> dict[str, float]:
    """F1, precision and recall of each detector, and what it took."""
    train, chosen_on = split_off(read_outlined_images(folder / "train"), KEPT_BACK)
    test = read_outlined_images(folder / "test")
    figures: dict[str, float] = {}
    for name in names:
        torch.manual_seed(training.seed)
        config = DetectorConfig.model_validate(DETECTORS[name])
        detector = build_detector(config)
        for step, loss in enumerate(train_detector(detector, train, training)):
            if step % 20 == 0:
                print(f"{name} step {step} loss {loss:.3f}", file=sys.stderr, flush=True)
        figures[f"{name}_parameters"] = parameters_of(detector)
        scores = scored(detector, chosen_on, test)
        figures |= {f"{name}_{key}": value for score in scores for key, value in score.figures.items()}
        if config.model == "mask_rcnn":
            masks = mask_figures(detector, test, threshold=scores[0].threshold)
            figures |= {f"{name}_{key}": value for key, value in masks.items()}
        if keep is not None:
            config = config.model_copy(update={"score_threshold": scores[0].threshold})
            save_detector(keep / f"{name}.safetensors", detector, config)
    return figures


def scored(
    detector: torch.nn.Module, chosen_on: Sequence[OutlinedImage], test: Sequence[OutlinedImage]
) -> list[Score]:
    """On the test images by each rule, at the threshold that is best by it on the others."""
    found_chosen_on, found_test = found_in_images(detector, chosen_on), found_in_images(detector, test)
    return [
        score_found(found_test, test, rule, threshold=chosen_threshold(found_chosen_on, chosen_on, rule))
        for rule in RULES
    ]


def mask_figures(
    detector: torch.nn.Module, images: Sequence[OutlinedImage], *, threshold: float
) -> dict[str, float]:
    """F1, precision and recall of the outlines over all images, and the mean IoU of those that were matched; 0
    where none was."""
    pairs = [
        match_outlines(found_P, outlines_of(image), limit=MASK_IOU)
        for image, found_P in zip(
            images, outlines_in_images(detector, images, threshold=threshold), strict=True
        )
    ]
    matches = summed(each for each, _ in pairs)
    total = math.fsum(each.hits * iou for each, iou in pairs if each.hits)
    return {
        "f1_mask": matches.f1,
        "precision_mask": matches.precision,
        "recall_mask": matches.recall,
        "iou_mask": total / max(1, matches.hits),
    }


Seeds = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""{detector: {seed: what was found}}"""


def read_seeds(folder: Path) -> Seeds:
    """All results on the shared images with the settings of today."""
    found: dict[str, dict[int, Any]] = {}
    for name in DETECTORS:
        for path in sorted(folder.glob(f"nuclei_{name}_seed*.json")):
            held = read_result(path, {**asked_of(name), "images": SHARED})
            if held is not None:
                found.setdefault(name, {})[held["seed"]] = held
    return found


def markdown(found: Seeds) -> str:
    """A row for each detector: mean, deviation and worst over the seeds."""
    titles = [
        "",
        "seeds",
        "F1, boxes",
        "worst",
        "F1, within 12 px",
        "F1, outlines",
        "IoU of outlines",
        "CPU minutes",
    ]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for name, seeds in found.items():
        values = {
            key: [run[f"{name}_{key}"] for run in seeds.values() if f"{name}_{key}" in run]
            for key in ("f1", "f1_12px", "f1_mask", "iou_mask")
        }
        minutes = statistics.fmean(run["cpu_seconds"] for run in seeds.values()) / 60
        cells = [NAMES[name], str(len(seeds)), mean_and_deviation(values["f1"]), f"{min(values['f1']):.3f}"]
        cells += [mean_and_deviation(values[key]) for key in ("f1_12px", "f1_mask", "iou_mask")]
        lines.append("| " + " | ".join([*cells, f"{minutes:.0f}"]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
