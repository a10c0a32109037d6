"""What a look from afar let through. Imports no torch: who draws stored attention loads none."""

from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class CoarseReport:
    """patches: in the slide's tissue. let_through: of these, what was read closely. windows: what was looked
    at from afar; encoder_windows: of these, what went through the patches' encoder. recall: the share of a
    full pass's attention that lies in what was let through, as measured on validation slides for the same
    share of patches; None where it was not measured."""

    patches: int
    let_through: int
    windows: int
    encoder_windows: int
    recall: float | None

    @property
    def saved(self) -> int:
        """Patches that were never read closely."""
        return self.patches - self.let_through

    def to_json(self) -> dict[str, float | None]:
        """{name: number}, ``saved`` too."""
        return {**asdict(self), "saved": self.saved}

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """What :meth:`to_json` gave. Raises ``ValueError`` for anything else."""
        names = ("patches", "let_through", "windows", "encoder_windows")
        if not isinstance(value, dict) or not all(type(value.get(name)) is int for name in names):
            raise ValueError("the report on the look from afar has no counts")
        recall = value.get("recall")
        if recall is not None and not isinstance(recall, int | float):
            raise ValueError("the report on the look from afar has no recall")
        return cls(**{name: value[name] for name in names}, recall=recall)
