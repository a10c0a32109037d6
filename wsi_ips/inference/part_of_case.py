"""What a slide's result says of the case (patient) that it was read with as one bag: :class:`PartOfCase`."""

import math
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class PartOfCase:
    """A slide as a part of its case, where all slides of a case are one bag.

    Attributes:
        case_id: The case.
        slides: The slides that were read together, in the order in which they were read. Empty if not known.
        share: The slide's share of the attention of the case, averaged over heads and queries; over the slides
            of a case the shares sum to 1. NaN for a slide that could not be read.
    """

    case_id: str
    slides: tuple[str, ...] = ()
    share: float = math.nan

    def to_json(self) -> dict[str, Any]:
        """The values by name."""
        return {"case_id": self.case_id, "slides": list(self.slides), "share": self.share}

    @classmethod
    def from_json(cls, stored: Any) -> Self:
        """The object that :meth:`to_json` wrote. Raises ``KeyError``, ``TypeError`` or ``ValueError`` for
        anything else.
        """
        return cls(
            str(stored["case_id"]), tuple(str(name) for name in stored["slides"]), float(stored["share"])
        )
