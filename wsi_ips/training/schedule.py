"""The paper's learning-rate schedule (IPS reference code)."""

import math

FLOOR = 0.001
"""Where the cosine ends, as a share of the peak."""


def lr_multiplier(step: int, *, warmup: int, total: int) -> float:
    """Share of the peak learning rate at ``step`` (counted from 1 to ``total``).

    Below ``warmup`` it rises linearly; from there half a cosine leads down to 0.001 at ``total``.
    """
    if step < warmup:
        return step / warmup
    cosine = (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1))) / 2
    return cosine + FLOOR * (1 - cosine)
