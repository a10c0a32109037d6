"""A specification from a JSON or YAML file, e.g. what an architecture search found.

{"name": "mine", "stem": [2, 2], "blocks": [{"level": 3, "parents": [0, 1], "kind": "residual"},
                                            {"level": 3, "parents": [1, 2], "output": true}]}
"""

import json
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError

from wsi_ips.config import Section
from wsi_ips.errors import ConfigError, one_line
from wsi_ips.files import whole_file
from wsi_ips.models.spinenet.specification import WIDTHS, Block, Kind, Specification

LARGEST_BYTES = 1_000_000
Width = Annotated[int, Field(ge=1, le=8192)]


class _BlockEntry(Section):
    level: int
    parents: tuple[int, ...]
    kind: Kind = "bottleneck"
    output: bool = False


class _FileContent(Section):
    name: str | None = None
    stem: tuple[int, ...] = (2, 2)
    blocks: tuple[_BlockEntry, ...]
    widths: dict[int, Width] = Field(default_factory=dict)


def load_specification(path: Path) -> Specification:
    """Read a specification; without a name it is called like the file.

    Raises :class:`ConfigError` that names the file for a missing or broken one, an unknown key, or blocks that
    make no graph.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; a specification is JSON or YAML with a list of blocks")
    if path.stat().st_size > LARGEST_BYTES:
        raise ConfigError(f"{path}: larger than {LARGEST_BYTES} bytes; is it a specification?")
    try:
        content = _FileContent.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: neither JSON nor YAML ({one_line(error, most=160)})") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: {place or 'the file'}: {first['msg']}") from None
    blocks = tuple(Block(entry.level, entry.parents, entry.kind, entry.output) for entry in content.blocks)
    name = content.name or path.stem
    try:
        return Specification(name, content.stem, blocks, {**WIDTHS, **content.widths})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def write_specification(path: Path, specification: Specification) -> None:
    """Write what :func:`load_specification` reads, as JSON."""
    content: dict[str, Any] = {
        "name": specification.name,
        "stem": list(specification.stem),
        "blocks": [
            {"level": b.level, "parents": list(b.parents), "kind": b.kind, "output": b.output}
            for b in specification.blocks
        ],
        "widths": {str(level): width for level, width in specification.widths.items()},
    }
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
