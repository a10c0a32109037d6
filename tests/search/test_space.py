"""Sequences of choices, and the graphs that they make."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.search.small import SMALL, TINY, every_sequence
from wsi_ips.errors import ConfigError
from wsi_ips.models.spinenet.registry import create_spinenet
from wsi_ips.models.spinenet.specification import Block, Specification
from wsi_ips.search import space as counting
from wsi_ips.search.config import SearchSpaceConfig
from wsi_ips.search.space import Label, decode, replay

FULL = SearchSpaceConfig()


@pytest.mark.parametrize(
    "space",
    [
        TINY,
        TINY.model_copy(update={"window": 2}),
        SearchSpaceConfig(intermediate={3: 1}, outputs=(3, 4), window=None),
        SearchSpaceConfig(stem=(2, 2, 3), intermediate={3: 2}, outputs=(4,), window=2, adjust_kinds=False),
    ],
)
def test_formulas_count_what_can_be_enumerated(space: SearchSpaceConfig) -> None:
    sequences = list(every_sequence(space))
    assert counting.size(space) == len(sequences)

    def different(*kinds: str) -> int:
        return len({tuple(n for name, n in s.items() if name.split(".")[0] in kinds) for s in sequences})

    assert counting.permutations(space) == different("order", "output_order")
    assert counting.connections(space) == different("parents")
    assert counting.adjustments(space) == different("level", "kind")


def test_equal_blocks_count_once_among_orders_of_levels() -> None:
    space = SearchSpaceConfig(intermediate={3: 2, 4: 1}, outputs=(3, 4))
    orders = {(blocks, outputs) for blocks in ("334", "343", "433") for outputs in ("34", "43")}
    assert counting.level_orders(space) == len(orders)


def test_published_formulas_at_spinenet_49_s_size() -> None:
    """(N-5)! 5!, prod_{i=m}^{N+m-1} C(i,2), 4^(N-5) 2^N with N = 15 blocks after m = 2 of the stem."""
    n, m = 15, 2
    space = SearchSpaceConfig(window=None)
    assert counting.permutations(space) == math.factorial(n - 5) * math.factorial(5)
    assert counting.connections(space) == math.prod(math.comb(i, 2) for i in range(m, n + m))
    assert counting.adjustments(space) == 4 ** (n - 5) * 2**n


@st.composite
def networks(draw: st.DrawFn) -> tuple[SearchSpaceConfig, dict[str, int], Specification]:
    space = draw(
        st.builds(
            SearchSpaceConfig,
            stem=st.sampled_from([(2, 2), (2, 2, 3, 3, 4, 4, 5)]),
            intermediate=st.dictionaries(st.integers(2, 7), st.integers(0, 3)),
            outputs=st.permutations([3, 4, 5, 6, 7]).flatmap(
                lambda levels: st.integers(1, 5).map(lambda n: tuple(levels[:n]))
            ),
            window=st.sampled_from([None, 2, 5]),
            adjust_levels=st.booleans(),
            adjust_kinds=st.booleans(),
        )
    )
    answers: dict[str, int] = {}

    def decide(name: str, choices: Sequence[Label], /) -> int:
        answers[name] = draw(st.integers(0, len(choices) - 1))
        return answers[name]

    return space, answers, decode(space, decide)


@given(networks())
def test_any_answers_make_a_valid_graph(
    drawn: tuple[SearchSpaceConfig, dict[str, int], Specification],
) -> None:
    space, answers, specification = drawn
    # Specification itself refuses cycles, dangling blocks and doubled outputs.
    assert sorted(specification.outputs) == sorted(space.outputs)
    assert replay(space, answers) == specification


@settings(max_examples=10)
@given(networks())
def test_any_answers_build_and_run(drawn: tuple[SearchSpaceConfig, dict[str, int], Specification]) -> None:
    _, _, specification = drawn
    net = create_spinenet(specification, num_classes=2, width=0.05, alpha=0.25, endpoint_channels=4)
    with torch.no_grad():
        assert net.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 2)


def test_without_adjustments_all_levels_are_placed() -> None:
    specification = decode(TINY, lambda name, choices: len(choices) - 1)
    assert sorted(block.level for block in specification.blocks) == [3, 3, 4]
    assert all(block.kind == "bottleneck" for block in specification.blocks)


def test_intermediate_blocks_choose_within_the_window_and_outputs_among_all() -> None:
    offered: dict[str, Sequence[Label]] = {}

    def decide(name: str, choices: Sequence[Label], /) -> int:
        offered[name] = choices
        return 0

    decode(FULL, decide)
    assert {parent for pair in offered["parents.11"] for parent in pair} == set(range(6, 11))  # type: ignore[union-attr]
    assert {parent for pair in offered["parents.12"] for parent in pair} == set(range(12))  # type: ignore[union-attr]


def test_a_block_that_leads_nowhere_is_left_out_with_what_only_it_used() -> None:
    """Blocks 2 (L2) and 3 (L2, fed by 1 and 2): the output, of L3, takes 0 and 1."""
    space = SearchSpaceConfig(intermediate={2: 2}, outputs=(3,), adjust_levels=False, adjust_kinds=False)
    answers = {"order.0": 0, "parents.3": 2, "parents.4": 0}
    assert replay(space, answers).blocks == (Block(3, (0, 1), "bottleneck", output=True),)


def test_an_unused_block_of_an_output_s_level_is_taken_up_by_it() -> None:
    space = SearchSpaceConfig(intermediate={3: 1}, outputs=(3,), adjust_levels=False, adjust_kinds=False)
    specification = replay(space, {"parents.3": 0})
    assert specification.sources[3] == (0, 1, 2)


def test_answers_of_another_space_are_refused() -> None:
    with pytest.raises(ConfigError, match="of another space"):
        replay(SMALL, {"order.0": 9})


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"stem": (2,)}, "at least 2"),
        ({"stem": (2, 4)}, "rises by 0 or 1"),
        ({"window": 1}, "greater than or equal to 2"),
        ({"outputs": (3, 3)}, "name each level once"),
        ({"outputs": ()}, "at least 1"),
        ({"intermediate": {8: 1}}, "less than or equal to 7"),
    ],
)
def test_a_space_without_networks_is_refused(setting: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SearchSpaceConfig.model_validate(setting)
