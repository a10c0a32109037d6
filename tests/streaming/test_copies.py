"""Copies to a CUDA device, on a simulated card that does everything as late as it may."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.streaming.simulated_card import SimulatedCard
from tests.streaming.test_stream import every_patch, reader
from wsi_ips.config import StreamingConfig
from wsi_ips.streaming import stream as streams
from wsi_ips.streaming.device import DeviceTimer
from wsi_ips.streaming.stream import PatchStream

CUDA = torch.device("cuda")
CONFIG = StreamingConfig(batch=8, chunks_in_flight=3)


class AtOnce:
    """A pool of threads that has always done its work already."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def submit(self, work: Callable[..., Any], *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(work(*args))
        return future

    def shutdown(self, **_: Any) -> None:
        pass


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> SimulatedCard:
    monkeypatch.setattr(streams, "ThreadPoolExecutor", AtOnce)
    return SimulatedCard(monkeypatch)


@pytest.fixture(scope="module")
def truth() -> Tensor:
    """All patches, read without a card."""
    return torch.cat([chunk.pixels_n3PP for chunk in PatchStream(reader(), every_patch(), config=CONFIG)])


def test_patches_read_again_survive_the_next_read(truth: Tensor, card: SimulatedCard) -> None:
    """Their page-locked memory is not used again while the card still copies from it."""
    stream = PatchStream(reader(), every_patch(), config=CONFIG, device=CUDA)
    first = stream.read(torch.arange(0, 8)).pixels_n3PP
    second = stream.read(torch.arange(8, 16)).pixels_n3PP
    card.finish()
    assert torch.equal(first, truth[0:8])
    assert torch.equal(second, truth[8:16])


def test_a_second_pass_does_not_overwrite_the_first_one_s_last_chunks(
    truth: Tensor, card: SimulatedCard
) -> None:
    stream = PatchStream(reader(), every_patch(), config=CONFIG, device=CUDA)
    last = [chunk.pixels_n3PP for chunk in stream][-1]
    again = stream.only(torch.arange(16))
    others = [chunk.pixels_n3PP for chunk in again]
    card.finish()
    assert torch.equal(last, truth[-len(last) :])
    assert torch.equal(torch.cat(others), truth[:16])


def test_a_consumer_that_never_waits_sees_every_patch(truth: Tensor, card: SimulatedCard) -> None:
    seen: list[Tensor] = []
    for chunk in PatchStream(reader(), every_patch(), config=CONFIG, device=CUDA):
        card.launch(lambda pixels=chunk.pixels_n3PP: seen.append(pixels.clone()))
    card.finish()
    assert torch.equal(torch.cat(seen), truth)


def test_a_consumer_that_never_waits_does_not_fill_the_card(card: SimulatedCard) -> None:
    """However far it could run ahead, at most three chunks are on the card that it has not encoded."""
    stream = PatchStream(reader(), every_patch(), config=CONFIG, device=CUDA)
    encoded, waiting = 0, []

    def encode() -> None:
        nonlocal encoded
        encoded += 1

    for _ in stream:
        waiting.append(card.copies - encoded)
        card.launch(encode)
    assert len(waiting) > 6
    assert max(waiting) <= 3


def test_one_chunk_is_on_its_way_while_another_is_encoded(card: SimulatedCard) -> None:
    """A consumer that waits for its own work too: the card copies meanwhile."""
    stream = PatchStream(reader(), every_patch(), config=CONFIG, device=CUDA)
    begun = []
    for _ in stream:
        begun.append(card.copies)
        card.finish()
    n = len(stream)
    assert begun == [min(number + 2, n) for number in range(n)]


def test_copies_are_timed_by_the_card(card: SimulatedCard) -> None:
    """Handing them over takes no time: the simulated card takes 2 ms for each."""
    stream = PatchStream(reader(), every_patch(), config=CONFIG, device=CUDA)
    for _ in stream:
        pass
    assert stream.telemetry.copy_s == pytest.approx(len(stream) * 2e-3)


def test_work_is_timed_by_the_card_not_by_handing_it_over(card: SimulatedCard) -> None:
    """The simulated card takes 2 ms between any two events; handing over takes no time at all."""
    timer = DeviceTimer(CUDA)
    done = []
    for _ in range(3):
        with timer.running():
            card.launch(lambda: done.append(True))
    assert not done
    assert timer.seconds() == pytest.approx(3 * 2e-3)
    assert len(done) == 3
    assert timer.seconds() == pytest.approx(3 * 2e-3)
