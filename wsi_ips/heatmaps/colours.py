"""From values in 0..1 to colours: dark blue over teal and yellow to red, ever brighter to the middle."""

import numpy as np
from numpy.typing import NDArray

STOPS = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
COLOURS = np.array(
    [(36, 30, 110), (28, 120, 150), (120, 190, 100), (250, 190, 50), (200, 20, 30)], np.float64
)


def colourise(shares: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Shares (...,) in 0..1 to RGB (..., 3) uint8, linear between the stops."""
    channels = [np.interp(shares, STOPS, COLOURS[:, channel]) for channel in range(3)]
    return np.asarray(np.rint(np.stack(channels, axis=-1)), np.uint8)
