"""How much of a full pass's attention a look from afar lets through, measured on bags that were not learned from.

Shape suffixes: N patches of a bag, S steps of the curve.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from wsi_ips.config import FinetuneConfig
from wsi_ips.models.checkpoint import load_checkpoint, save_checkpoint
from wsi_ips.models.coarse import STEPS
from wsi_ips.models.ips_net import IPSNet
from wsi_ips.progress import Progress, silent
from wsi_ips.selection.from_afar import look
from wsi_ips.selection.slide_reading import score_part
from wsi_ips.training.bags import Bag
from wsi_ips.training.kept_patches import coarse_source


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
