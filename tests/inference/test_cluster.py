"""Workers of our own: they take orders from nobody else, and use their memory again."""

import os
import platform
import resource
import sys
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import torch
from distributed import Client

from wsi_ips.config import BatchConfig
from wsi_ips.inference.cluster import connected
from wsi_ips.storage.system import keep_freed_memory


def test_another_user_of_this_machine_cannot_send_the_workers_work() -> None:
    with connected(BatchConfig(workers=1), slides=1) as client:
        address = client.scheduler.address
        assert address.startswith("tls://127.0.0.1:")
        assert client.submit(pow, 2, 10).result(timeout=120) == 1024
        for theirs in (address, address.replace("tls://", "tcp://")):
            with pytest.raises((OSError, TimeoutError, TypeError, ValueError)):
                Client(theirs, timeout=1, set_as_default=False)
        pages = client.scheduler_info()["services"]["dashboard"]
        for page in ("", "status", "info/main/workers.html", "json/identity.json", "metrics"):
            with pytest.raises(HTTPError) as refused:
                urlopen(f"http://127.0.0.1:{pages}/{page}", timeout=60)
            assert refused.value.code == 404
            refused.value.close()


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc", reason="it is glibc's memory"
)
def test_an_encoder_in_a_worker_uses_its_freed_memory_again() -> None:
    with connected(BatchConfig(workers=1), slides=1) as client:
        assert client.submit(pages_cleared, pure=False).result(timeout=120) < 1_000


def pages_cleared() -> int:
    """Pages that the system clears for a batch through four layers, the least of eight; 14,000 if all are new."""
    keep_freed_memory()
    layer = torch.nn.Conv2d(32, 32, 1).to(memory_format=torch.channels_last)
    pixels_nCPP = torch.rand(16, 32, 96, 96).contiguous(memory_format=torch.channels_last)
    cleared = []
    for _ in range(8):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        with torch.no_grad():
            layer(layer(layer(layer(pixels_nCPP))))
        cleared.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(cleared)


def test_what_the_user_says_of_arenas_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    with connected(BatchConfig(workers=1), slides=1) as client:
        assert client.submit(os.environ.get, "MALLOC_ARENA_MAX").result(timeout=120) == "4"
