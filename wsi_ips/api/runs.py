"""Runs from Python: :func:`train`, :func:`predict` and :func:`evaluate`.

:func:`train` learns from the slide labels of a manifest. :func:`predict` labels one slide in memory, or a
folder of slides into the folder of a :class:`Run`, which :func:`evaluate` scores.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, overload

from PIL import Image

from wsi_ips.api.model import Model, checkpoint_paths, load
from wsi_ips.api.patches import tiling_of
from wsi_ips.api.progress import shown_progress
from wsi_ips.api.result import Result
from wsi_ips.api.slide import AnySlide, place_of, png_in_notebook
from wsi_ips.commands.options import Outcome
from wsi_ips.commands.recipe import Job, as_section, load_recipe, make_job, run_job
from wsi_ips.config import FinetuneConfig, TaskConfig, Turns
from wsi_ips.errors import ConfigError, ResultsError, count
from wsi_ips.evaluation.plots import draw_history, read_history
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
        return f"Run({str(self.folder)!r}, {count(len(self), 'slide')} labelled{failed})"


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
    turns: Turns | None = None,
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
    turns: Turns | None = None,
    device: str = "auto",
    progress: bool | None = None,
    overlays: bool = True,
    calibration: Path | str | None = None,
    coords: Path | str | None = None,
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
    turns: Turns | None = None,
    device: str = "auto",
    progress: bool | None = None,
    overlays: bool = True,
    calibration: Path | str | None = None,
    coords: Path | str | None = None,
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
        turns: In how many orientations the kept patches are read: 1, 4 or 8. None: as the model was trained.
        device: ``auto`` takes a GPU if there is one. A loaded model stays on its own device.
        progress: Whether to show bars. None shows them in notebooks.
        overlays: With ``out``: draw the overlay of every slide.
        calibration: With ``out``: a file of ``wsi-ips calibrate``.
        coords: With ``out``: a folder in which coordinates are kept, as ``wsi-ips tile`` writes it. Those that fit
            are found there, the others are made and stored there.
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
        _check_none_is_for_out(calibration, coords, embeddings, workers, on_error != "report", force)
        _check_one_slide(locate(place_of(slides)))
        loaded = model if isinstance(model, Model) else load(model, device=device)
        return loaded.predict(
            slides, slide_mpp=slide_mpp, patches=patches, allow_upsampling=allow_upsampling, turns=turns,
            progress=progress,
        )  # fmt: skip
    values: dict[str, Any] = {
        "command": "predict",
        "slides": place_of(slides),
        "checkpoint": model.paths if isinstance(model, Model) else checkpoint_paths(model),
        "out": Path(out),
        "device": str(model.device) if isinstance(model, Model) else device,
        "slide_mpp": slide_mpp,
        "from_coords": patches,
        "coords": coords,
        "tiling": {"allow_upsampling": allow_upsampling},
        "selection": {"turns": turns},
        "overlays": overlays,
        "calibration": calibration,
        "embeddings": embeddings,
        "batch": {"workers": workers, "on_error": on_error},
        "force": force,
    }
    run_reported(make_job(values, source="wsi_ips.predict"), progress)
    return Run(out)


def _check_none_is_for_out(*given: object) -> None:
    """Raise :class:`ConfigError` if something is given that only a run with a folder has."""
    if any(value is not None and value is not False for value in given):
        raise ConfigError(
            "wsi_ips.predict: calibration, coords, embeddings, workers, on_error and force go with out, the "
            "folder that results are written into"
        )


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


BEST_NAME, HISTORY_NAME = "model.safetensors", "history.csv"
"""Files in the folder of a training: the checkpoint of the best epoch, and the history."""


@dataclass(frozen=True, slots=True)
class Training:
    """What :func:`wsi_ips.train` left in ``folder``. In a notebook its losses are shown.

    Attributes:
        folder: The folder of the run.
        checkpoint: The checkpoint of the best epoch.
        history: ``{column: one value per epoch}``, e.g. ``train_loss``, ``val_loss``.
    """

    folder: Path
    checkpoint: Path
    history: Mapping[str, Sequence[float]]

    def load(self, *, device: str = "auto") -> Model:
        """The model of the best epoch, to label slides with."""
        return load(self.checkpoint, device=device)

    def picture(self) -> Image.Image:
        """The losses by epoch as a PIL image. Raises :class:`ConfigError` if matplotlib is not installed."""
        with TemporaryDirectory() as folder:
            path = Path(folder) / "loss.png"
            draw_history(path, self.history, title=f"losses of {self.folder.name}")
            with Image.open(path) as image:
                return image.convert("RGB")

    def __repr__(self) -> str:
        epochs = len(self.history["epoch"])
        counted = f"{epochs} epoch{'s' if epochs > 1 else ''}"
        return f"Training({str(self.folder)!r}, {counted}, checkpoint {self.checkpoint})"

    def _repr_png_(self) -> bytes | None:
        return png_in_notebook(self.picture)


def train(
    manifest: Path | str,
    out: Path | str,
    *,
    config: FinetuneConfig | Mapping[str, Any] | Path | str | None = None,
    slides: Path | str | None = None,
    features: Path | str | None = None,
    patches: Path | str | None = None,
    coords: Path | str | None = None,
    encoder: str | None = None,
    weights: Path | str | None = None,
    px: int | None = None,
    mpp: float | None = None,
    mag: float | None = None,
    epochs: int | None = None,
    slide_mpp: float | None = None,
    device: str = "auto",
    restart: bool = False,
    progress: bool | None = None,
) -> Training:
    """Fine-tune an encoder, selection and attention from slide labels, as ``wsi-ips finetune`` does.

    Bad slides are left out with a warning.

    Args:
        manifest: A CSV with the columns ``slide_id,case_id,label,split,path``.
        out: The folder of the run. One that was stopped is continued, or with ``restart`` begun anew.
        config: All settings: a :class:`wsi_ips.FinetuneConfig`, the path of a recipe, or a mapping as in a
            recipe. The other arguments override it.
        slides: The folder that the paths in the manifest are relative to.
        features: A folder of stored features to learn from instead of the slides.
        patches: A folder of coordinates (CLAM, TRIDENT, ``wsi-ips tile``), used instead of a search for tissue.
        coords: A folder in which coordinates are kept, as ``wsi-ips tile`` writes it (``out/coords``). Those that
            fit are found there, the others are made and stored there.
        encoder, weights: The patch encoder, see :class:`wsi_ips.Encoder`.
        px, mpp, mag: Its patches, see :func:`wsi_ips.tile`.
        epochs: How often every slide is learned from.
        slide_mpp: Resolution of the slides in µm per pixel, used instead of what the files state.
        device: ``auto`` takes a GPU if there is one.
        restart: Begin anew in a folder that holds a run.
        progress: Whether to show bars. None shows them in notebooks.

    Raises:
        ManifestError: The manifest cannot be used.
        ConfigError: Settings are not possible; the message names the setting.
        CheckpointError: Weights cannot be used.
        TrainingError: Training cannot go on.

    >>> import wsi_ips as wi
    >>> training = wi.train("labels.csv", "trained", config="small.yaml", epochs=1, device="cpu")
    >>> training
    Training('trained', 1 epoch, checkpoint trained/model.safetensors)
    >>> training.load(device="cpu").tasks[0].classes
    ('normal', 'tumor')
    """
    values = _settings(config)
    if values.get("folds") is not None:
        raise ConfigError("wsi_ips.train: trains once; cross-validate with wsi-ips finetune --folds")
    model = dict(_section(values, "model"))
    chosen = _given(name=encoder, weights=None if weights is None else str(weights))
    model["encoder"] = {**_encoder(model), **chosen}
    tiling = _sizes(px=px, mpp=mpp, mag=mag)
    training = {} if epochs is None else {"epochs": epochs}
    given = _given(
        slides_root=slides, features=features, from_coords=patches, coords=coords, slide_mpp=slide_mpp
    )
    job = make_job(
        {
            **values,
            **given,
            "command": "finetune",
            "manifest": Path(manifest),
            "out": Path(out),
            "model": model,
            "tiling": {**_section(values, "tiling"), **tiling},
            "training": {**_section(values, "training"), **training},
            "device": device,
            "restart": restart,
        },
        source="wsi_ips.train",
    )
    run_reported(job, progress)
    folder = Path(out)
    return Training(folder, folder / BEST_NAME, read_history(folder / HISTORY_NAME))


def _given(**arguments: Any) -> dict[str, Any]:
    """The arguments that are not None."""
    return {name: value for name, value in arguments.items() if value is not None}


def _settings(config: FinetuneConfig | Mapping[str, Any] | Path | str | None) -> dict[str, Any]:
    if config is None:
        return {}
    if isinstance(config, FinetuneConfig):
        return {name: getattr(config, name) for name in FinetuneConfig.model_fields}
    if isinstance(config, Mapping):
        return dict(config)
    return load_recipe(Path(config))


def _section(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A section of the settings as a mapping, whatever it is given as."""
    section = values.get(name)
    try:
        return dict(section or {})
    except (TypeError, ValueError):
        raise ConfigError(f"wsi_ips.train: {name!r} is a value, not a section") from None


