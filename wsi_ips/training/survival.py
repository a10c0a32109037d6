"""What learning survival needs beyond the loss of a step.

Before the first epoch, training finds out whether survival can be learned from its patients, and the time bins.

:class:`EpochRisks` is the Cox likelihood over all training bags, though a step sees only a few of them. A step
of one slide has a risk set of one, and nothing to learn from. So the risks of the slides outside the step are
taken as they were last computed.

After the last epoch, the baseline hazard of a Cox model turns its risks into probabilities of survival.

Shape suffix: B bags.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsi_ips.config import FinetuneConfig, TaskConfig
from wsi_ips.datasets.manifest import Manifest, SlideRecord, Target
from wsi_ips.errors import ConfigError, ManifestError, TrainingError, WsiIpsError
from wsi_ips.models.checkpoint import checkpoint_notes, load_checkpoint, save_checkpoint
from wsi_ips.models.encoders.network import Compute, compute_in
from wsi_ips.progress import Progress, silent
from wsi_ips.selection.reading import read_bag
from wsi_ips.survival.follow_up import FollowUp
from wsi_ips.survival.losses import baseline_hazard, cox_loss
from wsi_ips.survival.scores import harrell
from wsi_ips.survival.time_bins import time_bins
from wsi_ips.training.bags import Bag


def follow_up_of(task: TaskConfig, targets: Sequence[Mapping[str, Target]]) -> FollowUp:
    """The times and events of the bags that have them, in their order. ``targets`` is ``{task: target}`` of each
    bag.
    """
    known = [target[task.name] for target in targets if task.name in target]
    pairs = [each for each in known if isinstance(each, tuple)]
    return FollowUp.of([time for time, _ in pairs], [event for _, event in pairs])


def check_survival(manifest: Manifest, split: str, records: Sequence[SlideRecord], task: TaskConfig) -> None:
    """Check that survival can be learned from the patients of a split, or an epoch chosen by them.

    Training needs both events and censorings; any other split needs two patients of whom it is known whose event
    came first.

    Raises:
        ManifestError: The patients of the split do not suffice.
    """
    assert task.survival is not None
    if not records:
        return
    known = follow_up_of(task, [record.targets([task]) for record in records])
    column = task.survival.event
    if split == "train" and (not len(known) or known.event.all() or not known.event.any()):
        found = f"only {column} {int(known.event[0])}" if len(known) else f"no {column}"
        raise ManifestError(
            manifest.path,
            f"the patients of split {split!r} have {found}",
            "survival is learned from patients with the event and without: add cases, or see that the column "
            "tells events, not censorings",
        )
    if not len(known) or not harrell(known, [0.0] * len(known)).pairs:
        raise ManifestError(
            manifest.path,
            f"of no two patients of split {split!r} it is known whose event came first ({known.counts})",
            f"survival is learned by comparing them: add cases with {column} 1"
            if split == "train"
            else f"no epoch can be chosen by them: add cases with {column} 1, or leave the split out",
        )


def with_time_bins(config: FinetuneConfig, targets: Sequence[Mapping[str, Target]]) -> FinetuneConfig:
    """The configuration with the edges of the time bins of every hazards task, found in the times of the
    training bags.

    Edges that the configuration has already stay.

    Raises:
        ConfigError: Bins cannot be cut, or survival is asked for at a time beyond the longest follow-up.
    """
    if all(task.survival is None for task in config.model.tasks):
        return config
    tasks = tuple(_begun(task, targets) for task in config.model.tasks)
    return config.model_copy(update={"model": config.model.model_copy(update={"tasks": tasks})})


def _begun(task: TaskConfig, targets: Sequence[Mapping[str, Target]]) -> TaskConfig:
    survival = task.survival
    if survival is None:
        return task
    known = follow_up_of(task, targets)
    longest = float(known.time.max()) if len(known) else 0.0
    if survival.at[-1] > longest:
        raise ConfigError(
            f"task {task.name}: survival.at has {survival.at[-1]:g} {survival.unit}, and no training patient was "
            f"followed longer than {longest:g}: leave later times out"
        )
    if survival.loss != "hazards" or survival.edges is not None:
        return task
    try:
        edges = time_bins(known, survival.bins)
    except ValueError as error:
        raise ConfigError(f"task {task.name}: {error}; take fewer survival.bins, or loss: cox") from None
    return with_survival(task, edges=tuple(edges.tolist()))


def with_survival(task: TaskConfig, **fitted: Any) -> TaskConfig:
    """The task with values in its ``survival`` section that were found out about its patients."""
    assert task.survival is not None
    return task.model_copy(update={"survival": task.survival.model_copy(update=fitted)})


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
    notes = checkpoint_notes(checkpoint) | {"baseline hazard estimated on": f"{len(said)} training bags"}
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


PREFIX = "survival/"
"""What the names of risks begin with among the other tensors that a method remembers. No name of a slide has a
slash.
"""


@dataclass(frozen=True, slots=True)
class EpochRisks:
    """The risk of every training bag as it was last computed, at most an epoch ago.

    Attributes:
        remembered: What the training's method keeps from one step to the next
            (:class:`wsi_ips.training.module.Method`). Risks are kept there beside other tensors, so that they
            are saved, resumed and shared between processes like those.
        bag_ids: The ids of the bags of this step, in order.
    """

    remembered: dict[str, Tensor]
    bag_ids: Sequence[str]

    def loss(
        self, task: TaskConfig, risk_B: Tensor, targets: Sequence[Mapping[str, Target]], places: Sequence[int]
    ) -> Tensor:
        """The loss of a step, a scalar. The risks of the step are remembered.

        The value is the negative log partial likelihood per event of all bags known so far. The gradient is that
        of the risks of these bags alone, times the number of known bags over the number of these: over an epoch,
        the steps add up to the gradient of the whole.

        Args:
            task: The Cox task.
            risk_B: Risks of the bags at ``places`` of the step, which have a label.
            targets: ``{task: target}`` of each bag of the step.
            places: Which bags of the step have a label.
        """
        assert task.survival is not None
        known = follow_up_of(task, [targets[place] for place in places])
        time_B, event_B = torch.from_numpy(known.time), torch.from_numpy(known.event).double()
        if task.survival.risk_set == "step":
            return cox_loss(
                risk_B, time_B.to(risk_B.device), event_B.to(risk_B.device), ties=task.survival.ties
            )
        names = [f"{PREFIX}{task.name}/{self.bag_ids[place]}" for place in places]
        begins, mine = f"{PREFIX}{task.name}/", set(names)
        others = [
            tensor for name, tensor in self.remembered.items() if name.startswith(begins) and name not in mine
        ]
        own_B3 = torch.stack([risk_B.detach().double().cpu(), time_B, event_B], dim=1)
        self.remembered.update(zip(names, own_B3.unbind(), strict=True))
        other_3 = (torch.stack(others) if others else own_B3.new_zeros((0, 3))).to(risk_B.device).T
        loss = cox_loss(
            torch.cat([risk_B, other_3[0].to(risk_B)]),
            torch.cat([time_B.to(risk_B.device), other_3[1]]),
            torch.cat([event_B.to(risk_B.device), other_3[2]]),
            ties=task.survival.ties,
        )
        share = len(places) / (len(places) + len(others))
        return loss.detach() + (loss - loss.detach()) / share
