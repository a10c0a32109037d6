"""How fast a patch is made of a region at factors that are not whole, against Pillow's BOX.

    python benchmarks/resample.py [--json] [--repeats 200] [--patch 256]

One thread; the ways take turns on the same region (A B C A B C ...), and a ratio compares the medians over the
rounds of one run: above 1 is faster than BOX, which is not the mean of the area. ``without_numba`` is what
computes the same bits where numba is not installed. ``area_error`` and ``box_error`` are the largest differences
from the float64 mean of the area, in grey levels, on random pixels.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_ips.streaming.area_means import area_means, compiled_kernel, plain_means

FACTORS = (1.0288, 1.98, 2.06, 3.3)
INSET = (0.3, 0.6)


def main() -> None:
    """Measure, and print a table or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--patch", type=int, default=256)
    arguments = parser.parse_args()
    figures = measure(arguments.patch, repeats=arguments.repeats)
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:40} {value:10.4f}")


def measure(patch_px: int, *, repeats: int) -> dict[str, float]:
    """Milliseconds a patch, ratios to Pillow's BOX, and errors, factor by factor."""
    figures: dict[str, float] = {"numba": float(compiled_kernel() is not None)}
    for factor in FACTORS:
        for name, value in of_factor(factor, patch_px, repeats=repeats).items():
            figures[f"{factor}_{name}"] = value
    return figures


def of_factor(factor: float, patch_px: int, *, repeats: int) -> dict[str, float]:
    """The same for one factor."""
    side = factor * patch_px
    width, height = (int(np.ceil(start + side)) for start in INSET)
    four = np.random.default_rng(0).integers(0, 256, (height, width, 4), np.uint8)
    region = np.ascontiguousarray(four[..., :3])
    patches = {name: np.zeros((patch_px, patch_px, 3), np.uint8) for name in ("area", "without_numba", "box")}
    flat = patches["without_numba"].reshape(patch_px, -1)
    ways: dict[str, Callable[[], None]] = {
        "area": lambda: area_means(region, patches["area"], inset=INSET, side=side),
        "without_numba": lambda: plain_means(region.reshape(height, -1), flat, inset=INSET, side=side),
        "box": lambda: pillow_box(four, patches["box"], side),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if turn:  # the first one compiles
                seconds[name].append(time.perf_counter() - started)
    ms = {name: statistics.median(every) * 1e3 for name, every in seconds.items()}
    assert np.array_equal(patches["area"], patches["without_numba"])
    wanted = exact(region, side, patch_px)
    return {
        **{f"{name}_ms": value for name, value in ms.items()},
        **{f"{name}_vs_box": ms["box"] / ms[name] for name in ("area", "without_numba")},
        **{f"{name}_error": float(np.abs(patches[name] - wanted).max()) for name in ("area", "box")},
    }


def pillow_box(four: NDArray[np.uint8], patch: NDArray[np.uint8], side: float) -> None:
    """Pillow's BOX the fastest way: on four channels, which it takes without a copy."""
    image = Image.frombuffer("RGBX", (four.shape[1], four.shape[0]), four, "raw", "RGBX", 0, 1)
    box = (INSET[0], INSET[1], INSET[0] + side, INSET[1] + side)
    smaller = image.resize(patch.shape[:2], Image.Resampling.BOX, box=box)
    patch[:] = np.frombuffer(smaller.tobytes("raw", "RGB"), np.uint8).reshape(patch.shape)


def exact(region: NDArray[np.uint8], side: float, patch_px: int) -> NDArray[np.float64]:
    """The float64 means, from the share of every pixel in every footprint."""

    def shares(start: float, length: int) -> NDArray[np.float64]:
        edges, pixels = start + np.arange(patch_px + 1) * side / patch_px, np.arange(length)
        covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
        return covered.clip(0) / (side / patch_px)

    down, across = shares(INSET[1], region.shape[0]), shares(INSET[0], region.shape[1])
    rows = np.einsum("ij,jkc->ikc", down, region.astype(np.float64), optimize=True)
    return np.einsum("ikc,lk->ilc", rows, across, optimize=True)


if __name__ == "__main__":
    main()
