"""Temperature scaling: the temperature that made probabilities too sure is found again."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit, softmax

from wsi_ips.evaluation.conformal import (
    Activation,
    fit_temperature,
    negative_log_likelihood,
    with_temperature,
)

Arrays = tuple[NDArray[np.float64], NDArray[np.float64]]


def softmax_slides(n: int, classes: int, temperature: float, seed: int = 0) -> Arrays:
    """Labels drawn from honest probabilities, and the same probabilities as surer by ``temperature``."""
    rng = np.random.default_rng(seed)
    logits_NC = rng.normal(0, 2, (n, classes))
    honest_NC = softmax(logits_NC, axis=1)
    label_N = (honest_NC.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return softmax(logits_NC * temperature, axis=1), np.eye(classes)[label_N]


def sigmoid_slides(n: int, classes: int, temperature: float, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    logits_NC = rng.normal(0, 2, (n, classes))
    target_NC = (rng.random((n, classes)) < expit(logits_NC)).astype(float)
    return expit(logits_NC * temperature), target_NC


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 6.0])
@pytest.mark.parametrize("classes", [2, 4])
def test_the_temperature_of_a_softmax_is_recovered(temperature: float, classes: int) -> None:
    probability_NC, target_NC = softmax_slides(20_000, classes, temperature)
    found = fit_temperature("softmax", probability_NC, target_NC)
    assert found.fitted
    assert found.value == pytest.approx(temperature, rel=0.05)


@pytest.mark.parametrize("temperature", [0.4, 3.0])
@pytest.mark.parametrize("classes", [1, 3])
def test_the_temperature_of_a_sigmoid_is_recovered(temperature: float, classes: int) -> None:
    probability_NC, target_NC = sigmoid_slides(20_000, classes, temperature)
    assert fit_temperature("sigmoid", probability_NC, target_NC).value == pytest.approx(temperature, rel=0.05)


def test_float32_probabilities_as_predict_stores_them_are_enough() -> None:
    probability_NC, target_NC = softmax_slides(20_000, 2, 6.0)
    stored_NC = probability_NC.astype(np.float32)
    assert (stored_NC == 1).any()
    assert fit_temperature("softmax", stored_NC, target_NC).value == pytest.approx(6, rel=0.05)


def test_it_is_the_lowest_loss_of_all() -> None:
    probability_NC, target_NC = softmax_slides(60, 3, 2.0, seed=5)
    found = fit_temperature("softmax", probability_NC, target_NC)
    for other in np.geomspace(0.05, 100, 400):
        loss = negative_log_likelihood(
            "softmax", with_temperature("softmax", probability_NC, other), target_NC
        )
        assert found.nll_after <= loss + 1e-9
    assert found.nll_after < found.nll_before


@pytest.mark.parametrize(
    ("activation", "probability_NC", "target_NC"),
    [
        ("softmax", [[0.9, 0.1], [0.2, 0.8]], [[1, 0], [0, 1]]),
        ("sigmoid", [[0.9], [0.2]], [[1], [0]]),
    ],
)
def test_slides_that_are_all_right_do_not_make_a_model_surer(
    activation: Activation, probability_NC: list[list[float]], target_NC: list[list[float]]
) -> None:
    """The lowest loss is at temperature 0 then, which would turn every probability into 0 or 1."""
    found = fit_temperature(activation, np.array(probability_NC), np.array(target_NC, float))
    assert (found.value, found.fitted) == (1.0, False)
    assert found.nll_after == found.nll_before


def test_a_model_that_is_mostly_wrong_is_believed_in_nothing() -> None:
    wrong_NC, target_NC = np.array([[0.99, 0.01], [0.02, 0.98], [0.9, 0.1]]), np.eye(2)[[1, 0, 1]]
    found = fit_temperature("softmax", wrong_NC, target_NC)
    assert found.value > 90
    assert with_temperature("softmax", wrong_NC, found.value) == pytest.approx(0.5, abs=0.02)


@given(
    st.lists(st.floats(0, 1, width=32), min_size=2, max_size=6).filter(lambda row: sum(row) > 0.01),
    st.floats(0.1, 50),
)
def test_calls_stay_what_they_are(row: list[float], temperature: float) -> None:
    """The likeliest class, and which classes have 0.5 or more."""
    probability_1C = np.array([row])
    yes_or_no = with_temperature("sigmoid", probability_1C, temperature)
    assert ((yes_or_no >= 0.5) == (probability_1C >= 0.5)).all()
    softened = with_temperature("softmax", probability_1C / probability_1C.sum(), temperature)
    assert softened.sum() == pytest.approx(1)
    assert softened[0, probability_1C.argmax()] == softened.max()


@pytest.mark.parametrize("wrong", [np.nan, 1.5, -0.1])
def test_what_is_no_probability_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="probabilities"):
        with_temperature("softmax", np.array([[wrong, 0.5]]), 2.0)
    with pytest.raises(ValueError, match="labels"):
        fit_temperature("softmax", np.zeros((0, 2)), np.zeros((0, 2)))
