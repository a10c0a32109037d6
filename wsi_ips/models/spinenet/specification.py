"""Which blocks a scale-permuted network has, and which of them feed which: :class:`Specification`.

Blocks are numbered in the order in which they are built: first those of the stem, one after the other, then the
permuted ones. Level l is the resolution of the input / 2**l. Nothing here knows of tensors.

:func:`load_specification` and :func:`write_specification` keep a specification, such as an architecture search
finds, in a JSON or YAML file. The form of the file is :class:`wsi_ips.config.SpecificationTable`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from wsi_ips.config import SpecificationTable, read_specification_table
from wsi_ips.errors import ConfigError
from wsi_ips.storage.files import whole_file

FINEST, COARSEST = 2, 7
"""The finest and the coarsest level that a block can have."""
MOST_BLOCKS = 200
"""Most blocks of a network."""

WIDTHS: Mapping[int, int] = MappingProxyType({2: 64, 3: 128, 4: 256, 5: 256, 6: 256, 7: 256})
"""Channels of the 3x3 convolution of a block, by level (Du et al. 2020, section 3)."""

Kind = Literal["bottleneck", "residual"]


@dataclass(frozen=True, slots=True)
class Block:
    """One permuted block: its level, the numbers of the blocks that it fuses, its kind, and whether it is an
    output.
    """

    level: int
    parents: tuple[int, ...]
    kind: Kind = "bottleneck"
    output: bool = False


@dataclass(frozen=True)
class Specification:
    """A scale-permuted network as a graph.

    Args:
        name: Its name, for messages.
        stem: Levels of the bottlenecks of the stem, each fed by the one before it.
        blocks: The permuted blocks. Without any the network is scale-decreasing (a ResNet), and the last stem
            block of each level is an output.
        widths: Channels of the 3x3 convolution of a block, by level.

    Raises:
        ConfigError: The graph cannot be built: a parent comes later (a cycle) or is not there, a level is out of
            range, a level has two outputs, or a block leads nowhere.
    """

    name: str
    stem: tuple[int, ...]
    blocks: tuple[Block, ...] = ()
    widths: Mapping[int, int] = field(default_factory=lambda: WIDTHS)

    def __post_init__(self) -> None:
        self._check_stem()
        for number, block in enumerate(self.blocks, len(self.stem)):
            self._check_block(number, block)
        self._check_outputs()
        self._check_ends()

    @property
    def levels(self) -> tuple[int, ...]:
        """The level of every block, by number."""
        return (*self.stem, *(block.level for block in self.blocks))

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kind of every block, by number."""
        stem = [Block(level, ()) for level in self.stem]
        return tuple(block.kind for block in (*stem, *self.blocks))

    @cached_property
    def sources(self) -> tuple[tuple[int, ...], ...]:
        """For every block, by number, the blocks that it takes its input from: its parents, and blocks that
        would dangle.

        If an earlier block has the level and the channels of an output, and no block has used it by the time
        that the output is built, it is added to the input of the output.
        """
        channels = [self._channels(number) for number in range(len(self.levels))]
        used: set[int] = set(range(len(self.stem) - 1))
        found: list[tuple[int, ...]] = [
            () if not number else (number - 1,) for number in range(len(self.stem))
        ]
        for number, block in enumerate(self.blocks, len(self.stem)):
            used |= set(block.parents)
            loose: tuple[int, ...] = ()
            if block.output:
                loose = tuple(
                    earlier
                    for earlier in range(number)
                    if earlier not in used
                    and (self.levels[earlier], channels[earlier]) == (block.level, channels[number])
                )
            used |= set(loose)
            found.append((*block.parents, *loose))
        return tuple(found)

    @cached_property
    def outputs(self) -> Mapping[int, int]:
        """For each level the number of the block that is its output, finest level first."""
        if not self.blocks:
            return {level: number for number, level in enumerate(self.stem)}
        found = {b.level: number for number, b in enumerate(self.blocks, len(self.stem)) if b.output}
        return dict(sorted(found.items()))

    def needed(self, levels: Sequence[int]) -> frozenset[int]:
        """The numbers of the blocks that the outputs of these levels depend on, including the outputs
        themselves.
        """
        waiting, found = [self.outputs[level] for level in levels], set[int]()
        while waiting:
            number = waiting.pop()
            if number not in found:
                found.add(number)
                waiting += self.sources[number]
        return frozenset(found)

    def _channels(self, number: int) -> int:
        return self.widths[self.levels[number]] * (4 if self.kinds[number] == "bottleneck" else 1)

    def _refuse(self, problem: str) -> ConfigError:
        return ConfigError(f"specification {self.name}: {problem}")

    def _check_stem(self) -> None:
        if not self.stem:
            raise self._refuse("the stem needs a block, of level 2")
        if len(self.levels) > MOST_BLOCKS:
            raise self._refuse(f"{len(self.levels)} blocks, more than {MOST_BLOCKS}")
        missing = sorted({*self.levels} - self.widths.keys())
        if missing or not all(FINEST <= level <= COARSEST for level in self.levels):
            wrong = missing or [level for level in self.levels if not FINEST <= level <= COARSEST]
            raise self._refuse(f"level {wrong[0]} is not one of {FINEST} to {COARSEST} that have a width")
        if any(width < 1 for width in self.widths.values()):
            raise self._refuse("a width is at least 1")
        steps = [here - before for before, here in zip((FINEST, *self.stem), self.stem, strict=False)]
        if steps[0] or any(step not in (0, 1) for step in steps):
            raise self._refuse(f"the stem's levels {list(self.stem)} must start at 2 and rise by 0 or 1")

    def _check_block(self, number: int, block: Block) -> None:
        if block.kind not in ("bottleneck", "residual"):
            raise self._refuse(f"block {number} is a {block.kind!r}, not bottleneck or residual")
        if not block.parents or len(set(block.parents)) != len(block.parents):
            raise self._refuse(f"block {number} needs parents, each once, not {list(block.parents)}")
        for parent in block.parents:
            if not 0 <= parent < len(self.levels):
                raise self._refuse(
                    f"block {number} has the parent {parent}; there are blocks 0 to {len(self.levels) - 1}"
                )
            if parent >= number:
                raise self._refuse(
                    f"block {number} has the parent {parent}, which is not built before it: a cycle"
                )

    def _check_outputs(self) -> None:
        levels = [block.level for block in self.blocks if block.output]
        twice = [level for level in levels if levels.count(level) > 1]
        if twice:
            raise self._refuse(f"level {twice[0]} has {levels.count(twice[0])} outputs, not one")
        if self.blocks and not levels:
            raise self._refuse("no block is an output")

    def _check_ends(self) -> None:
        lost = sorted(set(range(len(self.levels))) - self.needed(list(self.outputs)))
        if lost:
            raise self._refuse(
                f"block {lost[0]} (level {self.levels[lost[0]]}) dangles: no output depends on it, and no output "
                "of its level and number of channels is built after it"
            )


