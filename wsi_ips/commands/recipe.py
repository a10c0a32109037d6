"""Jobs and recipes: a job is what a command needs, as data; a recipe is a job in YAML.

A command line and a recipe make the same job, so they cannot drift apart. Paths in a recipe are relative to
where the command is run, also in one that comes with the package (:func:`find_recipe`). :func:`make_job` checks a
job, :func:`run_job` has it done.
"""

import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from wsi_ips.commands.options import Outcome
from wsi_ips.config import LETTERS, EncoderConfig, Section
from wsi_ips.config.section import FILLED_IN, LARGEST_BYTES, NotPlainYaml, first_problem, load_yaml
from wsi_ips.errors import ConfigError, one_line
from wsi_ips.progress import Progress
from wsi_ips.registry import Registry, did_you_mean
from wsi_ips.storage.location import shipped

logger = logging.getLogger(__name__)
PIPELINES = "pipelines"
"""The folder of the recipes that come with the package."""


class Job(Section):
    """What a command needs, as data. Each command has a class of its own, which names it."""

    command: str


_JOBS = {
    "tile": ("wsi_ips.commands.tile", "TileJob", "tile"),
    "features": ("wsi_ips.commands.features", "FeaturesJob", "store_features"),
    "finetune": ("wsi_ips.commands.finetune", "FinetuneJob", "finetune_manifest"),
    "images": ("wsi_ips.images.command", "ImagesJob", "learn_images"),
    "predict": ("wsi_ips.commands.predict", "PredictJob", "predict"),
    "calibrate": ("wsi_ips.commands.calibrate", "CalibrateJob", "calibrate"),
    "train-detector": ("wsi_ips.nuclei.command", "TrainDetectorJob", "train"),
    "detect": ("wsi_ips.nuclei.command", "DetectJob", "detect"),
    "overlay": ("wsi_ips.commands.overlay", "OverlayJob", "overlay"),
    "export": ("wsi_ips.commands.export", "ExportJob", "export"),
    "evaluate": ("wsi_ips.commands.evaluate", "EvaluateJob", "evaluate"),
    "compare": ("wsi_ips.commands.compare", "CompareJob", "compare"),
    "table": ("wsi_ips.commands.table", "TableJob", "table"),
    "report": ("wsi_ips.commands.report", "ReportJob", "report"),
    "search": ("wsi_ips.search.command", "SearchJob", "search_networks"),
    "demo": ("wsi_ips.drawn.command", "DemoJob", "demo"),
    "merge": ("wsi_ips.commands.merge", "MergeJob", "merge"),
    "plan": ("wsi_ips.planning.command", "PlanJob", "plan"),
}
"""{command: (module, its job, its function of a job and a progress)}. A recipe may name each of them."""
JOBS: Registry[type[Job]] = Registry(
    "job", {name: f"{module}:{job}" for name, (module, job, _) in _JOBS.items()}
)
DONE_BY: Registry[Callable[[Any, Progress], Outcome]] = Registry(
    "command", {name: f"{module}:{function}" for name, (module, _, function) in _JOBS.items()}
)

ONE_VALUE_SECTIONS: Mapping[str, str] = MappingProxyType(
    {
        "encoder": "name",
        "model.encoder": "name",
        "model.aggregator": "name",
        "model.attention": "block",
        "selection.scorer": "checkpoint",
    }
)
"""{section: setting}: the sections that may be written as one value, and the setting that this value gives.
``model: {attention: paper}`` is short for ``model: {attention: {block: paper}}``."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the values of a job come from, so that an error names the place where it has to be mended.

    Attributes:
        command: The command as it was called.
        recipe: The recipe that was read, if there was one.
        in_recipe: Its values.
        by_flag: Paths of the values that flags gave, which replace those of the recipe.
        overrides: What ``--set`` gave, as ``section.key=value``.
    """

    command: str
    recipe: Path | None = None
    in_recipe: Mapping[str, Any] = field(default_factory=dict)
    by_flag: Collection[tuple[str, ...]] = ()
    overrides: Sequence[str] = ()

    def place(self, key: Sequence[str | int]) -> str:
        """Where a user finds what is wrong at ``key``: ``--set ...``, the recipe's path, or the command.

        If ``key`` is a section and ``--set`` changed a setting inside it, the text names the recipe (or the
        command) and that ``--set``.
        """
        within: list[str] = []
        for override in reversed(self.overrides):
            path = override.partition("=")[0].split(".")
            if list(key[: len(path)]) == path:
                return f"--set {one_line(override, most=80)}"
            if key and path[: len(key)] == list(key):
                within.insert(0, f"--set {override}")
        beside = f" with {one_line(' '.join(within), most=160)}" if within else ""
        return f"{self._written(key)}{beside}"

    def _written(self, key: Sequence[str | int]) -> str:
        """The recipe's path if the value at ``key`` comes from the recipe, else the command."""
        if self.recipe is None or any(key[: len(path)] == path for path in self.by_flag):
            return self.command
        return str(self.recipe) if not key or key[0] in self.in_recipe else self.command


