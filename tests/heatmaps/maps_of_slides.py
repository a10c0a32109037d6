"""Slides with attention for the exports' tests: those of the exporters' contract, and one whose head tells."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from wsi_ips.inference.results import SlideResult
from wsi_ips.testing.exporters import BOUNDS as BOUNDS
from wsi_ips.testing.exporters import GREY as GREY
from wsi_ips.testing.exporters import L0_SIZE as L0_SIZE
from wsi_ips.testing.exporters import SLIDE_MPP as SLIDE_MPP
from wsi_ips.testing.exporters import Drawn as Drawn
from wsi_ips.testing.exporters import drawn as drawn
from wsi_ips.testing.exporters import result_of as result_of
from wsi_ips.testing.exporters import without_patches as without_patches


def telling(result: SlideResult, added: Mapping[int, float]) -> SlideResult:
    """The same slide read by a head that tells: {row: what this patch adds to ``tumor``}, the kept patches.

    ``normal`` gets the opposite, as the logits of a softmax over two classes do once their mean is taken off.
    """
    tumor_M = np.array(list(added.values()), np.float32)
    return replace(
        result,
        kept_ids_M=result.coords.ids_N[list(added)],
        kept_scores_M=np.zeros(len(added), np.float32),
        kept_contributions_MK=np.stack([-tumor_M, tumor_M], axis=1),
    )
