"""The table of benchmarks/evidence.py: mean, deviation and worst over the seeds that were run."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.evidence_settings import DATA_SETS, METHODS, asked, kind, slides_of

LEARNED = 0.75
"""A start above this AUC has learned."""
FROZEN = ("mean", "abmil", "ips_paper", "ips")
"""Methods on frozen features, one start each."""
ON_FEATURES = (*FROZEN, "ips_norm", "ips_five")
"""All methods on frozen features."""
SIZES = ("macro", "micro", "small")
NAMES = {
    "colour": "colour histograms",
    "mean": "mean pooling, frozen",
    "abmil": "attention MIL, frozen",
    "ips_paper": "IPS as in the paper, frozen",
    "ips": "IPS, frozen",
    "ips_norm": "IPS, frozen, with a LayerNorm",
    "ips_five": "IPS, frozen, mean of five starts",
    "ips_turns": "IPS, frozen, kept patches in four orientations",
    "e2e": "**IPS, end to end**",
    "e2e_all": "attention over all patches, end to end",
    "e2e_turns": "IPS, end to end, kept patches in four orientations",
    "cascade": "cascade, end to end",
    "sampling": "attention sampling, end to end",
    "random": "random patches, end to end",
}
Results = Mapping[str, Mapping[str, Mapping[int, Mapping[str, Any]]]]
"""{data set: {method: {seed: what was found}}}"""


def read_results(folder: Path, *, quick: bool) -> Results:
    """All results that were found with the settings of today."""
    found: dict[str, dict[str, dict[int, Any]]] = {}
    for data in DATA_SETS:
        for method in ("features", *METHODS):
            for path in sorted(folder.glob(f"{data}_{method}_seed*.json")):
                held = json.loads(path.read_text())
                if held["asked"] == asked(data, method, seed=held["seed"], quick=quick):
                    found.setdefault(data, {}).setdefault(method, {})[held["seed"]] = held
    for data, methods in found.items():
        # What a frozen method costs includes making the features.
        made = found.get(DATA_SETS[data].features_of or data, {}).get("features", {})
        for method in ON_FEATURES:
            for seed, held in methods.get(method, {}).items():
                for name in ("encoder_passes", "seconds", "bytes_written"):
                    of_features = made.get(seed, {}).get(name, 0)
                    # None is of a step that went on where a killed call had stopped.
                    unknown = held[name] is None or of_features is None
                    held[name] = None if unknown else held[name] + of_features
    return found


def figures_of(found: Results) -> dict[str, Any]:
    """{key: value}: per data set and method, then those that are compared with a bar. Missing ones are left
    out."""
    figures: dict[str, Any] = {}
    for data, methods in found.items():
        for method, seeds in methods.items():
            if method == "features":
                continue
            figures |= {
                f"{data}_{method}_{key}": value for key, value in summary(list(seeds.values())).items()
            }
        figures |= _gaps(data, methods)
        if kind(data) == "nodes":
            # Colours are those of the slides, whatever the encoder sees.
            figures |= _gain(data, methods, colour=found.get(slides_of(data), {}).get("colour", {}))
    return figures


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Over the seeds of one method: how many, how many learned, mean, deviation and worst AUC, and the rest's
    means."""
    aucs = [run["auc"] for run in runs]
    figures: dict[str, Any] = {
        "seeds": len(runs),
        "learned": sum(auc > LEARNED for auc in aucs),
        "auc": statistics.fmean(aucs),
        "auc_sd": statistics.stdev(aucs) if len(aucs) > 1 else None,
        "auc_worst": min(aucs),
    }
    for size in SIZES:
        values = [run["auc_by_size"][size] for run in runs if size in run["auc_by_size"]]
        figures |= {f"auc_{size}": statistics.fmean(values)} if values else {}
    for name in (
        "froc_attention",
        "froc_contribution",
        "encoder_passes",
        "seconds",
        "peak_rss_mb",
        "bytes_written",
    ):
        values = [run[name] for run in runs if run.get(name) is not None]
        figures |= {name: statistics.fmean(values)} if values else {}
    return figures


