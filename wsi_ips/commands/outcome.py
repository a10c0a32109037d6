"""What a command has to say when it is done."""

from collections.abc import Sequence
from dataclasses import dataclass

SOME_FAILED = 3
"""Exit code when the work was done but some slides, or some of their overlays, failed."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Lines to print, and the process's exit code."""

    lines: Sequence[str]
    exit_code: int = 0

    @classmethod
    def of_slides(cls, failures: Sequence[str], summary: str, *, details: Sequence[str] = ()) -> "Outcome":
        """Details, the failed slides' reasons, then the summary."""
        lines = [*details, *(f"failed: {why}" for why in failures), summary]
        return cls(lines, SOME_FAILED if failures else 0)
