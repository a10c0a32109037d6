"""Which aggregator reads frozen features best? All of the package's, on composite lymph nodes, over seeds.

    python benchmarks/aggregators.py --nodes DIR --outlines DIR [--seeds N …] [--only NAME …] [--quick]
                                     [--json] [--table] [--out DIR] [--again]

Slides, splits and seeds are those of benchmarks/evidence.py, and so is the rule of learning, that of its method
abmil: 40 epochs, one start, the last epoch. --out may be the folder of an earlier evidence.py: slides and features
that lie there are used. Each result is a small JSON, agg_<name>_seed<N>.json; of the shared folders it is kept in
benchmarks/results and committed, so that nothing is run twice. --table prints Markdown over all seeds that were
run, without running any.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Nothing heavy here: a child's ru_maxrss starts from its parent's size (Linux carries it over exec).

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a script, Python looks beside it, not in the repository's root

from benchmarks import evidence  # noqa: E402
from benchmarks.evidence_settings import AGGREGATORS, asked  # noqa: E402
from benchmarks.evidence_table import paired, summary  # noqa: E402
from benchmarks.kept_results import tell  # noqa: E402

DATA = "nodes_last"
BASELINE = "abmil"
"""The method of evidence.py that the others are compared with. It is ``agg_abmil_gated`` bit for bit."""
NAMES = {
    "agg_mean": "`mean`",
    "agg_max": "`max`",
    "agg_abmil": "`abmil`, `gated: false`",
    "agg_abmil_gated": "`abmil`",
    "agg_clam_sb": "`clam_sb`",
    "agg_clam_mb": "`clam_mb`",
    "agg_dsmil": "`dsmil`",
    "agg_direct": "`direct`, IPS's head",
    "agg_paper": "`paper`",
    "agg_abmilx": "`abmilx`",
    "agg_transmil": "`transmil`",
}
Seeds = Mapping[int, Mapping[str, Any]]
"""{seed: what was found}"""
Found = Mapping[str, Seeds]
"""{aggregator: {seed: what was found}}"""


def main() -> None:
    """Run what is missing, and print the figures of all seeds that were run."""
    arguments = parsed()
    results = evidence.results_folder(arguments)
    if not arguments.table:
        names = [name for name in AGGREGATORS if not arguments.only or name in arguments.only]
        composed: dict[int, set[str]] = {seed: set() for seed in arguments.seeds}
        for name in names:  # every seed of the quick ones comes before any of the slow ones
            for seed in arguments.seeds:
                run(name, seed, arguments, results, composed[seed])
    found = read_aggregators(results, quick=arguments.quick)
    if arguments.table:
        print(markdown(found, evidence_of(BASELINE, results, quick=arguments.quick)))
        return
    baseline, e2e = (evidence_of(method, results, quick=arguments.quick) for method in (BASELINE, "e2e"))
    tell(figures_of(found, baseline, e2e), as_json=arguments.json)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=Path, help="lymph-node patches, with manifest.csv")
    parser.add_argument("--outlines", type=Path, help="folder of NCRF's JSON outlines")
    parser.add_argument("--out", type=Path, default=Path("evidence_run"), help="slides and features")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=(), metavar="NAME", help="such as abmil or transmil")
    parser.add_argument("--again", action="store_true", help="run them anew")
    parser.add_argument("--processes", type=int, default=1, help="that compose slides")
    parser.add_argument("--quick", action="store_true", help="a few small slides: does it run at all?")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--table", action="store_true", help="print the table of what was run")
    arguments = parser.parse_args()
    arguments.textures = None
    arguments.only = [name if name in AGGREGATORS else f"agg_{name}" for name in arguments.only]
    for name in set(arguments.only) - AGGREGATORS.keys():
        known = ", ".join(each.removeprefix("agg_") for each in AGGREGATORS)
        parser.error(f"no aggregator {name.removeprefix('agg_')!r}; known: {known}")
    if arguments.table:
        return arguments
    if arguments.nodes is None or not (arguments.nodes / "manifest.csv").is_file():
        parser.error("--nodes DIR: a folder with manifest.csv; benchmarks/README.md says what belongs there")
    if not (arguments.outlines and arguments.outlines.is_dir()):
        parser.error("--outlines DIR goes with --nodes")
    return arguments


def run(name: str, seed: int, arguments: argparse.Namespace, results: Path, composed: set[str]) -> None:
    """Train one aggregator on the slides of one seed, unless its result is there. composed: data sets of this seed
    whose slides are known to be there."""
    path = results / f"{name}_seed{seed}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    if before.get("asked") == asked(DATA, name, seed=seed, quick=arguments.quick) and not arguments.again:
        return
    given = argparse.Namespace(**vars(arguments) | {"seed": seed})
    # Features that nobody has stored yet are made in a step of their own.
    evidence.run(DATA, "features", given, results, composed)
    evidence.run(DATA, name, given, results, composed, name=name)


def read_aggregators(folder: Path, *, quick: bool) -> Found:
    """All results that were found with the settings of today."""
    found: dict[str, dict[int, Any]] = {}
    for name in AGGREGATORS:
        for path in sorted(folder.glob(f"{name}_seed*.json")):
            held = json.loads(path.read_text())
            if held["asked"] == asked(DATA, name, seed=held["seed"], quick=quick):
                found.setdefault(name, {})[held["seed"]] = held
    return found


def evidence_of(method: str, folder: Path, *, quick: bool) -> Seeds:
    """evidence.py's results of a method on the same slides, {seed: what was found}."""
    held = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{DATA}_{method}_seed*.json"))]
    return {
        each["seed"]: each
        for each in held
        if each["asked"] == asked(DATA, method, seed=each["seed"], quick=quick)
    }


