"""The proxy task: train one network a little, and score it on what it has not seen (Du et al. 2020, section 4).

Shape suffixes: n pictures, s their side, K classes.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from wsi_ips.config import DetectorConfig, DetectorTrainingConfig, ProxyConfig
from wsi_ips.errors import TrainingError
from wsi_ips.evaluation.detector_scores import BY_IOU, chosen_threshold, found_in_images, score_found
from wsi_ips.models.detection.build import build_retinanet
from wsi_ips.models.detection.pyramid import Pyramid
from wsi_ips.models.spinenet.registry import create_spinenet
from wsi_ips.models.spinenet.specification import Specification
from wsi_ips.search.proxy_data import Arrays, outlined_images
from wsi_ips.training.detector import train_detector

WARMUP_SHARE = 0.2
SCORED_AT_ONCE = 256


def proxy_score(
    specification: Specification, arrays: Arrays, config: ProxyConfig, device: torch.device
) -> float:
    """See :class:`ProxyConfig`; larger is better. A function of blocks, data and config (on a CPU).

    Raises :class:`TrainingError` where the network's numbers are not finite.
    """
    torch.manual_seed(config.seed)
    score = (
        _texture_score(specification, arrays, config, device)
        if config.data == "textures"
        else _nuclei_score(specification, arrays, config, device)
    )
    if not np.isfinite(score):
        raise TrainingError("the network's outputs are not finite; lower proxy.lr")
    return score


def _texture_score(
    specification: Specification, arrays: Arrays, config: ProxyConfig, device: torch.device
) -> float:
    """Mean log-likelihood of the held-back pictures' classes."""
    net = create_spinenet(
        specification,
        num_classes=len(config.classes),
        width=config.width,
        alpha=config.alpha,
        endpoint_channels=config.endpoint_channels,
    ).to(device)
    net = net.to(memory_format=torch.channels_last)  # a quarter faster on a CPU
    _learn_textures(net, arrays, config, device)
    net.eval()
    pixels, labels = _tensors(arrays, "held_back")
    with torch.no_grad():
        logits_nK = torch.cat([net(_scaled(part.to(device))).cpu() for part in pixels.split(SCORED_AT_ONCE)])
    return -float(functional.cross_entropy(logits_nK, labels))


def _learn_textures(net: nn.Module, arrays: Arrays, config: ProxyConfig, device: torch.device) -> None:
    pixels, labels = _tensors(arrays, "train")
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / config.steps))
    net.train()
    for drawn in _batches(len(labels), config):
        batch = _turned(_scaled(pixels[drawn].to(device)), generator_seed=int(drawn[0]))
        loss = functional.cross_entropy(net(batch), labels[drawn].to(device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimizer.step()
        schedule.step()


def _rate(done: float) -> float:
    """Share of the learning rate after this share of the steps: a rise, then a cosine to zero."""
    if done < WARMUP_SHARE:
        return 0.1 + 0.9 * done / WARMUP_SHARE
    return 0.5 * (1 + math.cos(math.pi * (done - WARMUP_SHARE) / (1 - WARMUP_SHARE)))


def _batches(count: int, config: ProxyConfig) -> Iterator[Tensor]:
    """Places of the pictures of each step; all pictures once before any comes again."""
    generator = torch.Generator().manual_seed(config.seed)
    left = torch.randperm(count, generator=generator)
    for _ in range(config.steps):
        while len(left) < config.batch:
            left = torch.cat([left, torch.randperm(count, generator=generator)])
        yield left[: config.batch]
        left = left[config.batch :]


def _turned(x_n3ss: Tensor, *, generator_seed: int) -> Tensor:
    """A whole batch turned and mirrored in one of eight ways."""
    way = generator_seed % 8
    x_n3ss = torch.rot90(x_n3ss, way % 4, (2, 3))
    return x_n3ss.flip(3) if way >= 4 else x_n3ss


def _scaled(pixels_nss3: Tensor) -> Tensor:
    """uint8 to (n, 3, s, s) float around 0, channels last."""
    return pixels_nss3.permute(0, 3, 1, 2).float().div(127.5).sub(1.0)


def _tensors(arrays: Arrays, part: str) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(arrays[f"{part}_pixels"]), torch.from_numpy(arrays[f"{part}_labels"])


def _nuclei_score(
    specification: Specification, arrays: Arrays, config: ProxyConfig, device: torch.device
) -> float:
    """F1 over the held-back pictures at the threshold that is best there: of use to compare, not to publish."""
    detector = _detector(specification, config).to(device)
    training = DetectorTrainingConfig(
        steps=config.steps,
        crops_per_step=config.batch,
        crop_px=config.side_px,
        lr=config.lr,
        seed=config.seed,
    )
    for _ in train_detector(detector, outlined_images(arrays, "train"), training):
        pass
    held_back = outlined_images(arrays, "held_back")
    found = found_in_images(detector, held_back)
    threshold = chosen_threshold(found, held_back, BY_IOU)
    return score_found(found, held_back, BY_IOU, threshold=threshold).matches.f1


def _detector(specification: Specification, config: ProxyConfig) -> nn.Module:
    features = create_spinenet(
        specification,
        features_only=True,
        width=config.width,
        alpha=config.alpha,
        endpoint_channels=config.endpoint_channels,
    )
    pyramid = Pyramid(features, fpn=None, out_channels=config.endpoint_channels)
    heads = DetectorConfig(
        head_channels=config.head_channels,
        head_convs=config.head_convs,
        anchor_base=config.anchor_base,
    )
    detector: nn.Module = build_retinanet(heads, pyramid)
    return detector
