"""The folder of a prediction run: where its files are, whose run it is, and who writes into it now.

:class:`RunFolder` names the files, :func:`claimed` holds the folder for a run. :func:`stored_location` says
whether a slide that the folder names may be opened. A run folder may come from somebody else. What it names on
this machine is read, as far as the user may read it. A URL is not opened unless the user allows it: the request
alone would tell its host who looks at the run, and from where, and it could be sent to any service inside the
network of the user.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args
from uuid import uuid4

from pydantic import TypeAdapter, ValidationError

from wsi_ips.config import TaskConfig, Turns
from wsi_ips.config.heat import MapKind
from wsi_ips.errors import ConfigError, ResultsError, one_line
from wsi_ips.storage.files import whole_file
from wsi_ips.storage.held_folder import describe, difference, held, read_description
from wsi_ips.storage.location import Location, Url, locate
from wsi_ips.timeline import TIMELINE_NAME

CODE = "encoder_code"
"""Key of the checkpoint in ``run.json`` under which the code of the user stands."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where a prediction run keeps its files."""

    root: Path

    @property
    def predictions(self) -> Path:
        """The table of what the network says of each slide."""
        return self.root / "predictions.csv"

    @property
    def cases(self) -> Path:
        """The table of what the network says of each patient."""
        return self.root / "cases.csv"

    @property
    def slides(self) -> Path:
        """The table of how each slide went."""
        return self.root / "slides.csv"

    @property
    def summary(self) -> Path:
        """The text that says how the run went; it is there once the run is done."""
        return self.root / "summary.md"

    @property
    def known(self) -> Path:
        """The file from which the next start knows which results are there, without opening them."""
        return self.root / "known.jsonl"

    @property
    def description(self) -> Path:
        """The file that says what is run."""
        return self.root / "run.json"

    def attention(self, slide_id: str) -> Path:
        """The HDF5 file with the result of a slide."""
        return self.root / "attention" / f"{slide_id}.h5"

    def overlay(self, slide_id: str) -> Path:
        """The picture of the attention over a slide."""
        return self.root / "overlays" / f"{slide_id}.png"

    def is_of(self, start: str) -> bool:
        """Whether the folder still belongs to the start with this id.

        A worker elsewhere may outlive the run that sent it a slide, and others may hold the lock by then.
        """
        try:
            return read_description(self.description).get("start") == start
        except (OSError, ValueError):
            return False

    def folders_of_maps(self) -> list[Path]:
        """The folders with overlays of maps that are not the default one, such as ``overlays/attention-grade``."""
        overlays = self.root / "overlays"
        if not overlays.is_dir():
            return []
        with os.scandir(overlays) as entries:
            return [
                Path(entry)
                for entry in entries
                if entry.name.partition("-")[0] in get_args(MapKind) and entry.is_dir(follow_symlinks=False)
            ]

    def forget(self, slide_id: str) -> None:
        """Remove what an earlier run left of this slide, so that no old picture lies beside a new failure."""
        pictures = [folder / f"{slide_id}.png" for folder in self.folders_of_maps()]
        for path in (self.attention(slide_id), self.overlay(slide_id), *pictures):
            path.unlink(missing_ok=True)


