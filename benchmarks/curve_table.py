"""What benchmarks/evidence_curves.py runs, and its figures, tables and plot.

Shape suffixes: S slides.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.evidence_settings import QUICK_EPOCHS, own_encoder, selection, settings_of
from benchmarks.evidence_table import LEARNED

METHODS = {
    "ips_paper": "IPS as in the paper",
    "ips": "IPS",
    "ips_views": "IPS, learned from four views",
    "abmil": "attention MIL",
    "ips_centred": "IPS",
    "abmil_centred": "attention MIL",
    "ips_paper_last": "IPS as in the paper",
    "ips_last": "IPS",
    "abmil_last": "attention MIL",
}
"""{method: its title}. ips_views is ips on bags that show every patch in another turn each time, as the head start
of finetune does. Those that end in _last read the encoder's last layer as it is, those in _centred the same layer,
centred (:func:`data_of`)."""
ENCODED = {
    "nodes": "Four stages of the encoder, standardised",
    "nodes_last_centred": "The encoder's last layer, centred",
    "nodes_last": "The encoder's last layer as it is",
}
"""{data set of evidence.py, whose encoder reads the patches: title of its tables}"""
DASHES = {"nodes": "-", "nodes_last_centred": "-.", "nodes_last": "--"}
"""{data set: how its lines are drawn}"""
COUNTS = {"patches": 300, "val": 12, "test": 192}
"""Validation slides are only watched: every method keeps its last epoch."""
QUICK_COUNTS = {"patches": 60, "train": 8, "val": 4, "test": 16}
MIDDLE_SHARE, MIDDLE_SLIDES = 5.0, 144
SHARES = (10.0, MIDDLE_SHARE, 2.0, 1.0, 1 / 3)
"""Per cent of a positive slide's patches that hold metastasis: 30, 15, 6, 3 and 1 of 300."""
SLIDES = (36, 72, MIDDLE_SLIDES, 288)
POINTS = {
    "share": [(round(share, 3), MIDDLE_SLIDES) for share in SHARES],
    "slides": [(MIDDLE_SHARE, slides) for slides in SLIDES],
}
"""{curve: [(share in per cent, training slides)]}"""
VIEWS = {"features": "features averaged", "probabilities": "probabilities averaged"}
MICRO = (1.0, 5.0)
"""Shares, from and to, that count as micrometastases."""
Found = Mapping[str, Mapping[int, Mapping[tuple[float, int], Mapping[str, Any]]]]
"""{method: {seed: {(share, slides): what was found}}}"""


def asked(method: str, *, quick: bool) -> dict[str, Any]:
    """All that decides a point's result, but for its seed, share and slides."""
    settings = {"counts": QUICK_COUNTS if quick else COUNTS, method: settings_of(of_evidence(method))}
    settings |= {"epochs": QUICK_EPOCHS} if quick else {}
    settings |= own_encoder(data_of(method))
    if of_evidence(method) == "abmil":
        return settings
    return {**settings, "selection": selection("nodes", quick=quick)}


def of_evidence(method: str) -> str:
    """The method of evidence.py whose settings it has."""
    return method.removesuffix("_views").removesuffix("_last").removesuffix("_centred")


def data_of(method: str) -> str:
    """The data set of evidence.py whose encoder reads the patches."""
    if method.endswith("_centred"):
        return "nodes_last_centred"
    return "nodes_last" if method.endswith("_last") else "nodes"


def methods_of(found: Found, data: str) -> list[str]:
    """The methods on a data set's encoder of which something was found."""
    return [method for method in METHODS if method in found and data_of(method) == data]


def read_curves(folder: Path, *, quick: bool) -> Found:
    """All points that were found with the settings of today."""
    found: dict[str, dict[int, dict[tuple[float, int], Any]]] = {}
    for method in METHODS:
        for path in sorted(folder.glob(f"curve_{method}_seed*.json")):
            held = json.loads(path.read_text())
            if held["asked"] == asked(method, quick=quick):
                points = {(point["share"], point["slides"]): point for point in held["points"].values()}
                found.setdefault(method, {})[held["seed"]] = points
    return found


def at(found: Found, method: str, point: tuple[float, int]) -> dict[int, Mapping[str, Any]]:
    """{seed: what was found} of a method at a point."""
    return {seed: points[point] for seed, points in found.get(method, {}).items() if point in points}


def figures_of(found: Found) -> dict[str, Any]:
    """{key: value} of every point: mean and worst AUC, how many seeds, how many of them learned; and what views at
    prediction bring."""
    figures: dict[str, Any] = {}
    for share, slides in dict.fromkeys(point for points in POINTS.values() for point in points):
        for method in METHODS:
            aucs = [run["auc"] for run in at(found, method, (share, slides)).values()]
            if aucs:
                key = f"curve_{method}_{share:g}_{slides}"
                figures |= {f"{key}_auc": statistics.fmean(aucs), f"{key}_worst": min(aucs)}
                figures |= {f"{key}_seeds": len(aucs), f"{key}_learned": sum(auc > LEARNED for auc in aucs)}
    return figures | gains_of_views(found)


