"""Runs ``wsi-ips`` as a user does: arguments in; exit code, output and error lines out."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from wsi_ips import cli


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line of complaint."""
        lines = [line for line in self.err.splitlines() if line.startswith("wsi-ips: ")]
        assert len(lines) == 1, f"expected one line of complaint, got {self.err!r}"
        assert "Traceback" not in self.err
        return lines[0]


Console = Callable[..., Said]


def uncaptured(*arguments: str | Path) -> Said:
    """For fixtures of a module, which cannot capture what is said."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["wsi-ips", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return Said(int(ended.value.code or 0), "", "")


def make_console(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Console:
    def console(*arguments: str | Path) -> Said:
        monkeypatch.setattr(sys, "argv", ["wsi-ips", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return Said(int(ended.value.code or 0), captured.out, captured.err)

    return console
