"""A scale-permuted network (SpineNet) as a table, in a file or inside another configuration::

    {"name": "mine", "stem": [2, 2], "blocks": [{"level": 3, "parents": [0, 1], "kind": "residual"},
                                                {"level": 3, "parents": [1, 2], "output": true}]}

Start with :class:`SpecificationTable`.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo

from wsi_ips.config.section import Section, read_described
from wsi_ips.errors import ConfigError

MOST_ENTRIES = 1000
"""Most entries of a list in a specification."""
Width = Annotated[int, Field(ge=1, le=8192)]
"""A number of channels."""
READ_NO_FILE = {"read_no_file": True}
"""Context for validating what a stranger's file says, such as the configuration of a checkpoint: no file that it
names is read.
"""


class BlockEntry(Section):
    """One permuted block, see :class:`wsi_ips.models.spinenet.specification.Block`."""

    level: int
    parents: Annotated[tuple[int, ...], Field(max_length=MOST_ENTRIES)]
    kind: Literal["bottleneck", "residual"] = "bottleneck"
    output: bool = False


class SpecificationTable(Section):
    """A scale-permuted network as a table. Whether its blocks make a graph is checked when a network is built
    from it.
    """

    name: str | None = None
    stem: Annotated[tuple[int, ...], Field(max_length=MOST_ENTRIES)] = (2, 2)
    blocks: Annotated[tuple[BlockEntry, ...], Field(max_length=MOST_ENTRIES)]
    widths: dict[int, Width] = Field(default_factory=dict)


def read_specification_table(path: Path) -> SpecificationTable:
    """Read a table from JSON or YAML. Without a name, it is called like the file.

    Raises:
        ConfigError: The file is missing or wrong. The message names it.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; a specification is JSON or YAML with a list of blocks")
    table = read_described(path, SpecificationTable, what="specification")
    return table if table.name else table.model_copy(update={"name": path.stem})


def _read_where_named(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str | Path) and info.context == READ_NO_FILE:
        raise ValueError("a checkpoint holds its blocks, not the name of their file")
    return read_specification_table(Path(value)) if isinstance(value, str | Path) else value


NamedSpecification = Annotated[SpecificationTable, BeforeValidator(_read_where_named)]
"""A table, or the name of a file with one. The file is read at once, so that the configuration of a checkpoint
holds it.
"""
