"""From a YAML recipe, or the flags of a command line, to a job."""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from wsi_ips.config import LETTERS
from wsi_ips.config.plain_yaml import LARGEST_BYTES, NotPlainYaml, load_yaml
from wsi_ips.errors import ConfigError, one_line
from wsi_ips.recipe.jobs import Job

_JOBS: TypeAdapter[Job] = TypeAdapter(Annotated[Job, Field(discriminator="command")])


def make_job(values: Mapping[str, Any], *, source: str) -> Job:
    """Check ``values`` against the command they name. Raises :class:`ConfigError` that names the key."""
    try:
        return _JOBS.validate_python(dict(values))
    except ValidationError as error:
        raise ConfigError(f"{source}: {_first_problem(error, values.get('command'))}") from None


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The recipe's values, with ``section.key=value`` overrides (values are YAML) laid over them.

    Raises :class:`ConfigError` for a missing file, broken YAML, no mapping, or an override without ``=``.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such recipe; see pipelines/ for examples")
    if path.stat().st_size > LARGEST_BYTES:
        raise ConfigError(f"{path}: larger than {LARGEST_BYTES} bytes; is it a recipe?")
    try:
        values = load_yaml(path.read_text(encoding="utf-8"))
    except (NotPlainYaml, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {one_line(error, most=300)}") from None
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
            value = load_yaml(text)
        except NotPlainYaml as error:
            raise ConfigError(
                f"--set {one_line(override, most=80)}: the value is not valid YAML: {one_line(error, most=160)}"
            ) from None
        *sections, last = key.split(".")
        inner = result
        for section in sections:
            below = inner.get(section) or {}
            if not isinstance(below, Mapping):
                raise ConfigError(f"--set {override}: {section!r} is a value, not a section")
            inner[section] = dict(below)
            inner = inner[section]
        if sections == ["selection"]:  # a letter of the paper replaces the name that it stands for, and back
            for letter, name in LETTERS.items():
                inner.pop({letter: name, name: letter}.get(last, ""), None)
        inner[last] = value
    return result


def shipped_recipe(name: str) -> Path:
    """The path of a recipe that comes with the package (installed, or in a checkout)."""
    package = Path(__file__).parents[1]
    for folder in (package / "pipelines", package.parent / "pipelines"):
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    raise ConfigError(f"no recipe {name}.yaml beside the package; name one: wsi-ips run RECIPE.yaml")


def _first_problem(error: ValidationError, command: object) -> str:
    first, *others = error.errors()
    # The discriminator's tag leads the location: users know the key by its path in the recipe only.
    where = ".".join(str(part) for part in first["loc"][1:])[:200]
    message = first["msg"].removeprefix("Value error, ")
    more = f" (and {len(others)} more)" if others else ""
    if first["type"] == "extra_forbidden":
        return f"unknown key {where!r}{_suggestion(where, command)}{more}"
    if first["type"] == "missing":
        return f"{where!r} is missing{more}"
    if first["type"].startswith("union_tag"):
        return f"'command' must be one of {', '.join(_COMMANDS)}"
    return (f"{where}: " if where else "") + message + more


def _suggestion(key: str, command: object) -> str:
    """A key of the command's that is spelled alike, or has the same last part in another section."""
    known = [path for job in get_args(Job) if _COMMAND_OF[job] == command for path in _keys(job)]
    alike = get_close_matches(key, known, n=1, cutoff=0.8)
    if not alike:
        last = key.rpartition(".")[2]
        ends = {path.rpartition(".")[2]: path for path in reversed(known)}
        alike = [ends[name] for name in get_close_matches(last, list(ends), n=1, cutoff=0.8)]
    return f"; did you mean {alike[0]}?" if alike else ""


def _keys(section: type[BaseModel]) -> Iterator[str]:
    """Every key that a section may hold, those of its own sections behind a dot."""
    for name, field in section.model_fields.items():
        yield name
        for inner in _sections(field.annotation):
            yield from (f"{name}.{below}" for below in _keys(inner))


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, UnionType, Annotated):
        for part in get_args(annotation):
            yield from _sections(part)


_COMMAND_OF = {job: job.model_fields["command"].default for job in get_args(Job)}
_COMMANDS: tuple[str, ...] = tuple(_COMMAND_OF.values())
