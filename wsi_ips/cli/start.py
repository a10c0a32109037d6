"""From flags to a job, and from a job to lines and an exit code."""

from pathlib import Path
from typing import Any, Literal

import typer

KEPT_OF_ANOTHER_ENCODER = ("project", "batch_norm", "trainable")
"""Settings of a recipe's encoder that stay where a flag names another encoder."""


def start(
    command: Literal[
        "tile",
        "features",
        "finetune",
        "predict",
        "calibrate",
        "train-detector",
        "detect",
        "overlay",
        "export",
        "evaluate",
        "report",
        "search",
        "demo",
    ],
    flags: dict[str, Any],
    *,
    recipe: Path | None = None,
    overrides: list[str] | None = None,
    sections: dict[str, dict[str, Any]] | None = None,
) -> None:
    """Make a job of a recipe, the flags over it and ``--set`` over both, and run it."""
    from wsi_ips.errors import ConfigError
    from wsi_ips.recipe import load_recipe, make_job, with_overrides

    values = load_recipe(recipe) if recipe else {}
    given = {name: value for name, value in flags.items() if value is not None}
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
        # A recipe may name an encoder by its name alone.
        held = inner.get(last) or {}
        held = {"name": held} if isinstance(held, str) else held
        if not isinstance(held, dict):
            raise ConfigError(f"{recipe}: {section!r} is a value, not a section")
        if outer and chosen.get("name") not in (None, held.get("name")):
            # Weights, arguments and stages are another encoder's; how the encoder is learned is not.
            held = {name: value for name, value in held.items() if name in KEPT_OF_ANOTHER_ENCODER}
        inner[last] = {**held, **chosen}
    start_job(make_job(with_overrides(values, overrides or ()), source=f"wsi-ips {command}"))


def start_job(job: Any) -> None:
    """Run a job (:data:`wsi_ips.recipe.Job`) with progress bars, print what came of it, and exit."""
    from wsi_ips.commands.job import run_job
    from wsi_ips.commands.progress_bars import RichProgress

    with RichProgress() as progress:
        outcome = run_job(job, progress)
    finish(outcome)


def finish(outcome: Any) -> None:
    """Print an :class:`wsi_ips.commands.outcome.Outcome`, and exit with its code."""
    from wsi_ips.errors import harmless

    for line in outcome.lines:
        typer.echo(harmless(line))
    raise typer.Exit(outcome.exit_code)
