"""What the viewer answers about one run (:class:`RunAnswers`): its slides as JSON, and pictures of them as bytes.

:class:`Truth` is what is known besides the run: labels from a manifest, and outlines of lesions. :data:`LAYERS`
lists what other rooms can draw over a slide.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import shapely

from wsi_ips import __version__
from wsi_ips.config import HeatOptions, TaskConfig
from wsi_ips.datasets.annotations import lesion_area, outlines_in
from wsi_ips.datasets.manifest import read_manifest
from wsi_ips.errors import AnnotationError, ConfigError, WsiIpsError
from wsi_ips.heatmaps.maps import check_finite, outputs_with, task_queries
from wsi_ips.heatmaps.patch_sheet import patch_picture
from wsi_ips.heatmaps.raster import PatchRaster, canvas_size
from wsi_ips.registry import Registry
from wsi_ips.slides.base import SlideInfo, SlideReader
from wsi_ips.units import Size
from wsi_ips.viewer.slide_list import SlideList, described
from wsi_ips.viewer.tiles import (
    TILE_PX,
    LruCache,
    NoSuchTile,
    ShownMap,
    TilePyramid,
    Window,
    encode_jpeg,
    slide_tile,
)
from wsi_ips.viewer.viewed_run import ListedSlide, ViewedRun, complaint, file_stamp

BESIDE_A_MANIFEST = ("annotations", "training/lesion_annotations", "testing/lesion_annotations")
"""Where data sets keep outlines, relative to the manifest: `wsi-ips demo`, and CAMELYON in both layouts."""

LEAST_STEP_PX = 1.0
"""Level-0 pixels by which a shown outline may differ from the original: CAMELYON's have a point every few
pixels.
"""

Rings = list[list[tuple[float, float]]]
"""A polygon in level-0 pixels: its outer ring, then its holes."""

KEPT_MAPS = 8
"""Maps that are cached."""

KEPT_RASTERS = 12
"""Rasters that are cached: a large slide has as many scales; a quarter of a million patches take 8 MB each."""

THUMBNAIL_PX = 128
"""Longest side of a thumbnail."""

MOST_FOR_A_THUMBNAIL_PX = 40_000_000
"""Pixels of a slide's coarsest level above which the slide has no thumbnail, for it would take long to read."""

MOST_PATCHES = 200
"""The most patches in one answer."""


class Layer(Protocol):
    """What a wing of the package draws over a slide, beside its attention."""

    def in_view(self, table: Path, asked: Mapping[str, str]) -> dict[str, Any]:
        """What lies in the part of the slide that the query names, as JSON.

        ``asked`` is the query, ``table`` the slide's file of this layer.

        Raises :class:`ConfigError` for a part that is not possible, and :class:`ResultsError` for a broken file.
        """
        ...


