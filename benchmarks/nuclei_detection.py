"""Detectors of nuclei, trained from scratch in the same way, scored on images that they have not seen.

    python benchmarks/nuclei_detection.py FOLDER [--steps 260] [--json] [--keep FOLDER]

FOLDER has ``train/`` and ``test/`` with PNG images and Aperio outlines (MoNuSeg). Two of the training images are
kept back to choose each detector's score threshold on. F1: boxes matched one to one at an IoU of 0.5, or
(``_12px``) centres at most 12 px apart. Only the backbone differs: SpineNet-49S, or a ResNet-18 under a feature
pyramid.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from wsi_ips.config import DetectorConfig, DetectorTrainingConfig
from wsi_ips.datasets.nucleus_outlines import OutlinedImage, read_outlined_images, split_off
from wsi_ips.evaluation.matching import best_threshold, match_boxes, summed
from wsi_ips.models.cost import parameters_of
from wsi_ips.models.detection.build import LOWEST_SCORE, build_retinanet
from wsi_ips.models.detection.checkpoint import save_detector
from wsi_ips.training.detector import detect_in_image, train_detector

BACKBONES = {"spinenet49s": "spinenet49s", "resnet18_fpn": "resnet18"}
KEPT_BACK = 2
RULES = {"": ("iou", 0.5), "_12px": ("distance", 12.0)}
SMALL = {"head_channels": 64, "head_convs": 2, "pyramid_channels": 128, "anchor_base": 2.0}
"""Heads for a CPU. The median nucleus at 40x has a side of 25 px: anchors begin at 16."""


def main() -> None:
    """Train and score both, and print a table or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", type=Path, help="folder to write the detectors to")
    add_options(parser)
    arguments = parser.parse_args()
    figures = detection_figures(arguments.folder, training_of(arguments), keep=arguments.keep)
    if arguments.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:32} {value:10.3f}")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=260)
    parser.add_argument("--crop-px", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)


def training_of(arguments: argparse.Namespace) -> DetectorTrainingConfig:
    return DetectorTrainingConfig(steps=arguments.steps, crop_px=arguments.crop_px, seed=arguments.seed)


def detection_figures(
    folder: Path, training: DetectorTrainingConfig, *, keep: Path | None = None
) -> dict[str, float]:
    """F1, precision and recall of each detector, and what it took."""
    train, chosen_on = split_off(read_outlined_images(folder / "train"), KEPT_BACK)
    test = read_outlined_images(folder / "test")
    figures: dict[str, float] = {}
    for name, backbone in BACKBONES.items():
        torch.manual_seed(training.seed)
        config = DetectorConfig.model_validate({"backbone": backbone, **SMALL})
        detector = build_retinanet(config)
        started = time.perf_counter()
        for step, loss in enumerate(train_detector(detector, train, training)):
            if step % 20 == 0:
                print(f"{name} step {step} loss {loss:.3f}", file=sys.stderr, flush=True)
        figures[f"{name}_train_s"] = time.perf_counter() - started
        figures[f"{name}_parameters"] = parameters_of(detector)
        scores, threshold = scored(detector, chosen_on, test)
        figures.update({f"{name}_{key}": value for key, value in scores.items()})
        if keep is not None:
            config = config.model_copy(update={"score_threshold": threshold})
            save_detector(keep / f"{name}.safetensors", detector, config)
        print(f"{name} {scores}", file=sys.stderr, flush=True)
    return figures


def scored(
    detector: torch.nn.Module, chosen_on: Sequence[OutlinedImage], test: Sequence[OutlinedImage]
) -> tuple[dict[str, float], float]:
    """Figures on the test images at the threshold that is best on the others (by IoU), and that threshold."""
    detector.eval()
    detector.score_thresh = LOWEST_SCORE  # torchvision's name
    found = {image.name: detect_in_image(detector, image.rgb_HWC) for image in (*chosen_on, *test)}
    figures: dict[str, float] = {}
    thresholds = []
    for suffix, (rule, limit) in RULES.items():
        threshold = best_threshold(
            [found[image.name] for image in chosen_on],
            [image.boxes_N4 for image in chosen_on],
            rule=rule,  # type: ignore[arg-type]
            limit=limit,
        )
        total = summed(
            match_boxes(boxes[scores >= threshold], image.boxes_N4, rule=rule, limit=limit)  # type: ignore[arg-type]
            for image in test
            for boxes, scores in [found[image.name]]
        )
        figures |= {
            f"f1{suffix}": total.f1,
            f"precision{suffix}": total.precision,
            f"recall{suffix}": total.recall,
        }
        thresholds.append(threshold)
    return figures, thresholds[0]


if __name__ == "__main__":
    main()
