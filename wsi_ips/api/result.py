"""What a model says of one slide (:class:`Result`), and its picture (:func:`overlay`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from shapely import Polygon

from wsi_ips.api.slide import AnySlide, png_in_notebook, reading
from wsi_ips.commands.overlay import OverlayJob
from wsi_ips.commands.recipe import make_job
from wsi_ips.config import HeatOptions
from wsi_ips.errors import ConfigError
from wsi_ips.heatmaps.maps import attention_map, query_of_task
from wsi_ips.heatmaps.overlay import draw_overlay, write_overlay
from wsi_ips.inference.results import Probabilities, SlideResult, read_result, write_result
from wsi_ips.inference.run_folder import stored_location

NOTEBOOK_PX = 1024
"""Longer side, in pixels, of the overlay that a notebook shows of a result."""


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What a model says of one slide, as :func:`wsi_ips.predict` returns it. In a notebook its overlay is shown.

    Attributes:
        stored: Everything that is written into the HDF5 file of a run: logits and attention of every head and
            query, kept patches, contributions, bad tiles.

    >>> import wsi_ips as wi
    >>> result = wi.predict("slide.svs", "model.safetensors")
    >>> result
    Result('slide', label: ...)
    >>> result.xy.shape, result.attention().shape, result.kept.shape
    ((44, 2), (44,), (4,))
    >>> result.save("results/slide.h5")
    >>> wi.Result.read("results/slide.h5").probabilities == result.probabilities
    True
    """

    stored: SlideResult

    @classmethod
    def read(cls, path: Path | str) -> "Result":
        """Read what :meth:`save` or a run (``attention/<slide_id>.h5``) wrote. Raises :class:`ResultsError` for
        other files.
        """
        return cls(read_result(Path(path)))

    def save(self, path: Path | str, *, embeddings: bool = False) -> None:
        """Write the result as HDF5, completely or not at all. ``embeddings`` also stores those of the kept
        patches.
        """
        write_result(Path(path), self.stored, embeddings=embeddings)

    @property
    def slide_id(self) -> str:
        """What the slide is called."""
        return self.stored.coords.slide_id

    @property
    def probabilities(self) -> Probabilities:
        """``{task: {class: probability}}``, not calibrated. For a regression task, the predicted numbers."""
        return self.stored.probabilities

    @property
    def spread(self) -> Probabilities:
        """``{task: {class: standard deviation}}`` over several models; empty for one."""
        return self.stored.spread

    @property
    def xy(self) -> NDArray[np.int64]:
        """(N, 2) int64: top-left corners (x, y) of the patches that have attention, in level-0 pixels."""
        return self.stored.coords.l0_xy_N2

    @property
    def side(self) -> float:
        """Side of a patch in level-0 pixels. It need not be an integer."""
        return self.stored.coords.l0_patch

    @property
    def kept(self) -> NDArray[np.int64]:
        """(M,) int64: the rows of :attr:`xy` that the label was read from, in the order of the memory of the
        model.
        """
        ids_N = self.stored.coords.ids_N
        order_N = np.argsort(ids_N)  # a file may hold them in any order
        rows_M: NDArray[np.int64] = order_N[np.searchsorted(ids_N, self.stored.kept_ids_M, sorter=order_N)]
        return rows_M

    def attention(self, task: str | None = None, *, head: int | None = None) -> NDArray[np.float32]:
        """The share of the attention that each patch has, (N,) float32. It sums to 1 over the slide.

        Args:
            task: Attention for this task. None: the mean over all.
            head: Attention of this head. None: the mean over all.

        Raises:
            ConfigError: There is no such task or head.
        """
        query = None if task is None else query_of_task(self.stored, task)
        return attention_map(self.stored, query=query, head=head)

    def contribution(self, class_name: str, task: str | None = None) -> NDArray[np.float32]:
        """What each patch adds to a class, (N,) float32 in logits; 0 for patches that were not kept.

        Args:
            class_name: The class.
            task: The task that it belongs to. None: the first.

        Raises:
            ConfigError: There is no such class, or the model cannot tell (``model.attention: paper``).
        """
        task = next(iter(self.probabilities)) if task is None else task
        try:
            return self.stored.contribution(task, class_name)
        except KeyError as error:
            raise ConfigError(f"{self.slide_id}: {error.args[0]}") from None

    def gradient(self, class_name: str, task: str | None = None) -> NDArray[np.float32]:
        """Gradient times input of each patch for a class, (N,) float32 in logits; 0 for patches not kept.

        Only runs of ``wsi-ips predict --explain gradient`` hold it (docs/heatmaps.md).

        Args:
            class_name: The class.
            task: The task that it belongs to. None: the first.

        Raises:
            ConfigError: There is no such class, or the result does not hold gradients.
        """
        task = next(iter(self.probabilities)) if task is None else task
        try:
            return self.stored.gradient(task, class_name)
        except KeyError as error:
            raise ConfigError(f"{self.slide_id}: {error.args[0]}") from None

    def __repr__(self) -> str:
        return f"Result({self.slide_id!r}, {in_words(self.probabilities)})"

    def _repr_png_(self) -> bytes | None:
        return png_in_notebook(lambda: overlay(self, side_px=NOTEBOOK_PX))


