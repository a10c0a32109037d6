"""A recurrent controller that draws candidates and is taught by their scores (Zoph et al. 2018).

Du et al. (2020) search by reinforcement learning with such a controller and give no settings of it. REINFORCE
(Williams 1992) with a moving baseline and an entropy bonus.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wsi_ips.config import ControllerConfig, SearchSpaceConfig
from wsi_ips.search.space import Label, decode, intermediate_levels
from wsi_ips.search.strategy import Answers, Proposal, recorded

LOGIT_SCALE = 2.5
"""Logits are LOGIT_SCALE * tanh: no choice is given up for good by a few good scores (Zoph et al. 2018)."""
SMALLEST_DEVIATION = 1e-6


class Policy(nn.Module):
    """An LSTM that sees what it chose last, with a head a decision. Blocks that are placed already are masked."""

    def __init__(self, vocabulary: dict[str, tuple[Label, ...]], hidden: int) -> None:
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


class Walk:
    """One candidate, decision by decision: drawn, or (``answers``) gone through again."""

    def __init__(
        self, policy: Policy, *, generator: torch.Generator | None = None, answers: Answers | None = None
    ) -> None:
        self._policy, self._generator, self._answers = policy, generator, answers
        self._input = torch.zeros(1, policy.hidden)
        self._state: tuple[Tensor, Tensor] | None = None
        self.log_probability = torch.zeros(())
        self.entropy = torch.zeros(())
        self.decisions = 0

    def __call__(self, name: str, choices: Sequence[Label], /) -> int:
        policy = self._policy
        place = policy._place[name]
        labels = policy.vocabulary[name]
        allowed = [labels.index(choice) for choice in choices]
        self._state = policy.cell(self._input, self._state)
        logits = LOGIT_SCALE * torch.tanh(policy.heads[place](self._state[0])[0, allowed])
        log_p = logits.log_softmax(dim=0)
        index = self._chosen(name, log_p)
        self.log_probability = self.log_probability + log_p[index]
        self.entropy = self.entropy - (log_p.exp() * log_p).sum()
        self.decisions += 1
        self._input = policy.embeddings[place](torch.tensor([allowed[index]]))
        return index

    def _chosen(self, name: str, log_p: Tensor) -> int:
        if self._answers is not None:
            return self._answers[name]
        return int(torch.multinomial(log_p.detach().exp(), 1, generator=self._generator))


class ControllerSearch:
    """See :class:`wsi_ips.search.strategy.Strategy`.

    A score is measured by the scores' moving mean and deviation, so that the learning rate does not depend on
    the proxy's scale.
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
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + number)
        answers: dict[str, int] = {}
        with torch.no_grad():
            walk = Walk(self.policy, generator=generator)
            return Proposal(answers, decode(self._space, recorded(walk, answers)))

    def tell(self, answers: Answers, score: float | None) -> None:
        if score is None:
            return
        self._batch.append((answers, score))
        if len(self._batch) == self._config.batch:
            self._learn()
            self._batch = []

    def _learn(self) -> None:
        scores = [score for _, score in self._batch]
        advantages = self._advantages(scores)
        loss = torch.zeros(())
        for (answers, _), advantage in zip(self._batch, advantages, strict=True):
            walk = Walk(self.policy, answers=answers)
            decode(self._space, walk)
            loss = loss - advantage * walk.log_probability
            loss = loss - self._config.entropy * walk.entropy / max(1, walk.decisions)
        self._optimizer.zero_grad()
        (loss / len(scores)).backward()
        nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self._optimizer.step()

    def _advantages(self, scores: Sequence[float]) -> list[float]:
        """By the mean and deviation before these scores; the first batch's by its own."""
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
    """Everything that a decision can ever choose: of a permutation all blocks, of others what is offered."""
    found: dict[str, tuple[Label, ...]] = {}
    blocks = {"order": len(intermediate_levels(space)), "output_order": len(space.outputs)}

    def decide(name: str, choices: Sequence[Label], /) -> int:
        kind = name.partition(".")[0]
        found[name] = tuple(range(blocks[kind])) if kind in blocks else tuple(choices)
        return 0

    decode(space, decide)
    return found
