"""Patients in groups of predicted risk: a Kaplan-Meier curve for each group, and whether the groups differ.

:func:`group_by_risk` makes the :class:`RiskGroups`. Source: SURVIVAL.md section 5.

Shape suffix: N patients.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
