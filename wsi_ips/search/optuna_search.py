"""Random search and regularised evolution with Optuna (the extra ``wsi_ips[search]``): :class:`OptunaSearch`.

Optuna draws, keeps the trials and hands them to the sampler. Its own storages are not used: what is kept on disk
is a file per candidate (:mod:`wsi_ips.search.record`), the same for every strategy.
"""

import random
from collections.abc import Sequence
from typing import Any

from wsi_ips.errors import ConfigError
from wsi_ips.search.config import EvolutionConfig, SearchSpaceConfig
from wsi_ips.search.space import Label, decode
from wsi_ips.search.strategy import Answers, Proposal, labels_of, recorded

try:
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution
    from optuna.samplers import BaseSampler, RandomSampler
    from optuna.study import Study
    from optuna.trial import FrozenTrial, TrialState, create_trial
except ImportError:
    raise ConfigError(
        "random search and evolution need Optuna: pip install 'wsi_ips[search]', or strategies: [controller]"
    ) from None

LABELS = "labels"
"""The attribute of a trial that holds what its answers stand for."""


class OptunaSearch:
    """A strategy: random search, or regularised evolution if ``evolution`` is given."""

    def __init__(
        self, space: SearchSpaceConfig, *, seed: int, evolution: EvolutionConfig | None = None
    ) -> None:
        self._space, self._seed, self._evolution = space, seed, evolution
        level = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # it tells of every study that is made
        self._study = optuna.create_study(direction="maximize", sampler=RandomSampler(seed=seed))
        optuna.logging.set_verbosity(level)
        self._asked: optuna.Trial | None = None

    def propose(self, number: int) -> Proposal:
        """The candidate with this number, from 0."""
        seed = random.Random(f"{self._seed}/{number}").getrandbits(32)  # noqa: S311 - not a secret
        evolution = None if self._evolution is None else RegularisedEvolution(self._evolution, seed=seed)
        self._study.sampler = RandomSampler(seed=seed) if evolution is None else evolution
        trial = self._asked = self._study.ask()

        def decide(name: str, choices: Sequence[Label], /) -> int:
            if evolution is not None:
                evolution.offered = choices
            return trial.suggest_categorical(name, tuple(range(len(choices))))

        answers: dict[str, int] = {}
        return Proposal(answers, decode(self._space, recorded(decide, answers)))

    def tell(self, answers: Answers, score: float | None) -> None:
        """Report a candidate's score, where larger is better; None means that it failed."""
        state = TrialState.FAIL if score is None else TrialState.COMPLETE
        labels = labels_of(self._space, answers)
        if self._asked is not None:
            self._asked.set_user_attr(LABELS, labels)
            self._study.tell(self._asked, score, state=state)
            self._asked = None
            return
        sizes = {name: self._sizes[name] for name in answers}
        self._study.add_trial(
            create_trial(
                state=state,
                value=score,
                params=dict(answers),
                distributions={name: CategoricalDistribution(range(n)) for name, n in sizes.items()},
                user_attrs={LABELS: labels},
            )
        )

    @property
    def _sizes(self) -> dict[str, int]:
        """Number of choices of each decision."""
        sizes: dict[str, int] = {}

        def decide(name: str, choices: Sequence[Label], /) -> int:
            sizes[name] = len(choices)
            return 0

        decode(self._space, decide)
        return sizes


class RegularisedEvolution(BaseSampler):
    """Regularised (ageing) evolution (Real et al. 2019, algorithm 1) for one trial; Optuna 5 has none.

    The population is the latest ``population`` trials that succeeded; until there are that many, trials are
    random. A child answers like its parent in all decisions but one. In a permutation, a block that now comes
    earlier leaves its place to the block that it replaced.
    """

    def __init__(self, config: EvolutionConfig, *, seed: int) -> None:
        self._config = config
        self._random = random.Random(seed)  # noqa: S311 - not a secret
        self._first = RandomSampler(seed=seed)
        self._parent: dict[str, Label] | None = None
        self._mutated = ""
        self._swapped: dict[Label, Label] = {}
        self.offered: Sequence[Label] = ()
        """What the indices of the next decision stand for."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Called once, when the trial begins: chooses the parent and what is mutated."""
        done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        population = sorted(done, key=lambda one: one.number)[-self._config.population :]
        if len(population) == self._config.population:
            drawn = [self._random.choice(population) for _ in range(self._config.sample)]
            best = max(drawn, key=lambda one: one.value if one.value is not None else float("-inf"))
            self._parent = best.user_attrs[LABELS]
            self._mutated = self._random.choice(list(best.params))
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing is sampled jointly."""
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> int:
        """The index of one decision's choice: inherited from the parent, or mutated."""
        choices = self.offered
        if self._parent is None:
            drawn: int = self._first.sample_independent(study, trial, param_name, param_distribution)
            return drawn
        inherited = self._parent[param_name]
        if param_name == self._mutated:
            others = [index for index, label in enumerate(choices) if label != inherited]
            index = self._random.choice(others)
            if "order" in param_name:
                self._swapped[choices[index]] = inherited
            return index
        if inherited not in choices:
            inherited = self._swapped[inherited]
        return choices.index(inherited)
