"""A specification from a JSON or YAML file, e.g. what an architecture search found, and back.

The file's form: :mod:`wsi_ips.config.specification`.
"""

import json
from pathlib import Path
from typing import Any

from wsi_ips.config import SpecificationTable, read_specification_table
from wsi_ips.errors import ConfigError
from wsi_ips.files import whole_file
from wsi_ips.models.spinenet.specification import WIDTHS, Block, Specification


def load_specification(path: Path) -> Specification:
    """Read a specification; without a name it is called like the file.

    Raises :class:`ConfigError` that names the file for a missing or broken one, an unknown key, or blocks that
    make no graph.
    """
    table = read_specification_table(path)
    try:
        return specification_of(table)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def specification_of(table: SpecificationTable) -> Specification:
    """Raises :class:`ConfigError` for blocks that make no graph."""
    blocks = tuple(Block(entry.level, entry.parents, entry.kind, entry.output) for entry in table.blocks)
    return Specification(table.name or "specification", table.stem, blocks, {**WIDTHS, **table.widths})


def content_of(specification: Specification) -> dict[str, Any]:
    """As :class:`SpecificationTable` takes it: numbers, texts, lists and dicts."""
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
    """Write what :func:`load_specification` reads, as JSON (which is YAML, too)."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content_of(specification), indent=1), encoding="utf-8")
