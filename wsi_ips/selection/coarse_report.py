"""How much of a slide a coarse scorer, or a random draw, let through: :class:`CoarseReport`.

This module imports no torch, so that drawing stored attention does not load it.
"""

from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class CoarseReport:
    """What a coarse-to-fine selector did with one slide. Random patches have no windows.

    Attributes:
        patches: How many patches the tissue of the slide has.
        let_through: How many of them were read in full resolution.
        windows: How many windows the coarse scorer saw.
        encoder_windows: How many of these windows went through the encoder of the patches.
        recall: The share of a full pass's attention that lies in the patches let through, as it was measured on
            validation slides for the same share of patches. None if it was not measured.
    """

    patches: int
    let_through: int
    windows: int
    encoder_windows: int
    recall: float | None

    @property
    def saved(self) -> int:
        """How many patches were not read in full resolution."""
        return self.patches - self.let_through

    def to_json(self) -> dict[str, float | None]:
        """The report as ``{name: number}``, with ``saved``."""
        return {**asdict(self), "saved": self.saved}

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """The report that :meth:`to_json` wrote. Raises ``ValueError`` if ``value`` is anything else."""
        names = ("patches", "let_through", "windows", "encoder_windows")
        if not isinstance(value, dict) or not all(type(value.get(name)) is int for name in names):
            raise ValueError("the report of the coarse scorer has no counts")
        recall = value.get("recall")
        if recall is not None and not isinstance(recall, int | float):
            raise ValueError("the recall in the report of the coarse scorer is not a number")
        return cls(**{name: value[name] for name in names}, recall=recall)
