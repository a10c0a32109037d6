"""Making data sets: a folder for one config (:func:`claim`), slides in parallel (:func:`make_all`)."""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from wsi_ips.config import Section, settings_fingerprint
from wsi_ips.errors import ConfigError
from wsi_ips.progress import Progress
from wsi_ips.storage.files import whole_file

Order = TypeVar("Order")


def claim(mark: Path, config: Section, *, holds: str, content: Mapping[str, Any]) -> None:
    """Mark a folder as made from this config, with ``content`` for people beside the config's fingerprint.

    ``mark`` is the file to write, ``holds`` says what is in the folder. Raises :class:`ConfigError` if the folder
    was made from another config.
    """
    if mark.exists() and json.loads(mark.read_text(encoding="utf-8")).get(
        "fingerprint"
    ) != settings_fingerprint(config):
        raise ConfigError(f"{mark.parent} holds {holds}; remove it or choose another folder")
    with whole_file(mark) as partial:
        partial.write_text(
            json.dumps({"fingerprint": settings_fingerprint(config), **content}, indent=2) + "\n"
        )


def make_all(
    orders: Sequence[Order],
    make: Callable[[Order], str],
    *,
    processes: int,
    what: str,
    progress: Progress,
) -> None:
    """Call ``make`` for every order, in ``processes`` processes.

    ``what`` is the progress bar's title; what ``make`` returns is shown beside it. Raises what ``make`` raises.
    """
    with progress(what, total=len(orders)) as advance:
        if processes == 1:
            for order in orders:
                advance(make(order))
        elif orders:
            # Spawned, not forked: the caller may have threads running.
            with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
                for done in as_completed([pool.submit(make, order) for order in orders]):
                    advance(done.result())
