"""What all sections have in common: their base class (:class:`Section`), and reading one from a file of
its own.
"""

from hashlib import sha256
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wsi_ips.config.plain_yaml import LARGEST_BYTES, NotPlainYaml, load_yaml
from wsi_ips.errors import ConfigError, one_line

Fraction = Annotated[float, Field(ge=0, le=1)]
"""A number in 0..1."""
LARGEST_OVERLAY_PX = 16_384
"""Longest side of an overlay: a gigabyte of pixels, and the most that viewers open."""


class Section(BaseModel):
    """Base class of sections. They are frozen, and an unknown key is an error that names the key."""

    model_config = ConfigDict(extra="forbid", frozen=True)


S = TypeVar("S", bound=Section)


def settings_fingerprint(config: Section) -> str:
    """Cache key over every field, so that a new field cannot be forgotten."""
    return sha256(config.model_dump_json().encode()).hexdigest()[:12]


def read_described(path: Path, section: type[S], *, what: str) -> S:
    """Read a section from a file that exists.

    Args:
        path: The file, JSON or YAML.
        section: The class of the section.
        what: What the file should be, for the message.

    Raises:
        ConfigError: The file is wrong. The message names it and the first wrong key.
    """
    if path.stat().st_size > LARGEST_BYTES:
        raise ConfigError(f"{path}: larger than {LARGEST_BYTES} bytes; is it a {what}?")
    try:
        return section.model_validate(load_yaml(path.read_text(encoding="utf-8")))
    except (NotPlainYaml, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: neither JSON nor YAML ({one_line(error, most=160)})") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: {place or 'the file'}: {first['msg']}") from None