def _blocks(*rows: tuple[int, tuple[int, ...]], residual: Sequence[int] = ()) -> tuple[Block, ...]:
    """Permuted blocks from rows of level and parents, after a stem. The last five are the outputs."""
    return tuple(
        Block(level, parents, "residual" if place in residual else "bottleneck", place >= len(rows) - 5)
        for place, (level, parents) in enumerate(rows)
    )


SPINENET_49 = Specification(
    "spinenet49",
    (2, 2),
    _blocks(
        (2, (0, 1)), (4, (0, 1)), (3, (2, 3)), (4, (2, 4)), (6, (3, 5)), (4, (3, 5)), (5, (6, 7)), (7, (6, 8)),
        (5, (8, 9)), (5, (8, 10)), (4, (5, 10)), (3, (4, 10)), (5, (7, 12)), (7, (5, 14)), (6, (12, 14)),
        residual=(1, 4, 6, 7),
    ),
)  # fmt: skip
"""The learned architecture of all SpineNets (Du et al. 2020, table of block specifications)."""

R0_SP53 = Specification(
    "r0_sp53",
    (2, 2),
    _blocks(
        (2, (0, 1)), (3, (0, 1)), (3, (2, 3)), (4, (2, 4)), (4, (3, 5)), (3, (5, 6)), (5, (4, 7)), (4, (4, 8)),
        (4, (8, 9)), (4, (8, 10)), (3, (4, 10)), (4, (6, 7)), (5, (8, 13)), (7, (6, 9)), (6, (7, 9)),
    ),
)  # fmt: skip
"""The blocks of ResNet-50, all of them permuted (Du et al. 2020, figure of learned architectures)."""

R23_SP30 = Specification(
    "r23_sp30",
    (2, 2, 3, 3, 4, 4, 5),
    _blocks(
        (4, (5, 6)), (4, (5, 6)), (4, (7, 8)), (3, (8, 9)), (2, (9, 10)), (4, (5, 9)), (3, (9, 10)),
        (5, (9, 10)), (7, (11, 13)), (6, (9, 14)),
    ),
)  # fmt: skip
"""The beginning of a ResNet, the rest permuted (Du et al. 2020, figure of learned architectures)."""

R50_SP0 = Specification("r50_sp0", (2,) * 3 + (3,) * 4 + (4,) * 6 + (5,) * 3, widths={**WIDTHS, 5: 512})
"""ResNet-50 itself, in which nothing is permuted (He et al. 2016)."""


def load_specification(path: Path) -> Specification:
    """Read a specification from a JSON or YAML file. Without a name, it is called like the file.

    Raises:
        ConfigError: The file is missing or broken, has an unknown key, or its blocks do not make a graph. The
            message names the file.
    """
    table = read_specification_table(path)
    try:
        return specification_of(table)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def specification_of(table: SpecificationTable) -> Specification:
    """The specification that a table of a file describes.

    Raises:
        ConfigError: Its blocks do not make a graph.
    """
    blocks = tuple(Block(entry.level, entry.parents, entry.kind, entry.output) for entry in table.blocks)
    return Specification(table.name or "specification", table.stem, blocks, {**WIDTHS, **table.widths})


def content_of(specification: Specification) -> dict[str, Any]:
    """The specification as numbers, texts, lists and dicts, in the form of :class:`SpecificationTable`."""
    return {
        "name": specification.name,
        "stem": list(specification.stem),
        "blocks": [
            {"level": b.level, "parents": list(b.parents), "kind": b.kind, "output": b.output}
            for b in specification.blocks
        ],
        "widths": {str(level): width for level, width in specification.widths.items()},
    }


def write_specification(path: Path, specification: Specification) -> None:
    """Write the specification as JSON (which is YAML, too), for :func:`load_specification`."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content_of(specification), indent=1), encoding="utf-8")
