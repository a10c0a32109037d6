"""Detection in a slide's patches, each object once: :func:`detect_in_slide`.

Every patch is read with a margin around it, so that an object on a border is seen whole from both sides. A patch
reports objects whose centre lies in it or a little beyond, because two patches place a centre on their border
slightly differently and might both leave the object to the other. If an object is reported twice, the one with the
higher score is kept. Masks become polygons (:func:`mask_polygons`).

Shape suffixes: N patches or objects, n patches of a chunk, P pixels of a mask's side.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
import shapely
import torch
from numpy.typing import NDArray
from shapely import Polygon
from skimage import measure
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import paste_masks_in_image

from wsi_ips.config import StreamingConfig
from wsi_ips.nuclei.config import DetectorConfig
from wsi_ips.slides.base import SlideReader
from wsi_ips.streaming.stream import PatchStream
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.units import Mpp

INSIDE = 0.5
"""Value of a mask's pixel that belongs to the object, at least."""

TOLERANCE_PX = 0.5
"""Pixels by which a simplified outline may differ from the mask's."""

MARGIN_PX = 32
"""Margin around a patch in the detector's pixels: more than half of what it looks for."""

SLACK_PX = 8
"""How far beyond its patch an object's centre may lie, in the detector's pixels."""


@dataclass(frozen=True, slots=True, eq=False)
class FoundObjects:
    """The objects found in a slide.

    ``l0_boxes_N4``, float64, holds left, top, right and bottom in level-0 pixels, ``scores_N``, float64, the
    scores, and ``classes_N``, int64, indices of the detector's classes. ``l0_outlines_N`` are shapely polygons, or
    None for a detector without masks.
    """

    l0_boxes_N4: NDArray[np.float64]
    scores_N: NDArray[np.float64]
    classes_N: NDArray[np.int64]
    l0_outlines_N: NDArray[np.object_] | None = None

    def __len__(self) -> int:
        return len(self.scores_N)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> "FoundObjects":
        """The objects in these rows, or where the mask is True."""
        outlines = None if self.l0_outlines_N is None else self.l0_outlines_N[rows]
        return FoundObjects(self.l0_boxes_N4[rows], self.scores_N[rows], self.classes_N[rows], outlines)

    @classmethod
    def joined(cls, parts: Iterable["FoundObjects"]) -> "FoundObjects":
        """Objects of several parts, one after the other.

        If some have outlines, the others get their boxes as outlines.
        """
        every = [cls(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64)), *parts]
        outlined = any(part.l0_outlines_N is not None for part in every)
        return cls(
            np.concatenate([part.l0_boxes_N4 for part in every]),
            np.concatenate([part.scores_N for part in every]),
            np.concatenate([part.classes_N for part in every]),
            np.concatenate([part._outlines() for part in every]) if outlined else None,
        )

    def _outlines(self) -> NDArray[np.object_]:
        return box_polygons(self.l0_boxes_N4) if self.l0_outlines_N is None else self.l0_outlines_N


def detect_in_slide(
    detector: nn.Module,
    slide: SlideReader,
    coords: PatchCoords,
    config: DetectorConfig,
    *,
    streaming: StreamingConfig,
    device: torch.device,
    margin_px: int = MARGIN_PX,
) -> tuple[FoundObjects, list[str]]:
    """What a detector in eval mode finds in these patches, best score first, and the unreadable tiles.

    Raises :class:`SlideReadError` if the slide cannot be read, or too many of its tiles are bad.
    """
    wider = patches_with_margin(coords, mpp=Mpp(config.mpp), margin_px=margin_px)
    stream = PatchStream(slide, wider, config=streaming, device=device)
    found = FoundObjects.joined(_in_patches(detector, stream, coords, wider))
    once = without_doubles(found, overlap=config.overlap_threshold)
    return once.take(_centred_in_any(once, coords)), stream.telemetry.bad_tiles


def patches_with_margin(coords: PatchCoords, *, mpp: Mpp, margin_px: int = MARGIN_PX) -> PatchCoords:
    """The same patches at ``mpp`` µm per pixel, each with a margin of ``margin_px`` pixels around it."""
    l0_per_px = mpp / coords.slide_mpp
    patch_px = ceil(coords.l0_patch / l0_per_px - 1e-6) + 2 * margin_px
    return replace(
        coords,
        patch_px=patch_px,
        patch_mpp=mpp,
        overlap_px=0,
        l0_patch=patch_px * l0_per_px,
        l0_xy_N2=np.floor(coords.l0_exact_corners() - margin_px * l0_per_px).astype(np.int64),
    )


@torch.no_grad()
def _in_patches(
    detector: nn.Module, stream: PatchStream, coords: PatchCoords, wider: PatchCoords
) -> Iterator[FoundObjects]:
    l0_starts_N2 = coords.l0_exact_corners()
    l0_per_px = wider.l0_patch / wider.patch_px
    for chunk in stream:
        outputs: list[dict[str, Tensor]] = detector(list(chunk.pixels_n3PP.float() / 255))
        rows = coords.rows(chunk.ids_n.numpy())
        for row, l0_xy_2, output in zip(rows.tolist(), chunk.l0_xy_n2.numpy(), outputs, strict=True):
            found = _as_objects(output, l0_xy_2, l0_per_px)
            slack = SLACK_PX * l0_per_px
            inside = _centred_in(found, l0_starts_N2[row] - slack, coords.l0_patch + 2 * slack)
            rows_n = np.flatnonzero(inside & (found.classes_N >= 0))
            # Outlines take the time that they take: of those that are told only.
            yield replace(found.take(rows_n), l0_outlines_N=_outlines(output, rows_n, l0_xy_2, l0_per_px))


