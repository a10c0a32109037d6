"""What is known of the slides besides the run: a manifest's labels, and lesions that someone outlined."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import shapely

from wsi_ips.config import TaskConfig
from wsi_ips.datasets.annotations import lesion_area
from wsi_ips.datasets.manifest import read_manifest
from wsi_ips.errors import AnnotationError
from wsi_ips.units import Size

BESIDE_A_MANIFEST = ("annotations", "training/lesion_annotations", "testing/lesion_annotations")
"""Where a data set's own folder keeps outlines: of `wsi-ips demo`, of CAMELYON in either layout."""
LEAST_STEP_PX = 1.0
"""Level-0 pixels by which a shown outline may differ from the drawn one: CAMELYON's have a point every few
pixels."""

Rings = list[list[tuple[float, float]]]
"""A polygon in level-0 pixels: its outer ring, then its holes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """labels: {slide_id: {task: the manifest's cell}}. splits: {slide_id: split}. annotations: {slide_id in
    small letters: ASAP XML}."""

    labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    splits: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def read(cls, manifest: Path | None, annotations: Path | None, *, tasks: Sequence[TaskConfig]) -> Self:
        """annotations: folder of ``<slide_id>.xml``; None: those that lie beside the manifest, if any.

        Raises :class:`ManifestError`, :class:`AnnotationError` for no folder.
        """
        if annotations is not None and not annotations.is_dir():
            raise AnnotationError(annotations, "no such folder", "name the folder of <slide_id>.xml")
        folders = [annotations] if annotations is not None else []
        if annotations is None and manifest is not None:
            folders = [manifest.parent / name for name in BESIDE_A_MANIFEST]
        found = {
            path.stem.lower(): path
            for folder in folders
            if folder.is_dir()
            for path in sorted(folder.iterdir())
            if path.suffix.lower() == ".xml"
        }
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
        return slide_id.lower() in self.annotations

    def outlines(self, slide_id: str, l0_size: Size) -> list[Rings]:
        """The lesions, holes cut out; none where nobody outlined any. Raises :class:`AnnotationError`."""
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
