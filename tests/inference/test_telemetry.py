"""Where a slide's time and memory went, on a card that is not there."""

import pytest
import torch

from tests.conftest import SMALL_MODEL
from tests.streaming.simulated_card import SimulatedCard
from tests.training.memory_bags import MemoryBag
from wsi_ips.config import FinetuneConfig, SelectionConfig, StreamingConfig
from wsi_ips.inference.telemetry import SlideTelemetry
from wsi_ips.models.build import build_net
from wsi_ips.models.ips_net import IPSNet
from wsi_ips.selection import slide_reading
from wsi_ips.streaming.telemetry import StreamTelemetry


def telemetry(device: torch.device | None) -> SlideTelemetry:
    return SlideTelemetry.of(
        StreamTelemetry(), threads=1, seconds=1.0, open_s=0.0, encode_s=0.5, select_s=0.1, device=device
    )


def test_memory_is_that_of_the_slide_s_own_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose network is on the second card has PyTorch's current device on the first one."""
    first = torch.device("cuda:0")
    used = {first: 100 << 20, torch.device("cuda:1"): 300 << 20}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=None: used[device or first])
    assert telemetry(torch.device("cuda:1")).peak_vram_mb == 300
    assert telemetry(first).peak_vram_mb == 100
    assert telemetry(torch.device("cpu")).peak_vram_mb == 0
    assert telemetry(None).peak_vram_mb == 0


def test_a_pass_on_a_card_is_timed_by_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 ms between any two events of the simulated card: three chunks are encoded in 6 ms, and nothing else."""
    net = build_net(FinetuneConfig.model_validate(SMALL_MODEL).model)
    assert isinstance(net, IPSNet)
    SimulatedCard(monkeypatch)
    monkeypatch.setattr(slide_reading, "device_of", lambda net: torch.device("cuda"))
    bag = MemoryBag("drawn", torch.rand(12, 3, 32, 32), {})
    with bag.open(StreamingConfig(batch=4), torch.device("cpu")) as source:
        reading = slide_reading.read_slide(net, source, SelectionConfig(memory_size=4, iteration_size=4))
    assert reading.encode_s == pytest.approx(3 * 2e-3)
    assert reading.select_s == pytest.approx(0)
