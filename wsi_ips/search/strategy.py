"""How the next candidate is chosen: the protocol of a strategy, and the strategies.

What every strategy does (:class:`Strategy`): propose the next candidate, and learn its score.

A strategy is a function of its settings, its seed and what it was told, in that order: told the record of a search
that was killed, it goes on as if nothing had happened. Random numbers are drawn anew for each candidate, from the
seed and its number.

A recurrent controller that draws candidates and learns from their scores (Zoph et al. 2018).

Du et al. (2020) search by reinforcement learning with such a controller but give no settings for it. This one uses
REINFORCE (Williams 1992) with a moving baseline and an entropy bonus.

Random search and regularised evolution with Optuna (the extra ``wsi_ips[search]``): :class:`OptunaSearch`.

Optuna draws, keeps the trials and hands them to the sampler. Its own storages are not used: what is kept on disk
is a file per candidate (:mod:`wsi_ips.search.run`), the same for every strategy.

Shape suffixes: B candidates, H hidden units, V labels of a decision.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from wsi_ips.errors import ConfigError
from wsi_ips.models.spinenet.specification import Specification
from wsi_ips.search.config import (
    ControllerConfig,
    EvolutionConfig,
    SearchConfig,
    SearchSpaceConfig,
    StrategyName,
)
from wsi_ips.search.space import Decide, Label, decode, intermediate_levels

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
        return ControllerSearch(config.space, config.controller, seed=config.seed)

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


LOGIT_SCALE = 2.5
"""Logits are LOGIT_SCALE * tanh, so that a few good scores rule out no choice for good (Zoph et al. 2018)."""
SMALLEST_DEVIATION = 1e-6
"""Deviation of scores that is assumed at least."""


class Policy(nn.Module):
    """An LSTM that sees its last choice, with one head per decision.

    Blocks that were already placed are masked.
    """

    def __init__(self, vocabulary: Mapping[str, tuple[Label, ...]], hidden: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.hidden = hidden
        self.cell = nn.LSTMCell(hidden, hidden)
        # Names have dots, which no module's may have.
        self._place = {name: place for place, name in enumerate(vocabulary)}
        self.heads = nn.ModuleList(nn.Linear(hidden, len(labels)) for labels in vocabulary.values())
        self.embeddings = nn.ModuleList(nn.Embedding(len(labels), hidden) for labels in vocabulary.values())
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.1, 0.1)

    def log_probabilities(self, name: str, hidden_BH: Tensor, allowed_BV: Tensor) -> Tensor:
        """Log-probabilities of a decision's labels, (B, V); -inf for those that are not allowed."""
        logits_BV = LOGIT_SCALE * torch.tanh(self.heads[self._place[name]](hidden_BH))
        return logits_BV.masked_fill(~allowed_BV, float("-inf")).log_softmax(dim=1)

    def seen(self, name: str, chosen_B: Tensor) -> Tensor:
        """What the next step sees of this choice, (B, H)."""
        found_BH: Tensor = self.embeddings[self._place[name]](chosen_B)
        return found_BH

    def allowed(self, name: str, choices: Sequence[Label]) -> Tensor:
        """Which labels of the decision are among the choices, (V,) bool."""
        return torch.tensor([label in choices for label in self.vocabulary[name]])


class _Draw:
    """Draws one candidate, decision by decision."""

    def __init__(self, policy: Policy, generator: torch.Generator) -> None:
        self._policy, self._generator = policy, generator
        self._input_BH = torch.zeros(1, policy.hidden)
        self._state: tuple[Tensor, Tensor] | None = None

    def __call__(self, name: str, choices: Sequence[Label], /) -> int:
        policy = self._policy
        self._state = policy.cell(self._input_BH, self._state)
        allowed_BV = policy.allowed(name, choices)[None]
        log_p_BV = policy.log_probabilities(name, self._state[0], allowed_BV)
        chosen_B = torch.multinomial(log_p_BV.exp()[0], 1, generator=self._generator)
        self._input_BH = policy.seen(name, chosen_B)
        return choices.index(policy.vocabulary[name][int(chosen_B)])


@dataclass(frozen=True, slots=True)
class _Step:
    """A decision of all candidates of a batch. ``chosen_B`` are indices of the vocabulary."""

    name: str
    allowed_BV: Tensor
    chosen_B: Tensor


