"""Jobs and recipes: a job is what a command needs, as data; a recipe is a job in YAML.

A command line and a recipe make the same job, so they cannot drift apart. Paths in a recipe are relative to
where the command is run. :func:`make_job` checks a job, :func:`run_job` has it done.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from wsi_ips.commands.options import Outcome
from wsi_ips.config import LETTERS, EncoderConfig, Section
from wsi_ips.config.plain_yaml import LARGEST_BYTES, NotPlainYaml, load_yaml
from wsi_ips.errors import ConfigError, one_line
from wsi_ips.progress import Progress
from wsi_ips.registry import Registry


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
}
"""{command: (module, its job, its function of a job and a progress)}. A recipe may name each of them."""
JOBS: Registry[type[Job]] = Registry(
    "job", {name: f"{module}:{job}" for name, (module, job, _) in _JOBS.items()}
)
DONE_BY: Registry[Callable[[Any, Progress], Outcome]] = Registry(
    "command", {name: f"{module}:{function}" for name, (module, _, function) in _JOBS.items()}
)


def make_job(values: Mapping[str, Any], *, source: str) -> Job:
    """Check ``values`` against the command they name. Raises :class:`ConfigError` that names the key."""
    command = values.get("command")
    if not isinstance(command, str) or command not in _JOBS:
        raise ConfigError(f"{source}: 'command' must be one of {', '.join(JOBS.names())}")
    job = JOBS.load(command)
    try:
        return job.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(f"{source}: {_first_problem(error, job)}") from None


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


def _first_problem(error: ValidationError, job: type[Job]) -> str:
    first, *others = error.errors()
    where = ".".join(str(part) for part in first["loc"])[:200]
    message = first["msg"].removeprefix("Value error, ")
    more = f" (and {len(others)} more)" if others else ""
    if first["type"] == "extra_forbidden":
        return f"unknown key {where!r}{_suggestion(where, job)}{more}"
    if first["type"] == "missing":
        return f"{where!r} is missing{more}"
    return (f"{where}: " if where else "") + message + more


def _suggestion(key: str, job: type[Job]) -> str:
    """A key of the job's that is spelled alike, or has the same last part in another section."""
    known = list(_keys(job))
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
