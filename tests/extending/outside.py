"""The package from outside: the files and entry points of ``docs/extending.md``, put into a folder."""

import re
import tomllib
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"
FILE = re.compile(r"^```python\n# (\S+\.py)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
TOML = re.compile(r"^```toml\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def pyproject() -> dict[str, Any]:
    """The package's ``pyproject.toml``."""
    return tomllib.loads("\n".join(TOML.findall(PAGE.read_text(encoding="utf-8"))))


def entry_points() -> dict[str, dict[str, str]]:
    """{group: {name: module:attribute}} as the page has them."""
    groups: dict[str, dict[str, str]] = pyproject()["project"]["entry-points"]
    return groups


def install(site: Path) -> list[Path]:
    """Write the page's files, and a dist-info with its entry points, into ``site``; returns the test files."""
    info = site / "outside-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    lines = [
        line
        for group, members in entry_points().items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in members.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for name, text in FILE.findall(PAGE.read_text(encoding="utf-8")):
        (site / name).write_text(text, encoding="utf-8")
    return sorted(site.glob("test_*.py"))
