"""Where it ends: AUC against the share of a slide that is lesion, and against the number of training slides.

    python benchmarks/evidence_curves.py --nodes DIR [--seeds N …] [--only share|slides …] [--methods NAME …]
                                         [--quick] [--json] [--table] [--plot PNG] [--out DIR] [--again]

Slides are bags of 300 frozen features of real lymph-node patches (benchmarks/node_bags.py), with exactly so many
patches with metastasis on every positive slide. Networks, rates and epochs are those of the methods ips_paper,
ips and abmil of benchmarks/evidence.py, and so is what reads the patches: four stages of the encoder, or its last
layer for the methods whose names end in _last (as it is) and in _centred. One start, the last epoch. Each point is
kept as soon as it is finished, in curve_<method>_seed<N>.json, with its commit, machine and CPU seconds: of the
shared folder in benchmarks/results, which are committed; of other folders, and with --quick, below --out. Nothing
is run twice. --table prints Markdown, --plot draws the curves, both without running anything.

The method ips_views is ips on slides that show every patch in another turn each time, as the head start of
finetune does. For all but the paper's head each point also says what it brings to average over four turns of every
patch at prediction: their features, or what the network says of the slide in each turn.

Shape suffixes: S slides.
"""

import argparse
import itertools
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a script, Python looks beside it, not in the repository's root

from benchmarks import curve_table as table  # noqa: E402
from benchmarks import evidence  # noqa: E402
from benchmarks.curve_table import (  # noqa: E402
    COUNTS,
    METHODS,
    MIDDLE_SHARE,
    MIDDLE_SLIDES,
    POINTS,
    QUICK_COUNTS,
    asked,
    data_of,
    of_evidence,
)
from benchmarks.evidence_data import CPU, EvidenceData  # noqa: E402
from benchmarks.evidence_settings import (  # noqa: E402
    DATA_SETS,
    FROZEN_MODELS,
    QUICK_EPOCHS,
    SHARED,
    encoder,
    frozen_model,
    settings_of,
)
from benchmarks.evidence_steps import TRAINING, frozen_config  # noqa: E402
from benchmarks.frozen_bags import FrozenNet, Learning, train  # noqa: E402
from benchmarks.kept_results import COMMITTED, origin, read_result, tell  # noqa: E402
from benchmarks.node_bags import TURNS, DrawnBag, EncodedPatches, draw_bags, encode_patches, turned_anew  # noqa: E402
from wsi_ips.evaluation.slide_level import roc_auc  # noqa: E402
from wsi_ips.models.checkpoint import load_checkpoint  # noqa: E402
from wsi_ips.selection.reading import read_bag  # noqa: E402
from wsi_ips.storage.files import whole_file  # noqa: E402
from wsi_ips.training.fit import train_bags  # noqa: E402

SIDE_PX = 96
Reader = Callable[[DrawnBag], float]
"""The probability of metastasis that a trained network gives a slide."""


def main() -> None:
    """Run the points that are missing, and print the figures of all that were run."""
    arguments = parsed()
    torch.set_num_threads(1)
    results = results_folder(arguments)
    if not (arguments.table or arguments.plot):
        run_missing(arguments, results)
    found = table.read_curves(results, quick=arguments.quick)
    if arguments.plot:
        table.draw(found, arguments.plot)
    if arguments.table:
        print(table.markdown(found))
    elif not arguments.plot:
        tell(table.figures_of(found), as_json=arguments.json)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=Path, help="lymph-node patches, with manifest.csv")
    parser.add_argument(
        "--out", type=Path, default=Path("curves_run"), help="features, and trainings under way"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=POINTS, default=list(POINTS), metavar="CURVE")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME")
    parser.add_argument("--again", action="store_true", help="run the points anew")
    parser.add_argument("--quick", action="store_true", help="a few small bags: does it run at all?")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--table", action="store_true", help="print the tables of what was run")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the curves of what was run")
    arguments = parser.parse_args()
    if not (arguments.table or arguments.plot) and arguments.nodes is None:
        parser.error("--nodes DIR: a folder with manifest.csv; benchmarks/README.md says what belongs there")
    if arguments.nodes is not None and not (arguments.nodes / "manifest.csv").is_file():
        parser.error(
            f"{arguments.nodes}: holds no manifest.csv; benchmarks/README.md says what belongs there"
        )
    return arguments


def results_folder(arguments: argparse.Namespace) -> Path:
    """Where results are kept: the committed ones are of the shared folder alone."""
    shared = arguments.nodes is None or evidence.digest(arguments.nodes) == SHARED["nodes"]
    return COMMITTED if shared and not arguments.quick else Path(arguments.out) / "results"


def run_missing(arguments: argparse.Namespace, results: Path) -> None:
    """Run every point that has no result: all seeds and methods of a point before the next one, and first the
    point that both curves have."""
    middle = (MIDDLE_SHARE, MIDDLE_SLIDES)
    wanted = list(dict.fromkeys([middle, *(point for curve in arguments.only for point in POINTS[curve])]))
    held: dict[str, EncodedPatches] = {}
    program = origin()  # the one that was loaded, whatever is changed meanwhile
    for share, slides in wanted[:1] if arguments.quick else wanted:
        for seed, method in itertools.product(arguments.seeds, arguments.methods):
            path = results / f"curve_{method}_seed{seed}.json"
            curve = stored_curve(path, method, seed, quick=arguments.quick)
            if name_of(share, slides) in curve["points"] and not arguments.again:
                continue
            data = data_of(method)
            if data not in held:
                held[data] = encoded(arguments, data)
            print(f"{method}, seed {seed}: {share:g} %, {slides} slides …", file=sys.stderr, flush=True)
            point = run_point(held[data], method, seed, share, slides, arguments)
            curve["points"][name_of(share, slides)] = {**program, **point}
            keep(path, curve)


