"""The graph: each fusion edge against the table, the dangling rule, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from wsi_ips.errors import ConfigError
from wsi_ips.models.spinenet import SpineNet, create_spinenet, load_specification
from wsi_ips.models.spinenet.specification import (
    R0_SP53,
    R23_SP30,
    SPINENET_49,
    Block,
    Specification,
    write_specification,
)

# Number, level, kind, parents (+ what would dangle), output; as in the paper's table of SpineNet-49.
TABLE_49 = """
2 2 bottleneck 0,1
3 4 residual 0,1
4 3 bottleneck 2,3
5 4 bottleneck 2,4
6 6 residual 3,5
7 4 bottleneck 3,5
8 5 residual 6,7
9 7 residual 6,8
10 5 bottleneck 8,9
11 5 bottleneck 8,10
12 4 bottleneck 5,10 *
13 3 bottleneck 4,10 *
14 5 bottleneck 7,12,11 *
15 7 bottleneck 5,14 *
16 6 bottleneck 12,14 *
"""
TABLE_R0_SP53 = """
2 2 bottleneck 0,1
3 3 bottleneck 0,1
4 3 bottleneck 2,3
5 4 bottleneck 2,4
6 4 bottleneck 3,5
7 3 bottleneck 5,6
8 5 bottleneck 4,7
9 4 bottleneck 4,8
10 4 bottleneck 8,9
11 4 bottleneck 8,10
12 3 bottleneck 4,10 *
13 4 bottleneck 6,7,11 *
14 5 bottleneck 8,13 *
15 7 bottleneck 6,9 *
16 6 bottleneck 7,9 *
"""
TABLE_R23_SP30 = """
7 4 bottleneck 5,6
8 4 bottleneck 5,6
9 4 bottleneck 7,8
10 3 bottleneck 8,9
11 2 bottleneck 9,10
12 4 bottleneck 5,9 *
13 3 bottleneck 9,10 *
14 5 bottleneck 9,10 *
15 7 bottleneck 11,13 *
16 6 bottleneck 9,14 *
"""


@pytest.mark.parametrize(
    ("specification", "table"),
    [(SPINENET_49, TABLE_49), (R0_SP53, TABLE_R0_SP53), (R23_SP30, TABLE_R23_SP30)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_every_edge_is_the_table_s(specification: Specification, table: str) -> None:
    rows = [line.split() for line in table.split("\n") if line]
    assert len(rows) == len(specification.blocks)
    for place, (row, block) in enumerate(zip(rows, specification.blocks, strict=True)):
        number, level, kind, parents, *output = row
        assert int(number) == len(specification.stem) + place
        sources = specification.sources[int(number)]
        assert (block.level, block.kind, block.output) == (int(level), kind, bool(output))
        assert sources == tuple(int(parent) for parent in parents.split(","))


def test_the_network_s_output_depends_on_what_the_table_says() -> None:
    """Each block's input, from the network itself: a hook sees which outputs go in."""
    model = SpineNet(SPINENET_49, width=0.1, alpha=0.5, endpoint_channels=8, num_classes=0).eval()
    numbers: dict[int, int] = {}  # id of a tensor's storage: the block that made it
    seen: dict[int, list[int]] = {}
    kept: list[torch.Tensor] = []

    def made(number: int) -> Any:
        def hook(_: nn.Module, __: Any, out: torch.Tensor) -> None:
            kept.append(out)
            numbers[id(out)] = number

        return hook

    def fused(number: int) -> Any:
        return lambda _, arguments: seen.setdefault(number, []).append(numbers[id(arguments[0])])

    for name, block in model.blocks.items():
        block.register_forward_hook(made(int(name)))
        for resample in getattr(block, "resamples", nn.ModuleDict()).values():
            resample.register_forward_pre_hook(fused(int(name)))
    with torch.no_grad():
        model(torch.rand(1, 3, 128, 128))
    assert {number: tuple(parents) for number, parents in seen.items()} == {
        number: block.parents for number, block in enumerate(SPINENET_49.blocks, 2)
    }