def _encoder(model: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the encoder. A recipe may give its name alone."""
    encoder = as_section("model.encoder", model.get("encoder"))
    return _section({"encoder": encoder}, "encoder")


def _sizes(*, px: int | None, mpp: float | None, mag: float | None) -> dict[str, Any]:
    tiling = tiling_of("wsi_ips.train", px=px, mpp=mpp, mag=mag)
    given = {"patch_px": px is not None, "patch_mpp": mpp is not None or mag is not None}
    return {name: getattr(tiling, name) for name, wanted in given.items() if wanted}


@dataclass(frozen=True, slots=True)
class Scores:
    """What :func:`wsi_ips.evaluate` found. In a notebook the first ROC curve is shown.

    Attributes:
        folder: Where tables and plots are.
        metrics: All figures, as in ``metrics.json``.
        summary: The main figures in words, one line each.
        against: The comparison with another run, as in ``against.json``. None if none was asked for.
    """

    folder: Path
    metrics: Mapping[str, Any]
    summary: Sequence[str]
    against: Mapping[str, Any] | None = None

    def picture(self) -> Image.Image:
        """The first ROC curve as a PIL image. Raises :class:`ResultsError` if none was drawn."""
        drawn = sorted(self.folder.glob("roc*.png"))
        if not drawn:
            raise ResultsError(
                self.folder, "holds no ROC curve", "evaluate with plots=True a task of classes"
            )
        with Image.open(drawn[0]) as image:
            return image.convert("RGB")

    def __repr__(self) -> str:
        return "\n".join(self.summary)

    def _repr_png_(self) -> bytes | None:
        return png_in_notebook(self.picture)


def evaluate(
    run: Run | Path | str,
    manifest: Path | str,
    *,
    against: Run | Path | str | None = None,
    out: Path | str | None = None,
    split: Literal["train", "val", "test", "train+val"] = "test",
    task: str | None = None,
    annotations: Path | str | None = None,
    pool: Literal["max", "mean", "noisy_or"] = "max",
    threshold: float = 0.5,
    bootstrap: int = 2000,
    seed: int = 0,
    plots: bool | None = None,
    progress: bool | None = None,
) -> Scores:
    """Score a run against the labels of a manifest, with intervals over cases, as ``wsi-ips evaluate`` does.

    Slides that cannot be scored are warned of.

    Args:
        run: A run of :func:`wsi_ips.predict`, or its folder.
        manifest: A CSV with the columns ``slide_id,case_id,label,split,path``.
        against: Another run. Each figure of both is compared on the slides that both have predicted.
        out: Folder for tables and plots. None: ``evaluation/`` in the run.
        split: Which slides are scored.
        task: The task to score, if there are several.
        annotations: A folder of lesion outlines (``<slide_id>.xml``, ASAP), which adds FROC.
        pool: How the probabilities of slides are pooled to that of a patient.
        threshold: A yes-or-no class with this probability or more is called.
        bootstrap: Resamples for the intervals. 0: none.
        seed: Seed of the resampling.
        plots: Whether to draw PNGs. None draws them if matplotlib is installed.
        progress: Whether to show bars. None shows them in notebooks.

    Raises:
        ResultsError: The run cannot be used.
        ManifestError: The manifest cannot be used.
        ConfigError: Settings are not possible.

    >>> import wsi_ips as wi
    >>> run = wi.predict("slides", "model.safetensors", "run")
    >>> scores = wi.evaluate(run, "labels.csv", bootstrap=0, plots=False)
    >>> print(scores)
    label: AUC ...
    2 of 2 slides of split test scored; see run/evaluation
    >>> sorted(scores.metrics["tasks"])
    ['label']
    """
    run_folder = run.folder if isinstance(run, Run) else Path(run)
    folder = run_folder / "evaluation" if out is None else Path(out)
    values = {
        "command": "evaluate",
        "run": run_folder,
        "manifest": manifest,
        "against": against.folder if isinstance(against, Run) else against,
        "out": folder,
        "split": split,
        "task": task,
        "annotations": annotations,
        "pool": pool,
        "threshold": threshold,
        "bootstrap": bootstrap,
        "seed": seed,
        "plots": plots,
    }
    job = make_job(values, source="wsi_ips.evaluate")
    outcome = run_reported(job, progress)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    compared = None
    if against is not None:
        compared = json.loads((folder / "against.json").read_text(encoding="utf-8"))
    return Scores(folder, metrics, tuple(outcome.lines), compared)
