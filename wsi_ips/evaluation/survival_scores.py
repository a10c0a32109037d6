"""The figures of a survival task, counted by patient: :func:`survival_figures`, with intervals
:func:`survival_intervals`.

Source: SURVIVAL.md sections 4 and 5. Shape suffixes: N patients, T times.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from wsi_ips.config import TaskConfig
from wsi_ips.config.survival import SurvivalConfig
from wsi_ips.datasets.manifest import Target
from wsi_ips.evaluation.intervals import Interval, Picked, bootstrap
from wsi_ips.survival.follow_up import FollowUp
from wsi_ips.survival.kaplan_meier import SurvivalCurve, censoring_curve, kaplan_meier
from wsi_ips.survival.scores import brier_scores, default_tau, harrell, integrated, uno

WITH_EVENT = "with an event"
"""Which patients an interval needs enough of, see :func:`wsi_ips.evaluation.intervals.too_few`."""


@dataclass(frozen=True, slots=True, eq=False)
class PredictedSurvival:
    """What is known of patients, and what was predicted for them.

    Attributes:
        config: The settings of the task.
        case: The id of each patient.
        slides: How many slides each patient has.
        follow_up: Times and events.
        risk_N: The mean risk over the slides of a patient.
        survival_NT: The mean probability of survival over the slides of a patient. NaN if the model does not
            give it.
    """

    config: SurvivalConfig
    case: tuple[str, ...]
    slides: tuple[int, ...]
    follow_up: FollowUp
    risk_N: NDArray[np.float64]
    survival_NT: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        task: TaskConfig,
        outputs: Sequence[Mapping[str, float]],
        targets: Sequence[Target],
        case: Sequence[str],
    ) -> Self:
        """Pool slides by patient, in the order of their first slides.

        Args:
            task: The survival task.
            outputs: ``{output: number}`` of each slide.
            targets: (time, event) of each slide.
            case: The patient of each slide.
        """
        assert task.survival is not None
        places: dict[str, list[int]] = {}
        for place, name in enumerate(case):
            places.setdefault(name, []).append(place)
        said_NC = np.array(
            [
                np.mean([[outputs[place][name] for name in task.classes] for place in its], axis=0)
                for its in places.values()
            ],
            np.float64,
        ).reshape(-1, len(task.classes))
        known_N2 = np.array([targets[its[0]] for its in places.values()], np.float64).reshape(-1, 2)
        return cls(
            task.survival,
            tuple(places),
            tuple(map(len, places.values())),
            FollowUp.of(known_N2[:, 0], known_N2[:, 1]),
            said_NC[:, 0],
            said_NC[:, 1:],
        )

    @property
    def tells_survival(self) -> bool:
        """Whether every patient has a probability of survival at every time."""
        return not np.isnan(self.survival_NT).any()

    def pick(self, places: Picked) -> Self:
        """The patients at these places, with repetitions."""
        return replace(
            self,
            case=tuple(self.case[place] for place in places.tolist()),
            slides=tuple(self.slides[place] for place in places.tolist()),
            follow_up=self.follow_up.pick(places),
            risk_N=self.risk_N[places],
            survival_NT=self.survival_NT[places],
        )


@dataclass(frozen=True, slots=True, eq=False)
class TrainingFollowUp:
    """What the figures need of the training patients.

    Attributes:
        censoring: The probability to be still followed.
        survival: Their Kaplan-Meier curve.
        tau: The longest time at which a training patient may still be followed. Uno's C counts events before it.
    """

    censoring: SurvivalCurve
    survival: SurvivalCurve
    tau: float

    @classmethod
    def of(cls, follow_up: FollowUp) -> Self:
        """From the times and events of the training patients. Raises ``ValueError`` without patients."""
        censoring = censoring_curve(follow_up)
        return cls(censoring, kaplan_meier(follow_up), default_tau(censoring))

    def times(self, at: Sequence[float]) -> NDArray[np.int64]:
        """The places of the times at which a Brier score can be computed, because training patients are still
        followed.
        """
        return np.flatnonzero(self.censoring.at(np.array(at)) > 0)


def survival_figures(predicted: PredictedSurvival, training: TrainingFollowUp) -> dict[str, float]:
    """Every figure of a survival task. NaN if these patients do not give it.

    - ``c_index``: Harrell's.
    - ``c_index_uno``: Uno's, with the censoring of the training patients, up to their tau.
    - ``brier_<time>`` at each time, and ``ibs``, their mean over time; only if survival is predicted.
    - ``ibs_kaplan_meier``: the ``ibs`` of predicting the Kaplan-Meier curve of the training patients for
      everybody.
    """
    follow_up = predicted.follow_up
    counted = harrell(follow_up, predicted.risk_N)
    figures = {"c_index": counted.index if counted.pairs else math.nan}
    try:
        figures["c_index_uno"] = uno(follow_up, predicted.risk_N, training.censoring, tau=training.tau)
    except ValueError:
        figures["c_index_uno"] = math.nan
    places = training.times(predicted.config.at)
    if not predicted.tells_survival or not len(places):
        return figures
    at = np.array(predicted.config.at)[places]
    scores = brier_scores(follow_up, predicted.survival_NT[:, places], at, training.censoring)
    figures |= {f"brier_{time:g}": float(score) for time, score in zip(at, scores, strict=True)}
    if len(at) > 1:
        everybody_NT = np.broadcast_to(training.survival.at(at), (len(follow_up), len(at)))
        unknowing = brier_scores(follow_up, everybody_NT, at, training.censoring)
        figures |= {"ibs": integrated(scores, at), "ibs_kaplan_meier": integrated(unknowing, at)}
    return figures


def survival_intervals(
    predicted: PredictedSurvival, training: TrainingFollowUp, *, resamples: int, seed: int, stratified: bool
) -> dict[str, Interval]:
    """The figures with bootstrap intervals over patients. ``stratified``: each resample has as many events."""
    return bootstrap(
        lambda places: survival_figures(predicted.pick(places), training),
        range(len(predicted.case)),
        strata=predicted.follow_up.event.tolist() if stratified else None,
        resamples=resamples,
        seed=seed,
        rarest=int(predicted.follow_up.event.sum()),
        of=WITH_EVENT,
    )
