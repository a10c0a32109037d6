"""What every strategy does (:class:`Strategy`): propose the next candidate, and learn its score.

A strategy is a function of its settings, its seed and what it was told, in that order: told the record of a search
that was killed, it goes on as if nothing had happened. Random numbers are drawn anew for each candidate, from the
seed and its number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from wsi_ips.models.spinenet.specification import Specification
from wsi_ips.search.config import SearchConfig, SearchSpaceConfig, StrategyName
from wsi_ips.search.space import Decide, Label, decode

Answers = Mapping[str, int]
"""{name of the decision: index of what was chosen}."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A candidate before it is trained."""

    answers: Answers
    specification: Specification


class Strategy(Protocol):
    """A strategy.

    Calls of ``propose`` and ``tell`` alternate; at the beginning, a whole record may be told at once.
    """

    def propose(self, number: int) -> Proposal:
        """The candidate with this number, from 0."""
        ...

    def tell(self, answers: Answers, score: float | None) -> None:
        """Report a candidate's score, where larger is better; None means that it failed."""
        ...


def build_strategy(name: StrategyName, config: SearchConfig) -> Strategy:
    """The strategy with this name. Raises :class:`ConfigError` if it needs Optuna, which is not installed."""
    if name == "controller":
        from wsi_ips.search.controller import ControllerSearch

        return ControllerSearch(config.space, config.controller, seed=config.seed)
    from wsi_ips.search.optuna_search import OptunaSearch

    evolution = config.evolution if name == "evolution" else None
    return OptunaSearch(config.space, seed=config.seed, evolution=evolution)


def recorded(decide: Decide, answers: dict[str, int]) -> Decide:
    """``decide``, but its answers are also written into ``answers``."""

    def recording(name: str, choices: Sequence[Label], /) -> int:
        answers[name] = decide(name, choices)
        return answers[name]

    return recording


def labels_of(space: SearchSpaceConfig, answers: Answers) -> dict[str, Label]:
    """What recorded answers stand for, by decision."""
    labels: dict[str, Label] = {}

    def decide(name: str, choices: Sequence[Label], /) -> int:
        labels[name] = choices[answers[name]]
        return answers[name]

    decode(space, decide)
    return labels
