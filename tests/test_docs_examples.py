"""The commands that README and docs/ show are commands that exist, with options that exist."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from wsi_ips.commands.application import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(?:bash|console|sh)?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SEPARATE = re.compile(r"\s+(?:#|&&|\||>).*$")


def commands(text: str) -> list[str]:
    """The lines of a page's code blocks that call ``wsi-ips``, continued lines joined, comments left out."""
    lines = "\n".join(BLOCK.findall(text)).replace("\\\n", " ").splitlines()
    shown = [SEPARATE.sub("", line.removeprefix("$ ").strip()) for line in lines]
    return [line.removeprefix(".venv/bin/") for line in shown if re.match(r"(?:\.venv/bin/)?wsi-ips ", line)]


def parse(line: str) -> None:
    """Parse a command line without running it. Raises what Click raises for wrong ones."""
    group: Any = typer.main.get_command(app)
    words = shlex.split(line)[1:]
    context = group.context_class(group, info_name="wsi-ips")
    while hasattr(group, "list_commands") and not words[0].startswith("-"):
        name = words.pop(0)
        group = group.get_command(context, name)
        assert group is not None, f"there is no command {name}"
    if words in (
        ["--version"],
        ["--install-completion"],
        ["--show-completion"],
    ):  # done while they are parsed
        return
    group.make_context("wsi-ips", words)


SHOWN = [(page, line) for page in PAGES for line in commands(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(("page", "line"), SHOWN, ids=[f"{page.name}:{line[8:40]}" for page, line in SHOWN])
def test_a_shown_command_parses(page: Path, line: str) -> None:
    parse(line)


def test_a_wrong_option_and_a_wrong_command_are_found() -> None:
    with pytest.raises(Exception, match="No such option"):
        parse("wsi-ips tile slides --out tiles --patch-size 256")
    with pytest.raises(AssertionError, match="no command"):
        parse("wsi-ips tiles slides")


def test_readme_is_two_screens() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1100
