"""What every error of a slide must be."""

import pickle
from pathlib import Path

from wsi_ips.errors import WsiIpsError


def assert_one_line(error: WsiIpsError, where: Path | str) -> None:
    """One line that names the slide, and that a worker process can send, with its causes (dask sends those)."""
    assert str(where) in str(error)
    assert "\n" not in str(error)
    link: BaseException | None = error
    while link is not None:
        assert str(pickle.loads(pickle.dumps(link))) == str(link)
        link = link.__cause__ or link.__context__