def make_job(values: Mapping[str, Any], *, source: str | Origin) -> Job:
    """Check ``values`` against the command they name.

    Args:
        values: The job's keys and values.
        source: Where they come from, for messages.

    Raises:
        ConfigError: A key or value is wrong. The message names its place and the key, and what may be meant.
    """
    origin = Origin(source) if isinstance(source, str) else source
    command = values.get("command")
    if not isinstance(command, str) or command not in _JOBS:
        alike = did_you_mean(command, JOBS.names()) if isinstance(command, str) else ""
        raise ConfigError(
            f"{origin.place(('command',))}: 'command' must be one of {', '.join(JOBS.names())}{alike}"
        )
    job = JOBS.load(command)
    try:
        return job.model_validate(_without_empty_sections(values, job))
    except ValidationError as error:
        where = origin.place(error.errors()[0]["loc"])
        raise ConfigError(f"{where}: {_first_problem(error, job)}") from None


def _without_empty_sections(values: Mapping[str, Any], section: type[BaseModel]) -> dict[str, Any]:
    """The same values without sections that hold no key, such as ``tiling:`` above nothing but comments."""
    kept: dict[str, Any] = {}
    for name, value in values.items():
        held = section.model_fields.get(name)
        inner = None if held is None else held.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            if value is None:
                continue
            if isinstance(value, Mapping):
                kept[name] = _without_empty_sections(value, inner)
                continue
        kept[name] = value
    return kept


def run_job(job: Job, progress: Progress) -> Outcome:
    """Do what a job says. Raises :class:`wsi_ips.errors.WsiIpsError` for wrong input."""
    _note_named_code(job)
    return DONE_BY.load(job.command)(job, progress)


