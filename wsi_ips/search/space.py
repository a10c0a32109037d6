"""The space of scale-permuted networks as a sequence of choices (Du et al. 2020, section 3.4): :func:`decode`.

First come the order of the intermediate blocks and of the outputs (scale permutation), then two parents for each
block (cross-scale connections), then each block's level and kind (block adjustments). Whoever makes the choices
answers :class:`Decide`; any answers make a graph that can be built. :func:`size` and its neighbours count the
choices.

In formulas, N is the number of permuted blocks, m that of the stem's.
"""

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from wsi_ips.errors import ConfigError
from wsi_ips.models.spinenet.specification import COARSEST, FINEST, Block, Kind, Specification
from wsi_ips.search.config import SearchSpaceConfig

Label = int | str | tuple[int, int]
"""What a choice stands for: a block's number in the unpermuted list, two parents, levels to move by, or a kind."""

Chosen = TypeVar("Chosen", bound=Label)
"""What one choice is made of."""
LEVEL_STEPS = (-1, 0, 1, 2)
"""Levels by which a block may be moved."""

KINDS: tuple[Kind, ...] = ("bottleneck", "residual")
"""Kinds of blocks."""


class Decide(Protocol):
    """``decide(name, choices)`` returns an index into ``choices``. Their number depends on the name alone."""

    def __call__(self, name: str, choices: Sequence[Label], /) -> int: ...


class _Unchecked(Specification):
    """A specification that may have blocks that lead nowhere."""

    def __post_init__(self) -> None:
        pass


def intermediate_levels(space: SearchSpaceConfig) -> tuple[int, ...]:
    """Levels of the blocks that are permuted, before permutation, finest first."""
    return tuple(level for level, count in sorted(space.intermediate.items()) for _ in range(count))


def decode(space: SearchSpaceConfig, decide: Decide, *, name: str = "candidate") -> Specification:
    """The network that these decisions make.

    Levels are kept within 2 to 7. A block that no block uses, and that no output of its level and channels
    absorbs, contributes nothing in the reference either: it is left out, together with what only it used.
    """
    intermediate = intermediate_levels(space)
    first = len(space.stem)
    order = _permutation("order", len(intermediate), decide)
    output_order = _permutation("output_order", len(space.outputs), decide)
    levels = [intermediate[block] for block in order] + [space.outputs[block] for block in output_order]
    parents = [
        _parents(space, first + place, decide, all_before=place >= len(intermediate))
        for place in range(len(levels))
    ]
    for place in range(len(intermediate)):
        if space.adjust_levels:
            step = _chosen(f"level.{place}", LEVEL_STEPS, decide)
            levels[place] = min(COARSEST, max(FINEST, levels[place] + step))
    kinds = [
        _chosen(f"kind.{place}", KINDS, decide) if space.adjust_kinds else KINDS[0]
        for place in range(len(levels))
    ]
    blocks = tuple(
        Block(level, pair, kind, output=place >= len(intermediate))
        for place, (level, pair, kind) in enumerate(zip(levels, parents, kinds, strict=True))
    )
    return _living(name, space.stem, blocks)


def replay(space: SearchSpaceConfig, answers: Mapping[str, int], *, name: str = "candidate") -> Specification:
    """The network of recorded answers. Raises :class:`ConfigError` for answers of another space."""

    def decide(question: str, choices: Sequence[Label], /) -> int:
        index = answers.get(question, -1)
        if not 0 <= index < len(choices):
            raise ConfigError(f"{question} has no answer {index}: the record is of another space")
        return index

    return decode(space, decide, name=name)


def _permutation(name: str, count: int, decide: Decide) -> list[int]:
    """An order of ``count`` blocks; the choices at each place are the blocks that are left."""
    left, order = list(range(count)), []
    for place in range(count):
        block = _chosen(f"{name}.{place}", tuple(left), decide)
        left.remove(block)
        order.append(block)
    return order


def _parents(space: SearchSpaceConfig, number: int, decide: Decide, *, all_before: bool) -> tuple[int, int]:
    before = candidates_for_parents(space, number, all_before=all_before)
    pairs = tuple(itertools.combinations(before, 2))
    return _chosen(f"parents.{number}", pairs, decide)


def candidates_for_parents(space: SearchSpaceConfig, number: int, *, all_before: bool) -> range:
    """Numbers of the blocks from which block ``number`` may choose its parents."""
    return range(0 if all_before or space.window is None else max(0, number - space.window), number)


def _chosen(name: str, choices: Sequence[Chosen], decide: Decide) -> Chosen:
    """The label that is chosen. If there is only one choice, ``decide`` is not called."""
    return choices[0 if len(choices) == 1 else decide(name, choices)]


def _living(name: str, stem: tuple[int, ...], blocks: tuple[Block, ...]) -> Specification:
    """The network without the blocks on which no output depends, numbered anew."""
    while True:
        graph = _Unchecked(name, stem, blocks)
        needed = graph.needed(list(graph.outputs))
        if len(needed) == len(stem) + len(blocks):
            return Specification(name, stem, blocks)
        number = {old: new for new, old in enumerate(sorted(needed))}
        blocks = tuple(
            Block(block.level, tuple(number[parent] for parent in block.parents), block.kind, block.output)
            for old, block in enumerate(blocks, len(stem))
            if old in needed
        )
        # A stem block feeds the next one: those that go are its last ones.
        stem = tuple(level for old, level in enumerate(stem) if old in needed)


def permutations(space: SearchSpaceConfig) -> int:
    """Number of scale permutations: (N - 5)! 5! with five outputs. Equal blocks count as different."""
    return math.factorial(len(intermediate_levels(space))) * math.factorial(len(space.outputs))


def level_orders(space: SearchSpaceConfig) -> int:
    """Number of permutations that differ in the order of levels: equal blocks count once."""
    levels = Counter(intermediate_levels(space))
    return permutations(space) // math.prod(math.factorial(count) for count in levels.values())


def connections(space: SearchSpaceConfig) -> int:
    """Number of choices of parents.

    It is the product of C(i, 2) for i from m to N + m - 1; with a window w, of C(min(i, w), 2) for the
    intermediate blocks.
    """
    intermediate, first = len(intermediate_levels(space)), len(space.stem)
    return math.prod(
        math.comb(len(candidates_for_parents(space, first + place, all_before=place >= intermediate)), 2)
        for place in range(intermediate + len(space.outputs))
    )


def adjustments(space: SearchSpaceConfig) -> int:
    """Number of block adjustments: 4^(N - 5) levels times 2^N kinds, with five outputs."""
    intermediate = len(intermediate_levels(space))
    levels = len(LEVEL_STEPS) ** intermediate if space.adjust_levels else 1
    kinds = len(KINDS) ** (intermediate + len(space.outputs)) if space.adjust_kinds else 1
    return levels * kinds


def size(space: SearchSpaceConfig) -> int:
    """Number of all sequences of choices. Several of them may make the same network."""
    return permutations(space) * connections(space) * adjustments(space)