def figures_of(found: Found, baseline: Seeds, e2e: Seeds) -> dict[str, Any]:
    """{key: value}: of each aggregator, then of IPS end to end against the best of them.

    Args:
        found: What the aggregators found.
        baseline: What they are compared with.
        e2e: What IPS found, learned end to end.
    """
    figures: dict[str, Any] = {}
    for name, seeds in found.items():
        figures |= {f"{name}_{key}": value for key, value in _of_aggregator(seeds).items()}
        figures |= {f"{name}_{key}": value for key, value in _gain("gain", seeds, baseline).items()}
    # Seeds differ in how hard they are, so only methods with every seed of e2e are compared with it.
    frozen = {BASELINE: baseline, **found}
    frozen = {name: seeds for name, seeds in frozen.items() if e2e and e2e.keys() <= seeds.keys()}
    if frozen:
        means = {name: statistics.fmean(seeds[seed]["auc"] for seed in e2e) for name, seeds in frozen.items()}
        best = max(means, key=means.__getitem__)
        figures["agg_best_frozen"] = best
        figures |= _gain("agg_e2e_over_best", e2e, frozen[best])
    return figures


def _of_aggregator(seeds: Seeds) -> dict[str, Any]:
    held = summary(list(seeds.values()))
    figures = {key: held[key] for key in ("seeds", "auc", "auc_sd", "auc_worst")}
    for key, ours in (("froc_attention", "froc"), ("froc_contribution", "froc_contribution")):
        figures |= {ours: held[key]} if key in held else {}
    for key, noted in (("seconds", "learning_seconds"), ("cpu_seconds", "learning_cpu_seconds")):
        values = [run["notes"][noted] for run in seeds.values() if noted in run["notes"]]
        figures |= {key: statistics.fmean(values)} if values else {}
    return {**figures, "encoder_passes": held["encoder_passes"], "peak_rss_mb": held["peak_rss_mb"]}


def _gain(key: str, ours: Seeds, theirs: Seeds) -> dict[str, float]:
    """Mean difference of the AUCs over the seeds that both have, with its paired interval; nothing without such
    seeds."""
    from benchmarks.paired_gain import gain_interval

    both = paired(ours, theirs)
    if not both:
        return {}
    low, high = gain_interval(both)
    gain = statistics.fmean(one["auc"] - other["auc"] for one, other in both)
    return {key: gain, f"{key}_low": low, f"{key}_high": high}


def markdown(found: Found, baseline: Seeds) -> str:
    """A row for each aggregator."""
    titles = ["", "seeds", "AUC, mean ± sd", "worst", "minus `abmil` (95 %)", "FROC, own map"]
    titles += ["FROC, contribution", "encoder passes", "CPU seconds", "peak memory (MB)"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for name, seeds in found.items():
        held, against = _of_aggregator(seeds), _gain("gain", seeds, baseline)
        deviation = "" if held["auc_sd"] is None else f" ± {held['auc_sd']:.3f}"
        gain = ""
        if against and name != "agg_abmil_gated":
            gain = f"{against['gain']:+.3f} ({against['gain_low']:+.3f} to {against['gain_high']:+.3f})"
        frocs = [f"{held[key]:.3f}" if key in held else "" for key in ("froc", "froc_contribution")]
        cells = [NAMES[name], str(len(seeds)), f"{held['auc']:.3f}{deviation}", f"{held['auc_worst']:.3f}"]
        cpu = f"{held['cpu_seconds']:,.0f}" if "cpu_seconds" in held else ""
        cells += [gain, *frocs, f"{held['encoder_passes']:,.0f}", cpu]
        lines.append("| " + " | ".join([*cells, f"{held['peak_rss_mb']:,.0f}"]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
