"""How many choices a space has (Du et al. 2020, section 3.4). N permuted blocks, m blocks of the stem."""

import math
from collections import Counter

from wsi_ips.config import SearchSpaceConfig
from wsi_ips.search.space import KINDS, LEVEL_STEPS, candidates_for_parents, intermediate_levels


def permutations(space: SearchSpaceConfig) -> int:
    """Scale permutations: (N - 5)! 5!, where there are five outputs. Equal blocks count as different."""
    return math.factorial(len(intermediate_levels(space))) * math.factorial(len(space.outputs))


def level_orders(space: SearchSpaceConfig) -> int:
    """Those that differ in the order of levels: equal blocks count once."""
    levels = Counter(intermediate_levels(space))
    return permutations(space) // math.prod(math.factorial(count) for count in levels.values())


def connections(space: SearchSpaceConfig) -> int:
    """Pairs of parents: the product of C(i, 2) for i from m to N + m - 1; with a window w, of C(min(i, w), 2)
    over the intermediate blocks."""
    intermediate, first = len(intermediate_levels(space)), len(space.stem)
    return math.prod(
        math.comb(len(candidates_for_parents(space, first + place, all_before=place >= intermediate)), 2)
        for place in range(intermediate + len(space.outputs))
    )


def adjustments(space: SearchSpaceConfig) -> int:
    """Block adjustments: 4^(N - 5) levels times 2^N kinds."""
    intermediate = len(intermediate_levels(space))
    levels = len(LEVEL_STEPS) ** intermediate if space.adjust_levels else 1
    kinds = len(KINDS) ** (intermediate + len(space.outputs)) if space.adjust_kinds else 1
    return levels * kinds


def size(space: SearchSpaceConfig) -> int:
    """All sequences of choices. Several of them may make the same network."""
    return permutations(space) * connections(space) * adjustments(space)
