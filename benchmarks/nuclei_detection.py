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

from wsi_ips.models.build import parameters_of
from wsi_ips.nuclei.config import DetectorConfig, DetectorTrainingConfig
from wsi_ips.nuclei.data import OutlinedImage, read_outlined_images, split_off
from wsi_ips.nuclei.models import build_detector, save_detector
from wsi_ips.nuclei.scores import RULES, Score, chosen_threshold, found_in_images, score_found
from wsi_ips.nuclei.training import train_detector

BACKBONES = {"spinenet49s": "spinenet49s", "resnet18_fpn": "resnet18"}
KEPT_BACK = 2
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
        detector = build_detector(config)
        started = time.perf_counter()
        for step, loss in enumerate(train_detector(detector, train, training)):
            if step % 20 == 0:
                print(f"{name} step {step} loss {loss:.3f}", file=sys.stderr, flush=True)
        figures[f"{name}_train_s"] = time.perf_counter() - started
        figures[f"{name}_parameters"] = parameters_of(detector)
        scores = scored(detector, chosen_on, test)
        figures |= {f"{name}_{key}": value for score in scores for key, value in score.figures.items()}
        if keep is not None:
            config = config.model_copy(update={"score_threshold": scores[0].threshold})
            save_detector(keep / f"{name}.safetensors", detector, config)
        print(f"{name} {scores}", file=sys.stderr, flush=True)
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


if __name__ == "__main__":
    main()