@contextmanager
def claimed(
    run: RunFolder,
    *,
    config: Mapping[str, Any],
    checkpoint: Path,
    sha256: str,
    code: Mapping[str, str] | None = None,
    force: bool = False,
    numerics: Mapping[str, bool] | None = None,
    more: Mapping[str, Any] | None = None,
) -> Iterator[str]:
    """Hold the folder within the ``with`` block, with a ``run.json`` that says what is run.

    A run of the same checkpoint and settings that is there already is continued.

    Args:
        run: The folder.
        config: The settings of the run.
        checkpoint: The checkpoint, for people.
        sha256: What results name the model by.
        code: SHA-256 of the files of the user that its encoders are functions of, by the encoder's name. Runs of
            earlier versions do not say theirs, and are gone on with. None: there is no such encoder.
        force: If the folder holds another run, remove what it wrote.
        numerics: How the device calculates (:func:`wsi_ips.streaming.device.numerics`). None: what an earlier
            start of the same run noted stays, until :func:`note_numerics`.
        more: What else ``run.json`` says. It does not make the run another one.

    Yields:
        The id of this start, see :meth:`RunFolder.is_of`.

    Raises:
        ConfigError: The folder holds another run.
        ResultsError: Another process holds the folder. A process that died holds nothing.
    """
    below = (run.root / "attention", run.root / "overlays")
    code = code or {}
    tables = (run.predictions, run.slides, run.cases, run.summary, run.known, run.description)
    with held(run.root, below=below, undo=tables, results="attention/*.h5"):
        different = difference(
            run.description,
            _deciding(config, sha256, code),
            theirs=lambda told: _deciding(
                told["config"], told["checkpoint"]["sha256"], told["checkpoint"].get(CODE, code)
            ),
        )
        if different and not force:
            raise ConfigError(
                f"{run.root} holds a run with other settings ({different}); write to another folder, or give "
                "--force to replace it"
            )
        if different:
            _clear(run)
        elif _noted(run, "calibration") != (more or {}).get("calibration"):
            # A start that dies before it has written its own table leaves none that was calibrated otherwise.
            run.predictions.unlink(missing_ok=True)
        start = uuid4().hex
        if numerics is None and not different:
            noted = _noted(run, "numerics")
            numerics = noted if isinstance(noted, dict) else {}
        describe_run(
            run,
            config=config,
            checkpoint=checkpoint,
            sha256=sha256,
            code=code,
            start=start,
            numerics=numerics,
            more=more,
        )
        for path in (run.cases, run.summary):  # those of an earlier start would lie beside newer predictions
            path.unlink(missing_ok=True)
        yield start


