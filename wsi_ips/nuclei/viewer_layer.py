"""The viewer's layer of found objects: each object, or their number per square if there are too many to draw."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import ConfigError
from wsi_ips.nuclei.found_table import FoundTable
from wsi_ips.viewer.tiles import LruCache
from wsi_ips.viewer.viewed_run import file_stamp

READ_OBJECTS = 2
"""Tables of found objects that are cached, of up to 120 MB each."""
MOST_DRAWN = 3000
"""The most objects that a browser can draw while the slide is moved."""
CELLS = 40
"""The most squares along the longer side of the view."""
OBJECT_COLOURS = (
    (0, 214, 100),
    (255, 178, 0),
    (0, 190, 255),
    (255, 90, 170),
    (190, 130, 255),
    (235, 235, 60),
)
"""One colour per class: bright, on what H&E makes dark."""


class FoundObjects:
    """The layer of found objects, as :class:`wsi_ips.viewer.run_answers.Layer` describes it. Tables are cached."""

    def __init__(self) -> None:
        self._tables: LruCache[FoundTable] = LruCache(READ_OBJECTS)

    def in_view(self, table: Path, asked: Mapping[str, str]) -> dict[str, Any]:
        """The objects in the part of the slide that the query names, see :func:`objects_in_view`."""
        stamp = (str(table), file_stamp(table))
        return objects_in_view(self._tables.get(stamp, lambda: FoundTable.read(table)), asked)


def objects_in_view(table: FoundTable, asked: Mapping[str, str]) -> dict[str, Any]:
    """The objects between ``left``, ``top``, ``right`` and ``bottom`` of the query (level-0 pixels), as JSON.

    The answer has ``objects`` with their class, score and ring, or ``cells`` with counts if there are more than
    ``MOST_DRAWN``. Raises :class:`ConfigError` if the query names no such part.
    """
    window = _window(asked)
    rows = table.rows_in(*window)
    seen = np.bincount(table.classes_N[rows], minlength=len(table.classes)).tolist()
    answer: dict[str, Any] = {
        "n_objects": len(table),
        "in_view": len(rows),
        "outlined": table.outlined,
        "classes": [
            {"name": name, "colour": _colour(place), "in_view": seen[place]}
            for place, name in enumerate(table.classes)
        ],
        "objects": None,
        "cells": None,
    }
    if len(rows) > MOST_DRAWN:
        return answer | {"cells": _cells(table.l0_boxes_N4[rows], window)}
    return answer | {
        "objects": [
            {
                "class": int(table.classes_N[row]),
                "score": round(float(table.scores_N[row]), 4),
                "ring": ring.round(1).ravel().tolist(),
            }
            for row, ring in zip(rows.tolist(), table.l0_rings(rows.tolist()), strict=True)
        ]
    }


def _cells(l0_boxes_n4: NDArray[np.float32], window: tuple[float, float, float, float]) -> dict[str, Any]:
    """Counts in squares that stay in place while the view moves: their corners are multiples of their side."""
    left, top, right, bottom = window
    side = 2.0 ** max(0, math.ceil(math.log2(max(right - left, bottom - top) / CELLS)))
    centres_n2 = (l0_boxes_n4[:, :2].astype(np.float64) + l0_boxes_n4[:, 2:]) / 2
    places, counts = np.unique(np.floor(centres_n2 / side).astype(np.int64), axis=0, return_counts=True)
    cells = [[col, row, count] for (col, row), count in zip(places.tolist(), counts.tolist(), strict=True)]
    return {"l0_side": side, "counts": cells}


def _colour(place: int) -> str:
    return "#{:02x}{:02x}{:02x}".format(*OBJECT_COLOURS[place % len(OBJECT_COLOURS)])


def _window(asked: Mapping[str, str]) -> tuple[float, float, float, float]:
    try:
        left, top, right, bottom = (float(asked[name]) for name in ("left", "top", "right", "bottom"))
    except (KeyError, ValueError):
        left = top = right = bottom = math.nan
    if not (max(map(abs, (left, top, right, bottom))) < 1e9 and left < right and top < bottom):
        raise ConfigError("give left, top, right and bottom, level-0 pixels")
    return left, top, right, bottom
