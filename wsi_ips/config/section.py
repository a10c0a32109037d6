"""What all sections have in common.

Bounds that a setting has and the code that obeys it checks again.

A section of the configuration that lies in a file of its own, as JSON or YAML.
"""

from hashlib import sha256
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wsi_ips.config.plain_yaml import LARGEST_BYTES, NotPlainYaml, load_yaml
from wsi_ips.errors import ConfigError, one_line

Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Frozen, and a key it does not know is an error that names the key."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def settings_fingerprint(config: Section) -> str:
    """Cache key over every field, so that a new field cannot be forgotten."""
    return sha256(config.model_dump_json().encode()).hexdigest()[:12]


LARGEST_OVERLAY_PX = 16_384
"""Longest side of an overlay: a gigabyte of pixels, and the most that viewers open."""

S = TypeVar("S", bound=Section)


def read_described(path: Path, section: type[S], *, what: str) -> S:
    """Read a ``section`` from a file that exists. what: what the file should be, for the message.

    Raises :class:`ConfigError`, which names the file and the first key that is wrong.
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