def _steps(space: SearchSpaceConfig, policy: Policy, batch: Sequence[Answers]) -> list[_Step]:
    walks: list[list[tuple[str, Tensor, int]]] = []
    for answers in batch:
        walk: list[tuple[str, Tensor, int]] = []

        def decide(
            name: str,
            choices: Sequence[Label],
            /,
            walk: list[tuple[str, Tensor, int]] = walk,
            answers: Answers = answers,
        ) -> int:
            label = choices[answers[name]]
            walk.append((name, policy.allowed(name, choices), policy.vocabulary[name].index(label)))
            return answers[name]

        decode(space, decide)
        walks.append(walk)
    # All candidates of a space are asked the same questions, in the same order.
    return [
        _Step(
            together[0][0],
            torch.stack([a for _, a, _ in together]),
            torch.tensor([c for _, _, c in together]),
        )
        for together in zip(*walks, strict=True)
    ]


def gone_through(policy: Policy, steps: Sequence[_Step], size: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities (B,) of a batch of candidates, and the mean entropy (B,) of their decisions."""
    input_BH, state = torch.zeros(size, policy.hidden), None
    log_p_B, entropy_B = torch.zeros(size), torch.zeros(size)
    for step in steps:
        state = policy.cell(input_BH, state)
        log_p_BV = policy.log_probabilities(step.name, state[0], step.allowed_BV)
        log_p_B = log_p_B + log_p_BV.gather(1, step.chosen_B[:, None])[:, 0]
        # 0 log 0 is 0, but not to a computer.
        finite_BV = log_p_BV.masked_fill(~step.allowed_BV, 0.0)
        entropy_B = entropy_B - (finite_BV.exp() * finite_BV).sum(dim=1)
        input_BH = policy.seen(step.name, step.chosen_B)
    return log_p_B, entropy_B / max(1, len(steps))


class ControllerSearch:
    """A strategy: the controller proposes candidates and learns from batches of scores.

    A score is measured against the moving mean and deviation of the scores, so that the learning rate does not
    depend on the proxy's scale.
    """

    def __init__(self, space: SearchSpaceConfig, config: ControllerConfig, *, seed: int) -> None:
        self._space, self._config, self._seed = space, config, seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.policy = Policy(vocabulary_of(space), config.hidden)
        self._optimizer = torch.optim.Adam(self.policy.parameters(), lr=config.lr)
        self._batch: list[tuple[Answers, float]] = []
        self._mean: float | None = None
        self._variance = 0.0

    def propose(self, number: int) -> Proposal:
        """The candidate with this number, from 0."""
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + number)
        answers: dict[str, int] = {}
        with torch.no_grad():
            draw = _Draw(self.policy, generator)
            return Proposal(answers, decode(self._space, recorded(draw, answers)))

    def tell(self, answers: Answers, score: float | None) -> None:
        """Report a candidate's score, where larger is better.

        None means that it failed, and nothing is learned from it.
        """
        if score is None:
            return
        self._batch.append((answers, score))
        if len(self._batch) == self._config.batch:
            self._learn()
            self._batch = []

    def _learn(self) -> None:
        scores = [score for _, score in self._batch]
        advantage_B = torch.tensor(self._advantages(scores))
        steps = _steps(self._space, self.policy, [answers for answers, _ in self._batch])
        log_p_B, entropy_B = gone_through(self.policy, steps, len(scores))
        loss = -(advantage_B * log_p_B + self._config.entropy * entropy_B).mean()
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self._optimizer.step()

    def _advantages(self, scores: Sequence[float]) -> list[float]:
        """Scores relative to the mean and deviation before them; the first batch's are relative to its own."""
        mean = sum(scores) / len(scores)
        variance = sum((score - mean) ** 2 for score in scores) / len(scores)
        if self._mean is None:
            self._mean, self._variance = mean, variance
        deviation = max(SMALLEST_DEVIATION, self._variance**0.5)
        found = [(score - self._mean) / deviation for score in scores]
        decay = self._config.baseline_decay
        spread = sum((score - self._mean) ** 2 for score in scores) / len(scores)
        self._variance = decay * self._variance + (1 - decay) * spread
        self._mean = decay * self._mean + (1 - decay) * mean
        return found


def vocabulary_of(space: SearchSpaceConfig) -> dict[str, tuple[Label, ...]]:
    """Everything that each decision can ever choose.

    For a permutation these are all blocks, for the others what is offered.
    """
    found: dict[str, tuple[Label, ...]] = {}
    blocks = {"order": len(intermediate_levels(space)), "output_order": len(space.outputs)}

    def decide(name: str, choices: Sequence[Label], /) -> int:
        kind = name.partition(".")[0]
        found[name] = tuple(range(blocks[kind])) if kind in blocks else tuple(choices)
        return 0

    decode(space, decide)
    return found


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