def describe_run(
    run: RunFolder,
    *,
    config: Mapping[str, Any],
    checkpoint: Path,
    sha256: str,
    code: Mapping[str, str] | None = None,
    start: str = "",
    numerics: Mapping[str, bool] | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write ``run.json``: what is run, with which checkpoint and versions, where and since when.

    Arguments are those of :func:`claimed`; ``start`` is the id of this start.
    """
    its_checkpoint = {"path": str(checkpoint), "sha256": sha256, **({CODE: dict(code)} if code else {})}
    describe(
        run.description,
        "predict",
        config=config,
        checkpoint=its_checkpoint,
        start=start,
        numerics=dict(numerics or {}),
        **(more or {}),
    )


def note_numerics(run: RunFolder, numerics: Mapping[str, bool]) -> None:
    """Write into ``run.json`` how the device calculates, now that it will."""
    described = {**read_description(run.description), "numerics": dict(numerics)}
    with whole_file(run.description) as partial:
        partial.write_text(json.dumps(described, indent=2) + "\n")


def _noted(run: RunFolder, name: str) -> Any:
    """What an earlier start noted under this name in ``run.json``; None if it noted nothing."""
    try:
        return read_description(run.description).get(name)
    except (OSError, ValueError):
        return None


def _deciding(config: Mapping[str, Any], sha256: str, code: Mapping[str, str]) -> dict[str, Any]:
    """What makes a run another run, beside its slides: there may be more of them, or elsewhere, or on another
    device.

    What decides the result of a single slide (its resolution from a table, its coordinates) is stored with the
    result and compared there, by content: :class:`wsi_ips.inference.made_from.MadeFrom`.
    """
    return {
        "checkpoint": sha256[:12],
        **{f"the code of encoder {name}": its[:12] for name, its in code.items()},
        "slide_mpp": config.get("slide_mpp"),
        "--from-coords": "given" if config.get("from_coords") else "not given",
        "deterministic": config.get("deterministic", False),
        "streaming.decode": config.get("streaming", {}).get("decode"),
        "selection.turns": turns_of(config),
    }


def turns_of(config: object) -> Turns:
    """In how many orientations the kept patches of a run were read, from its settings in ``run.json``. Runs of
    earlier versions do not say it, and have one. Raises ``ValueError`` for anything that is no number of turns.
    """
    if not isinstance(config, Mapping) or not isinstance(config.get("selection", {}), Mapping):
        raise ValueError("no settings of a selection")
    turns = config.get("selection", {}).get("turns", 1)
    for known in get_args(Turns):
        if turns == known and not isinstance(turns, bool):
            return cast(Turns, known)
    raise ValueError(f"selection.turns is {str(turns)[:40]!r}")


def turns_of_run(run: RunFolder) -> Turns:
    """The same of a run's folder. Raises :class:`ResultsError` for one that does not say it."""
    try:
        return turns_of(description_of(run).get("config"))
    except ValueError as error:
        reason = one_line(error, most=200)
        raise ResultsError(
            run.description, f"does not say how kept patches were read ({reason})", "predict again"
        ) from None


def _clear(run: RunFolder) -> None:
    """Remove the results that are there, and nothing else."""
    run.predictions.unlink(missing_ok=True)
    run.slides.unlink(missing_ok=True)
    run.cases.unlink(missing_ok=True)
    run.summary.unlink(missing_ok=True)
    (run.root / TIMELINE_NAME).unlink(missing_ok=True)
    run.known.unlink(missing_ok=True)
    pictures = [path for folder in run.folders_of_maps() for path in folder.glob("*.png")]
    for path in [*run.root.glob("attention/*.h5"), *run.root.glob("overlays/*.png"), *pictures]:
        path.unlink()


def stored_location(text: str, *, open_urls: bool) -> Location:
    """The slide that ``predict`` stored as ``text``, as a path or, with ``open_urls``, as a URL.

    Raises:
        ResultsError: It is a URL, and ``open_urls`` is False.
    """
    location = locate(text)
    if isinstance(location, Url) and not open_urls:
        raise ResultsError(
            location,
            "is a URL that the run folder names, and those are not opened unasked",
            "give --open-urls if you trust the run, or name the slides with --slides",
        )
    return location


LARGEST_DESCRIPTION = 2**24
_TASKS: TypeAdapter[tuple[TaskConfig, ...]] = TypeAdapter(tuple[TaskConfig, ...])


def tasks_of_run(run: RunFolder) -> tuple[TaskConfig, ...]:
    """The tasks of the model that made the run, from ``run.json``; of older runs, from the checkpoint it names.

    Raises :class:`ResultsError` for a folder without ``run.json`` or one that says neither,
    :class:`CheckpointError` for such a checkpoint that cannot be read.
    """
    path = run.description
    described = description_of(run)
    try:
        tasks = described["config"].get("model", {}).get("tasks")
        if tasks:
            return _TASKS.validate_python(tasks)
        checkpoint = Path(described["checkpoint"]["path"])
    except (ValueError, ValidationError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = one_line(error, most=200)
        raise ResultsError(
            path, f"does not say which tasks were predicted ({reason})", "predict again"
        ) from None
    from wsi_ips.models.checkpoint import load_checkpoint  # torch is needed for old runs only

    return load_checkpoint(checkpoint)[1].model.tasks


def description_of(run: RunFolder) -> Mapping[str, Any]:
    """``run.json``. Raises :class:`ResultsError` for a folder without it, or one that cannot be read."""
    path = run.description
    if not path.is_file():
        raise ResultsError(run.root, "holds no run.json", "name a folder that wsi-ips predict finished")
    if path.stat().st_size > LARGEST_DESCRIPTION:
        raise ResultsError(path, f"is larger than {LARGEST_DESCRIPTION} bytes", "is it a run's?")
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        reason = one_line(error, most=200)
        raise ResultsError(
            path, f"does not say which tasks were predicted ({reason})", "predict again"
        ) from None
    if not isinstance(described, dict):
        raise ResultsError(path, "describes no run", "predict again")
    return described


def chosen_tasks(tasks: Sequence[TaskConfig], name: str | None) -> list[TaskConfig]:
    """The task of this name, or all. Raises :class:`ConfigError` for a name that is not there."""
    chosen = [task for task in tasks if name in (None, task.name)]
    if not chosen:
        raise ConfigError(f"task {name!r} is not there: the run has {', '.join(task.name for task in tasks)}")
    return chosen
