"""Labelling slides (:func:`predict`): one in memory, or a folder of them into the folder of a run
(:class:`Run`).
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

from wsi_ips.api.model import Model, checkpoint_paths, load
from wsi_ips.api.progress import shown_progress
from wsi_ips.api.result import Result
from wsi_ips.api.slide import AnySlide, place_of
from wsi_ips.commands.options import Outcome
from wsi_ips.commands.recipe import Job, make_job, run_job
from wsi_ips.config import TaskConfig
from wsi_ips.errors import ConfigError, ResultsError
from wsi_ips.inference.predictions import PredictionRow, read_predictions
from wsi_ips.inference.results import Probabilities
from wsi_ips.inference.run_folder import RunFolder, tasks_of_run
from wsi_ips.slides.folder import find_slides
from wsi_ips.storage.location import Location, is_file_name, locate

logger = logging.getLogger(__name__)


class Run(Mapping[str, Result]):
    """The folder that ``wsi-ips predict`` or :func:`wsi_ips.predict` wrote, as a mapping of slide ids to
    :class:`wsi_ips.Result`.

    Slides that failed are not among the keys; ``failed`` says why. Results are read when they are asked for.

    >>> import wsi_ips as wi
    >>> wi.predict("slides", "model.safetensors", "run")
    Run('run', 2 slides labelled)
    >>> run = wi.Run("run")
    >>> list(run), run.failed
    (['a', 'b'], {})
    >>> run["a"]
    Result('a', label: ...)
    >>> run.probabilities["a"]["label"].keys()
    dict_keys(['normal', 'tumor'])
    """

    def __init__(self, folder: Path | str) -> None:
        """Open the folder. Raises :class:`ResultsError` if it does not hold a run."""
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ResultsError(self.folder, "no such folder", "name the folder that wsi-ips predict wrote")
        self._files = RunFolder(self.folder)
        self.tasks: tuple[TaskConfig, ...] = tasks_of_run(self._files)
        self.rows: tuple[PredictionRow, ...] = tuple(
            read_predictions(self._files.predictions, tasks=self.tasks)
        )

    @property
    def probabilities(self) -> dict[str, Probabilities]:
        """``{slide_id: {task: {class: probability}}}`` of the labelled slides, calibrated if the run is."""
        return {row.slide_id: row.probabilities for row in self.rows if row.status == "ok"}

    @property
    def failed(self) -> dict[str, str]:
        """``{slide_id: why}`` of the slides that were not labelled."""
        return {row.slide_id: row.error for row in self.rows if row.status != "ok"}

    def __getitem__(self, slide_id: str) -> Result:
        if slide_id not in self.probabilities or not is_file_name(slide_id):
            raise KeyError(slide_id)
        return Result.read(self._files.attention(slide_id))

    def __iter__(self) -> Iterator[str]:
        return iter(self.probabilities)

    def __len__(self) -> int:
        return len(self.probabilities)

    def __repr__(self) -> str:
        failed = f", {len(self.failed)} failed" if self.failed else ""
        return f"Run({str(self.folder)!r}, {len(self)} slides labelled{failed})"


Checkpoint = Model | Path | str | Sequence[Path | str]
"""A loaded model, the path of a checkpoint, or several paths, whose mean is the answer."""


@overload
def predict(
    slides: AnySlide,
    model: Checkpoint,
    out: None = None,
    *,
    slide_mpp: float | None = None,
    patches: Path | str | None = None,
    allow_upsampling: bool = False,
    device: str = "auto",
    progress: bool | None = None,
) -> Result: ...


@overload
def predict(
    slides: AnySlide,
    model: Checkpoint,
    out: Path | str,
    *,
    slide_mpp: float | None = None,
    patches: Path | str | None = None,
    allow_upsampling: bool = False,
    device: str = "auto",
    progress: bool | None = None,
    overlays: bool = True,
    calibration: Path | str | None = None,
    embeddings: bool = False,
    workers: int | None = None,
    on_error: Literal["report", "stop"] = "report",
    force: bool = False,
) -> Run: ...


def predict(
    slides: AnySlide,
    model: Checkpoint,
    out: Path | str | None = None,
    *,
    slide_mpp: float | None = None,
    patches: Path | str | None = None,
    allow_upsampling: bool = False,
    device: str = "auto",
    progress: bool | None = None,
    overlays: bool = True,
    calibration: Path | str | None = None,
    embeddings: bool = False,
    workers: int | None = None,
    on_error: Literal["report", "stop"] = "report",
    force: bool = False,
) -> Result | Run:
    """Label a slide, or with ``out`` a folder of slides.

    Without ``out`` the slide is labelled in memory, and its :class:`wsi_ips.Result` is returned. With ``out`` this
    is ``wsi-ips predict``: it writes ``predictions.csv``, attention and overlays into that folder, continues a run
    that was stopped, and returns the folder as a :class:`wsi_ips.Run`.

    Args:
        slides: A slide, or with ``out`` also a folder that is searched for slides.
        model: A model of :func:`wsi_ips.load`, the path of a checkpoint, or several paths, whose mean is the
            answer.
        out: The folder to write to.
        slide_mpp: Resolution of the slides in µm per pixel, used instead of what the files state.
        patches: A folder of coordinates (CLAM, TRIDENT, ``wsi-ips tile``), used instead of a search for tissue.
        allow_upsampling: Enlarge slides that are more than 10 % coarser than the patches of the model.
        device: ``auto`` takes a GPU if there is one. A loaded model stays on its own device.
        progress: Whether to show bars. None shows them in notebooks.
        overlays: With ``out``: draw the overlay of every slide.
        calibration: With ``out``: a file of ``wsi-ips calibrate``.
        embeddings: With ``out``: store the embeddings of the kept patches.
        workers: With ``out``: processes that work on a slide each.
        on_error: With ``out``: ``report`` a slide that fails and go on, or ``stop``.
        force: With ``out``: replace the results of another run.

    Raises:
        FileError: A slide that is given by itself cannot be used; the error is that of the slide, such as
            :class:`SlideNotFound`, :class:`UnsupportedSlide`, :class:`MissingResolution` or :class:`NoTissue`. In
            a folder, a bad slide is warned of and listed in ``Run.failed``.
        CheckpointError: The model cannot be used.
        ConfigError: Settings are not possible.

    >>> import wsi_ips as wi
    >>> wi.predict("slide.svs", "model.safetensors")
    Result('slide', label: ...)
    >>> wi.predict("slides", "model.safetensors", "run")
    Run('run', 2 slides labelled)
    """
    if out is None:
        given = (calibration, embeddings or None, workers, force or None)
        if any(value is not None for value in given) or on_error != "report":
            raise ConfigError(
                "wsi_ips.predict: calibration, embeddings, workers, on_error and force go with out, the folder "
                "that results are written into"
            )
        _check_one_slide(locate(place_of(slides)))
        loaded = model if isinstance(model, Model) else load(model, device=device)
        return loaded.predict(
            slides, slide_mpp=slide_mpp, patches=patches, allow_upsampling=allow_upsampling, progress=progress
        )
    values: dict[str, Any] = {
        "command": "predict",
        "slides": place_of(slides),
        "checkpoint": model.paths if isinstance(model, Model) else checkpoint_paths(model),
        "out": Path(out),
        "device": str(model.device) if isinstance(model, Model) else device,
        "slide_mpp": slide_mpp,
        "from_coords": patches,
        "tiling": {"allow_upsampling": allow_upsampling},
        "overlays": overlays,
        "calibration": calibration,
        "embeddings": embeddings,
        "batch": {"workers": workers, "on_error": on_error},
        "force": force,
    }
    run_reported(make_job(values, source="wsi_ips.predict"), progress)
    return Run(out)


def _check_one_slide(place: Location) -> None:
    """Raise ConfigError for a folder of slides."""
    if isinstance(place, Path) and place.is_dir() and find_slides(place) != [place]:
        raise ConfigError(
            f"{place} is a folder of slides: name out as well, the folder that results are written into"
        )


def run_reported(job: Job, progress: bool | None) -> Outcome:
    """Run the job of a command. What failed without ending the job is logged as a warning."""
    with shown_progress(progress) as bars:
        outcome = run_job(job, bars)
    for line in outcome.lines:
        if line.startswith(("failed: ", "warning: ")):
            logger.warning("%s", line.partition(": ")[2])
    return outcome
