"""A recurrent controller that draws candidates and learns from their scores (Zoph et al. 2018).

Du et al. (2020) search by reinforcement learning with such a controller but give no settings for it. This one uses
REINFORCE (Williams 1992) with a moving baseline and an entropy bonus.

Shape suffixes: B candidates, H hidden units, V labels of a decision.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wsi_ips.search.config import ControllerConfig, SearchSpaceConfig
from wsi_ips.search.space import Label, decode, intermediate_levels
from wsi_ips.search.strategy import Answers, Proposal, recorded

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