def encoded(arguments: argparse.Namespace, data: str) -> EncodedPatches:
    """The patches, as the encoder of a data set reads them. Their features are kept below --out."""
    owner = DATA_SETS[data].features_of or data
    folder = arguments.out / f"patches_{evidence.digest(arguments.nodes)}_{owner}"
    return encode_patches(arguments.nodes, folder, encoder(data), side_px=SIDE_PX)


def name_of(share: float, slides: int) -> str:
    return f"{share:g} %, {slides} slides"


def stored_curve(path: Path, method: str, seed: int, *, quick: bool) -> dict[str, Any]:
    """What was found so far with the settings of today; no points where nothing was."""
    fresh = {"asked": asked(method, quick=quick), "seed": seed, "points": {}}
    return read_result(path, fresh["asked"]) or fresh


def keep(path: Path, curve: Mapping[str, Any]) -> None:
    """Write a curve, a line for each point."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"  {json.dumps(name)}: {json.dumps(point)}" for name, point in curve["points"].items()]
    head = "".join(f' "{name}": {json.dumps(curve[name])},\n' for name in ("asked", "seed"))
    with whole_file(path) as partial:
        partial.write_text("{\n" + head + ' "points": {\n' + ",\n".join(lines) + "\n }\n}\n")


def run_point(
    held: EncodedPatches, method: str, seed: int, share: float, slides: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Train a method once, and say how well it tells the test slides apart."""
    counts = QUICK_COUNTS if arguments.quick else COUNTS
    patches = counts["patches"]
    tumor = max(1, round(share / 100 * patches))
    splits = {"train": counts.get("train", slides), "val": counts["val"], "test": counts["test"]}
    bags = draw_bags(held, counts=splits, patches=patches, tumor=tumor, seed=seed)
    started = time.process_time()
    out = arguments.out / "training" / f"{method}_{seed}_{share:g}_{slides}"
    shutil.rmtree(out, ignore_errors=True)  # of a call that was killed
    learn = learn_abmil if of_evidence(method) == "abmil" else learn_ips
    reader = learn(method, bags, seed, out, quick=arguments.quick)
    learned = time.process_time() - started
    test, target_S = bags["test"], np.array([bag.targets["label"] for bag in bags["test"]])
    said = {"one": read_all(reader, test, [(0,)])}
    if of_evidence(method) != "ips_paper":
        turns = range(TURNS)
        said["features"] = read_all(reader, test, [tuple(turns)])
        others = read_all(reader, test, [(turn,) for turn in turns if turn])
        said["probabilities"] = (said["one"] + (TURNS - 1) * others) / TURNS
    shutil.rmtree(out, ignore_errors=True)
    point: dict[str, Any] = {
        "share": share,
        "slides": slides,
        "tumor": tumor,
        "cpu_seconds": round(learned, 1),
    }
    point["auc"] = float(roc_auc(said["one"], target_S > 0))
    point["views_auc"] = {
        name: float(roc_auc(p_S, target_S > 0)) for name, p_S in said.items() if name != "one"
    }
    point["target"] = target_S.tolist()
    point["p_tumor"] = {name: np.round(p_S, 6).tolist() for name, p_S in said.items()}
    return point


def read_all(
    reader: Reader, bags: Sequence[DrawnBag], views: Sequence[tuple[int, ...]]
) -> NDArray[np.float64]:
    """(S,) the probability of metastasis, mean over the views; each view averages the features of its turns."""
    return np.array([np.mean([reader(bag.seen(turns)) for turns in views]) for bag in bags])


def learn_abmil(
    method: str, bags: Mapping[str, Sequence[DrawnBag]], seed: int, out: Path, *, quick: bool
) -> Reader:
    """Attention MIL over all patches, as evidence.py trains it. Nothing is written to ``out``."""
    name = of_evidence(method)
    settings, data = settings_of(name), EvidenceData(data_of(method), seed, {}, out)
    epochs = QUICK_EPOCHS if quick else settings["epochs"]
    torch.manual_seed(seed)
    width = bags["train"][0].features().shape[1]
    model = frozen_model(data.name, FROZEN_MODELS[name])
    frozen = FrozenNet(model, width=width, task=data.tasks[0])
    learning = Learning(epochs, settings["lr"], settings["weight_decay"])
    held = {split: [bag.as_features() for bag in bags[split]] for split in ("train", "val")}
    train(frozen, held["train"], held["val"], learning, seed=seed)
    return lambda bag: frozen.told(bag.as_features())[0][1]


def learn_ips(
    method: str, bags: Mapping[str, Sequence[DrawnBag]], seed: int, out: Path, *, quick: bool
) -> Reader:
    """The project's selection and head, by its own training, as evidence.py has it."""
    settings, data = (
        settings_of(of_evidence(method)),
        EvidenceData(data_of(method), seed, {}, out, quick=quick),
    )
    training = {name: settings["training"][name] for name in TRAINING if name in settings["training"]}
    training |= {"epochs": QUICK_EPOCHS} if quick else {}
    base = data.finetune(head_start={"epochs": 40})
    config = frozen_config(base, settings, training, width=bags["train"][0].features().shape[1])
    train = [turned_anew(bag) for bag in bags["train"]] if method == "ips_views" else bags["train"]
    report = train_bags(train, bags["val"], config, out, device=CPU)
    net, _ = load_checkpoint(report.checkpoint)

    def reader(bag: DrawnBag) -> float:
        with bag.open(config.streaming, CPU) as source:
            reading = read_bag(net, source, config.selection)
        return float(reading.bag.probabilities["label"][0, 1])

    return reader


if __name__ == "__main__":
    main()