LAYERS: Registry[Callable[[], Layer]] = Registry(
    "layer of the viewer", {"objects": "wsi_ips.nuclei.viewer_layer:FoundObjects"}
)
"""Layers by their name, as ``module:class``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """Labels and outlines of slides.

    ``labels`` maps slide ids to {task: the manifest's cell}, ``splits`` slide ids to splits, and ``annotations``
    slide ids in lower case to ASAP XML files.
    """

    labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    splits: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def read(cls, manifest: Path | None, annotations: Path | None, *, tasks: Sequence[TaskConfig]) -> Self:
        """Read labels from a manifest and find outlines.

        ``annotations`` is a folder of ``<slide_id>.xml``; without it, outlines that lie beside the manifest are
        used, if any. Raises :class:`ManifestError` for a manifest that cannot be used, and
        :class:`AnnotationError` if ``annotations`` is no folder, or holds outlines of a slide twice.
        """
        if annotations is not None and not annotations.is_dir():
            raise AnnotationError(annotations, "no such folder", "name the folder of <slide_id>.xml")
        folders = [annotations] if annotations is not None else []
        if annotations is None and manifest is not None:
            folders = [manifest.parent / name for name in BESIDE_A_MANIFEST]
        found: dict[str, Path] = {}
        for folder in folders:
            found |= outlines_in(folder) if folder.is_dir() else {}
        records = read_manifest(manifest, tasks=tasks, need_slides=False).records if manifest else ()
        return cls(
            labels={
                each.slide_id: {task.name: each.labels.get(task.column_name, "") for task in tasks}
                for each in records
            },
            splits={each.slide_id: each.split for each in records},
            annotations=found,
        )

    def has_outlines(self, slide_id: str) -> bool:
        """Whether the slide has a file of outlines."""
        return slide_id.lower() in self.annotations

    def outlines(self, slide_id: str, l0_size: Size) -> list[Rings]:
        """The slide's lesions with their holes, in level-0 pixels; none if there is no file of outlines.

        Raises :class:`AnnotationError` for a file that cannot be read.
        """
        path = self.annotations.get(slide_id.lower())
        if path is None:
            return []
        area = shapely.simplify(lesion_area(path, l0_size=l0_size), LEAST_STEP_PX)
        return [
            [
                shapely.get_coordinates(ring).round(1).tolist()
                for ring in (polygon.exterior, *polygon.interiors)
            ]
            for polygon in shapely.get_parts(area)
            if not polygon.is_empty
        ]


class RunAnswers:
    """Answers about the slides of one run.

    Every method raises :class:`UnknownSlide` for a slide that the run does not have, and the errors of the files
    that it reads.
    """

    def __init__(self, run: ViewedRun, truth: Truth) -> None:
        self.run = run
        self._truth = truth
        self._maps: LruCache[ShownMap] = LruCache(KEPT_MAPS)
        self._rasters: LruCache[PatchRaster] = LruCache(KEPT_RASTERS)
        self._layers: dict[str, Layer] = {}
        self._slides: tuple[Mapping[str, ListedSlide], SlideList] | None = None

    def slides(self, asked: Mapping[str, str]) -> dict[str, Any]:
        """The page of slides that the query asks for (:meth:`SlideList.page`) with their predictions, and notes on
        files that could not be read.

        Raises :class:`ConfigError` for a page that is not possible.
        """
        slides = self._list()
        page = slides.page(asked)
        return {
            "slides": [self._listed(slide) for slide in page.slides],
            **described(page),
            "unfinished": slides.unfinished,
            "notes": self.run.notes,
        }

    def _list(self) -> SlideList:
        listed = self.run.slides()
        if self._slides is None or self._slides[0] is not listed:
            truth = self._truth
            self._slides = (
                listed,
                SlideList(list(listed.values()), self.run.tasks, truth.labels, truth.splits),
            )
        return self._slides[1]

    def _listed(self, slide: ListedSlide) -> dict[str, Any]:
        return {
            "slide_id": slide.slide_id,
            "status": slide.status,
            "predicted": slide.predicted,
            "probabilities": {
                task: {name: value if math.isfinite(value) else None for name, value in classes.items()}
                for task, classes in slide.probabilities.items()
            },
            "n_patches": slide.n_patches,
            "error": slide.error,
            "labels": self._truth.labels.get(slide.slide_id, {}),
            "split": self._truth.splits.get(slide.slide_id),
            "wrong": self._list().is_wrong(slide),
            "has_attention": slide.has_attention,
        }

    def slide(self, slide_id: str) -> dict[str, Any]:
        """One slide: its size, what can be shown of it, and the reason where something cannot be shown."""
        listed = self.run.listed(slide_id)
        answer = {**self._listed(listed), "v": self.run.stamp(slide_id), "tile_px": TILE_PX}
        answer |= {
            "slide_problem": None,
            "heat_problem": None,
            "l0_size": None,
            "mpp": None,
            "maps": None,
            "bounds": None,
        }
        answer["has_outlines"] = self._truth.has_outlines(slide_id)
        answer["has_objects"] = self.run.has_objects(slide_id)
        if listed.has_attention:
            try:
                answer |= self._attention(slide_id)
            except WsiIpsError as error:
                answer["heat_problem"] = complaint(error)
        try:
            info = self.run.slide(slide_id).info
            answer |= {"vendor": info.vendor, "reader": info.reader, "bounds": _scanned(info)}
            if answer["l0_size"] is None:
                answer |= {"l0_size": list(info.l0_size), "mpp": info.mpp}
        except (WsiIpsError, OSError) as error:
            answer["slide_problem"] = complaint(error)
        return answer

    def _attention(self, slide_id: str) -> dict[str, Any]:
        result = self.run.result(slide_id)
        check_finite(result, result.attention_NHT)
        heads, queries = result.attention_NHT.shape[1:]
        coords, case = result.coords, result.case
        return {
            "l0_size": list(coords.l0_size),
            "mpp": coords.slide_mpp,
            "l0_patch": coords.l0_patch,
            "patch_px": coords.patch_px,
            "patch_mpp": coords.patch_mpp,
            "n_patches": len(coords),
            "n_kept": len(result.kept_ids_M),
            "bad_tiles": len(result.bad_tiles),
            "case": case and {**case.to_json(), "share": case.share if math.isfinite(case.share) else None},
            "maps": {
                "heads": heads,
                "queries": queries,
                "task_queries": dict(task_queries(result)),
                "contributions": [list(output) for output in outputs_with(result, "contribution")],
                "gradients": [list(output) for output in outputs_with(result, "gradient")],
            },
        }

    def map(self, slide_id: str, choice: HeatOptions) -> ShownMap:
        """The map of a slide. Raises :class:`ConfigError` for a map that the slide does not have."""
        result = self.run.result(slide_id)
        stamp = file_stamp(self.run.folder.attention(slide_id))
        return self._maps.get((slide_id, stamp, choice), lambda: ShownMap.of(result, choice))

    def top_patches(self, slide_id: str, choice: HeatOptions, asked: Mapping[str, str]) -> dict[str, Any]:
        """The patches with the largest values; ``top`` in the query says how many (24).

        Raises :class:`ConfigError` for a number that is not 1 to 200.
        """
        text = asked.get("top", "24")
        if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MOST_PATCHES):
            raise ConfigError(f"top {text[:20]!r} must be 1 to {MOST_PATCHES}")
        shown = self.map(slide_id, choice)
        return {
            "l0_patch": shown.coords.l0_patch,
            "map": shown.heat.kind,
            "class": shown.heat.output[1] if shown.heat.output else None,
            "patches": shown.top_patches(int(text)),
        }

    def value(self, slide_id: str, choice: HeatOptions, asked: Mapping[str, str]) -> dict[str, Any]:
        """The raw value at the level-0 point ``x``, ``y`` of the query.

        Raises :class:`ConfigError` if it names no point.
        """
        try:
            l0_x, l0_y = float(asked["x"]), float(asked["y"])
        except (KeyError, ValueError):
            l0_x = l0_y = math.nan
        if not (math.isfinite(l0_x) and math.isfinite(l0_y)):
            raise ConfigError("give x and y, level-0 pixels")
        return {"l0_x": l0_x, "l0_y": l0_y, "held": self.map(slide_id, choice).value_at(l0_x, l0_y)}

    def outlines(self, slide_id: str) -> dict[str, Any]:
        """The slide's lesions as polygons of level-0 points."""
        l0_size = self._pyramid(slide_id).l0_size
        return {"polygons": self._truth.outlines(slide_id, l0_size)}

    def _layer(self, name: str) -> Layer:
        if name not in self._layers:
            self._layers[name] = LAYERS.load(name)()
        return self._layers[name]

    def objects(self, slide_id: str, asked: Mapping[str, str]) -> dict[str, Any]:
        """What ``detect`` found in the part of the slide that the query names."""
        return self._layer("objects").in_view(self.run.objects_table(slide_id), asked)

    def slide_tile(self, slide_id: str, level: int, col: int, row: int) -> bytes:
        """A tile of the slide as JPEG. Raises :class:`NoSuchTile` for an address outside the slide."""
        window = self._pyramid(slide_id).window(level, col, row)
        return slide_tile(self.run.slide(slide_id), window)

    def heat_tile(self, slide_id: str, choice: HeatOptions, level: int, col: int, row: int) -> bytes:
        """A tile of a map as PNG. Raises :class:`NoSuchTile` for an address outside the slide."""
        window = self._pyramid(slide_id).window(level, col, row)
        shown = self.map(slide_id, choice)
        halvings = shown.halvings(window.l0_per_px)
        scale = window.l0_per_px / 2**halvings
        key = (slide_id, file_stamp(self.run.folder.attention(slide_id)), scale)
        return shown.tile(window, self._rasters.get(key, lambda: shown.raster(scale)), halvings)

    def thumbnail(self, slide_id: str) -> bytes:
        """The whole slide, small, as JPEG. Raises :class:`NoSuchTile` if it would take long to read."""
        with self.run.glance(slide_id) as slide:
            coarsest = min(slide.info.levels, key=lambda level: level.size[0])
            if math.prod(coarsest.size) > MOST_FOR_A_THUMBNAIL_PX:
                raise NoSuchTile(f"{slide_id} has no level that is coarse enough")
            l0_per_px = max(1.0, max(slide.info.l0_size) / THUMBNAIL_PX)
            size_px = canvas_size(slide.info.l0_size, l0_per_px)
            return slide_tile(slide, Window((0, 0), size_px, l0_per_px))

    def patch(self, slide_id: str, patch_id: int) -> bytes:
        """One patch's footprint as JPEG. Raises :class:`NoSuchTile` for a patch that the slide does not have."""
        coords = self.run.result(slide_id).coords
        rows = np.flatnonzero(coords.ids_N == patch_id)
        if not len(rows):
            raise NoSuchTile(f"{slide_id} has no patch {patch_id}")
        l0_x, l0_y = coords.l0_xy_N2[rows[0]].tolist()
        return encode_jpeg(patch_picture(self.run.slide(slide_id), (l0_x, l0_y), coords.l0_patch))

    def _pyramid(self, slide_id: str) -> TilePyramid:
        """The tile addresses of a slide; its size is that with which it was predicted, if it was."""
        if self.run.listed(slide_id).has_attention:
            return TilePyramid(self.run.result(slide_id).coords.l0_size)
        slide: SlideReader = self.run.slide(slide_id)
        return TilePyramid(slide.info.l0_size)


def _scanned(info: SlideInfo) -> list[int] | None:
    """Left, top, width and height of the scanned area, if the file says which part of the slide was scanned."""
    if info.bounds is None:
        return None
    return [info.bounds.l0_x, info.bounds.l0_y, info.bounds.l0_width, info.bounds.l0_height]


def describe_runs(runs: Sequence[RunAnswers]) -> dict[str, Any]:
    """The runs with their tasks, which the page asks for first."""
    return {
        "version": __version__,
        "runs": [
            {"name": each.run.name, "path": str(each.run.folder.root), "tasks": _tasks(each.run.tasks)}
            for each in runs
        ],
    }


def _tasks(tasks: Sequence[TaskConfig]) -> list[dict[str, Any]]:
    return [
        {"name": task.name, "classes": list(task.classes), "activation": task.activation} for task in tasks
    ]
