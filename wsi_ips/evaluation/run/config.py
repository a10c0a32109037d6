"""What the evaluation of a run may be told."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from wsi_ips.config import Fraction, Section

MOST_RESAMPLES = 1_000_000


class EvaluationConfig(Section):
    """Which predictions are scored against which labels, and how."""

    run: Path
    """The folder that ``predict`` wrote."""
    manifest: Path
    against: Path | None = None
    """The folder of another run on the same slides. Each figure of both is compared on the slides that both have
    predicted."""
    out: Path | None = None
    """None: ``evaluation/`` in ``run``."""
    split: Literal["train", "val", "test", "train+val"] = "test"
    """``train+val``: what a cross-validation held out, fold by fold."""
    task: str | None = None
    """Of a model with several tasks, the one to score; none: all."""
    annotations: Path | None = None
    """Folder of lesion outlines, ``<slide_id>.xml`` (ASAP), for FROC."""
    partly_annotated: bool = False
    """Judge lesions also on slides whose outlines are known to be incomplete: those that CAMELYON16's README
    names, and CAMELYON17's of isolated tumour cells. For another data set that has slides of the same names."""
    detection_radius_um: PositiveFloat | None = None
    """Detections of one slide are farther apart than this; none: 1.5 patch sides."""
    detections: Literal["attention", "contribution"] | None = None
    """What FROC's detections are the maxima of: the figure that is first, ``froc.png`` and ``detections/``. The
    other one is reported beside it where it is there. None: contributions where the head tells them."""
    history: Path | None = None
    """``history.csv`` of the fine-tuning run, for the plot of its losses."""
    pool: Literal["max", "mean", "noisy_or"] = "max"
    """How the slides' probabilities make a patient's."""
    threshold: Fraction = 0.5
    """The probability from which a yes-or-no class is called."""
    threshold_from: Literal["train", "val"] | None = None
    """Choose it on this split instead (largest sensitivity + specificity), for tasks of two classes."""
    risk_groups: Annotated[int, Field(ge=2, le=10)] = 2
    """Groups of risk whose survival is drawn and compared, for survival tasks."""
    bootstrap: Annotated[NonNegativeInt, Field(le=MOST_RESAMPLES)] = 2000
    """Resamples of the cases, for the intervals; 0: none."""
    stratify: bool = True
    """Each resample has as many cases of a class as the split; of survival, as many events."""
    faithfulness: bool = False
    """Remove patches in the order of each map, and watch the prediction: does the map tell what decided? Needs the
    checkpoint, and the embeddings of the kept patches or the slides."""
    checkpoint: Path | None = None
    """The checkpoint of the run, for ``faithfulness``; none: where ``predict`` read it."""
    slides: Path | None = None
    """Where the slides are now, for ``faithfulness``; none: where ``predict`` read them."""
    open_urls: bool = False
    """Open slides at URLs that the run names, for ``faithfulness``."""
    device: str = "auto"
    """Where the network of ``faithfulness`` runs."""
    seed: NonNegativeInt = 0
    """Of the resampling, and of the random orders of ``faithfulness``."""
    plots: bool | None = None
    """None: where matplotlib is installed."""

    @model_serializer(mode="wrap")
    def _without_what_is_not_asked(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        dumped: dict[str, Any] = handler(self)
        if self.against is None:  # so that metrics.json without a comparison is as it was
            dumped.pop("against", None)
        return dumped

    @model_validator(mode="after")
    def _threshold_is_chosen_elsewhere(self) -> Self:
        if self.threshold_from is not None and self.threshold_from in self.split.split("+"):
            raise ValueError(
                f"threshold_from must be another split than the one that is scored, {self.split}"
            )
        return self

    @model_validator(mode="after")
    def _what_the_network_needs(self) -> Self:
        for name in ("checkpoint", "slides", "open_urls"):
            if getattr(self, name) and not self.faithfulness:
                raise ValueError(f"{name} goes with faithfulness: nothing else needs the network")
        return self
