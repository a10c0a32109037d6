"""A scale-permuted network as a table, in a file or inside of another config.

{"name": "mine", "stem": [2, 2], "blocks": [{"level": 3, "parents": [0, 1], "kind": "residual"},
                                            {"level": 3, "parents": [1, 2], "output": true}]}
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo

from wsi_ips.config.described_file import read_described
from wsi_ips.config.section import Section
from wsi_ips.errors import ConfigError

MOST_ENTRIES = 1000
Width = Annotated[int, Field(ge=1, le=8192)]


class BlockEntry(Section):
    """One permuted block."""

    level: int
    parents: Annotated[tuple[int, ...], Field(max_length=MOST_ENTRIES)]
    kind: Literal["bottleneck", "residual"] = "bottleneck"
    output: bool = False


class SpecificationTable(Section):
    """Whether its blocks make a graph is asked where a network is built of it."""

    name: str | None = None
    stem: Annotated[tuple[int, ...], Field(max_length=MOST_ENTRIES)] = (2, 2)
    blocks: Annotated[tuple[BlockEntry, ...], Field(max_length=MOST_ENTRIES)]
    widths: dict[int, Width] = Field(default_factory=dict)


def read_specification_table(path: Path) -> SpecificationTable:
    """Read JSON or YAML; without a name it is called like the file. Raises :class:`ConfigError` that names it."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; a specification is JSON or YAML with a list of blocks")
    table = read_described(path, SpecificationTable, what="specification")
    return table if table.name else table.model_copy(update={"name": path.stem})


READ_NO_FILE = {"read_no_file": True}
"""Context of a validation of what a stranger's file says (a checkpoint's config): it names no file to be read."""


def _read_where_named(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str | Path) and info.context == READ_NO_FILE:
        raise ValueError("a checkpoint holds its blocks, not the name of their file")
    return read_specification_table(Path(value)) if isinstance(value, str | Path) else value


NamedSpecification = Annotated[SpecificationTable, BeforeValidator(_read_where_named)]
"""The table itself, or the name of the file with it: read at once, so that a checkpoint's config holds it."""
