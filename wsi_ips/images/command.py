"""``images``: learn from a data set of images, and score the images that it holds out. Run by a recipe."""

import csv
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from wsi_ips.commands.options import Outcome
from wsi_ips.commands.recipe import Job
from wsi_ips.config import FinetuneConfig
from wsi_ips.errors import count
from wsi_ips.images.config import ImageDataConfig
from wsi_ips.progress import Progress

if TYPE_CHECKING:
    from wsi_ips.images.learning import BagScores


class ImagesJob(FinetuneConfig, Job):
    """Learn from a data set of images, and score its test images: the other domains of the paper.

    Of ``tiling`` only ``patch_px`` and ``overlap_px`` are used: images have no resolution and no tissue.
    """

    command: Literal["images"] = "images"
    data: ImageDataConfig
    out: Path
    device: str = "auto"
    restart: bool = False
    """Begin anew where ``out`` holds a run, instead of going on with it."""


def learn_images(job: ImagesJob, progress: Progress) -> Outcome:
    """Leave in ``out``: ``data/`` (what was drawn), the training run, ``test.json`` and ``test.csv``.

    The test images are read once, by the checkpoint of the best epoch (by the validation images, or the training
    loss where there are none). Images that cannot be read are left out of training and reported; one of the test
    images raises its own error. Raises :class:`wsi_ips.errors.ResultsError` while another run trains in ``out``.
    """
    from wsi_ips.training.run_state import training_folder

    with training_folder(job.out):
        return _learn(job, progress)


def _learn(job: ImagesJob, progress: Progress) -> Outcome:
    from wsi_ips.images.image_sets import image_splits
    from wsi_ips.images.learning import score_bags
    from wsi_ips.models.checkpoint import load_checkpoint
    from wsi_ips.models.encoders.network import Compute, compute_in
    from wsi_ips.streaming.device import calculating, pick_device
    from wsi_ips.training.fit import train_bags
    from wsi_ips.training.processes import is_first_process
    from wsi_ips.training.run_state import forget_run

    device = pick_device(job.device)
    splits = image_splits(
        job.data, job.out / "data", tasks=job.model.tasks, tiling=job.tiling, progress=progress
    )
    if job.restart and is_first_process():
        forget_run(job.out)
    most_bad = math.ceil(job.training.max_bad_slides * (len(splits["train"]) + len(splits["val"])))
    report = train_bags(
        splits["train"], splits["val"], job, job.out, device=device, progress=progress, max_bad=most_bad
    )
    if not is_first_process():
        return Outcome([])
    net, pipeline = load_checkpoint(report.checkpoint)
    compute_in(net, Compute(job.training.precision))
    with calculating(deterministic=job.training.deterministic):
        scores = score_bags(
            net, splits["test"], pipeline, streaming=job.streaming, device=device, progress=progress
        )
    _write(job.out, scores)
    figures = ", ".join(f"{name} {value:.4f}" for name, value in scores.figures.items())
    best = (
        f"best epoch {report.best_epoch + 1} of {len(report.history)} (epoch {report.best_epoch} in history.csv), "
        f"checkpoint {report.checkpoint}"
    )
    return Outcome.of_slides(
        [f"{image}: {reason}" for image, reason in report.bad.items()],
        f"{count(len(splits['test']), 'test image')}: {figures}",
        details=[best],
    )


def _write(out: Path, scores: "BagScores") -> None:
    from wsi_ips.storage.files import whole_file

    with whole_file(out / "test.json") as partial:
        partial.write_text(json.dumps(scores.figures, indent=2) + "\n")
    with whole_file(out / "test.csv") as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "task", "target", "probabilities"])
        for row in scores.rows:
            target = row.target if isinstance(row.target, int) else ";".join(f"{x:g}" for x in row.target)
            writer.writerow([row.bag_id, row.task, target, ";".join(f"{p:.6g}" for p in row.probabilities)])
