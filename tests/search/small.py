"""Small spaces, and a toy score."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from wsi_ips.models.spinenet.specification import Specification
from wsi_ips.search.candidate import CandidateScore
from wsi_ips.search.config import SearchConfig, SearchSpaceConfig
from wsi_ips.search.space import Label, decode

TINY = SearchSpaceConfig(intermediate={3: 1, 4: 1}, outputs=(3,), adjust_levels=False, adjust_kinds=False)
SMALL = SearchSpaceConfig(intermediate={2: 1, 3: 2, 4: 2}, outputs=(3, 4, 5))


def settings(space: SearchSpaceConfig = SMALL, **changed: Any) -> SearchConfig:
    given = {"space": space, "proxy": {"data": "textures", "folder": Path("nowhere")}, **changed}
    return SearchConfig.model_validate(given)


def every_sequence(space: SearchSpaceConfig) -> Iterator[dict[str, int]]:
    """All sequences of answers, found by asking, not by formulas."""
    sizes: dict[str, int] = {}

    def decide(name: str, choices: Sequence[Label], /) -> int:
        sizes[name] = len(choices)
        return 0

    decode(space, decide)
    for answers in itertools.product(*(range(size) for size in sizes.values())):
        yield dict(zip(sizes, answers, strict=True))


def share_of_residual(specification: Specification, /) -> CandidateScore:
    """1 where all blocks are residual, 0 where none is."""
    kinds = [block.kind == "residual" for block in specification.blocks]
    return CandidateScore(sum(kinds) / len(kinds))