def gains_of_views(found: Found) -> dict[str, float]:
    """What it adds to the AUC to average over four turns at prediction: mean over the seeds and the points with
    micrometastases and as many training slides as evidence.py has, and its interval, paired over test slides."""
    figures: dict[str, float] = {}
    points = [point for point in POINTS["share"] if MICRO[0] <= point[0] <= MICRO[1]]
    for method in METHODS:
        every = [run for point in points for run in at(found, method, point).values()]
        for name in VIEWS:
            runs = [run for run in every if name in run["views_auc"]]
            if not runs:
                continue
            from benchmarks.paired_gain import gain_interval  # imports torch

            low, high = gain_interval([(_as_run(run, name), _as_run(run, "one")) for run in runs])
            gain = statistics.fmean(run["views_auc"][name] - run["auc"] for run in runs)
            key = f"views_{method}_{name}"
            figures |= {f"{key}_gain": gain, f"{key}_low": low, f"{key}_high": high, f"{key}_runs": len(runs)}
    return figures


def _as_run(point: Mapping[str, Any], view: str) -> dict[str, Any]:
    """What a training said of the test slides in this view, as gain_interval takes it."""
    return {"probabilities": [[1 - p, p] for p in point["p_tumor"][view]], "target": point["target"]}


def markdown(found: Found) -> str:
    """Under a title for each encoder: a table for each curve, and one of views at prediction."""
    tables = {title: _tables(found, methods_of(found, data)) for data, title in ENCODED.items()}
    return "\n\n".join(f"**{title}**\n\n{text}" for title, text in tables.items() if text)


def _tables(found: Found, methods: Sequence[str]) -> str:
    titles = {"share": "lesion, share of the patches", "slides": "training slides"}
    parts = []
    for curve, points in POINTS.items() if methods else ():
        lines = [
            f"| {titles[curve]} | " + " | ".join(METHODS[method] for method in methods) + " |",
            "|---" * (1 + len(methods)) + "|",
        ]
        for point in points:
            cells = [_cell([run["auc"] for run in at(found, method, point).values()]) for method in methods]
            if any(cells):
                first = f"{point[0]:.2g} %" if curve == "share" else f"{point[1]}"
                lines.append("| " + " | ".join([first, *cells]) + " |")
        parts.append("\n".join(lines))
    parts.append(_views_table(found, methods))
    return "\n\n".join(part for part in parts if part)


def _cell(aucs: Sequence[float]) -> str:
    """Mean, worst, and how many learned."""
    if not aucs:
        return ""
    learned = sum(auc > LEARNED for auc in aucs)
    return f"{statistics.fmean(aucs):.3f} (worst {min(aucs):.3f}, {learned} of {len(aucs)})"


def _views_table(found: Found, methods: Sequence[str]) -> str:
    gains = gains_of_views(found)
    lines = ["| four turns at prediction | AUC gained (95 %) | trainings |", "|---|---|---|"]
    for method, title in [(method, METHODS[method]) for method in methods]:
        for name, how in VIEWS.items():
            key = f"views_{method}_{name}"
            if f"{key}_gain" in gains:
                gain, low, high = (gains[f"{key}_{end}"] for end in ("gain", "low", "high"))
                lines.append(
                    f"| {title}, {how} | {gain:+.3f} ({low:+.3f} to {high:+.3f}) | {gains[f'{key}_runs']:.0f} |"
                )
    return "\n".join(lines) if len(lines) > 2 else ""


def draw(found: Found, path: Path) -> None:
    """Draw both curves: means as lines, solid on four stages of the encoder; seeds as dots."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from wsi_ips.evaluation.plots import COLOURS, DPI, GREY
    from wsi_ips.storage.files import whole_file

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    words = {
        "share": f"lesion, % of a positive slide's patches ({MIDDLE_SLIDES} training slides)",
        "slides": f"training slides (lesion {MIDDLE_SHARE:g} %)",
    }
    titles = list(dict.fromkeys(METHODS.values()))
    for place, (curve, points) in enumerate(POINTS.items()):
        axes = figure.add_subplot(1, 2, place + 1)
        for method, title in METHODS.items():
            runs = {point[place]: at(found, method, point).values() for point in points}
            seen = {x: [run["auc"] for run in of_x] for x, of_x in sorted(runs.items()) if of_x}
            if len(seen) < 2:  # no line yet
                continue
            colour, data = COLOURS[titles.index(title)], data_of(method)
            label = {"nodes": title, "nodes_last": f"{title}, last layer"}.get(data, f"{title}, centred")
            means = [statistics.fmean(aucs) for aucs in seen.values()]
            axes.plot(list(seen), means, DASHES[data], color=colour, label=label)
            for x, aucs in seen.items():
                marker, size = "so^d"[titles.index(title)], 4 if data == "nodes" else 2
                axes.plot([x] * len(aucs), aucs, marker, color=colour, markersize=size, alpha=0.6)
        axes.axhline(0.5, color=GREY, linestyle=":", linewidth=1)
        axes.set_xscale("log")
        ticks = sorted(point[place] for point in points)
        axes.set_xticks(
            ticks, [f"{tick:.2g}" if curve == "share" else f"{tick}" for tick in ticks], minor=False
        )
        axes.set_xticks([], minor=True)
        axes.set_xlim(ticks[0] / 1.2, ticks[-1] * 1.2)
        axes.set_xlabel(words[curve])
        axes.set_ylabel("slide AUC, 192 test slides")
        axes.set_ylim(0.35, 1.02)
        axes.spines[["top", "right"]].set_visible(False)
    lines, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(lines, labels, frameon=False, loc="outside upper center", ncols=3)
    with whole_file(path) as partial:
        figure.savefig(partial, format="png", dpi=DPI)
