"""Runs a search (:func:`search`): propose a candidate, train it, tell the strategy its score.

A search that was killed goes on where it was when it is started again.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wsi_ips.errors import ConfigError, ResultsError, TrainingError
from wsi_ips.models.spinenet.specification import Specification, content_of, write_specification
from wsi_ips.progress import Progress
from wsi_ips.search.candidate import CandidateScore, Train
from wsi_ips.search.config import SearchConfig, StrategyName
from wsi_ips.search.record import Candidate, SearchRecord, best_of, write_history
from wsi_ips.search.strategy import Strategy, build_strategy
from wsi_ips.storage.held_folder import describe, difference, held

FREE = ("candidates", "strategies", "timeout_s")
"""Settings that another start may change: more candidates, more strategies, another time limit."""

FREE_OF_PROXY = ("folder",)
"""Settings of the proxy task that another start may change: data that were moved; their digest has to be the
same.
"""


def search(
    config: SearchConfig, out: Path, train: Train, progress: Progress
) -> Mapping[StrategyName, Sequence[Candidate]]:
    """Run a search. Returns every strategy's candidates, including those of earlier starts.

    Leaves ``<strategy>/<number>.json``, ``history.csv`` and ``best.yaml`` (the best network) in ``out``. Raises
    :class:`TrainingError` if no candidate succeeded, and :class:`ResultsError` for a record that cannot be read or
    belongs to another search.
    """
    strategies = {name: build_strategy(name, config) for name in config.strategies}
    found = {name: SearchRecord(out / name).read() for name in config.strategies}
    for name, strategy in strategies.items():
        its, record = found[name], SearchRecord(out / name)
        retell(strategy, its)
        with progress(f"Searching: {name}", total=config.candidates) as advance:
            for _ in its:
                advance()
            for candidate in new_candidates(strategy, config.candidates, train, past=list(its)):
                record.add(candidate)
                its.append(candidate)
                _write(out, found)
                advance(_said(candidate))
    _write(out, found)
    if best_of(one for its in found.values() for one in its) is None:
        reason = next(one.error for its in found.values() for one in its)
        raise TrainingError(f"no candidate succeeded; the first one: {reason}")
    return found


def retell(strategy: Strategy, past: Iterable[Candidate]) -> None:
    """Tell a strategy the candidates of an earlier start.

    Raises :class:`ResultsError` for those of another space.
    """
    for candidate in past:
        try:
            strategy.tell(candidate.answers, candidate.score)
        except (LookupError, ConfigError):
            raise ResultsError(
                f"candidate {candidate.number}", "belongs to another search", "write elsewhere"
            ) from None


def new_candidates(
    strategy: Strategy, budget: int, train: Train, *, past: Sequence[Candidate] = ()
) -> Iterator[Candidate]:
    """Propose and train candidates up to ``budget`` in all.

    ``past`` are those that the strategy was already told.

    A network that was trained before, with whatever result, is not trained again.
    """
    known = {_blocks_of(one.specification): CandidateScore(one.score, one.error) for one in past}
    for number in range(len(past), budget):
        proposal = strategy.propose(number)
        blocks = _blocks_of(proposal.specification)
        started = time.perf_counter()
        if blocks not in known:
            known[blocks] = train(proposal.specification)
        scored = known[blocks]
        strategy.tell(proposal.answers, scored.score)
        seconds = time.perf_counter() - started
        yield Candidate(
            number, scored.score, scored.error, seconds, dict(proposal.answers), proposal.specification
        )


@contextmanager
def claimed(out: Path, config: SearchConfig, *, data: str, device: str) -> Iterator[None]:
    """Context manager: lock the folder, and write a ``run.json`` that says what is searched.

    ``data`` is the digest of the pictures. Raises :class:`ConfigError`, with the difference, if the folder holds
    another search, and :class:`ResultsError` while another process writes into it.
    """
    description = out / "run.json"
    below = [out / name for name in config.strategies]
    with held(out, below=below, undo=[description, out / "proxy.npz"], results="*/[0-9]*.json"):
        different = difference(
            description,
            _deciding(config.model_dump(mode="json"), data),
            theirs=lambda told: _deciding(told["config"], told["data"]),
        )
        if different:
            raise ConfigError(f"{out} holds a search with other settings ({different}); write elsewhere")
        describe(description, "search", config=config.model_dump(mode="json"), data=data, device=device)
        yield


def _deciding(config: Mapping[str, Any], data: str) -> dict[str, Any]:
    """The settings of a search that another start may not change."""
    settings = {name: value for name, value in config.items() if name not in FREE}
    proxy = {name: value for name, value in config["proxy"].items() if name not in FREE_OF_PROXY}
    return {**settings, "proxy": proxy, "data": data}


def _write(out: Path, found: Mapping[StrategyName, Sequence[Candidate]]) -> None:
    write_history(out / "history.csv", found)
    best = best_of(one for its in found.values() for one in its)
    if best is not None:
        write_specification(out / "best.yaml", best.specification)


def _blocks_of(specification: Specification) -> str:
    return json.dumps({**content_of(specification), "name": ""})


def _said(candidate: Candidate) -> str:
    if candidate.score is None:
        return f"candidate {candidate.number} failed: {candidate.error}"
    return f"candidate {candidate.number}: {candidate.score:.4f}"
