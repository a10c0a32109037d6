"""Search strategies at an equal budget, on a proxy task of seconds: is what they find better than chance's?

    python benchmarks/search.py FOLDER [--candidates 36] [--seeds 3] [--json] [--plot history.png] [--keep OUT]

FOLDER has textures by class (``manifest.csv``: path,class,source_group). Space, proxy and strategies are those of
pipelines/spinenet_search_small.yaml. Each candidate is trained once, in a process of its own, always from the
same seed; the score is the mean log-likelihood of held-back textures, 0 at best. The best of many noisy scores
looks better than it is: each winner is trained again from seeds that the search has not seen.
"""

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from wsi_ips.commands.recipe import load_recipe, make_job, shipped_recipe
from wsi_ips.models.spinenet.specification import Specification, content_of, write_specification
from wsi_ips.search.candidate import CandidateScore, ProxyTask
from wsi_ips.search.command import SearchJob
from wsi_ips.search.config import SearchConfig
from wsi_ips.search.proxy import prepare, write_arrays
from wsi_ips.search.run import Candidate, best_of, draw_search, new_candidates
from wsi_ips.search.strategy import build_strategy
from wsi_ips.storage.files import whole_file

NOISE_NETWORKS = 3
"""How many random networks the score's own noise is measured on."""
AGAIN_SEEDS = (1001, 1002)
"""A winner, and each of those networks, is trained again from these."""
KEPT = "scores.json"


@dataclass
class Scores:
    """Trains networks, each from a seed once; what it knows lies in a file, so that a run can go on."""

    task: ProxyTask
    path: Path
    known: dict[str, tuple[float | None, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path.is_file():
            self.known = json.loads(self.path.read_text())

    def __call__(self, specification: Specification, /) -> CandidateScore:
        return self.at_seed(specification, self.task.config.seed)

    def at_seed(self, specification: Specification, seed: int) -> CandidateScore:
        config = self.task.config.model_copy(update={"seed": seed})
        settings = config.model_dump_json(exclude={"folder"})
        key = hashlib.sha256((json.dumps(content_of(specification)) + settings).encode()).hexdigest()[:24]
        if key not in self.known:
            scored = replace(self.task, config=config)(specification)
            self.known[key] = (scored.score, scored.error)
            with whole_file(self.path) as partial:
                partial.write_text(json.dumps(self.known))
        return CandidateScore(*self.known[key])

    def again(self, specification: Specification) -> list[float]:
        """Scores from seeds that no search uses."""
        found = [self.at_seed(specification, seed).score for seed in AGAIN_SEEDS]
        return [score for score in found if score is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--candidates", type=int, default=36, help="of each strategy and seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path, help="PNG of all candidates")
    parser.add_argument(
        "--keep", type=Path, help="folder of winners and scores; a killed run goes on from it"
    )
    parser.add_argument("--set", action="append", default=[], help="a setting of the recipe; repeatable")
    arguments = parser.parse_args()
    job = _job(arguments.folder, arguments.candidates, arguments.set)
    with tempfile.TemporaryDirectory() as folder:
        keep = arguments.keep or Path(folder)
        write_arrays(keep / "proxy.npz", prepare(job.proxy))
        scores = Scores(ProxyTask(job.proxy, keep / "proxy.npz", "cpu", job.timeout_s), keep / KEPT)
        figures, found = search_figures(job, scores, seeds=arguments.seeds, keep=keep)
    if arguments.plot is not None:
        draw_search(arguments.plot, found, title="Best network so far, by strategy and seed")
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:40} {value:10.4f}")


def _job(folder: Path, candidates: int, overrides: Sequence[str]) -> SearchJob:
    values = load_recipe(shipped_recipe("spinenet_search_small"), overrides)
    values["proxy"] = {**values["proxy"], "folder": folder}
    job = make_job({**values, "candidates": candidates}, source="benchmark")
    assert isinstance(job, SearchJob)
    return job


def search_figures(
    job: SearchConfig, scores: Scores, *, seeds: int, keep: Path
) -> tuple[dict[str, float], dict[str, list[Candidate]]]:
    """The figures, and every run's candidates by strategy and seed."""
    runs = {
        (name, seed): new_candidates(
            build_strategy(name, job.model_copy(update={"seed": seed})), job.candidates, scores
        )
        for name in job.strategies
        for seed in range(seeds)
    }
    found: dict[str, list[Candidate]] = {f"{name} {seed}": [] for name, seed in runs}
    # In turn: whenever it is stopped, all have had the same budget.
    for number in range(job.candidates):
        for (name, seed), its in runs.items():
            found[f"{name} {seed}"].append(next(its))
            print(f"{number} {name} {seed}: {found[f'{name} {seed}'][-1].score}", file=sys.stderr, flush=True)
    figures: dict[str, float] = {"search_candidates": job.candidates}
    for name in job.strategies:
        figures |= _of_strategy(name, [found[f"{name} {seed}"] for seed in range(seeds)], scores, keep)
    every = [one for its in found.values() for one in its]
    figures["search_failed"] = sum(one.score is None for one in every)
    return figures | noise_figures(job, scores), found


def _of_strategy(name: str, runs: list[list[Candidate]], scores: Scores, keep: Path) -> dict[str, float]:
    """Over seeds, mean and deviation of the best score, of the winner's from other seeds, of all candidates'."""
    values: dict[str, list[float]] = {"best": [], "again": [], "mean": []}
    for seed, its in enumerate(runs):
        winner = best_of(its)
        assert winner is not None
        assert winner.score is not None
        values["best"].append(winner.score)
        values["again"].append(statistics.fmean(scores.again(winner.specification)))
        values["mean"].append(statistics.fmean(one.score for one in its if one.score is not None))
        write_specification(keep / f"{name}_{seed}.yaml", winner.specification)
    figures: dict[str, float] = {}
    for what, its_values in values.items():
        figures[f"search_{name}_{what}"] = statistics.fmean(its_values)
        figures[f"search_{name}_{what}_sd"] = statistics.stdev(its_values) if len(its_values) > 1 else 0.0
    return figures


def noise_figures(job: SearchConfig, scores: Scores) -> dict[str, float]:
    """The score's deviation over seeds of one network, and over networks (means over seeds)."""
    strategy = build_strategy("random", job.model_copy(update={"seed": 999}))
    drawn = []
    for number in range(NOISE_NETWORKS):
        proposal = strategy.propose(number)
        drawn.append(scores.again(proposal.specification))
        strategy.tell(proposal.answers, None)
    within = statistics.fmean(statistics.variance(its) for its in drawn) ** 0.5
    between = statistics.stdev(statistics.fmean(its) for its in drawn)
    return {"search_noise_sd": within, "search_networks_sd": between}


if __name__ == "__main__":
    main()
