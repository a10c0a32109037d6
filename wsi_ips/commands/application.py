"""The application ``wsi-ips``: the table of its commands, and what becomes of errors, signals and log lines.

``wsi-ips --help`` reads the table alone. A command's file is imported when that command is called.

Exit codes: 0 done, 1 a bug of ours (traceback), 2 wrong input (one line), 3 done but some slides (or some of
their overlays) failed, 128 and the signal's number for what was interrupted: 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP.
``view`` has no other end than these, and its code is 0. ``doctor`` ends with 1 where it found a fault.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Annotated, Any, ClassVar, Self

import typer
from typer.core import TyperCommand, TyperGroup

from wsi_ips.commands.command_line import ExplainedCommand, suggest_option
from wsi_ips.commands.options import Set, start_job
from wsi_ips.errors import WsiIpsError, harmless
from wsi_ips.progress import silence_libraries
from wsi_ips.registry import Registry
from wsi_ips.storage.system import let_waiting_threads_sleep

_COMMANDS = {
    "info": (
        "wsi_ips.commands.info:command",
        "Say what a slide is: size, levels, resolution, vendor, which reader opens it, what else its file holds.",
    ),
    "inspect": (
        "wsi_ips.commands.inspect:command",
        "Say what a run read of one slide and why: reader, level, µm, patches, kept ids, attention, bad tiles.",
    ),
    "tile": (
        "wsi_ips.commands.tile:command",
        "Find tissue and write patch coordinates (HDF5) and contours (GeoJSON); no model.",
    ),
    "features": (
        "wsi_ips.commands.features:command",
        "Store what an encoder makes of every patch, as CLAM, TRIDENT or STAMP do; nothing is learned.",
    ),
    "init": (
        "wsi_ips.commands.init:command",
        "Write a commented recipe and the next steps into a folder, checked against your labels and slides.",
    ),
    "finetune": (
        "wsi_ips.commands.finetune:command",
        "Fine-tune encoder, selection and attention from slide labels; goes on where a killed run was.",
    ),
    "predict": (
        "wsi_ips.commands.predict:face",
        "Label every slide of a folder; write predictions.csv, attention (HDF5) and overlays (PNG).",
    ),
    "overlay": (
        "wsi_ips.commands.overlay:command",
        "Draw overlays from stored contributions or attention; no model is needed.",
    ),
    "export": (
        "wsi_ips.commands.export:command",
        "Write stored attention or contributions for QuPath, OMERO, napari, ASAP, web viewers; needs no model.",
    ),
    "view": (
        "wsi_ips.commands.view:command",
        "Browse a run: slides under their attention, in the browser; no model is needed.",
    ),
    "calibrate": (
        "wsi_ips.commands.calibrate:command",
        "Fit temperatures and thresholds on slides with known labels, for predict --calibration.",
    ),
    "evaluate": (
        "wsi_ips.commands.evaluate:command",
        "Score a run against a manifest's labels: figures with intervals, tables, FROC, plots.",
    ),
    "compare": (
        "wsi_ips.commands.compare:command",
        "Train several aggregators and selectors on the same splits and seeds; one table of what each is worth.",
    ),
    "table": (
        "wsi_ips.commands.table:command",
        "Train every row of a public data set's table with every seed; one table beside published numbers.",
    ),
    "report": (
        "wsi_ips.commands.report:command",
        "Write a run as one HTML file that can be mailed: figures, pictures, failures; no model is needed.",
    ),
    "train-detector": (
        "wsi_ips.nuclei.command:train_detector_command",
        "Train a detector of nuclei on outlined images, and score it on those in test/.",
    ),
    "detect": (
        "wsi_ips.nuclei.command:detect_command",
        "Find nuclei in the kept patches, or in all tissue; write them as CSV and GeoJSON.",
    ),
    "search": (
        "wsi_ips.search.command:command",
        "Search for a SpineNet by a proxy task; goes on where a killed search was.",
    ),
    "demo": (
        "wsi_ips.drawn.command:demo_command",
        "Draw a small CAMELYON-style data set, fine-tune on it, predict it and score the result.",
    ),
    "encoders": (
        "wsi_ips.commands.encoders:command",
        "List the encoders that --encoder takes by name: sizes, µm, licences, and whether their weights are here.",
    ),
    "merge": (
        "wsi_ips.commands.merge:command",
        "Make a whole checkpoint of one that holds adapters alone; it needs no other weights then.",
    ),
    "doctor": (
        "wsi_ips.commands.doctor:command",
        "Check this installation: versions, devices, codecs, folders, speed; exit code 1 where a fault is found.",
    ),
    "plan": (
        "wsi_ips.planning.command:command",
        "Say what a recipe will cost before it runs: hours, memory, disk, and which setting would halve them.",
    ),
    "run": ("wsi_ips.commands.application:run", "Run a recipe."),
    "data": (
        "wsi_ips.commands.application:data_app",
        "A data set on disk: is it whole, which of its slides are there; or one made of real patches.",
    ),
}
_DATA_COMMANDS = {
    "verify": (
        "wsi_ips.commands.data:verify_command",
        "Check a downloaded data set against its checksums; exit code 3 where a file is missing or altered.",
    ),
    "manifest": (
        "wsi_ips.commands.data:manifest_command",
        "Write a manifest of the slides that are there, with the data set's labels and splits.",
    ),
    "twin": (
        "wsi_ips.drawn.command:twin_command",
        "Draw a small twin of a public data set, laid out as its download is, to try a table on.",
    ),
    "nodes": (
        "wsi_ips.drawn.command:nodes_command",
        "Compose slides of real lymph-node patches, with metastases in the outlines of real lesions.",
    ),
}
"""Each command in the order of ``--help``: where its face is, and the first line of the face's docstring."""