def _as_objects(output: dict[str, Tensor], l0_xy_2: NDArray[np.int64], l0_per_px: float) -> FoundObjects:
    """torchvision's boxes in a patch with this corner, in level-0 pixels; its class 0, background, becomes -1."""
    l0_boxes_N4 = output["boxes"].cpu().numpy().astype(np.float64) * l0_per_px + np.tile(l0_xy_2, 2)
    return FoundObjects(
        l0_boxes_N4, output["scores"].cpu().numpy().astype(np.float64), output["labels"].cpu().numpy() - 1
    )


def _outlines(
    output: dict[str, Tensor], rows_n: NDArray[np.int64], l0_xy_2: NDArray[np.int64], l0_per_px: float
) -> NDArray[np.object_] | None:
    if "box_masks" not in output:
        return None
    rows = torch.from_numpy(rows_n).to(output["boxes"].device)
    polygons = mask_polygons(output["box_masks"][rows], output["boxes"][rows])
    return np.asarray(shapely.transform(polygons, lambda px: px * l0_per_px + l0_xy_2), object)


def _centred_in(found: FoundObjects, l0_start_2: NDArray[np.float64], l0_side: float) -> NDArray[np.bool_]:
    l0_centres_N2 = (found.l0_boxes_N4[:, :2] + found.l0_boxes_N4[:, 2:]) / 2
    return np.asarray(((l0_centres_N2 >= l0_start_2) & (l0_centres_N2 < l0_start_2 + l0_side)).all(axis=1))


def _centred_in_any(found: FoundObjects, coords: PatchCoords) -> NDArray[np.bool_]:
    """Which objects have their centre in one of the patches, and on the slide."""
    l0_starts_N2 = coords.l0_exact_corners()
    patches = shapely.box(*l0_starts_N2.T, *(l0_starts_N2 + coords.l0_patch).T)
    l0_centres_N2 = (found.l0_boxes_N4[:, :2] + found.l0_boxes_N4[:, 2:]) / 2
    inside = np.zeros(len(found), np.bool_)
    inside[shapely.STRtree(patches).query(shapely.points(l0_centres_N2), predicate="intersects")[0]] = True
    return inside & ((l0_centres_N2 >= 0) & (l0_centres_N2 < np.array(coords.l0_size))).all(axis=1)


def without_doubles(found: FoundObjects, *, overlap: float) -> FoundObjects:
    """Drop the lower score of two objects of a class that overlap by more than ``overlap`` (IoU); best first.

    Of equal scores, the one that came first is kept.
    """
    found = found.take(np.argsort(-found.scores_N, kind="stable"))
    boxes = shapely.box(*found.l0_boxes_N4.T)
    # Pairs by a tree: a slide has a million nuclei, and each few neighbours.
    better, worse = shapely.STRtree(boxes).query(boxes, predicate="intersects")
    rising = (better < worse) & (found.classes_N[better] == found.classes_N[worse])
    better, worse = better[rising], worse[rising]
    shared = shapely.area(shapely.intersection(boxes[better], boxes[worse]))
    whole = shapely.area(boxes[better]) + shapely.area(boxes[worse]) - shared
    close = shared > overlap * whole
    order = np.lexsort((worse[close], better[close]))
    kept = np.ones(len(found), np.bool_)
    for stronger, weaker in zip(better[close][order].tolist(), worse[close][order].tolist(), strict=True):
        if kept[stronger]:
            kept[weaker] = False
    return found.take(kept)


def mask_polygons(masks_N1PP: Tensor, boxes_N4: Tensor) -> NDArray[np.object_]:
    """One polygon per object, (N,), in the same pixels as its box; the box if its mask has no outline.

    ``masks_N1PP`` in 0..1 are each over their own box, as :class:`wsi_ips.nuclei.models.AsItIs` leaves them. Each
    is pasted as torchvision does it, but onto pixels of its own.
    """
    polygons = box_polygons(boxes_N4.cpu().numpy().astype(np.float64))
    for place, (mask_1PP, box_4) in enumerate(zip(masks_N1PP.cpu(), boxes_N4.cpu(), strict=True)):
        outline = _outline(mask_1PP, box_4)
        if outline is not None:
            polygons[place] = outline
    return polygons


def _outline(mask_1PP: Tensor, box_4: Tensor) -> Polygon | None:
    """The largest ring around pixels of the object, simplified; holes are filled."""
    width, height = (box_4[2:] - box_4[:2]).tolist()
    # torchvision widens mask and box by one of the mask's pixels; one more of the image's closes each ring.
    edge = ceil(max(width, height) / mask_1PP.shape[-1]) + 2
    corner_2 = box_4[:2].floor() - edge
    size = (ceil(height) + 2 * edge + 1, ceil(width) + 2 * edge + 1)
    pasted = paste_masks_in_image(mask_1PP[None], (box_4 - corner_2.repeat(2))[None], size)[0, 0].numpy()
    # Contours count from the centre of the first pixel.
    rings = [ring[:, ::-1] + 0.5 + corner_2.numpy() for ring in measure.find_contours(pasted, INSIDE)]
    polygons = [Polygon(ring) for ring in rings if len(ring) >= 4]
    if not polygons:
        return None
    outline = shapely.simplify(max(polygons, key=lambda each: each.area), TOLERANCE_PX)
    return outline if isinstance(outline, Polygon) and outline.is_valid and outline.area > 0 else None


def box_polygons(boxes_N4: NDArray[np.float64]) -> NDArray[np.object_]:
    """Boxes (left, top, right, bottom), (N, 4), as polygons, (N,)."""
    return np.asarray(shapely.box(*boxes_N4.T), object)
