"""Which bags are learned from in which step: a pure function of the seed, so that a run resumes where it was."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """number: optimiser step, from 0 over all epochs. bags: indices of the bags that are learned from."""

    number: int
    epoch: int
    bags: tuple[int, ...]


class Steps:
    """The rest of the current epoch, each time it is iterated. ``done``: steps that are behind us."""

    def __init__(
        self, n_bags: int, *, per_step: int, order: Callable[[int], Sequence[int]], done: int = 0
    ) -> None:
        """order: {epoch: indices of the bags, in the order they are learned from}, ``n_bags`` of them."""
        self._order = order
        self._per_step = per_step
        self.per_epoch = -(-n_bags // per_step)
        self.done = done

    @property
    def epoch(self) -> int:
        return self.done // self.per_epoch

    def __iter__(self) -> Iterator[Step]:
        first, epoch = self.done, self.epoch
        order = list(self._order(epoch))
        for number in range(first, (epoch + 1) * self.per_epoch):
            start = (number - epoch * self.per_epoch) * self._per_step
            yield Step(number, epoch, tuple(order[start : start + self._per_step]))
