"""Draws the folder of a run of many slides for ``benchmarks/listing.py``: python -m benchmarks.listing_run DIR N.

One slide is drawn and labelled by ``wsi-ips predict``; all others are made of its files. A result is an HDF5 file
without checksums, so a name or a number of the same length can be put in the place of another.
"""

import csv
import json
import os
import re
import shutil
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.listing import LINKS, NETWORK

SIDE_PX = 256


def main() -> None:
    """Draw slides, checkpoint, run and manifest into the folder, which has to be new."""
    folder, slides = Path(sys.argv[1]), int(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    write_first(folder)
    rng = np.random.default_rng(0)
    tumor = rng.random(slides)
    write_slides(folder, slides)
    write_results(folder / "run", tumor)
    write_tables(folder, tumor, rng)
    write_known(folder, tumor)


def name_of(number: int) -> str:
    """Names of one length."""
    return f"slide_{number:07d}"


def write_first(folder: Path) -> None:
    """The checkpoint, the first slide, and the run of it."""
    import yaml

    from wsi_ips.commands.predict import PredictJob, predict
    from wsi_ips.commands.recipe import make_job
    from wsi_ips.drawn.synthetic import write_pyramid
    from wsi_ips.models.build import build_net
    from wsi_ips.models.checkpoint import save_checkpoint
    from wsi_ips.progress import silent
    from wsi_ips.units import Mpp

    job = make_job(
        {"command": "finetune", "manifest": "m", "out": "o", **yaml.safe_load(NETWORK)}, source="listing"
    )
    save_checkpoint(folder / "model.safetensors", build_net(job.model), job.pipeline)  # type: ignore[attr-defined]
    image = np.full((SIDE_PX, SIDE_PX, 3), 244, np.uint8)
    image[32:-32, 32:-32] = (200, 150, 190)
    write_pyramid(folder / "slides" / f"{name_of(0)}.tif", image, mpp=Mpp(2.0))
    ours = {"slides": str(folder / "slides"), "checkpoint": str(folder / "model.safetensors"),
            "out": str(folder / "run"), "device": "cpu"}  # fmt: skip
    first = make_job({"command": "predict", **ours}, source="listing")
    assert isinstance(first, PredictJob)
    assert predict(first, silent).exit_code == 0


def write_slides(folder: Path, slides: int) -> None:
    """Links to the first slide, and to its overlay."""
    for below, suffix in ((folder / "slides", ".tif"), (folder / "run" / "overlays", ".png")):
        source = below / f"{name_of(0)}{suffix}"
        for number in range(1, slides):
            path = below / f"{name_of(number)}{suffix}"
            if number % LINKS:
                os.link(source, path)
            else:
                shutil.copyfile(source, path)
                source = path


def write_results(run: Path, tumor: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> None:
    """A result for each slide, with its own name and probabilities."""
    held = (run / "attention" / f"{name_of(0)}.h5").read_bytes()
    found = re.search(rb'"normal": ([0-9.]+), "tumor": ([0-9.]+)', held)
    assert found, "the first result holds no probabilities"
    digits = [len(number) - 2 for number in found.groups()]
    for number, p in enumerate(tumor.tolist()):
        told = f'"normal": {1 - p:.{digits[0]}f}, "tumor": {p:.{digits[1]}f}'.encode()
        assert len(told) == len(found[0])
        data = held.replace(found[0], told).replace(name_of(0).encode(), name_of(number).encode())
        (run / "attention" / f"{name_of(number)}.h5").write_bytes(data)


def write_known(folder: Path, tumor: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> None:
    """The lines that ``predict`` leaves of its results. The first slide is old enough by now to have one."""
    from dataclasses import replace

    from wsi_ips.inference.known_results import KnownResults, known_line
    from wsi_ips.inference.predictions import PredictionRow
    from wsi_ips.inference.results import read_result
    from wsi_ips.inference.run_folder import RunFolder
    from wsi_ips.inference.slide_stamps import SETTLED_NS, Stamps, stamp

    run = RunFolder(folder / "run")
    time.sleep(1.5 * SETTLED_NS / 1e9)
    first = read_result(run.attention(name_of(0)))
    assert first.made_from is not None
    known = KnownResults(run.known, run.root / "attention")
    row = PredictionRow.done(first)
    for number, p in enumerate(tumor.tolist()):
        name = name_of(number)
        slide = folder / "slides" / f"{name}.tif"
        known.add(
            known_line(
                replace(row, slide_id=name, probabilities={"label": {"normal": 1 - p, "tumor": p}}),
                first.made_from,
                slide_path=str(slide),
                stamps=Stamps.of(slide, ()),
                result=stamp(run.attention(name)),
                checkpoint=first.checkpoint,
                bad_tiles=False,
                holds=(),
                note="",
            )
        )


def write_tables(
    folder: Path, tumor: "np.ndarray[tuple[int], np.dtype[np.float64]]", rng: np.random.Generator
) -> None:
    """The run's tables, as ``predict`` leaves them, and labels that agree with most of them."""
    from wsi_ips.config import TaskConfig
    from wsi_ips.inference.predictions import read_predictions

    run = folder / "run"
    read_predictions(run / "predictions.csv", tasks=[TaskConfig()])
    for name in ("predictions.csv", "slides.csv"):
        with (run / name).open(newline="") as file:
            header, first = csv.reader(file)
        with (run / name).open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            for number, p in enumerate(tumor.tolist()):
                row = [cell.replace(name_of(0), name_of(number)) for cell in first]
                if name == "predictions.csv":
                    row[1:4] = [repr(1 - p), repr(p), "tumor" if p > 0.5 else "normal"]
                writer.writerow(row)
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["slide_id", "case_id", "label", "split", "path"])
        for number, p in enumerate(tumor.tolist()):
            label = "tumor" if p + rng.normal(0, 0.3) > 0.5 else "normal"
            writer.writerow(
                [name_of(number), f"case_{number // 2}", label, "test", f"slides/{name_of(number)}.tif"]
            )
    assert json.loads((run / "run.json").read_text())["command"] == "predict"


if __name__ == "__main__":
    main()
