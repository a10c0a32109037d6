import pytest
import torch

from wsi_ips.errors import ConfigError
from wsi_ips.streaming.device import pick_device


def test_a_device_is_always_found() -> None:
    assert pick_device().type in ("cpu", "cuda", "mps")
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda:99", "warp"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="try auto or cpu"):
        pick_device(name)
