"""What is said of a device's arithmetic, and what ``deterministic: true`` makes of it."""

import os

import pytest
import torch

from wsi_ips.errors import ConfigError
from wsi_ips.streaming.device import calculating, numerics


def test_deterministic_switches_tf32_off_and_back_on() -> None:
    before = numerics()
    assert before == {"tf32_convolutions": True, "tf32_matmul": False, "deterministic": False}
    torch.backends.cudnn.benchmark = True
    try:
        with calculating(deterministic=True):
            assert numerics() == {"tf32_convolutions": False, "tf32_matmul": False, "deterministic": True}
            assert not torch.backends.cudnn.benchmark
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] in (":4096:8", ":16:8")
        assert torch.backends.cudnn.benchmark
        assert numerics() == before
    finally:
        torch.backends.cudnn.benchmark = False


def test_nothing_is_switched_unasked() -> None:
    before = numerics()
    with calculating(deterministic=False):
        assert numerics() == before


def test_an_operation_without_a_deterministic_algorithm_is_named() -> None:
    with (
        pytest.raises(ConfigError, match=r"put_ .*deterministic.*set it to false"),
        calculating(deterministic=True),
    ):
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1), accumulate=False)
    assert not torch.are_deterministic_algorithms_enabled()


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="out of memory"), calculating(deterministic=True):
        raise RuntimeError("CUDA out of memory")