Face = Callable[..., None] | typer.Typer
"""A function with Typer's annotations; or an application of its own, where that says more than annotations can."""


class _LateCommands(TyperGroup):
    """Commands of a table. Help and suggestions come from the table; a command is loaded when it is called."""

    table: ClassVar[Mapping[str, tuple[str, str]]]

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self._faces: Registry[Face] = Registry(
            "command", {name: where for name, (where, _) in self.table.items()}
        )
        listed = {name: TyperCommand(name, help=line) for name, (_, line) in self.table.items()}
        self.commands = {**listed, **self.commands}
        self._only_names = False

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in self.table and not self._only_names:
            return _loaded(cmd_name, self._faces.load(cmd_name))
        return super().get_command(ctx, cmd_name)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Complete the name of a command; none is loaded for that."""
        self._only_names = True
        try:
            return super().shell_complete(ctx, incomplete)
        finally:
            self._only_names = False

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            suggest_option(error, self)
            raise

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        room = formatter.width - 6 - max(map(len, self.commands))
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, named.get_short_help_str(room)) for name, named in self.commands.items()]
            )


class _Commands(_LateCommands):
    table = _COMMANDS


class _DataCommands(_LateCommands):
    table = _DATA_COMMANDS


def _loaded(name: str, face: Face) -> Any:
    """What Typer makes of a command's face."""
    if isinstance(face, typer.Typer):
        return typer.main.get_command(face)
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    alone.command(name, cls=ExplainedCommand)(face)
    return typer.main.get_command(alone)


app = typer.Typer(
    name="wsi-ips",
    cls=_Commands,
    help="Raw gigapixel slides in, slide labels and honest attention maps out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(
    name="data", cls=_DataCommands, no_args_is_help=True, add_completion=False, rich_markup_mode=None
)


@data_app.callback(help=_COMMANDS["data"][1])
def _data() -> None: ...


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
    recipe: Annotated[
        Path, typer.Argument(help="A YAML recipe, or the name of one that comes with wsi_ips.")
    ],
    set_: Set = None,
) -> None:
    """Run a recipe."""
    from wsi_ips.commands.recipe import Origin, load_recipe, make_job

    origin = Origin(str(recipe), overrides=tuple(set_ or ()))
    start_job(make_job(load_recipe(recipe, set_ or ()), source=origin))


def main() -> None:
    """Entry point of ``wsi-ips``: errors raised on purpose become one line and exit code 2."""
    let_waiting_threads_sleep()
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
        app(prog_name="wsi-ips")
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


ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that end a command as Ctrl-C does, instead of killing it where it stands.

A scheduler, a service manager or a shutdown sends SIGTERM, a terminal that closes sends SIGHUP. Python's own
answer to both is to die at once: partial files stay, and worker processes live on.
"""


class EndingSignals:
    """``with EndingSignals() as ending:`` a signal raises ``KeyboardInterrupt`` in the main thread, once.

    More of them are ignored while the command puts away what it has begun; Ctrl-C still interrupts that. A signal
    that was ignored when the command started stays ignored: that is what nohup is for. On leaving, handlers are
    as before. Outside the main thread nothing is changed.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    @property
    def exit_code(self) -> int | None:
        """128 and the signal's number, as a shell has it; None where none came."""
        return None if self.received is None else 128 + self.received

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in ENDING:
                if signal.getsignal(number) == signal.SIG_DFL:
                    self._before[number] = signal.signal(number, self._end)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _end(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked child: what ends it is its parent's business
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if self.received is None:
            self.received = number
            raise KeyboardInterrupt


def log_to_terminal(*, verbose: bool = False) -> None:
    """Show our warnings on standard error; with ``verbose`` everything, what libraries say too."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Harmless("%(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])
    if not verbose:
        silence_libraries()


class _Harmless(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return harmless(super().format(record))
