"""The folder of a training run: one run at a time writes into it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wsi_ips.held_folder import held
from wsi_ips.training.processes import is_first_process
from wsi_ips.training.run_state import STATE_NAME


@contextmanager
def training_folder(out: Path, *, results: str = f"**/{STATE_NAME}") -> Iterator[None]:
    """Hold ``out`` for the time of the ``with`` block. A run that fails before it learned anything
    leaves no folder.

    results: glob of the files that say that something was. The first process of a run holds the folder for the
    others. Raises :class:`wsi_ips.errors.ResultsError` while another run holds it; one that died holds nothing.
    """
    if not is_first_process():
        yield
        return
    with held(out, below=(), undo=(out / "run.json", out / "folds.csv"), results=results):
        yield
