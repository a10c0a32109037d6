"""A run's folder as the viewer sees it (:class:`ViewedRun`): its slides, their status, and where to read them.

Every file that is opened is one that the run names: a slide is looked up in the run's list, and no path is made
from what a browser sends.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from wsi_ips.config import TaskConfig
from wsi_ips.errors import ResultsError, SlideNotFound, WsiIpsError, one_line
from wsi_ips.heatmaps.maps import check_same_slide
from wsi_ips.inference.predictions import PredictionRow, answer_cells, read_predictions
from wsi_ips.inference.results import Probabilities, SlideResult, read_result
from wsi_ips.inference.run_folder import RunFolder, stored_location
from wsi_ips.inference.slide_stamps import stamp_of_slide
from wsi_ips.inference.telemetry import SlideRow, read_slide_table
from wsi_ips.report.summary import answer
from wsi_ips.slides.base import SlideReader
from wsi_ips.slides.registry import open_slide
from wsi_ips.storage.files import many_objects
from wsi_ips.storage.held_folder import read_description
from wsi_ips.storage.location import Location, Url, is_file_name, is_there
from wsi_ips.viewer.tiles import LruCache

LOOK_AGAIN_S = 1.0
"""Seconds for which a slide's files are assumed not to change."""

OPEN_SLIDES = 3
"""Slides that are kept open. Each holds up to 32 MB of decoded tiles."""
READ_RESULTS = 3
"""Results that are cached."""
FEATURES = (".h5", ".pt")
"""Suffixes of the files that ``predict --features`` reads instead of slides."""
_TASKS: TypeAdapter[tuple[TaskConfig, ...]] = TypeAdapter(tuple[TaskConfig, ...])

Status = Literal["ok", "failed", "waiting", "running"]
"""What became of a slide."""


