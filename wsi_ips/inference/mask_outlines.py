"""What Mask R-CNN says of a box's pixels, as a polygon.

Shape suffixes: N objects, P pixels of a mask's side.
"""

from math import ceil

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import Polygon
from skimage import measure
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

INSIDE = 0.5
"""What a pixel of the object has at least."""
TOLERANCE_PX = 0.5
"""By which an outline may differ from the mask's."""


def box_polygons(boxes_N4: NDArray[np.float64]) -> NDArray[np.object_]:
    """Boxes (left, top, right, bottom) as polygons (N,)."""
    return np.asarray(shapely.box(*boxes_N4.T), object)


def mask_polygons(masks_N1PP: Tensor, boxes_N4: Tensor) -> NDArray[np.object_]:
    """A polygon (N,) an object, in the pixels of its box; the box where its mask has no outline.

    masks_N1PP: 0..1, each over its own box, as :class:`wsi_ips.models.detection.build.AsItIs` leaves them. Each is
    pasted as torchvision does it, but onto pixels of its own.
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
