"""From a YAML recipe, or the flags of a command line, to a job."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from wsi_ips.errors import ConfigError, one_line
from wsi_ips.recipe.jobs import Job

LARGEST_RECIPE_BYTES = 1_000_000

_JOBS: TypeAdapter[Job] = TypeAdapter(Annotated[Job, Field(discriminator="command")])


def make_job(values: Mapping[str, Any], *, source: str) -> Job:
    """Check ``values`` against the command they name. Raises :class:`ConfigError` that names the key."""
    try:
        return _JOBS.validate_python(dict(values))
    except ValidationError as error:
        raise ConfigError(f"{source}: {_first_problem(error)}") from None


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The recipe's values, with ``section.key=value`` overrides (values are YAML) laid over them.

    Raises :class:`ConfigError` for a missing file, broken YAML, no mapping, or an override without ``=``.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such recipe; see pipelines/ for examples")
    if path.stat().st_size > LARGEST_RECIPE_BYTES:
        raise ConfigError(f"{path}: larger than {LARGEST_RECIPE_BYTES} bytes; is it a recipe?")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a recipe is a mapping that starts with 'command: ...'")
    return with_overrides(values, overrides)


def with_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Lay ``section.key=value`` settings over ``values``; neither is changed."""
    result = dict(values)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {override}: expected section.key=value, e.g. training.epochs=5")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {override}: {text!r} is not valid YAML") from None
        *sections, last = key.split(".")
        inner = result
        for section in sections:
            below = inner.get(section) or {}
            if not isinstance(below, Mapping):
                raise ConfigError(f"--set {override}: {section!r} is a value, not a section")
            inner[section] = dict(below)
            inner = inner[section]
        inner[last] = value
    return result


def shipped_recipe(name: str) -> Path:
    """The path of a recipe that comes with the package (installed, or in a checkout)."""
    package = Path(__file__).parents[1]
    for folder in (package / "pipelines", package.parent / "pipelines"):
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    raise ConfigError(f"no recipe {name}.yaml beside the package; name one: wsi-ips run RECIPE.yaml")


def _first_problem(error: ValidationError) -> str:
    first, *others = error.errors()
    # The discriminator's tag leads the location: users know the key by its path in the recipe only.
    where = ".".join(str(part) for part in first["loc"][1:] if part not in _COMMANDS)
    message = first["msg"].removeprefix("Value error, ")
    more = f" (and {len(others)} more)" if others else ""
    if first["type"] == "extra_forbidden":
        return f"unknown key {where!r}{more}"
    if first["type"] == "missing":
        return f"{where!r} is missing{more}"
    if first["type"].startswith("union_tag"):
        return f"'command' must be one of {', '.join(_COMMANDS)}"
    return (f"{where}: " if where else "") + message + more


_COMMANDS = (
    "tile",
    "features",
    "finetune",
    "images",
    "predict",
    "overlay",
    "export",
    "evaluate",
    "report",
    "search",
    "demo",
)
