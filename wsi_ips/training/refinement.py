"""How well a network tells slides apart, whatever it thinks of its own certainty.

The loss of a split has two parts: how well the slides are told apart, and how far the probabilities are from
what they should be. A network that learns from few slides soon becomes too sure of itself. Its validation loss
then rises for dozens of epochs in which it still learns to tell the slides apart. The first part alone is the loss
that is left after the best temperature (Berta, Holzmüller, Jordan, Bach, "Rethinking Early Stopping: Refine, Then
Calibrate", 2025; the temperature is that of Guo et al. 2017).

Shape suffixes: S slides, C classes.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

LOWEST, HIGHEST = -7.0, 7.0
"""Natural logarithms of the temperatures that are looked for."""


def refinement_loss(probability_SC: NDArray[np.floating], target_S: NDArray[np.integer]) -> float:
    """The mean negative log-likelihood of the labels at the temperature that makes it lowest, in nats.

    probability_SC: rows that sum to 1; of a sigmoid's class, its complement and itself. target_S: the class of
    each row. Never above the logarithm of the number of classes, which an endless temperature gives to a network
    that is worse than chance; 0 where every label is the likeliest class.
    """
    logits_SC = np.log(np.maximum(np.asarray(probability_SC, np.float64), np.finfo(np.float32).tiny))
    rows = np.arange(len(logits_SC))

    def loss(log_temperature: float) -> float:
        return float(-log_softmax(logits_SC / np.exp(log_temperature), axis=1)[rows, target_S].mean())

    # Convex in the inverse temperature: there is one minimum, or it lies at an endless temperature.
    found = minimize_scalar(loss, bounds=(LOWEST, HIGHEST), method="bounded", options={"xatol": 1e-6})
    return min(loss(float(found.x)), float(np.log(logits_SC.shape[1])))
