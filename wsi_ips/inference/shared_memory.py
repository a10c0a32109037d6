"""Whether this system lets several processes work together: their locks lie in shared memory (/dev/shm)."""

from multiprocessing import get_context

from wsi_ips.errors import ConfigError


def check_shared_memory() -> None:
    """Raise :class:`ConfigError` where there is none, as in some containers, before any process is started."""
    try:
        get_context("spawn").Semaphore()
    except (OSError, ImportError, NotImplementedError) as error:
        raise ConfigError(
            f"the system gives no shared memory for several processes ({error}); leave --workers out, or give the "
            "container a writable /dev/shm"
        ) from None
