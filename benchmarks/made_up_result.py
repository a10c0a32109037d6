"""A result as `predict` stores it, with a made-up attention value for every cell of a slide's grid, glass too.

    python benchmarks/made_up_result.py SLIDE RESULT.h5 [--heads N] [--kept N]

A process of its own: what it takes is not in what a benchmark measures. Patches of 256 px at the slide's own
resolution; every benchmark gets the same values.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a script, Python looks beside it, not in the repository's root

from wsi_ips.config import TilingConfig  # noqa: E402
from wsi_ips.inference.results import SlideResult, write_result  # noqa: E402
from wsi_ips.slides.registry import open_slide  # noqa: E402
from wsi_ips.tiling.grid import PatchCoords, PatchGrid  # noqa: E402

PATCH_PX = 256
SLIDE_ID = "benchmark"


def main() -> None:
    """Store the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("slide", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--heads", type=int, default=1)
    parser.add_argument("--kept", type=int, default=1)
    arguments = parser.parse_args()
    made = made_up_result(arguments.slide, heads=arguments.heads, kept=arguments.kept)
    arguments.result.parent.mkdir(parents=True, exist_ok=True)
    write_result(arguments.result, made)


def made_up_result(path: Path, *, heads: int, kept: int) -> SlideResult:
    coords = every_cell(path)
    attention_NHT = np.random.default_rng(0).random((len(coords), heads, 1))
    attention_NHT = (attention_NHT / attention_NHT.sum(axis=0)).astype(np.float32)
    return SlideResult(
        slide_path=str(path.resolve()),
        coords=coords,
        logits_NHT=np.log(attention_NHT),
        attention_NHT=attention_NHT,
        kept_ids_M=coords.ids_N[:kept],
        kept_scores_M=np.zeros(kept, np.float32),
        probabilities={"label": {"normal": 0.1, "tumor": 0.9}},
    )


def every_cell(path: Path) -> PatchCoords:
    with open_slide(path) as slide:
        mpp, l0_size = slide.info.known_mpp(), slide.info.l0_size
    tiling = TilingConfig(patch_px=PATCH_PX, patch_mpp=mpp)
    grid = PatchGrid.cover(l0_size, slide_mpp=mpp, tiling=tiling)
    ids_N = np.arange(grid.g_cols * grid.g_rows, dtype=np.int64)
    return PatchCoords.on_grid(
        grid,
        ids_N,
        slide_id=SLIDE_ID,
        l0_size=l0_size,
        slide_mpp=mpp,
        tiling=tiling,
        tissue_N=np.ones(len(ids_N), np.float32),
    )


if __name__ == "__main__":
    main()