def _note_named_code(job: Job) -> None:
    """An encoder that is code in a file may be run where a job names it; one that a checkpoint names may not."""
    encoder = getattr(getattr(job, "model", job), "encoder", None)
    if isinstance(encoder, EncoderConfig):
        from wsi_ips.models.encoders.registry import allow_code

        allow_code(encoder.name)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The recipe's values, with ``section.key=value`` overrides (values are YAML) laid over them.

    ``path`` is a file, or names a recipe that comes with the package (:func:`find_recipe`).

    Raises :class:`ConfigError` for a missing file, broken YAML, no mapping, or an override without ``=``.
    """
    path = find_recipe(path)
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
    """A copy of ``values`` with ``section.key=value`` settings laid over it.

    A section that is written as one value keeps that value: ``model.attention.heads=8`` over ``attention: paper``
    makes ``attention: {block: paper, heads: 8}``.

    Raises :class:`ConfigError` if a setting has no ``=``, if its value is not YAML, or if it names a key inside
    something that is not a section.
    """
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
        for depth, section in enumerate(sections, start=1):
            below = as_section(".".join(sections[:depth]), inner.get(section) or {})
            if not isinstance(below, Mapping):
                raise ConfigError(f"--set {override}: {section!r} is a value, not a section")
            inner[section] = dict(below)
            inner = inner[section]
        if sections == ["selection"]:  # a letter of the paper replaces the name that it stands for, and back
            for letter, name in LETTERS.items():
                inner.pop({letter: name, name: letter}.get(last, ""), None)
        inner[last] = value
    return result


def as_section(key: str, value: Any) -> Any:
    """The value of the section at the dotted ``key`` as a mapping, if it is one of :data:`ONE_VALUE_SECTIONS` that
    is written as a text; any other value unchanged.
    """
    if isinstance(value, str) and key in ONE_VALUE_SECTIONS:
        return {ONE_VALUE_SECTIONS[key]: value}
    return value


def find_recipe(path: Path) -> Path:
    """The file of a recipe: the one at ``path``, or else the one of this name that comes with the package.

    A recipe of the package is named as ``pipelines/NAME.yaml`` or ``NAME``, with or without the suffix; a table's
    as ``tables/NAME``. That it is taken is logged.

    Raises :class:`ConfigError` with the names that there are if there is no such recipe.
    """
    if path.is_file():
        return path
    ours = shipped_recipes()
    named = path.as_posix().removeprefix(f"{PIPELINES}/").removesuffix(".yaml")
    if named in ours:
        logger.warning("%s is not a file here: taking the recipe %s that comes with wsi_ips", path, named)
        return ours[named]
    raise ConfigError(
        f"{path}: no such recipe; those that come with wsi_ips are {', '.join(ours)}{did_you_mean(named, ours)}"
    )


def shipped_recipes() -> dict[str, Path]:
    """``{name: file}`` of the recipes that come with the package, such as ``demo`` and ``tables/panda``."""
    folder = shipped(PIPELINES)
    files = [*sorted(folder.glob("*.yaml")), *sorted(folder.glob("*/*.yaml"))]
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}


def shipped_recipe(name: str) -> Path:
    """The path of a recipe that comes with the package (installed, or in a checkout)."""
    path = shipped_recipes().get(name)
    if path is None:
        raise ConfigError(f"no recipe {name}.yaml beside the package; name one: wsi-ips run RECIPE.yaml")
    return path


def _first_problem(error: ValidationError, job: type[Job]) -> str:
    first, *others = error.errors()
    where = ".".join(str(part) for part in first["loc"])[:200]
    more = f" (and {len(others)} more)" if others else ""
    if first["type"] == "extra_forbidden":
        return f"unknown key {where!r}{_fixed(where, job) or _suggestion(first['loc'], job)}{more}"
    if first["type"] == "missing":
        return f"{where!r} is missing{more}"
    alike = ""
    if first["type"] == "literal_error" and isinstance(first["input"], str):
        alike = did_you_mean(first["input"], re.findall("'([^']*)'", first["ctx"]["expected"]))
    return first_problem(error) + alike + more


def _fixed(key: str, job: type[Job]) -> str:
    """That a setting of a training is the checkpoint's in a job that reads one, and what can be set; else ""."""
    section, _, last = key.rpartition(".")
    if section == "selection":
        key = f"selection.{LETTERS.get(last, last)}"
    if "checkpoint" not in job.model_fields or key not in keys_of(JOBS.load("finetune")):
        return ""
    name = job.model_fields["command"].default
    taken = [one for one in keys_of(job) if one not in ("command", "checkpoint") and "*" not in one]
    sections = {one.rpartition(".")[0] for one in taken}
    keys = ", ".join(one for one in taken if one not in sections)
    return f": it is fixed by the checkpoint; {name} takes {keys}"


def _suggestion(loc: Sequence[str | int], job: type[Job]) -> str:
    """A key of the job's that is spelled alike, or has the same last part in another section."""
    numbers = [str(part) for part in loc if isinstance(part, int)]
    key = ".".join("*" if isinstance(part, int) else part for part in loc)[:200]
    known = list(keys_of(job))
    alike = get_close_matches(key, known, n=1, cutoff=0.8)
    if not alike:
        last = key.rpartition(".")[2]
        ends = {path.rpartition(".")[2]: path for path in reversed(known)}
        alike = [ends[name] for name in get_close_matches(last, list(ends), n=1, cutoff=0.75)]
    if not alike:
        return ""
    found = alike[0]
    for number in numbers:
        found = found.replace("*", number, 1)
    return f"; did you mean {found.replace('.*', '.0')}?"


def keys_of(section: type[BaseModel]) -> Iterator[str]:
    """Every key that a section may hold, those of its own sections behind a dot. ``*`` is a place in a list. What
    training fills in is left out.
    """
    for name, held in section.model_fields.items():
        if held.json_schema_extra == FILLED_IN:
            continue
        yield name
        for inner, listed in _sections(held.annotation):
            yield from (f"{name}.{'*.' if listed else ''}{below}" for below in keys_of(inner))


def annotation_of(section: type[BaseModel], key: str) -> Any:
    """The type of the setting at ``key``, as it is annotated; None for a key that the section does not have."""
    name, _, rest = key.partition(".")
    held = section.model_fields.get(name)
    if held is None or not rest:
        return None if held is None else held.annotation
    found = (annotation_of(inner, rest) for inner, listed in _sections(held.annotation) if not listed)
    return next((one for one in found if one is not None), None)


def _sections(annotation: Any, *, listed: bool = False) -> Iterator[tuple[type[BaseModel], bool]]:
    """The sections that a value of this type may be, and whether it holds a list of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, listed
    elif get_origin(annotation) in (Union, UnionType, Annotated, tuple, list):
        listed = listed or get_origin(annotation) in (tuple, list)
        for part in get_args(annotation):
            yield from _sections(part, listed=listed)
