"""SpineNet against its publication: parameters, multiply-adds, and speed beside ResNet-50 with a feature pyramid.

    python benchmarks/spinenet.py [--json] [--no-speed] [--no-compile] [--nuclei FOLDER]

Counts are taken on the device "meta". Published counts are rounded: a count is right if it rounds to the
published one; the error of multiply-adds is that beyond the published number's last digit. Speed: maps P3 to P7 in
eval mode, medians over interleaved rounds, as ratios to ResNet-50-FPN run eagerly. With --nuclei, two detectors
are trained as well (benchmarks/nuclei_detection.py).
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from torch import nn

import wsi_ips.models.spinenet  # noqa: F401 - its models become timm's
from benchmarks.nuclei_detection import add_options, detection_figures, training_of
from wsi_ips.models.build import Cost, cost_of
from wsi_ips.nuclei.config import DetectorConfig
from wsi_ips.nuclei.models import build_pyramid, retina_head

IMAGENET, COCO = 1001, 91


@dataclass(frozen=True, slots=True)
class Published:
    """A network's published counts. head: channels and convolutions of RetinaNet's subnets; None: a classifier.
    endpoints: E, where the public code has another. digits: of the published numbers, behind the point."""

    name: str
    px: int
    millions: float
    gmacs: float | None
    head: tuple[int, int] | None = None
    endpoints: int | None = None
    macs_digits: int = 1


PUBLISHED = (
    Published("spinenet49", 224, 22.1, 3.5),
    Published("spinenet96", 224, 36.5, 5.7),
    Published("spinenet143", 224, 60.5, 9.1),
    Published("spinenet190", 224, 127.1, 19.1),
    Published("spinenet49s", 640, 11.9, 33.8, (128, 4), endpoints=256),
    Published("spinenet49", 640, 28.5, 85.4, (256, 4)),
    Published("spinenet49", 896, 28.5, 167.4, (256, 4)),
    Published("spinenet96", 1024, 43.0, 265.4, (256, 4)),
    Published("spinenet143", 1280, 67.0, 524.0, (256, 4)),
    Published("spinenet190", 1280, 163.6, 1885.0, (512, 7), macs_digits=0),
)
"""Du et al. 2020 and the authors' MODEL_ZOO (tensorflow/tpu)."""
FASTER = ("spinenet49s", "spinenet49", "resnet50_fpn")


def main() -> None:
    """Count, measure, and print tables or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--no-speed", action="store_true")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--px", type=int, default=256, help="side of the images")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--nuclei", type=Path, help="folder with train/ and test/ to train detectors on")
    add_options(parser)
    arguments = parser.parse_args()
    figures: dict[str, object] = {**count_figures()}
    if not arguments.no_speed:
        figures |= speed_figures(
            px=arguments.px, batch=arguments.batch, rounds=arguments.rounds, compiled=not arguments.no_compile
        )
    if arguments.nuclei is not None:
        figures |= detection_figures(arguments.nuclei, training_of(arguments))
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        if name == "counts":
            continue
        print(f"{name:44} {value}")
    print_table(figures["counts"])  # type: ignore[arg-type]


def print_table(rows: list[dict[str, float | str]]) -> None:
    print(f"{'network':28} {'parameters':>12} {'published':>10} {'GMACs':>10} {'published':>10}")
    for row in rows:
        print(
            f"{row['name']:28} {row['parameters']:12,} {row['published_millions']:9}M {row['gmacs']:10.3f} "
            f"{row['published_gmacs']:10}"
        )


def count_figures() -> dict[str, object]:
    """``params_exact``: whether every count rounds to the published one; ``macs_max_error``: see above."""
    rows, exact, errors = [], [], []
    for published in PUBLISHED:
        cost = counted(published)
        gmacs = cost.macs / 1e9
        exact.append(round(cost.parameters / 1e6, 1) == published.millions)
        assert published.gmacs is not None
        rounding = 0.5 * 10**-published.macs_digits
        errors.append(max(0.0, abs(gmacs - published.gmacs) - rounding) / published.gmacs)
        kind = "classifier" if published.head is None else "RetinaNet"
        rows.append(
            {
                "name": f"{published.name} {kind} {published.px}",
                "parameters": cost.parameters,
                "published_millions": published.millions,
                "gmacs": gmacs,
                "published_gmacs": published.gmacs,
            }
        )
    return {"params_exact": all(exact), "macs_max_error": max(errors), "counts": rows}


def counted(published: Published) -> Cost:
    own = {} if published.endpoints is None else {"endpoint_channels": published.endpoints}
    with torch.device("meta"):
        pixels = torch.empty(1, 3, published.px, published.px)
        if published.head is None:
            model = timm.create_model(published.name, num_classes=IMAGENET)
            return cost_of(model, lambda: model(pixels))
        features = timm.create_model(published.name, features_only=True, **own)  # type: ignore[arg-type]
        channels, convs = published.head
        config = DetectorConfig(head_channels=channels, head_convs=convs)
        head = retina_head(config, n_in=features.feature_info.channels()[0], classes=COCO)
        return cost_of(nn.ModuleList([features, head]), lambda: head(features(pixels)))


@torch.no_grad()
def speed_figures(*, px: int, batch: int, rounds: int, compiled: bool) -> dict[str, object]:
    """Images a second over those of ResNet-50-FPN run eagerly, and that one's own number."""
    pixels = torch.rand(batch, 3, px, px).to(memory_format=torch.channels_last)
    runs: dict[str, Callable[[], object]] = {}
    for name in FASTER:
        backbone = "resnet50" if name == "resnet50_fpn" else name
        net = build_pyramid(DetectorConfig(backbone=backbone)).eval().to(memory_format=torch.channels_last)
        runs[name] = lambda net=net: net(pixels)  # type: ignore[misc]
        if compiled:
            fast = torch.compile(net)
            runs[f"{name}_compiled"] = lambda net=fast: net(pixels)  # type: ignore[misc]
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()  # compiles
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    base = seconds["resnet50_fpn"]
    figures: dict[str, object] = {
        # Each round's own ratio: whoever else uses the machine slows its neighbours in the round as well.
        f"{name}_over_resnet50_fpn": statistics.median(b / s for b, s in zip(base, times, strict=True))
        for name, times in seconds.items()
        if name != "resnet50_fpn"
    }
    return figures | {"resnet50_fpn_images_per_s": batch / statistics.median(base)}


if __name__ == "__main__":
    main()