def paired(
    one: Mapping[int, Any], other: Mapping[int, Any]
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Both methods' runs of the seeds that both have."""
    return [(one[seed], other[seed]) for seed in sorted(one.keys() & other.keys())]


def _gaps(data: str, methods: Mapping[str, Mapping[int, Any]]) -> dict[str, Any]:
    """How far frozen IPS is behind attention MIL over the same seeds: in the mean, between the worst seeds of
    both, and in the seed where it is most."""
    both = paired(methods.get("abmil", {}), methods.get("ips", {}))
    if not both:
        return {}
    abmil, ips = [one["auc"] for one, _ in both], [other["auc"] for _, other in both]
    return {
        f"{data}_ips_frozen_learned": f"{sum(auc > LEARNED for auc in ips)} of {len(ips)}",
        f"{data}_ips_frozen_gap": statistics.fmean(abmil) - statistics.fmean(ips),
        f"{data}_ips_frozen_worst_gap": min(abmil) - min(ips),
        f"{data}_ips_frozen_largest_gap": max(a - b for a, b in zip(abmil, ips, strict=True)),
    }


def _gain(data: str, nodes: Mapping[str, Mapping[int, Any]], *, colour: Mapping[int, Any]) -> dict[str, Any]:
    """What end-to-end learning adds to the best frozen method on lymph nodes, over the seeds that both have, with
    its paired interval."""
    ours = nodes.get("e2e", {})
    pairs = {name: paired(ours, nodes.get(name, {})) for name in FROZEN}
    frozen = {name: both for name, both in pairs.items() if both}
    figures: dict[str, Any] = {}
    if frozen:
        best = max(frozen, key=lambda name: statistics.fmean(other["auc"] for _, other in frozen[name]))
        figures |= _gained(f"{data}_ips_e2e_gain", frozen[best]) | {f"{data}_best_frozen": best}
    for name in ("ips", "e2e"):
        if both := paired(nodes.get(f"{name}_turns", {}), nodes.get(name, {})):
            figures |= _gained(f"{data}_{name}_turns_gain", both)
    if both := paired(ours, colour):
        gains = [one["auc_by_size"]["micro"] - other["auc_by_size"]["micro"] for one, other in both]
        figures[f"{data}_e2e_over_colour_micro"] = statistics.fmean(gains)
    if ours and nodes.get("cascade"):
        both = paired(nodes["cascade"], ours)
        figures[f"{data}_cascade_auc_drop"] = statistics.fmean(b["auc"] - a["auc"] for a, b in both)
        figures[f"{data}_cascade_share"] = statistics.fmean(
            a["encoder_passes_test"] / b["encoder_passes_test"] for a, b in both
        )
    return figures


def _gained(key: str, both: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> dict[str, float]:
    """What the first method of each pair has more than the second, in the mean, and its interval."""
    from benchmarks.paired_gain import gain_interval  # imports torch

    low, high = gain_interval(both)
    gain = statistics.fmean(one["auc"] - other["auc"] for one, other in both)
    return {key: gain, f"{key}_low": low, f"{key}_high": high}


def markdown(found: Results) -> str:
    """One table a data set."""
    parts = []
    for data, methods in found.items():
        sized = kind(data) != "textures"
        titles = ["", "seeds", "learned", "AUC, mean ± sd", "worst"]
        titles += [*SIZES] if sized else []
        titles += ["FROC, attention", "FROC, contribution", "encoder passes", "seconds"]
        heading = f"**{DATA_SETS[data].title}**"
        lines = [heading, "", "| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
        for method in METHODS:
            if methods.get(method):
                lines.append("| " + " | ".join(_cells(method, list(methods[method].values()), sized)) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _cells(method: str, runs: Sequence[Mapping[str, Any]], sized: bool) -> list[str]:
    held = summary(runs)
    deviation = "" if held["auc_sd"] is None else f" ± {held['auc_sd']:.3f}"
    cells = [NAMES[method], str(held["seeds"]), f"{held['learned']} of {held['seeds']}"]
    cells += [f"{held['auc']:.3f}{deviation}", f"{held['auc_worst']:.3f}"]
    cells += [_number(held.get(f"auc_{size}")) for size in SIZES] if sized else []
    cells += [_number(held.get(f"froc_{name}")) for name in ("attention", "contribution")]
    return [*cells, f"{held['encoder_passes']:,.0f}", f"{held['seconds']:,.0f}" if "seconds" in held else ""]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
