"""The Lightning module: select without gradients over all patches, learn on the kept ones.

Shape suffixes: B slides of a step, M kept patches, K all kept patches of the step in a row.
"""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import BinaryAUROC, MulticlassAUROC

from wsi_ips.config import FinetuneConfig, TaskConfig
from wsi_ips.models.ips_net import IPSNet, scoring
from wsi_ips.selection.ips import select_patches
from wsi_ips.selection.slide_reading import read_slide
from wsi_ips.training.augment import quarter_turns_and_flips
from wsi_ips.training.bags import Bag
from wsi_ips.training.losses import task_loss
from wsi_ips.training.schedule import lr_multiplier


class IPSModule(LightningModule):
    """Fine-tunes ``net`` on bags. ``steps_per_epoch`` is the number of optimiser steps of one epoch.

    One task for now: the manifest has one label per slide.
    """

    def __init__(self, net: IPSNet, config: FinetuneConfig, *, steps_per_epoch: int) -> None:
        super().__init__()
        self.net = net
        self.config = config
        self.steps_per_epoch = steps_per_epoch
        self.task = config.model.tasks[0]
        self.val_auc = _auc_metric(self.task)

    def training_step(self, bags: Sequence[Bag], _: int) -> Tensor:
        kept = [self._keep_patches(bag) for bag in bags]
        reading = self.net(
            torch.cat([pixels_M3PP for pixels_M3PP, _ in kept]),
            torch.cat([ids_M for _, ids_M in kept]),
            [len(ids_M) for _, ids_M in kept],
        )
        target_B = torch.tensor([bag.targets[self.task.name] for bag in bags], device=self.device)
        loss = task_loss(reading.probabilities[self.task.name], target_B, activation=self.task.activation)
        self.log("train_loss", loss, batch_size=len(bags), on_step=False, on_epoch=True)
        return loss

    def _keep_patches(self, bag: Bag) -> tuple[Tensor, Tensor]:
        """The bag's M patches, (M, 3, P, P) uint8 as they were scored, and their (M,) ids."""
        training, selection = self.config.training, self.config.selection
        key = f"{training.seed}/{self.current_epoch}/{bag.bag_id}"

        def seen(pixels_n3PP: Tensor, ids_n: Tensor) -> Tensor:
            return quarter_turns_and_flips(pixels_n3PP, ids_n, key=key) if training.flips else pixels_n3PP

        with bag.open(self.config.streaming, self.device) as stream, scoring(self.net):
            kept = select_patches(
                ((chunk.ids_n, seen(chunk.pixels_n3PP, chunk.ids_n)) for chunk in stream),
                encode=self.net.encode,
                logits=self.net.logits,
                m=selection.m,
                i=selection.i,
            )
            # The buffer holds embeddings, not pixels: the winners are read again, this time to learn from.
            winners = stream.read(kept.ids_M)
        return seen(winners.pixels_n3PP, winners.ids_n), winners.ids_n

    def validation_step(self, bags: Sequence[Bag], _: int) -> None:
        for bag in bags:
            with bag.open(self.config.streaming, self.device) as stream:
                reading = read_slide(self.net, stream, self.config.selection)
            probabilities_BC = reading.bag.probabilities[self.task.name]
            target_B = torch.tensor([bag.targets[self.task.name]], device=self.device)
            loss = task_loss(probabilities_BC, target_B, activation=self.task.activation)
            self.log("val_loss", loss, batch_size=1, on_step=False, on_epoch=True)
            binary = isinstance(self.val_auc, BinaryAUROC)
            self.val_auc.update(probabilities_BC[:, -1] if binary else probabilities_BC, target_B)

    def on_validation_epoch_end(self) -> None:
        self.log("val_auc", self.val_auc.compute())
        self.val_auc.reset()

    def configure_optimizers(self) -> Any:
        training = self.config.training
        encoder = [p for p in self.net.encoder.parameters() if p.requires_grad]
        others = [p for p in self.net.parameters() if all(p is not e for e in encoder) and p.requires_grad]
        groups = [{"params": others, "lr": training.lr}]
        if encoder:
            groups.append({"params": encoder, "lr": training.encoder_lr or training.lr})
        optimizer = torch.optim.AdamW(groups, weight_decay=training.weight_decay)
        total = training.epochs * self.steps_per_epoch
        warmup = round(training.warmup_epochs * self.steps_per_epoch)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda done: lr_multiplier(min(done + 1, total), warmup=warmup, total=total)
        )
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """A bag holds no tensors: its pixels go to the device chunk by chunk."""
        return batch


def _auc_metric(task: TaskConfig) -> Metric:
    if len(task.classes) <= 2:
        return BinaryAUROC()
    return MulticlassAUROC(num_classes=len(task.classes), average="macro")
