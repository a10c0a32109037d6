"""``train-detector``: a detector from images whose objects are outlined."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from wsi_ips.commands.options import Outcome
from wsi_ips.errors import DatasetError
from wsi_ips.nuclei.command import TrainDetectorJob
from wsi_ips.nuclei.config import DetectorConfig
from wsi_ips.nuclei.data import OutlinedImage, read_outlined_images, split_off
from wsi_ips.nuclei.models import build_detector, save_detector
from wsi_ips.nuclei.scores import RULES, Score, chosen_threshold, found_in_images, score_found
from wsi_ips.nuclei.training import train_detector
from wsi_ips.progress import Progress
from wsi_ips.storage.files import whole_file, whole_table
from wsi_ips.streaming.device import pick_device
from wsi_ips.training.run_state import training_folder

DETECTOR = "detector.safetensors"


@dataclass(frozen=True, slots=True)
class _Images:
    """chosen_on: those that the score threshold is chosen on, which teach nothing."""

    train: list[OutlinedImage]
    chosen_on: list[OutlinedImage]
    test: list[OutlinedImage]


def train(job: TrainDetectorJob, progress: Progress) -> Outcome:
    """Leave ``detector.safetensors``, ``history.csv`` (the loss of every step) and ``scores.json`` in ``out``.

    Raises :class:`DatasetError` and :class:`AnnotationError` for images that are missing, broken or too small,
    :class:`ConfigError` for a detector that cannot be, :class:`TrainingError` for a loss that is not finite,
    :class:`ResultsError` while another run writes into ``out``.
    """
    images = _read(job)
    with training_folder(job.out, results=DETECTOR):
        return _train(job, images, progress)


def _train(job: TrainDetectorJob, images: _Images, progress: Progress) -> Outcome:
    device = pick_device(job.device)
    torch.manual_seed(job.training.seed)
    detector = build_detector(job.detector).to(device)
    losses: list[float] = []
    with progress("Training", total=job.training.steps) as advance:
        for loss in train_detector(detector, images.train, job.training):
            losses.append(loss)
            advance(f"loss {loss:.3f}")
    _write_history(job.out / "history.csv", losses)
    scores, config = _scored(detector, job.detector, images)
    path = job.out / DETECTOR
    save_detector(path, detector, config, notes={"steps": str(len(losses)), "loss": f"{losses[-1]:.6g}"})
    figures = {of: {name: value for score in them for name, value in score.figures.items()}
               for of, them in scores.items()}  # fmt: skip
    with whole_file(job.out / "scores.json") as partial:
        held = {"score_threshold": config.score_threshold, **figures}
        partial.write_text(json.dumps(held, indent=2) + "\n", encoding="utf-8")
    lines = [_words(of, score) for of, them in scores.items() for score in them]
    return Outcome(
        [*lines, f"detector {path}: what has a score of {config.score_threshold:g} or more counts"]
    )


def _read(job: TrainDetectorJob) -> _Images:
    if not (job.images / "train").is_dir():
        raise DatasetError(
            job.images, "holds no train/", "name a folder with train/ (and val/, test/) of *.png with *.xml"
        )
    train = read_outlined_images(job.images / "train")
    test = read_outlined_images(job.images / "test") if (job.images / "test").is_dir() else []
    if (job.images / "val").is_dir():
        return _Images(train, read_outlined_images(job.images / "val"), test)
    if job.held_back >= len(train):
        raise DatasetError(
            job.images / "train",
            f"has {len(train)} images, of which {job.held_back} are to choose the threshold on",
            "lower held_back, or add images",
        )
    learned, chosen_on = split_off(train, job.held_back)
    return _Images(learned, chosen_on, test)


def _scored(
    detector: nn.Module, config: DetectorConfig, images: _Images
) -> tuple[dict[str, list[Score]], DetectorConfig]:
    """By what they are of, the figures; and the config with the threshold that is best by IoU, its own where no
    image was held back."""
    sets = {"held back": images.chosen_on, "test": images.test}
    found = {of: found_in_images(detector, them) for of, them in sets.items()}
    thresholds = {
        rule: chosen_threshold(found["held back"], images.chosen_on, rule)
        if images.chosen_on
        else config.score_threshold
        for rule in RULES
    }
    scores = {
        of: [score_found(found[of], them, rule, threshold=thresholds[rule]) for rule in RULES]
        for of, them in sets.items()
        if them
    }
    return scores, config.model_copy(update={"score_threshold": thresholds[RULES[0]]})


def _words(of: str, score: Score) -> str:
    of_them = "held-back images, on which the threshold was chosen" if of == "held back" else "test images"
    matches = score.matches
    return (
        f"{of_them}: F1 {matches.f1:.3f} {score.rule.words} "
        f"(precision {matches.precision:.3f}, recall {matches.recall:.3f}, score from {score.threshold:g})"
    )


def _write_history(path: Path, losses: list[float]) -> None:
    with whole_table(path) as writer:
        writer.writerow(["step", "loss"])
        writer.writerows((step, f"{loss:.6g}") for step, loss in enumerate(losses, start=1))
