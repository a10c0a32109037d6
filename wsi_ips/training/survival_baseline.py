"""The baseline hazard of a trained Cox model, which turns risks into probabilities of survival."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from wsi_ips.config import FinetuneConfig, TaskConfig
from wsi_ips.datasets.manifest import Target
from wsi_ips.errors import TrainingError, WsiIpsError
from wsi_ips.models.checkpoint import load_checkpoint, save_checkpoint
from wsi_ips.models.encoders.precision import Compute, compute_in
from wsi_ips.progress import Progress, silent
from wsi_ips.selection.reading import read_bag
from wsi_ips.survival.cox import baseline_hazard
from wsi_ips.training.bags import Bag
from wsi_ips.training.survival_start import follow_up_of, with_survival

logger = logging.getLogger(__name__)


@torch.no_grad()
def store_baseline(
    checkpoint: Path,
    train: Sequence[Bag],
    config: FinetuneConfig,
    *,
    device: torch.device,
    progress: Progress = silent,
) -> None:
    """Estimate the baseline hazards of a checkpoint and store them in its configuration.

    Every training bag is read once, as in prediction, and Breslow's baseline hazard is written for the times of
    each Cox task. A checkpoint without Cox tasks, or one that has its baselines already, is left as it is.
    Slides of one patient count one by one, as in training. A bag that can no longer be read is left out with a
    warning.

    Args:
        checkpoint: The checkpoint, which is overwritten.
        train: The training bags.
        config: The settings of the run.
        device: Where the network runs.
        progress: Shows how far it is.

    Raises:
        CheckpointError: The checkpoint cannot be read.
        TrainingError: No event is left, or a risk is not finite.
    """
    if not any(_lacks_baseline(task) for task in config.model.tasks):
        return
    net, pipeline = load_checkpoint(checkpoint)
    compute_in(net, Compute(config.training.precision))
    tasks = pipeline.model.tasks
    if not any(_lacks_baseline(task) for task in tasks):
        return
    net.to(device)
    said: list[dict[str, float]] = []
    targets: list[Mapping[str, Target]] = []
    with progress("Measuring risks", total=len(train)) as advance:
        for bag in train:
            try:
                with bag.open(config.streaming, device) as source:
                    outputs = read_bag(net, source, config.selection).bag.probabilities
            except WsiIpsError as error:
                logger.warning("%s is left out of the baseline hazard: %s", bag.bag_id, error)
                continue
            said.append({name: float(output_BC[0, 0]) for name, output_BC in outputs.items()})
            targets.append(bag.targets)
            advance(bag.bag_id)
    fitted = tuple(_fitted(task, said, targets) if _lacks_baseline(task) else task for task in tasks)
    pipeline = pipeline.model_copy(update={"model": pipeline.model.model_copy(update={"tasks": fitted})})
    notes = {"baseline hazard estimated on": f"{len(said)} training bags"}
    save_checkpoint(checkpoint, net.cpu(), pipeline, notes=notes)


def _fitted(
    task: TaskConfig, said: Sequence[Mapping[str, float]], targets: Sequence[Mapping[str, Target]]
) -> TaskConfig:
    assert task.survival is not None
    risks = [risk[task.name] for risk, target in zip(said, targets, strict=True) if task.name in target]
    try:
        baseline = baseline_hazard(follow_up_of(task, targets), risks, task.survival.at)
    except ValueError as error:
        raise TrainingError(f"task {task.name}: its baseline hazard cannot be estimated: {error}") from None
    return with_survival(task, baseline=tuple(baseline.tolist()))


def _lacks_baseline(task: TaskConfig) -> bool:
    return task.survival is not None and task.survival.loss == "cox" and task.survival.baseline is None
