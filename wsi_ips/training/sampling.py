"""In which order an epoch shows the bags: a function of seed and epoch alone, so that a run resumes exactly."""

import random
from collections.abc import Hashable, Mapping, Sequence

from wsi_ips.datasets.targets import Target
from wsi_ips.errors import ConfigError


def order_of_epoch(
    targets: Sequence[Mapping[str, Target]], *, seed: int, epoch: int, balanced: bool
) -> list[int]:
    """Indices of the bags in the order in which epoch ``epoch`` (from 0) shows them, as many as there are bags.

    ``targets``: of the bags, {task: target} each. Without ``balanced`` every bag once. With it every class
    equally often, give or take one, so that bags of a rare class come several times and not all of a frequent
    one do; an epoch goes on where the last one stopped, so that over epochs all bags of a class are shown
    equally often too. Classes are those of the first softmax task, else of the first task that is one yes or
    no; without either :class:`ConfigError`.
    """
    if not balanced:
        return _shuffled(range(len(targets)), f"{seed}/{epoch}")
    members = _by_class(targets)
    drawn = []
    # All epochs are one endless round of the classes, of which each takes as many draws as there are bags.
    for draw in range(epoch * len(targets), (epoch + 1) * len(targets)):
        turn, place = divmod(draw, len(members))
        lap, nth = divmod(turn, len(members[place]))
        drawn.append((place, lap, nth))
    # A class's laps are shuffled each once, however many draws fall into them.
    laps = {(place, lap): _shuffled(members[place], f"{seed}/{place}/{lap}") for place, lap, _ in drawn}
    return _shuffled([laps[place, lap][nth] for place, lap, nth in drawn], f"{seed}/{epoch}")


def _by_class(targets: Sequence[Mapping[str, Target]]) -> list[list[int]]:
    """The bags of each class that occurs, classes in their own order."""
    task = next(iter(_with_classes(targets)), None)
    if task is None:
        raise ConfigError(
            "training.sampling: balanced needs a softmax task, or a sigmoid task of one class, that every slide "
            "has a label for; leave it at shuffle"
        )
    members: dict[Hashable, list[int]] = {}
    for index, bag in enumerate(targets):
        members.setdefault(bag[task], []).append(index)
    return [members[value] for value in sorted(members, key=repr)]


def _with_classes(targets: Sequence[Mapping[str, Target]]) -> list[str]:
    """Tasks that bags can be sorted by, which all have a label for, softmax first.

    A target's form tells (:mod:`wsi_ips.datasets.targets`).
    """
    names = list(dict.fromkeys(name for bag in targets for name in bag))
    softmax = [name for name in names if all(isinstance(bag.get(name), int) for bag in targets)]
    yes_or_no = [name for name in names if all(bag.get(name) in ((0.0,), (1.0,)) for bag in targets)]
    return [*softmax, *yes_or_no]


def _shuffled(indices: Sequence[int], key: str) -> list[int]:
    shuffled = list(indices)
    random.Random(key).shuffle(shuffled)  # noqa: S311 - not a secret
    return shuffled
