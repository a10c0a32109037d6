"""Where the classes of contracts keep the slide that each of them draws."""

from pathlib import Path

import pytest


@pytest.fixture(scope="class")
def class_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all tests of a class share. What is drawn there once is only read afterwards."""
    return tmp_path_factory.mktemp("class")
