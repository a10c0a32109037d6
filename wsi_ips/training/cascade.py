"""How the cascade learns: IPS on the patches that a coarse scorer lets through, and the scorer from the
attention of IPS.

The target of the scorer is the attention of the patches that were read closely: its loss is the cross entropy,
over their windows, between that attention and the softmax of the scorer. In the first epochs all patches are let
through; after that, a part of the share is drawn at random, so that the scorer learns of what it misses.

After training, :func:`calibrate` measures how much of the attention of a full pass the scorer lets through, on
bags that were not learned from.

Shape suffixes: N patches of a bag, n patches let through, w windows that hold one of them, S steps of the recall
curve, H heads, T queries.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from wsi_ips.config import FinetuneConfig
from wsi_ips.models.checkpoint import checkpoint_notes, load_checkpoint, save_checkpoint
from wsi_ips.models.coarse import STEPS
from wsi_ips.models.encoders.network import Compute, compute_in
from wsi_ips.models.ips_net import BagsRead, IPSNet
from wsi_ips.progress import Progress, silent
from wsi_ips.selection.baselines import seeded
from wsi_ips.selection.coarse_to_fine import let_through, look
from wsi_ips.selection.score_store import ScoreStore
from wsi_ips.selection.slide_reading import places_for, score_part, select
from wsi_ips.training.bags import Bag
from wsi_ips.training.kept_patches import (
    KeptPatches,
    SelectionFigures,
    bag_key,
    coarse_source,
)
from wsi_ips.training.learning import Learner, ips_method
from wsi_ips.training.sampling import teach_scorer
from wsi_ips.training.step_bags import StepBags


@dataclass(frozen=True, slots=True)
class KeptCascade:
    """What a step learns from in one bag.

    Attributes:
        patches: The patches that IPS kept.
        window_w: The windows, ascending, that hold a patch that was read closely.
        grad_w: The gradient of the loss of the scorer with respect to their logits.
        loss: The loss of the scorer.
    """

    patches: KeptPatches
    window_w: Tensor
    grad_w: Tensor
    loss: float


class CascadeLearner:
    """Learns the cascade. It is a :class:`wsi_ips.training.module.Method`.

    Attributes:
        remembered: The patches that each bag kept last, and the risks of Cox tasks.
        watched: Figures of every selection, until they are taken away.
        scorer_losses: The loss of the scorer for every bag so far.
    """

    def __init__(self, learner: Learner) -> None:
        self.remembered = learner.remembered  # shared, because it also holds the risks of Cox tasks
        self.watched: list[SelectionFigures] = []
        self.scorer_losses: list[float] = []
        self._learner = learner
        self._config = learner.config

    def keep(self, bag: Bag, *, epoch: int, device: torch.device) -> KeptCascade:
        """Score the windows, let a share of the patches through, and select among them as IPS does.

        Raises the error of the bag if it cannot be read.
        """
        net, coarse = self._learner.net, self._config.selection.coarse
        key, seen = bag_key(bag, self._config, epoch), self._learner.keeper.seen(bag, epoch)
        with self._learner.keeper.bags.open(bag, key, device) as opened:
            source = coarse_source(opened)
            afar = look(net, source, coarse, seen=seen)
            share = 1.0 if epoch < coarse.full_epochs else float(net.looks_from_afar.share)
            rows_n = let_through(
                afar.patch_logits(), share, explore=coarse.explore, generator=seeded(key, torch.device("cpu"))
            )
            store = ScoreStore()
            kept = select(
                net, source.only(afar.ids_N[rows_n]), self._config.selection, seen=seen, store=store
            )
            before_M = self.remembered.get(bag.bag_id)
            self.watched.append(SelectionFigures.of(store.logits(), store.ids(), kept.ids_M, before_M))
            self.remembered[bag.bag_id] = kept.ids_M
            patches = KeptPatches(bag, kept.ids_M, places_for(net, source, kept.ids_M), kept.emb_MD)
        attention_n = store.attention().mean(dim=(1, 2))
        window_w, place_n = afar.windows.window_N[rows_n].unique(return_inverse=True)
        target_w = torch.zeros(len(window_w)).index_add(0, place_n, attention_n)
        log_w = afar.logits_W[window_w].log_softmax(dim=0)
        loss = -float((target_w * log_w).sum())
        return KeptCascade(patches, window_w, log_w.exp() - target_w, loss)

    @property
    def bags(self) -> StepBags:
        """Opens bags, each once in a step."""
        return self._learner.keeper.bags

    def prepare(self, bag: Bag, *, epoch: int, device: torch.device) -> None:
        """Open a bag that is kept from next, in a thread."""
        self._learner.keeper.prepare(bag, epoch=epoch, device=device)

    def learn(self, kept: Sequence[KeptCascade], *, epoch: int, device: torch.device, share: float) -> Tensor:
        """Add the gradients of the loss of the tasks through IPS and of the loss of the scorer; return the
        former.

        ``share`` is the part of the bags of the step that these are.

        Raises:
            BagLost: A bag can no longer be read.
            TrainingError: The loss is not finite.
        """
        loss = self._learner.learn([each.patches for each in kept], epoch=epoch, device=device, share=share)
        for each in kept:
            self.scorer_losses.append(each.loss)
            bag = each.patches.bag
            teach_scorer(
                self._learner.net,
                self._learner.keeper.bags,
                bag,
                self._config,
                each.grad_w * (share / len(kept)),
                epoch=epoch,
                device=device,
                seen=self._learner.keeper.seen(bag, epoch),
                only=each.window_w,
                backward=self._learner.backward,
            )
        return loss


def cascade_method(
    net: IPSNet,
    config: FinetuneConfig,
    weights: Mapping[str, Tensor | None],
    backward: Callable[[Tensor], None] = Tensor.backward,
    penalty: Callable[[BagsRead], Tensor] | None = None,
) -> CascadeLearner:
    """The method of the cascade, for :data:`wsi_ips.training.module.METHODS`.

    For the arguments see :class:`wsi_ips.training.module.MethodMaker`.
    """
    return CascadeLearner(ips_method(net, config, weights, backward, penalty))


def calibrate(
    checkpoint: Path,
    val: Sequence[Bag],
    config: FinetuneConfig,
    *,
    device: torch.device,
    progress: Progress = silent,
) -> None:
    """Measure the recall of every share on validation bags, and store it in the checkpoint.

    If ``selection.coarse.recall`` is set, the share is chosen to reach it. This takes one full pass over each
    bag. A checkpoint that has been measured already is left as it is.

    Args:
        checkpoint: The checkpoint, which is overwritten.
        val: The bags to measure on.
        config: The settings of the run.
        device: Where the network runs.
        progress: Shows how far it is.
    """
    net, pipeline = load_checkpoint(checkpoint)
    compute_in(net, Compute(config.training.precision))
    assert isinstance(net, IPSNet)
    if net.looks_from_afar.recall_at(1.0) is not None:
        return
    net.to(device)
    curves = []
    with progress("Measuring recall", total=len(val)) as advance:
        for bag in val:
            curves.append(recall_curve(net, bag, config, device=device))
            advance(bag.bag_id)
    recall_S = torch.stack(curves).mean(dim=0)
    net.looks_from_afar.calibrate(recall_S, target=config.selection.coarse.recall)
    notes = checkpoint_notes(checkpoint) | {"recall measured on": f"{len(val)} validation bags"}
    save_checkpoint(checkpoint, net, pipeline, notes=notes)


def recall_curve(net: IPSNet, bag: Bag, config: FinetuneConfig, *, device: torch.device) -> Tensor:
    """How much of the attention of a full pass each share of the patches holds, if the scorer chooses them.

    Attention is the mean over heads and queries. Raises the error of the bag if it cannot be read.

    Returns:
        (S,) float32, for the shares 0, 0.01, ..., 1.
    """
    with bag.open(config.streaming, device) as opened:
        source = coarse_source(opened)
        logits_N = look(net, source, config.selection.coarse).patch_logits()
        attention_N = score_part(net, source).store.attention().mean(dim=(1, 2))
    order_N = logits_N.argsort(descending=True, stable=True)
    mass_N1 = torch.cat([torch.zeros(1), attention_N[order_N].double().cumsum(0).float()])
    let_S = (torch.linspace(0, 1, STEPS, dtype=torch.float64) * len(logits_N)).round(decimals=6).ceil().long()
    return (mass_N1[let_S] / mass_N1[-1]).clamp(0, 1)
