"""Whether a contract tests the member that its author means.

A name that wsi_ips has stays its own, so that a test of a package's ``abmil`` would test the built-in one, and
pass.
"""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from wsi_ips.registry import Registry


class OwnNameContract:
    """Base class of the contracts whose member is found by ``name``."""

    def registry(self) -> Registry[Any]:
        """Where the name is looked up. A contract implements this."""
        raise NotImplementedError

    def test_its_name_is_its_own(self) -> None:
        name = getattr(self, "name", None)
        if name is None:
            pytest.skip("it is made by a fixture, not by its name")
        registry = self.registry()
        assert not registry.is_shadowed(name), (
            f"{registry.kind} {name!r}: what another package offers under this name is ignored, since it is "
            "taken; choose another name"
        )
        assert name not in registry.members or lives_in_wsi_ips(type(self)), (
            f"{registry.kind} {name!r} is wsi_ips' own, and would be tested in place of yours; choose another name"
        )


def lives_in_wsi_ips(test: type) -> bool:
    """Whether a test class belongs to wsi_ips: the nearest ``pyproject.toml`` above its file is its own."""
    try:
        file = Path(inspect.getfile(test)).resolve()
    except (TypeError, OSError):
        return False
    for folder in file.parents:
        project = folder / "pyproject.toml"
        if project.is_file():
            return (
                re.search(r'^name *= *"wsi_ips"', project.read_text(encoding="utf-8"), re.MULTILINE)
                is not None
            )
    return False
