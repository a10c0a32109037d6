"""How good the predictions of a run are: :func:`evaluate`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from wsi_ips.api.runs import Run, run_reported
from wsi_ips.api.slide import png_in_notebook
from wsi_ips.commands.recipe import make_job
from wsi_ips.errors import ResultsError


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
