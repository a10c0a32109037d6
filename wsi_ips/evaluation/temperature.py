"""Temperature scaling: one number per task that makes a network's probabilities as sure as they should be.

The logits are divided by the temperature before the softmax or sigmoid (Guo et al. 2017, On Calibration of
Modern Neural Networks, section 4.2). Above 1 the probabilities become less extreme, below 1 more. The order of
the classes, and whether a probability is 0.5 or more, stays as it is.

The logits are recovered from the probabilities, up to what a softmax does not see. A float32 probability of 0 or 1
stands for a logit that cannot be recovered; it counts as the largest one that can.

Shape suffixes: N slides, C classes.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, softmax

Activation = Literal["softmax", "sigmoid"]

LOWEST, HIGHEST = 0.05, 100.0
"""Temperatures that are looked for."""
SMALLEST_SOFTMAX = float(np.finfo(np.float32).tiny)
SMALLEST_SIGMOID = 2.0**-24
"""Of a probability and of its complement: float32 holds no number between 1 and 1 minus this."""


@dataclass(frozen=True, slots=True)
class Temperature:
    """nll_before, nll_after: mean negative log-likelihood of the labels, in nats, without and with ``value``.

    fitted: False where no temperature has the lowest loss, because every slide's label is the likeliest class and
    ever colder is ever better; ``value`` is 1 then.
    """

    value: float
    fitted: bool
    nll_before: float
    nll_after: float


def fit_temperature(
    activation: Activation, probability_NC: NDArray[np.floating], target_NC: NDArray[np.floating]
) -> Temperature:
    """The temperature with the lowest negative log-likelihood of the labels, between 0.05 and 100.

    target_NC: 0 or 1 per class; of a softmax, one 1 a slide. The loss is convex in the inverse temperature, so the
    bounded search finds its one minimum. A network that is worse than chance gets the highest temperature, which
    makes its probabilities nearly even. Raises ``ValueError`` for no slides, or what is no probability.
    """
    logits_NC = recovered_logits(activation, probability_NC)
    target = np.asarray(target_NC, np.float64)
    if target.shape != logits_NC.shape or not len(target):
        raise ValueError(f"labels {target.shape} of probabilities {logits_NC.shape}")
    before = _nll(activation, logits_NC, target)
    found = minimize_scalar(
        lambda log_t: _nll(activation, logits_NC / np.exp(log_t), target),
        bounds=(np.log(LOWEST), np.log(HIGHEST)),
        method="bounded",
        options={"xatol": 1e-7},
    )
    value = min(max(float(np.exp(found.x)), LOWEST), HIGHEST)
    if value < LOWEST * 1.01 or _all_right(activation, logits_NC, target):
        return Temperature(1.0, fitted=False, nll_before=before, nll_after=before)
    return Temperature(
        value, fitted=True, nll_before=before, nll_after=_nll(activation, logits_NC / value, target)
    )


def with_temperature(
    activation: Activation, probability_NC: NDArray[np.floating], temperature: float
) -> NDArray[np.float64]:
    """(N, C) the probabilities at this temperature. Raises ``ValueError`` for what is no probability."""
    logits_NC = recovered_logits(activation, probability_NC) / temperature
    return np.asarray(expit(logits_NC) if activation == "sigmoid" else softmax(logits_NC, axis=1), np.float64)


def negative_log_likelihood(
    activation: Activation, probability_NC: NDArray[np.floating], target_NC: NDArray[np.floating]
) -> float:
    """Mean over slides (of a sigmoid, over slides and classes) of -log of what the label was given, in nats.

    Raises ``ValueError`` for what is no probability.
    """
    return _nll(activation, recovered_logits(activation, probability_NC), np.asarray(target_NC, np.float64))


def recovered_logits(activation: Activation, probability_NC: NDArray[np.floating]) -> NDArray[np.float64]:
    """(N, C) logits that give these probabilities. Raises ``ValueError`` for what is no probability."""
    probability = np.asarray(probability_NC, np.float64)
    if probability.ndim != 2 or not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError(f"{probability.shape} numbers that are not all probabilities")
    if activation == "sigmoid":
        inside = np.clip(probability, SMALLEST_SIGMOID, 1 - SMALLEST_SIGMOID)
        return np.asarray(np.log(inside) - np.log1p(-inside), np.float64)
    return np.asarray(np.log(np.maximum(probability, SMALLEST_SOFTMAX)), np.float64)


def _nll(activation: Activation, logits_NC: NDArray[np.float64], target_NC: NDArray[np.float64]) -> float:
    if activation == "sigmoid":
        return float((np.logaddexp(0, logits_NC) - target_NC * logits_NC).mean())
    return float(-(log_softmax(logits_NC, axis=1) * target_NC).sum(axis=1).mean())


def _all_right(
    activation: Activation, logits_NC: NDArray[np.float64], target_NC: NDArray[np.float64]
) -> bool:
    """Whether every label has the highest logit: the loss then falls for ever with the temperature."""
    if activation == "sigmoid":
        return bool(((logits_NC > 0) == (target_NC > 0)).all() and (logits_NC != 0).all())
    others_NC = np.where(target_NC > 0, -np.inf, logits_NC)
    label_N = (logits_NC * target_NC).sum(axis=1)
    return bool((label_N > others_NC.max(axis=1)).all())