def test_a_block_that_nobody_uses_is_added_to_the_output_of_its_level() -> None:
    model = SpineNet(SPINENET_49, width=0.1, endpoint_channels=8, num_classes=0).eval()
    loose = {name: block.loose for name, block in model.blocks.items() if getattr(block, "loose", ())}
    assert loose == {"14": (11,)}
    pixels = torch.rand(1, 3, 64, 64)
    (before,) = model.forward_intermediates(pixels, [2], intermediates_only=True)
    with torch.no_grad():  # block 11 gives nothing now but what its activation leaves of its input
        model.blocks["11"].group[0].convs[2][1].bias.add_(1.0)
    (after,) = model.forward_intermediates(pixels, [2], intermediates_only=True)
    assert not torch.equal(before, after)


def test_a_dangling_block_of_other_channels_is_not_taken_up() -> None:
    with pytest.raises(ConfigError, match=r"block 2 .* dangles"):
        Specification("s", (2, 2), (Block(3, (0, 1), "residual"), Block(3, (0, 1), output=True)))


@pytest.mark.parametrize(
    ("stem", "blocks", "message"),
    [
        ((2, 2), [Block(3, (0, 3)), Block(3, (0, 2), output=True)], "block 2 has the parent 3.*a cycle"),
        ((2, 2), [Block(3, (0, 2), output=True)], "block 2 has the parent 2.*a cycle"),
        ((2, 2), [Block(3, (0, 9), output=True)], "parent 9; there are blocks 0 to 2"),
        ((2, 2), [Block(3, (0, -1), output=True)], "parent -1; there are"),
        ((2, 2), [Block(8, (0, 1), output=True)], "level 8"),
        ((2, 2), [Block(1, (0, 1), output=True)], "level 1"),
        ((2, 2), [Block(3, (1, 1), output=True)], "parents, each once"),
        ((2, 2), [Block(3, (), output=True)], "needs parents"),
        ((2, 2), [Block(3, (0, 1))], "no block is an output"),
        ((2, 2), [Block(3, (0, 1), output=True), Block(3, (0, 1), output=True)], "level 3 has 2 outputs"),
        ((2, 2), [Block(4, (0, 1)), Block(3, (0, 1), output=True)], r"block 2 \(level 4\) dangles"),
        ((2, 2), [Block(3, (0, 1), "mbconv", True)], "mbconv"),  # type: ignore[arg-type]
        ((3,), [], "must start at 2"),
        ((2, 4), [], "must start at 2"),
        ((), [], "stem needs a block"),
    ],
)
def test_what_is_no_graph_is_refused(stem: tuple[int, ...], blocks: list[Block], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Specification("mine", stem, tuple(blocks))
    assert str(caught.value).startswith("specification mine: ")


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_a_specification_from_a_file_builds(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"found{suffix}"
    path.write_text(
        json.dumps(
            {
                "stem": [2],
                "blocks": [
                    {"level": 4, "parents": [0], "kind": "residual"},
                    {"level": 3, "parents": [0, 1], "output": True},
                    {"level": 5, "parents": [1, 2], "output": True},
                ],
                "widths": {"5": 48},
            }
        )
    )
    specification = load_specification(path)
    assert specification.name == "found"
    maps = create_spinenet(specification, features_only=True, width=0.25, endpoint_channels=8)(
        torch.rand(2, 3, 64, 96)
    )
    assert [tuple(level.shape) for level in maps] == [(2, 8, 8, 12), (2, 8, 2, 3)]
    logits = create_spinenet(specification, width=0.25, endpoint_channels=8, num_classes=3)(
        torch.rand(2, 3, 64, 64)
    )
    assert logits.shape == (2, 3)


def test_the_published_one_goes_through_a_file(tmp_path: Path) -> None:
    write_specification(tmp_path / "a.json", SPINENET_49)
    assert load_specification(tmp_path / "a.json") == SPINENET_49


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "valid dictionary"),
        ("{", "neither JSON nor YAML"),
        ('{"blocks": [{"level": 3, "parents": [0, 1], "scale": 2}]}', r"blocks\.0\.scale"),
        ('{"blocks": [{"level": 3, "parents": [0, 5], "output": true}]}', "parent 5"),
        ('{"blocks": [], "widths": {"5": 100000}}', "widths"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_specification(path)
    assert str(caught.value).startswith(str(path))
    with pytest.raises(ConfigError, match="no such file"):
        load_specification(tmp_path / "none.json")