class UnknownSlide(LookupError):
    """A slide that the run does not have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedSlide:
    """One slide of the run.

    ``predicted`` maps tasks to the answer in words. ``path`` is where predict read the slide, if that is known
    without opening its attention.
    """

    slide_id: str
    status: Status
    probabilities: Probabilities
    predicted: Mapping[str, str]
    n_patches: int | None = None
    error: str = ""
    path: str = ""
    has_attention: bool = False


class ViewedRun:
    """One run: what its tables and stored results say, and its slides.

    ``elsewhere`` maps slide ids to where the slides are now; without it they are where predict read them, at URLs
    only with ``open_urls``. ``objects`` is the folder that ``detect`` wrote, by default the run's own, where
    ``detect`` may have written too.

    Raises :class:`ResultsError` if the folder does not exist or holds neither predictions nor attention, or if
    ``objects`` has no objects.
    """

    def __init__(
        self,
        root: Path,
        *,
        elsewhere: Mapping[str, Location] | None = None,
        objects: Path | None = None,
        open_urls: bool = False,
    ) -> None:
        self.folder = RunFolder(root)
        self._objects = (objects or root) / "objects"
        self.name = root.resolve().name or str(root)
        self._elsewhere, self._open_urls = elsewhere, open_urls
        self._listed: LruCache[dict[str, ListedSlide]] = LruCache(1)
        self._told: LruCache[_Told] = LruCache(1)
        self._slides: LruCache[SlideReader] = LruCache(OPEN_SLIDES)
        self._results: LruCache[SlideResult] = LruCache(READ_RESULTS)
        self._stamps: dict[Location, tuple[float, str]] = {}
        self.notes: list[str] = []
        if not root.is_dir():
            raise ResultsError(root, "no such folder", "name the folder that wsi-ips predict wrote")
        if not self.folder.predictions.is_file() and not any(root.glob("attention/*.h5")):
            raise ResultsError(
                root, "holds neither predictions.csv nor attention/*.h5", "name the folder that predict wrote"
            )
        if objects is not None and not self._objects.is_dir():
            raise ResultsError(objects, "holds no objects/", "name the folder that wsi-ips detect wrote")
        self.tasks = self._read_tasks()

    def slides(self) -> Mapping[str, ListedSlide]:
        """Every slide by its id, in the run's order. The tables are read again when they have changed."""
        tables = tuple(file_stamp(path) for path in (self.folder.predictions, self.folder.slides))
        folder = file_stamp(self.folder.root / "attention")
        return self._listed.get((*tables, folder), lambda: self._list(tables))

    def listed(self, slide_id: str) -> ListedSlide:
        """What is known of a slide. Raises :class:`UnknownSlide`."""
        try:
            return self.slides()[slide_id]
        except KeyError:
            raise UnknownSlide(f"the run has no slide {slide_id!r}") from None

    def result(self, slide_id: str) -> SlideResult:
        """The slide's stored attention.

        Raises :class:`UnknownSlide`, and :class:`ResultsError` if none is stored or it cannot be read.
        """
        if not self.listed(slide_id).has_attention:
            raise ResultsError(slide_id, "has no stored attention in this run", "predict it again")
        path = self.folder.attention(slide_id)
        return self._results.get((slide_id, file_stamp(path)), lambda: _lean(read_result(path)))

    def has_objects(self, slide_id: str) -> bool:
        """Whether ``detect`` has processed this slide. Raises :class:`UnknownSlide`."""
        return self._table(slide_id).is_file()

    def objects_table(self, slide_id: str) -> Path:
        """The file with the objects that ``detect`` found.

        Raises :class:`UnknownSlide`, and :class:`ResultsError` if there is no such file.
        """
        path = self._table(slide_id)
        if not path.is_file():
            raise ResultsError(path, "no such table of objects", "run wsi-ips detect on this slide")
        return path

    def _table(self, slide_id: str) -> Path:
        return self._objects / f"{self.listed(slide_id).slide_id}.csv"

    def location(self, slide_id: str) -> Location:
        """Where the slide is.

        Raises :class:`UnknownSlide`, :class:`SlideNotFound` if neither the run nor the user says where it is, and
        the errors of :func:`stored_location` for a URL that may not be opened.
        """
        listed = self.listed(slide_id)
        if self._elsewhere is not None:
            if slide_id not in self._elsewhere:
                raise SlideNotFound(
                    slide_id, "is not among the slides given with --slides", "give their folder"
                )
            return self._elsewhere[slide_id]
        # The table first: a run that went on over moved slides noted where they are, and it is read already.
        path = listed.path or (self.result(slide_id).slide_path if listed.has_attention else "")
        if not path:
            raise SlideNotFound(slide_id, "the run does not say where it was read", "give --slides FOLDER")
        if path.endswith(FEATURES):
            raise SlideNotFound(
                path, "are the features that it was predicted from", "start the viewer with --slides FOLDER"
            )
        return stored_location(path, open_urls=self._open_urls)

    def slide(self, slide_id: str) -> SlideReader:
        """The open slide. Other requests use it as well, so it must not be closed.

        Raises :class:`UnknownSlide`, :class:`SlideNotFound`, the errors of :func:`open_slide`, and
        :class:`ResultsError` if the slide has another size than when it was predicted.
        """
        location = self._there(slide_id)

        def opened() -> SlideReader:
            slide = open_slide(location)
            if self.listed(slide_id).has_attention:
                check_same_slide(slide, self.result(slide_id))
            return slide

        return self._slides.get((slide_id, self._slide_stamp(location)), opened)

    @contextmanager
    def glance(self, slide_id: str) -> Iterator[SlideReader]:
        """Context manager: the slide for a moment, without a place in the cache.

        A list of hundreds of slides must not drive out those that are being looked at. Raises the same errors as
        opening the slide.
        """
        location = self._there(slide_id)
        kept = self._slides.peek((slide_id, self._slide_stamp(location)))
        if kept is not None:
            yield kept
            return
        with open_slide(location) as slide:
            yield slide

    def _slide_stamp(self, location: Location) -> str:
        """The stamp of a slide, of which the files are looked at once for the many tiles of a view."""
        looked_at, stamp = self._stamps.get(location, (0.0, ""))
        if not stamp or time.monotonic() - looked_at >= LOOK_AGAIN_S:
            stamp = slide_stamp(location)
            self._stamps[location] = (time.monotonic(), stamp)
        return stamp

    def _there(self, slide_id: str) -> Location:
        location = self.location(slide_id)
        if not isinstance(location, Url) and not is_there(location):
            raise SlideNotFound(
                location,
                "is not there any more",
                "start the viewer with --slides FOLDER, where the slides are now",
            )
        return location

    def stamp(self, slide_id: str) -> str:
        """Short text that changes whenever the slide, its attention or the run's place does.

        It is part of every tile's address, so that a browser never shows another run's tile.
        """
        try:
            where = self._slide_stamp(self.location(slide_id))
        except WsiIpsError:
            where = ""
        attention = file_stamp(self.folder.attention(slide_id))
        parts = [str(self.folder.root.resolve()), slide_id, where, attention]
        return sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:12]

    def _list(self, tables: tuple[str, ...]) -> dict[str, ListedSlide]:
        # A run that goes on stores a result every other second; its tables are read when they have changed.
        told = self._told.get(tables, self._read_tables)
        stored = _names_of_results(self.folder.root / "attention")
        listed = {
            slide_id: replace(slide, has_attention=True) if slide_id in stored else slide
            for slide_id, slide in told.slides.items()
        }
        for slide_id in sorted(stored - listed.keys()):
            listed[slide_id] = ListedSlide(
                slide_id=slide_id, status="ok", probabilities={}, predicted={}, has_attention=True
            )
        nameless = {slide_id for slide_id in listed if not _is_name(slide_id)}
        self.notes = list(told.notes)
        if nameless:
            self.notes.append(f"slides without a plain name are not shown: {sorted(nameless)[:3]!a}")
        return {slide_id: slide for slide_id, slide in listed.items() if slide_id not in nameless}

    def _read_tables(self) -> "_Told":
        self.notes = []
        with many_objects():
            begun = self._begun()
            listed = {
                row.slide_id: _of_prediction(row, self.tasks, begun.get(row.slide_id))
                for row in self._predicted()
            }
            for slide_id, row in begun.items():
                if slide_id not in listed:
                    listed[slide_id] = ListedSlide(
                        slide_id=slide_id,
                        status=row.status,
                        probabilities={},
                        predicted={},
                        error=row.error,
                        path=row.path,
                    )
        return _Told(listed, self.notes)

    def _predicted(self) -> list[PredictionRow]:
        if not self.folder.predictions.is_file() or not self.tasks:
            return []
        try:
            return read_predictions(self.folder.predictions, tasks=self.tasks)
        except ResultsError as error:
            self.notes.append(f"predictions are not shown: {error}")
            return []

    def _begun(self) -> dict[str, SlideRow]:
        if not self.folder.slides.is_file():
            return {}
        try:
            return read_slide_table(self.folder.slides)
        except ResultsError as error:
            self.notes.append(str(error))
            return {}

    def _read_tasks(self) -> tuple[TaskConfig, ...]:
        """Tasks of the model that made the run; none if ``run.json`` does not say, and then only attention is
        shown.
        """
        try:
            config = read_description(self.folder.description)["config"]
            return _TASKS.validate_python(config["model"]["tasks"])
        except (OSError, ValueError, ValidationError, KeyError, TypeError):
            return ()


