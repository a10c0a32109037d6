"""Running a search, and the record of its candidates.

Runs a search (:func:`search`): propose a candidate, train it, tell the strategy its score.

A search that was killed goes on where it was when it is started again.

What became of each candidate: one file per candidate (:class:`Record`), a table and a plot of all of them.

Plots need matplotlib (the extra ``wsi_ips[plots]``).
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import FiniteFloat, NonNegativeInt, ValidationError

from wsi_ips.config import Section, SpecificationTable
from wsi_ips.errors import ConfigError, ResultsError, TrainingError
from wsi_ips.evaluation.plots import COLOURS, DPI, STYLES, check_can_plot
from wsi_ips.models.spinenet.specification import (
    Specification,
    content_of,
    specification_of,
    write_specification,
)
from wsi_ips.progress import Progress
from wsi_ips.search.candidate import CandidateScore, Train
from wsi_ips.search.config import SearchConfig, StrategyName
from wsi_ips.search.strategy import Strategy, build_strategy
from wsi_ips.storage.files import whole_file, whole_table
from wsi_ips.storage.held_folder import describe, difference, held

LARGEST_BYTES = 1_000_000
"""The largest file of a candidate that is read."""

LOWEST_SHARE = 0.05
"""Share of the candidates, the worst ones, that lie below the plot: a few that learned nothing would flatten
it.
"""


class _Entry(Section):
    """The content of a candidate's file."""

    number: NonNegativeInt
    score: FiniteFloat | None
    error: str
    seconds: FiniteFloat
    answers: dict[str, NonNegativeInt]
    specification: SpecificationTable


@dataclass(frozen=True, slots=True)
class Candidate:
    """One candidate of a strategy; numbers count from 0.

    ``score`` is None if it failed, and ``error`` says why.
    """

    number: int
    score: float | None
    error: str
    seconds: float
    answers: dict[str, int]
    specification: Specification


@dataclass(frozen=True, slots=True)
class SearchRecord:
    """The candidates of one strategy, in a folder."""

    folder: Path

    def read(self) -> list[Candidate]:
        """All candidates.

        Raises :class:`ResultsError` for a file that cannot be read, or is missing in between.
        """
        return [self._read(number) for number in range(len(list(self.folder.glob("[0-9]*.json"))))]

    def add(self, candidate: Candidate) -> None:
        """Write a candidate's file, whole or not at all."""
        content: dict[str, Any] = {
            "number": candidate.number,
            "score": candidate.score,
            "error": candidate.error,
            "seconds": round(candidate.seconds, 3),
            "answers": candidate.answers,
            "specification": content_of(candidate.specification),
        }
        with whole_file(self._path(candidate.number)) as partial:
            partial.write_text(json.dumps(content) + "\n", encoding="utf-8")

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06}.json"

    def _read(self, number: int) -> Candidate:
        path = self._path(number)
        try:
            if path.stat().st_size > LARGEST_BYTES:
                raise ValueError("too large")
            entry = _Entry.model_validate_json(path.read_bytes())
            if entry.number != number:
                raise ValueError(f"candidate {entry.number} under this name")
            specification = specification_of(entry.specification)
        except (OSError, ValidationError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "is no candidate that can be read"
            raise ResultsError(path, str(reason), "remove it and those after it") from None
        return Candidate(number, entry.score, entry.error, entry.seconds, dict(entry.answers), specification)


def best_of(candidates: Iterable[Candidate]) -> Candidate | None:
    """The candidate with the best score; of equal ones the first. None if none succeeded."""
    scored = [candidate for candidate in candidates if candidate.score is not None]
    return max(scored, key=lambda one: one.score if one.score is not None else 0.0, default=None)


def best_so_far(candidates: Sequence[Candidate]) -> list[float | None]:
    """The best score after each candidate; None before the first that succeeded."""
    found: list[float | None] = []
    best: float | None = None
    for candidate in candidates:
        if candidate.score is not None and (best is None or candidate.score > best):
            best = candidate.score
        found.append(best)
    return found


def write_history(path: Path, candidates: Mapping[StrategyName, Sequence[Candidate]]) -> None:
    """Write the candidates of all strategies as CSV."""
    with whole_table(path) as writer:
        writer.writerow(["strategy", "number", "score", "best", "blocks", "seconds", "error"])
        for strategy, its in candidates.items():
            for one, best in zip(its, best_so_far(its), strict=True):
                row = [one.score, best, len(one.specification.blocks), f"{one.seconds:.2f}", one.error]
                writer.writerow([strategy, one.number, *("" if cell is None else cell for cell in row)])


def draw_search(path: Path, found: Mapping[Any, Sequence[Candidate]], *, title: str) -> None:
    """Plot each strategy's candidates as points and its best so far as a line.

    Failed candidates are crosses at the bottom.

    Runs of a strategy, such as "random 0" and "random 1", share its colour. Raises :class:`ConfigError` if
    matplotlib is not installed.
    """
    check_can_plot()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4.2), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    looks = _looks(list(found))
    scores = sorted(one.score for its in found.values() for one in its if one.score is not None)
    for name, its in found.items():
        colour, style = looks[name]
        scored = [(one.number + 1, one.score) for one in its if one.score is not None]
        axes.plot(
            *zip(*scored, strict=True) if scored else ((), ()), ".", color=colour, alpha=0.45, markersize=5
        )
        best = [(number, score) for number, score in enumerate(best_so_far(its), 1) if score is not None]
        axes.step(
            *zip(*best, strict=True) if best else ((), ()),
            where="post",
            color=colour,
            linestyle=style,
            linewidth=1.8,
            label=name,
        )
    if scores:
        low = scores[int(LOWEST_SHARE * len(scores))]
        axes.set_ylim(low - 0.05 * (scores[-1] - low or 1), scores[-1] + 0.08 * (scores[-1] - low or 1))
    bottom = axes.get_ylim()[0]
    for name, its in found.items():
        failed = [one.number + 1 for one in its if one.score is None]
        axes.plot(failed, [bottom] * len(failed), "x", color=looks[name][0], clip_on=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="candidate (× failed)", ylabel="score on the proxy task", title=title)
    figure.legend(frameon=False, fontsize="small", loc="outside right upper")
    with whole_file(path) as partial:
        figure.savefig(partial)


def _looks(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """A colour for each strategy (the first word), and a line style for each of its runs."""
    runs: dict[str, list[str]] = {}
    for name in names:
        runs.setdefault(name.partition(" ")[0], []).append(name)
    return {
        name: (COLOURS[place % len(COLOURS)], STYLES[run % len(STYLES)])
        for place, its in enumerate(runs.values())
        for run, name in enumerate(its)
    }


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
