"""The head start: what follows the encoder learns first, from features that are made once.

End-to-end learning that begins with a head that knows nothing selects patches at random and teaches the encoder on
them; from many starts it never finds what decides the label. Frozen features of all patches cost one pass over the
slides. On them a head learns in seconds, can be tried from several starts, and can read all patches of a slide at
first (:attr:`wsi_ips.config.TrainingConfig.all_patches_first`).
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from wsi_ips.config import EncoderConfig, FinetuneConfig, fingerprint
from wsi_ips.models.bag_net import BagNet
from wsi_ips.training.bags import Bag
from wsi_ips.training.encoded_bags import EncodedBag
from wsi_ips.training.run_state import HEAD_START


def head_start_config(config: FinetuneConfig, *, width: int) -> FinetuneConfig:
    """The same network and tasks on stored features of this width, and how the head learns from them."""
    start = config.training.head_start
    encoder = EncoderConfig(name="features", features=width, project=config.model.encoder.project)
    training = config.training.model_copy(
        update={
            "epochs": config.head_start_epochs,
            "warmup_epochs": 0.5,
            "lr": start.lr,
            "encoder_lr": None,
            "weight_decay": start.weight_decay,
            "slides_per_step": start.slides_per_step,
            "precision": "32",
            "start": None,
            "select_every": 1,
            "patience": None,
            "schedule": "cosine",
            "tensorboard": False,
        }
    )
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"encoder": encoder}),
            "selection": config.selection.model_copy(update={"selector": "ips"}),
            "training": training,
        }
    )


def encoded(
    bags: Sequence[Bag], net: BagNet, config: FinetuneConfig, out: Path, *, device: torch.device
) -> list[EncodedBag]:
    """The bags with features of ``net``'s encoder in place of pixels.

    The encoder is moved to ``device``. A bag is encoded when it is opened for the first time.
    """
    encoder = net.encoder.to(device)
    # Other patches or another encoder have a folder of their own; the number of threads changes no feature.
    settings = (config.tiling, config.model.encoder, config.streaming.model_copy(update={"threads": 1}))
    folder = out / HEAD_START / "features" / "-".join(fingerprint(each) for each in settings)
    return [EncodedBag(bag, encoder, folder, net.place_kind) for bag in bags]


def forget_features(out: Path) -> None:
    """Delete what :func:`encoded` stored."""
    shutil.rmtree(out / HEAD_START / "features", ignore_errors=True)