@dataclass(frozen=True, slots=True)
class _Told:
    """What the tables of a run say of its slides, and notes on those that could not be read."""

    slides: dict[str, ListedSlide]
    notes: Sequence[str]


def _names_of_results(folder: Path) -> set[str]:
    """The ids of the slides whose attention is stored."""
    try:
        names = os.listdir(folder)  # noqa: PTH208 - a Path for each of 100,000 files takes a second
    except OSError:
        return set()
    return {name.removesuffix(".h5") for name in names if name.endswith(".h5") and name[0] != "."}


def _of_prediction(row: PredictionRow, tasks: tuple[TaskConfig, ...], begun: SlideRow | None) -> ListedSlide:
    predicted = {}
    for task in tasks if row.status == "ok" else ():
        if task.survival is None:
            predicted[task.name] = answer_cells(row.probabilities, [task])[-1]
        elif row.probabilities is not None:  # survival_36 as the last cell would pass for the answer
            predicted[task.name] = answer(task, dict(row.probabilities[task.name]))
    return ListedSlide(
        slide_id=row.slide_id,
        status=row.status,
        probabilities=row.probabilities,
        predicted=predicted,
        n_patches=row.n_patches,
        error=row.error,
        path=begun.path if begun else "",
    )


def _lean(result: SlideResult) -> SlideResult:
    """The result without what is not shown, which takes half of the memory."""
    return replace(result, logits_NHT=result.attention_NHT, kept_emb_MD=None)


def _is_name(slide_id: str) -> bool:
    """Whether an id can be looked for in the run's folder: a table may name anything.

    A file's name that is not UTF-8 cannot be written as an address.
    """
    try:
        slide_id.encode()
    except UnicodeEncodeError:
        return False
    return is_file_name(slide_id)


def slide_stamp(location: Location) -> str:
    """Text that changes when a file of the slide does; for a URL, the URL. Of a folder with more files than
    :data:`wsi_ips.storage.fingerprint.MOST_FILES`, it is the time of the folder alone.
    """
    if isinstance(location, Url):
        return str(location)
    return f"{location} {stamp_of_slide(location) or file_stamp(location)}"


def file_stamp(path: Path) -> str:
    """Time and size of a file or folder as text; empty if it does not exist."""
    try:
        about = path.stat()
    except (OSError, ValueError):
        return ""
    return f"{about.st_mtime_ns}-{about.st_size}"


def complaint(error: Exception) -> str:
    """An error's message in one line."""
    if isinstance(error, WsiIpsError):
        text = str(error)
    elif isinstance(error, LookupError) and error.args:  # str() of a KeyError is quoted
        text = str(error.args[0])
    else:
        text = f"{type(error).__name__}: {error}"
    return one_line(text)
