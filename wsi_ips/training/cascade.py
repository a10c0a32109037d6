"""How much of a full pass's attention a look from afar lets through, measured on bags that were not learned from.

Shape suffixes: N patches of a bag, S steps of the curve.

IPS over what a look from afar lets through, and the look learned from what IPS attends to.

The scorer's target is the attention of the patches that were read closely: a cross entropy over their windows
between it and the scorer's own softmax. The first epochs let everything through; after them a part of the share is
drawn at random, so that the scorer is told of what it misses.

Shape suffixes: n patches let through, w windows that hold one of them, H heads, T queries.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from wsi_ips.config import FinetuneConfig
from wsi_ips.models.checkpoint import load_checkpoint, save_checkpoint
from wsi_ips.models.coarse import STEPS
from wsi_ips.models.ips_net import BagsRead, IPSNet
from wsi_ips.progress import Progress, silent
from wsi_ips.selection.coarse_to_fine import let_through, look
from wsi_ips.selection.score_store import ScoreStore
from wsi_ips.selection.slide_reading import places_for, score_part, select
from wsi_ips.training.bags import Bag
from wsi_ips.training.kept_patches import (
    KeptPatches,
    SelectionFigures,
    bag_key,
    coarse_source,
    seeded,
    whole_bag,
)
from wsi_ips.training.learning import Learner, ips_method
from wsi_ips.training.sampling import teach_scorer


def calibrate(
    checkpoint: Path,
    val: Sequence[Bag],
    config: FinetuneConfig,
    *,
    device: torch.device,
    progress: Progress = silent,
) -> None:
    """Measure the recall of every share on ``val`` and store it in the checkpoint; where ``coarse.recall``
    asks for it, the share too. One full pass over each bag; a checkpoint that has been measured is left as it
    is."""
    net, pipeline = load_checkpoint(checkpoint)
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
    notes = {"recall measured on": f"{len(val)} validation bags"}
    save_checkpoint(checkpoint, net, pipeline, notes=notes)


def recall_curve(net: IPSNet, bag: Bag, config: FinetuneConfig, *, device: torch.device) -> Tensor:
    """(S,) float32: at shares 0, 0.01, ..., 1 the share of the full pass's attention (mean over heads and queries)
    in what would be let through. Raises the bag's own error."""
    with bag.open(config.streaming, device) as opened:
        source = coarse_source(opened)
        logits_N = look(net, source, config.selection.coarse).patch_logits()
        attention_N = score_part(net, source).store.attention().mean(dim=(1, 2))
    order_N = logits_N.argsort(descending=True, stable=True)
    mass_N1 = torch.cat([torch.zeros(1), attention_N[order_N].double().cumsum(0).float()])
    let_S = (torch.linspace(0, 1, STEPS, dtype=torch.float64) * len(logits_N)).round(decimals=6).ceil().long()
    return (mass_N1[let_S] / mass_N1[-1]).clamp(0, 1)


@dataclass(frozen=True, slots=True)
class KeptCascade:
    """patches: those that IPS kept. window_w: windows, ascending, that hold something read closely. grad_w:
    of their logits, of the scorer's own loss, which is ``loss``."""

    patches: KeptPatches
    window_w: Tensor
    grad_w: Tensor
    loss: float


class CascadeLearner:
    """See :class:`wsi_ips.training.methods.Method`. remembered: the patches that each bag kept last.
    scorer_losses: of every bag so far."""

    def __init__(self, learner: Learner) -> None:
        self.remembered = learner.remembered  # where the risks of Cox tasks are too
        self.watched: list[SelectionFigures] = []
        self.scorer_losses: list[float] = []
        self._learner = learner
        self._config = learner.config

    def keep(self, bag: Bag, *, epoch: int, device: torch.device) -> KeptCascade:
        """Look from afar, let a share through, and select of it as IPS does. Raises the bag's own error."""
        net, coarse = self._learner.net, self._config.selection.coarse
        key, seen = bag_key(bag, self._config, epoch), self._learner.keeper.seen(bag, epoch)
        with whole_bag(bag, key).open(self._config.streaming, device) as opened:
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

    def learn(self, kept: Sequence[KeptCascade], *, epoch: int, device: torch.device, share: float) -> Tensor:
        """Gradients of the tasks' loss through IPS, and of the scorer's; returns the former."""
        loss = self._learner.learn([each.patches for each in kept], epoch=epoch, device=device, share=share)
        for each in kept:
            self.scorer_losses.append(each.loss)
            bag = each.patches.bag
            teach_scorer(
                self._learner.net,
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
    """How the cascade learns, for :data:`wsi_ips.training.methods.METHODS`."""
    return CascadeLearner(ips_method(net, config, weights, backward, penalty))
