"""The application: its commands in the order of ``--help``, and what becomes of errors.

Exit codes: 0 done, 1 a bug of ours (traceback), 2 wrong input (one line), 3 done but some slides (or some of
their overlays) failed, 128 and the signal's number for what was interrupted: 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP.
``view`` has no other end than these, and its code is 0.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from wsi_ips.cli.data import data_app
from wsi_ips.cli.detection import detect, train_detector
from wsi_ips.cli.encoders import encoders
from wsi_ips.cli.ending import EndingSignals
from wsi_ips.cli.learning import calibrate, demo, evaluate, finetune
from wsi_ips.cli.log_lines import log_to_terminal
from wsi_ips.cli.options import Set
from wsi_ips.cli.prediction import export, overlay, predict, report
from wsi_ips.cli.searching import search
from wsi_ips.cli.several_checkpoints import SeveralCheckpoints
from wsi_ips.cli.slides import features, info, tile
from wsi_ips.cli.start import start_job
from wsi_ips.cli.viewing import view
from wsi_ips.errors import WsiIpsError, harmless

app = typer.Typer(
    name="wsi-ips",
    help="Raw gigapixel slides in, slide labels and honest attention maps out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        from wsi_ips import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def common(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Shared by all commands."""
    log_to_terminal(verbose=verbose)


def run(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe; see pipelines/.")], set_: Set = None
) -> None:
    """Run a recipe."""
    from wsi_ips.recipe import load_recipe, make_job

    start_job(make_job(load_recipe(recipe, set_ or ()), source=str(recipe)))


for command in (
    info, tile, features, finetune, predict, overlay, export, view, calibrate, evaluate, report, train_detector,
    detect, search, demo, encoders, run,
):  # fmt: skip
    app.command(cls=SeveralCheckpoints if command is predict else None)(command)
app.add_typer(data_app, name="data")


def main() -> None:
    """Entry point of ``wsi-ips``: errors raised on purpose become one line and exit code 2."""
    with EndingSignals() as ending:
        try:
            _run_command()
        except SystemExit as ended:
            if ending.exit_code is None or not ended.code:
                raise
        except (Exception, KeyboardInterrupt):
            # What a command says while it is being ended is no news: its terminal may be gone.
            if ending.exit_code is None:
                raise
    if ending.exit_code is not None:
        sys.exit(ending.exit_code)


def _run_command() -> None:
    try:
        app()
    except WsiIpsError as error:
        _complain(str(error))
    except OSError as error:
        # A file that cannot be read or written (no such place, no permission, disk full) is no bug of ours.
        if error.filename is None and error.errno is None:
            raise
        _complain(f"{error.filename or 'writing'}: {error.strerror}")


def _complain(message: str) -> None:
    typer.echo(f"wsi-ips: {harmless(' '.join(message.split()))}", err=True)
    sys.exit(2)
