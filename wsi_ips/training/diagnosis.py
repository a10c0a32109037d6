"""Whether a training run has found anything: :func:`findings` says what speaks against trusting its checkpoint."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from wsi_ips.config import FinetuneConfig, ModelConfig, Monitor, TaskConfig
from wsi_ips.config.model import RANKING
from wsi_ips.datasets.manifest import Target
from wsi_ips.training.run_state import merit

AT_CHANCE = 0.95
"""A validation loss above this share of that of guessing has not found anything."""
FLAT = 0.9
"""Attention that is shared evenly by more than this share of the patches is flat."""
DRIFTING = 0.5
"""A selection that keeps less than this share of the patches that it kept before does not settle."""
LAST_EPOCHS = 3
"""How many epochs at the end are looked at."""
WORSE = 1e-3
"""A figure of the validation slides that differs by less is the same."""


def findings(
    history: Sequence[Mapping[str, float]],
    best_epoch: int,
    config: FinetuneConfig,
    *,
    train: Sequence[Mapping[str, Target]],
    val: Sequence[Mapping[str, Target]],
) -> list[str]:
    """One sentence for each sign that the run has not found what decides the labels. Empty if there is none.

    Args:
        history: The figures of each epoch, see :class:`wsi_ips.training.run_state.FinetuneReport`.
        best_epoch: Index of the epoch that was kept.
        config: The settings of the run.
        train, val: The targets of the bags.
    """
    said = []
    guess = guess_loss(config.model.tasks, train=train, val=val)
    name, loss = _told_apart(history[best_epoch])
    if loss is not None and config.training.class_weights == "none" and loss > AT_CHANCE * guess:
        said.append(
            f"{name}, {loss:.3f}, is no better than that of guessing by how frequent the labels "
            f"are, {guess:.3f}: the run has not found what decides them; {_what_to_try(config)}"
        )
    last = [row for row in history if "attention_spread" in row][-LAST_EPOCHS:]
    if last and min(row["attention_spread"] for row in last) > FLAT:
        said.append(
            f"attention is flat: {100 * last[-1]['attention_spread']:.0f} % of a slide's patches share it, and "
            f"which ones are kept means little; {_what_to_try(config)}"
        )
    overlaps = [row["kept_overlap"] for row in last if "kept_overlap" in row]
    kept = [row["kept_attention"] for row in last]
    if len(overlaps) == LAST_EPOCHS and max(overlaps) < DRIFTING and min(kept) < 1:
        said.append(
            f"selection does not settle: of the patches kept in the last epoch {100 * overlaps[-1]:.0f} % had "
            "been kept in the one before; try a lower training.lr, more epochs, or a larger selection.memory_size"
        )
    return said


def behind_head_start(start: Mapping[str, float], best: Mapping[str, float], monitor: Monitor) -> str | None:
    """A sentence if a network was better after its head start than in every epoch that followed, else None.

    Args:
        start: The figures of the last epoch of the head start.
        best: Those of the epoch that was kept.
        monitor: The setting ``training.monitor``. With ``last``, the validation loss at the best temperature
            decides.
    """
    by: Monitor = "refined_loss" if monitor == "last" else monitor
    if "val_loss" not in start or "val_loss" not in best:
        return None
    (before, _), (after, _) = merit(start, by), merit(best, by)
    if not before > after + WORSE:
        return None
    name, sign = "loss", -1  # merit is highest where a loss is lowest
    if by == "refined_loss" and "val_refined_loss" in best:
        name = "loss at the best temperature"
    elif by != "loss" and any(figure.endswith(by) for figure in best):
        name, sign = f"mean {by}", 1
    return (
        f"end-to-end learning has not improved on its head start: the {name} of the validation slides is "
        f"{sign * after:.3f}, and was {sign * before:.3f} after the head start"
    )


def _what_to_try(config: FinetuneConfig) -> str:
    """What a run that found nothing advises the user to do."""
    model, advice = config.model, []
    if model.encoder.begins_random and config.training.start is None:
        # Behind an encoder of random weights only the direct block with its LayerNorm, and the paper's, were seen
        # to learn to select (docs/results.md).
        if config.selection.selector in RANKING and model.aggregator is not None:
            advice.append("model.aggregator=direct")
        elif config.selection.selector in RANKING and not _has_norm(model):
            advice.append("model.attention.layer_norm=true")
    elif config.training.start is None and not model.encoder.standardise:
        advice.append("model.encoder.standardise=centre")
    if config.can_restart:
        advice.append("training.restarts=5")
    advice += ["another training.lr", "an encoder that knows this kind of tissue", "or more slides"]
    return f"try {', '.join(advice)}; its predictions and heatmaps say nothing"


def _has_norm(model: ModelConfig) -> bool:
    """Whether a LayerNorm stands between the patches and the classifier."""
    return model.attention.block == "paper" or bool(model.attention.layer_norm)


def _told_apart(row: Mapping[str, float]) -> tuple[str, float | None]:
    """The best epoch's loss that is compared with a guess's, with its name; None without validation slides.

    A network that is too sure of itself may tell slides apart and still have a worse loss than a guess.
    """
    if "val_refined_loss" in row:
        return "the best validation loss at the best temperature", row["val_refined_loss"]
    return "the best validation loss", row.get("val_loss")


def guess_loss(
    tasks: Sequence[TaskConfig], *, train: Sequence[Mapping[str, Target]], val: Sequence[Mapping[str, Target]]
) -> float:
    """The validation loss of guessing by the frequency of the training labels, mean over the tasks.

    It is infinite if a task is linear, or if a validation slide has a class that no training slide has: there is
    no such guess.
    """
    losses = [_guess_loss(task, train, val) for task in tasks]
    return math.fsum(losses) / len(losses)


def _guess_loss(
    task: TaskConfig, train: Sequence[Mapping[str, Target]], val: Sequence[Mapping[str, Target]]
) -> float:
    known = [target[task.name] for target in train if task.name in target]
    asked = [target[task.name] for target in val if task.name in target]
    if task.activation == "linear" or not known or not asked:
        return math.inf
    if task.activation == "softmax":
        counts = Counter(known)
        if any(counts[target] == 0 for target in asked):
            return math.inf
        return math.fsum(-math.log(counts[target] / len(known)) for target in asked) / len(asked)
    total = 0.0
    for place in range(len(task.classes)):
        share = math.fsum(_present(target, place) for target in known) / len(known)
        for target in asked:
            p = share if _present(target, place) else 1 - share
            total += math.inf if p == 0 else -math.log(p)
    return total / (len(asked) * len(task.classes))


def _present(target: Target, place: int) -> float:
    """Whether the class at this place of a sigmoid task applies, 1 or 0."""
    return float(target[place]) if isinstance(target, tuple) else float(target)
