"""Patients in groups of predicted risk, and the plot of their Kaplan-Meier curves.

Patients in groups of predicted risk: a Kaplan-Meier curve for each group, and whether the groups differ.

:func:`group_by_risk` makes the :class:`RiskGroups`. Source: SURVIVAL.md section 5.

Kaplan-Meier curves of risk groups as PNG, with the numbers at risk below.

Shape suffixes: N patients.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_ips.evaluation.plots import COLOURS, GREY, figure_at
from wsi_ips.evaluation.survival_scores import PredictedSurvival
from wsi_ips.survival.kaplan_meier import SurvivalCurve, kaplan_meier
from wsi_ips.survival.log_rank import HazardRatio, LogRank, hazard_ratio, log_rank, risk_group

NAMES = {1: ("all",), 2: ("low risk", "high risk"), 3: ("low risk", "medium risk", "high risk")}
"""What the groups are called, by their number."""


@dataclass(frozen=True, slots=True, eq=False)
class RiskGroups:
    """Groups of patients by risk, lowest first. Every group has patients.

    Attributes:
        edges: The risks between groups.
        edges_from: The patients whose risks the edges are quantiles of.
        group_N: The group of each patient, 0 for the lowest risk.
        names: The names of the groups.
        curves: The Kaplan-Meier curve of each group.
        test: The log-rank test; None if there are too few events.
        ratio: The hazard ratio of one group to the next lower one; None if there is no finite estimate.
    """

    edges: tuple[float, ...]
    edges_from: str
    group_N: NDArray[np.int64]
    names: tuple[str, ...]
    curves: tuple[SurvivalCurve, ...]
    test: LogRank | None
    ratio: HazardRatio | None

    def to_json(self, predicted: PredictedSurvival) -> dict[str, Any]:
        """The groups for ``metrics.json``. A median that is never reached is infinite."""
        events = predicted.follow_up.event
        return {
            "edges": list(self.edges),
            "edges_from": self.edges_from,
            "groups": [
                {
                    "name": name,
                    "patients": int((self.group_N == number).sum()),
                    "events": int(events[self.group_N == number].sum()),
                    "median": curve.median,
                    "survival_at": {f"{time:g}": float(curve.at(time)) for time in predicted.config.at},
                }
                for number, (name, curve) in enumerate(zip(self.names, self.curves, strict=True))
            ],
            "log_rank": None if self.test is None else {"chi2": self.test.chi2, "p": self.test.p},
            "hazard_ratio": None
            if self.ratio is None
            else {"value": self.ratio.value, "low": self.ratio.low, "high": self.ratio.high},
        }


def group_by_risk(predicted: PredictedSurvival, edges: NDArray[np.float64], *, edges_from: str) -> RiskGroups:
    """Sort patients into groups by these edges. A group without patients is left out.

    The hazard ratio is that of one group to the next lower one.
    """
    found, group_N = np.unique(risk_group(predicted.risk_N, edges), return_inverse=True)
    names = NAMES.get(len(edges) + 1) or tuple(f"risk group {place + 1}" for place in range(len(edges) + 1))
    follow_up = predicted.follow_up
    test, ratio = None, None
    if len(found) > 1:
        try:
            test = log_rank(follow_up, group_N, len(found))
            ratio = hazard_ratio(follow_up, group_N)
        except ValueError:
            pass  # there are too few events to compare the groups, and the report says so
    return RiskGroups(
        tuple(edges.tolist()),
        edges_from,
        group_N,
        tuple(names[place] for place in found.tolist()),
        tuple(kaplan_meier(follow_up.pick(group_N == number)) for number in range(len(found))),
        test,
        ratio,
    )


MOST_TICKS = 7
"""Most ticks of the time axis."""


def draw_kaplan_meier(path: Path, groups: RiskGroups, *, unit: str, title: str) -> None:
    """Draw survival over time for each group.

    Each curve has its 95 % band and strokes where patients were censored. The numbers of patients at risk stand
    below the axis.

    Args:
        path: The file to write.
        groups: The groups.
        unit: Unit of time, for the axis.
        title: The title.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    height = 4.4 + 0.25 * len(groups.names)
    with figure_at(path, width=6.4, height=height) as axes:
        for number, (name, curve) in enumerate(zip(groups.names, groups.curves, strict=True)):
            colour = COLOURS[number % len(COLOURS)]
            axes.step(curve.time, curve.survival, where="post", color=colour, label=name, linewidth=1.8)
            axes.fill_between(
                curve.time, curve.low, curve.high, step="post", color=colour, alpha=0.15, linewidth=0
            )
            censored = curve.censored > 0
            axes.plot(
                curve.time[censored],
                curve.survival[censored],
                linestyle="",
                marker="|",
                color=colour,
                markersize=7,
            )
        axes.set(ylim=(0, 1.02), title=title, ylabel="without the event", xlabel=f"time ({unit})")
        axes.set_xlim(left=0)
        axes.locator_params(axis="x", nbins=MOST_TICKS)
        axes.legend(frameon=False, loc="upper right", title=_compared(groups))
        last = max(float(curve.time[-1]) for curve in groups.curves)
        ticks = [tick for tick in axes.get_xticks().tolist() if 0 <= tick <= last]
        axes.text(0, -0.19, "at risk", transform=axes.transAxes, color=GREY, ha="right", va="center")
        for number, curve in enumerate(groups.curves):
            for tick in ticks:
                axes.text(
                    tick, -0.19 - 0.065 * (number + 1), str(int(curve.at_risk_at(tick))), ha="center", va="center",
                    transform=axes.get_xaxis_transform(), color=COLOURS[number % len(COLOURS)],
                )  # fmt: skip


def _compared(groups: RiskGroups) -> str:
    if groups.test is None:
        return ""
    said = f"log-rank p = {groups.test.p:.2g}"
    if groups.ratio is not None:
        said += f"\nhazard ratio {groups.ratio.value:.2f} [{groups.ratio.low:.2f}, {groups.ratio.high:.2f}]"
    return said
