"""Follow-up times and events of patients, checked once and then relied on: :class:`FollowUp`.

Shape suffix: N patients.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsi_ips.errors import count


@dataclass(frozen=True, slots=True, eq=False)
class FollowUp:
    """How long each patient was followed, and how that ended.

    At equal times events come before censorings: a patient who is censored at a time is still at risk for an
    event at that time (SURVIVAL.md section 1).

    Attributes:
        time: (N,) float64, above 0, in one unit.
        event: (N,) bool, True if the event happened at ``time``, False if the patient was last seen then without
            it (right-censored).
    """

    time: NDArray[np.float64]
    event: NDArray[np.bool_]

    @classmethod
    def of(cls, time: ArrayLike, event: ArrayLike) -> Self:
        """From two sequences of equal length. Events are True and False, or 1 and 0.

        Raises:
            ValueError: The shapes are wrong, a time is not a finite number above 0, or an event is something
                else.
        """
        times, events = np.asarray(time, np.float64), np.asarray(event)
        if times.ndim != 1 or times.shape != events.shape:
            raise ValueError(
                f"times {times.shape} and events {events.shape} are not two lists of equal length"
            )
        wrong = np.flatnonzero(~(np.isfinite(times) & (times > 0)))
        if len(wrong):
            raise ValueError(f"time {times[wrong[0]]} of patient {wrong[0]} is not a finite number above 0")
        if not np.isin(events, (0, 1)).all():
            raise ValueError("an event is neither 0 nor 1")
        return cls(times, events.astype(bool))

    def __len__(self) -> int:
        return len(self.time)

    def pick(self, places: NDArray[np.int64] | NDArray[np.bool_]) -> "FollowUp":
        """The patients at these places, or where a mask of shape (N,) is True."""
        return FollowUp(self.time[places], self.event[places])

    @property
    def counts(self) -> str:
        """How many patients had the event, for messages and tables."""
        return f"{count(int(self.event.sum()), 'event')} in {count(len(self), 'patient')}"
