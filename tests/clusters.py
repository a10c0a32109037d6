"""Dask clusters for tests that use one."""

from typing import Any

from distributed import LocalCluster


def two_workers(**settings: Any) -> LocalCluster:
    """Two workers on this machine, with two threads each and without a log. ``settings`` are LocalCluster's own:
    ``processes=False`` makes the workers threads of this process, which has everything imported.
    """
    return LocalCluster(
        n_workers=2,
        threads_per_worker=2,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        silence_logs=50,
        **settings,
    )
