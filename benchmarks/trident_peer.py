"""TRIDENT as a peer, in a process and an environment of its own: it is told what to do, and says how long it took.

    TRIDENT_PYTHON benchmarks/trident_peer.py TRIDENT_FOLDER WEIGHTS.safetensors --torch-threads 2 --precision 32

Tasks come as lines of JSON on standard input and are answered by lines of JSON on standard output, so that the
imports are paid once, before anything is timed, and :mod:`benchmarks.end_to_end` can let both programs take
turns. What TRIDENT itself prints goes to standard error. A task is

``{"do": "tile", "slide": ..., "out": ..., "mag": 10, "px": 224, "min_tissue": 0.25}``: tissue by its Otsu
segmenter, which needs no weights and works at 1.25x (8 µm per pixel), contours and their picture, the coordinates
of patches and their picture. Answer: seconds, CPU seconds and the file of coordinates.

``{"do": "features", "slide": ..., "out": ..., "coords": ..., "batch": 64}``: the features of these patches, by a
ResNet-50 of timm with these weights. Answer: seconds, CPU seconds and the file of features.

This program is ours. Nothing of TRIDENT is in it, and nothing of wsi_ips is imported.
"""

import argparse
import json
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, as timm states them for its ResNet-50."""


def main() -> None:
    """Answer tasks until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trident", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--torch-threads", type=int, required=True)
    parser.add_argument("--precision", choices=("32", "bf16"), default="32")
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.trident))
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what it prints does not mix with the answers
    peer = Peer(arguments.weights, torch_threads=arguments.torch_threads, precision=arguments.precision)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        work = {"tile": peer.tile, "features": peer.features}[task["do"]]
        try:
            answer = timed(work, task)
        except Exception as error:  # noqa: BLE001 - whatever it raises is its answer
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


class Peer:
    """TRIDENT with its encoder and its segmenter loaded."""

    def __init__(self, weights: Path, *, torch_threads: int, precision: str) -> None:
        import timm
        import torch
        from safetensors.torch import load_file
        from torchvision import transforms
        from trident.patch_encoder_models import CustomInferenceEncoder
        from trident.segmentation_models import segmentation_model_factory

        class _Float32(torch.nn.Module):
            def forward(self, features: torch.Tensor) -> torch.Tensor:
                return features.float()

        torch.set_num_threads(torch_threads)
        network = timm.create_model("resnet50", num_classes=0)
        network.load_state_dict(load_file(weights))
        self._encoder = CustomInferenceEncoder(
            enc_name="resnet50",
            # Its arrays have no bfloat16.
            model=torch.nn.Sequential(network.eval(), _Float32()),
            transforms=transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)]),
            precision={"32": torch.float32, "bf16": torch.bfloat16}[precision],
        )
        self._segmenter = segmentation_model_factory("otsu")

    def tile(self, task: dict[str, Any]) -> dict[str, str]:
        """Segment, lay out patches and draw them, as ``--task seg`` and ``--task coords`` do."""
        from trident import load_wsi

        out = task["out"]
        with load_wsi(task["slide"], lazy_init=False) as slide:
            slide.segment_tissue(
                self._segmenter, target_mag=self._segmenter.target_mag, job_dir=out, device="cpu"
            )
            coords = slide.extract_tissue_coords(
                task["mag"], task["px"], out, min_tissue_proportion=task["min_tissue"]
            )
            slide.visualize_coords(coords, str(Path(out) / "visualization"))
        return {"coords": coords}

    def features(self, task: dict[str, Any]) -> dict[str, str]:
        """Encode the patches of a file of coordinates, as ``--task feat`` does."""
        from trident import load_wsi

        with load_wsi(task["slide"], lazy_init=False) as slide:
            path = slide.extract_patch_features(
                self._encoder, task["coords"], task["out"], device="cpu", batch_limit=task["batch"]
            )
        return {"features": path}


def timed(work: Callable[[dict[str, Any]], dict[str, str]], task: dict[str, Any]) -> dict[str, Any]:
    """What the work answers, and how long it took; its helper processes count as CPU time."""
    started, used = time.perf_counter(), cpu_seconds()
    answer = work(task)
    return {**answer, "seconds": time.perf_counter() - started, "cpu_seconds": cpu_seconds() - used}


def cpu_seconds() -> float:
    """CPU seconds of this process and of those it started that have ended."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in spent)


if __name__ == "__main__":
    main()
