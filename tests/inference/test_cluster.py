"""Workers of our own take orders from nobody else."""

from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from distributed import Client

from wsi_ips.config import BatchConfig
from wsi_ips.inference.cluster import connected


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