def in_words(probabilities: Probabilities) -> str:
    """Every task with its likeliest three classes, as a text."""
    return "; ".join(f"{task}: {_classes(classes)}" for task, classes in probabilities.items())


def _classes(classes: Mapping[str, float]) -> str:
    likeliest = sorted(classes.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {value:.3f}" for name, value in likeliest[:3]) + (
        ", …" if len(classes) > 3 else ""
    )


def overlay(
    result: Result | SlideResult | Path | str,
    slide: AnySlide | None = None,
    *,
    out: Path | str | None = None,
    outlines: Sequence[Polygon] = (),
    **options: Any,
) -> Image.Image:
    """Draw a result over its slide, with a legend: what each patch adds to a class, or where the model looked.

    Args:
        result: A result of :func:`wsi_ips.predict`, or the HDF5 file of a run.
        slide: The slide. By default the one that the result names; a URL is opened only if it is given here.
        out: A PNG to write as well, the same that ``wsi-ips overlay`` writes.
        options: ``side_px`` (2048), ``alpha`` (0.5), ``kind`` (``contribution`` if the model can tell, else
            ``attention``; or ``gradient``), ``task``, ``class_name``, ``query``, ``head``, ``colormap``,
            ``scale``, ``low``, ``high``, as for the command (docs/heatmaps.md).
        outlines: Polygons in level-0 pixels, drawn as thin lines.

    Returns:
        A PIL image, whose ``info`` says what it shows.

    Raises:
        ConfigError: Options are not possible.
        ResultsError: The result cannot be read, or belongs to another slide.
        FileError: The slide cannot be opened or read; the error is that of the reader.

    >>> import wsi_ips as wi
    >>> result = wi.predict("slide.svs", "model.safetensors")
    >>> image = wi.overlay(result, side_px=512, out="overlay.png")
    >>> image.info["shown"]
    'Contribution to tumor, task label'
    """
    shown = result if isinstance(result, SlideResult) else _of(result).stored
    checked = _checked(options)
    where = stored_location(shown.slide_path, open_urls=False) if slide is None else slide
    with reading(where) as reader:
        drawn = draw_overlay(reader, shown, checked, outlines=outlines)
        if out is not None:
            write_overlay(Path(out), reader, shown, checked, outlines=outlines)
    drawn.image.info.update(drawn.facts)
    return drawn.image


def _checked(options: Mapping[str, Any]) -> HeatOptions:
    """The options, checked as the command does it. Options that only attention has select attention."""
    values = {
        "map" if name == "kind" else name: value for name, value in options.items() if value is not None
    }
    job = make_job({"command": "overlay", "run": ".", **values}, source="wsi_ips.overlay")
    assert isinstance(job, OverlayJob)
    return job.heat


def _of(result: Result | Path | str) -> Result:
    return result if isinstance(result, Result) else Result.read(result)
