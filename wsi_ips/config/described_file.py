"""A section of the configuration that lies in a file of its own, as JSON or YAML."""

from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from wsi_ips.config.section import Section
from wsi_ips.errors import ConfigError, one_line
from wsi_ips.plain_yaml import LARGEST_BYTES, NotPlainYaml, load_yaml

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
