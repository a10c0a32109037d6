"""The command line, and the places where other programs' own code lies, for tests that run it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands.console import Console, make_console


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Console:
    return make_console(monkeypatch, capsys)


@pytest.fixture
def program() -> Callable[[str], Path]:
    """The folder of another program's source, which is named by a variable such as ``WSI_IPS_TRIDENT``."""

    def folder(name: str) -> Path:
        variable = f"WSI_IPS_{name.upper()}"
        if variable not in os.environ:
            pytest.skip(f"no source of {name}: name the folder of a clone of its repository with {variable}")
        path = Path(os.environ[variable])
        if not path.is_dir():
            pytest.fail(f"{variable} names {path}, where no folder is")
        return path

    return folder
