"""What every strategy does: propose the next candidate, and hear what became of it.

A strategy is a function of its settings, its seed and what it was told, in that order: told the record of a
killed search, it goes on as if nothing had happened. Chance is drawn anew for each candidate, by seed and number.
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
    """Proposals and what is told about them alternate; at the beginning a record may be told at once."""

    def propose(self, number: int) -> Proposal:
        """The candidate of this number, from 0."""
        ...

    def tell(self, answers: Answers, score: float | None) -> None:
        """``score``: larger is better; None: the candidate failed."""
        ...


def build_strategy(name: StrategyName, config: SearchConfig) -> Strategy:
    """Raises :class:`ConfigError` where Optuna is needed and not installed."""
    if name == "controller":
        from wsi_ips.search.controller import ControllerSearch

        return ControllerSearch(config.space, config.controller, seed=config.seed)
    from wsi_ips.search.optuna_search import OptunaSearch

    evolution = config.evolution if name == "evolution" else None
    return OptunaSearch(config.space, seed=config.seed, evolution=evolution)


def recorded(decide: Decide, answers: dict[str, int]) -> Decide:
    """``decide``, with its answers written into ``answers``."""

    def recording(name: str, choices: Sequence[Label], /) -> int:
        answers[name] = decide(name, choices)
        return answers[name]

    return recording


def labels_of(space: SearchSpaceConfig, answers: Answers) -> dict[str, Label]:
    """What recorded answers stood for."""
    labels: dict[str, Label] = {}

    def decide(name: str, choices: Sequence[Label], /) -> int:
        labels[name] = choices[answers[name]]
        return answers[name]

    decode(space, decide)
    return labels
