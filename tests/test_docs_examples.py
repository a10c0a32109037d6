"""The commands, options and settings that README and docs/ show exist, in code blocks and within sentences, and
where a value is one of a few words, it is one of them."""

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from wsi_ips.commands.application import app
from wsi_ips.commands.command_line import _choices
from wsi_ips.commands.export import EXPORT_OPTIONS
from wsi_ips.commands.recipe import JOBS, annotation_of, keys_of

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


INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
OF_OTHER_PROGRAMS = {"--build-arg", "--speedups", "--constraint"}
"""Options that the pages show alone and that are another program's."""


@cache
def all_commands() -> dict[str, Any]:
    """{its words: the command}, such as ``data verify``."""

    def below(group: Any, words: str) -> Iterator[tuple[str, Any]]:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            if hasattr(command, "list_commands"):
                yield from below(command, f"{words}{name} ")
            else:
                yield words + name, command

    group: Any = typer.main.get_command(app)
    context = group.context_class(group, info_name="wsi-ips")
    return dict(below(group, ""))


NOT_SAID = frozenset({"?"})
"""The words of an option whose command has no job that could tell them."""


@cache
def words_of(option: str, command: str) -> frozenset[str] | None:
    """The words that an option of a command can have, None where any value may do or none is expected.

    Raises :class:`KeyError` if the command has no such option.
    """
    taken = {name: one for one in all_commands()[command].params for name in (*one.opts, *one.secondary_opts)}
    parameter = taken[option]
    if (command, option) == ("export", "--format"):
        return frozenset({*EXPORT_OPTIONS, "csv"})  # docs/extending.md adds csv
    if command not in JOBS:
        return NOT_SAID
    if parameter.is_flag:
        return None
    job = JOBS.load(command)
    names = {parameter.name, option.lstrip("-").replace("-", "_")}
    keys = [key for key in keys_of(job) if key.rpartition(".")[2] in names]
    return frozenset(word for key in keys for word in _choices(annotation_of(job, key))) or None


def wrong_values(words: list[str], commands: list[str]) -> Iterator[str]:
    """What is wrong with options, each followed by its value, that belong to one of these commands."""
    for place, option in enumerate(words):
        if not option.startswith("--") or option in ("--help", "--version", "--verbose", *OF_OTHER_PROGRAMS):
            continue
        option, _, value = option.partition("=")
        known = []
        for command in commands:
            try:
                known.append(words_of(option, command))
            except KeyError:
                continue
        if not known:
            yield f"no command has {option}" if len(commands) > 1 else f"{commands[0]} has no {option}"
            continue
        value = value or (words[place + 1] if place + 1 < len(words) else "")
        if option == "--set" and value.partition("=")[0]:
            yield from wrong_setting(*value.partition("=")[::2])
        possible = frozenset().union(*(one for one in known if one is not None)) - NOT_SAID
        if (
            None in known
            or not possible
            or not value
            or value.startswith("-")
            or not re.fullmatch(r"[a-z0-9_+|-]+", value)
        ):
            continue
        yield from (
            f"{option} {word}: not of {sorted(possible)}" for word in value.split("|") if word not in possible
        )


def wrong_setting(key: str, value: str) -> Iterator[str]:
    """What is wrong with ``key: value`` where no job has such a setting, or those that have it take other words.

    A page that is about a section may leave out the section's own name.
    """
    of_keys: dict[str, set[str]] = {}
    for name in JOBS.names():
        job = JOBS.load(name)
        for known in keys_of(job):
            if known == key or known.endswith(f".{key}"):
                of_keys[known] = of_keys.get(known, set()) | set(_choices(annotation_of(job, known)))
    words = set().union(*of_keys.values())
    if words and all(of_keys.values()) and re.fullmatch(r"[a-z_]+", value) and value not in words | {"null"}:
        yield f"{key}: {value}: not of {sorted(words)}"
    if not of_keys and key.partition(".")[0] in SECTIONS:
        yield f"there is no setting {key}"


SECTIONS = {key.partition(".")[0] for name in JOBS.names() for key in keys_of(JOBS.load(name)) if "." in key}
FREE = ("model.aggregator.", "model.encoder.args.", "tiling.tissue.options.", "coarse.scorer")
"""Settings whose keys or words belong to what they name."""


def wrong_in(span: str) -> list[str]:
    """What is wrong with code within a sentence; empty for all that is no command, option or setting."""
    setting = re.fullmatch(r"([a-z_]+(?:\.[a-z_0-9]+)+)(?:: |=)(\S+)", span)
    if setting and not setting[1].startswith(FREE):
        return list(wrong_setting(*setting.groups()))
    try:
        words = shlex.split(span.replace("\\|", "|"))
    except ValueError:
        return []
    if not words:
        return []
    given = words[1:] if words[0] == "wsi-ips" else words
    for length in (2, 1):
        command = " ".join(given[:length])
        if command in all_commands() and (words[0] == "wsi-ips" or given[length:][:1] > ["--"]):
            return list(wrong_values(given[length:], [command]))
    if words[0] == "wsi-ips" and given and not given[0].startswith("-"):
        return [f"there is no command {given[0]}"] if given[0] != "data" else []
    return list(wrong_values(words, list(all_commands()))) if re.match(r"--[a-z]", words[0]) else []


SHOWN = [(page, line) for page in PAGES for line in commands(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(("page", "line"), SHOWN, ids=[f"{page.name}:{line[8:40]}" for page, line in SHOWN])
def test_a_shown_command_parses(page: Path, line: str) -> None:
    parse(line)
    assert wrong_in(line) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_within_sentences_is_right(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    wrong = {span: found for span in INLINE.findall(text) if (found := wrong_in(span))}
    assert wrong == {}


@pytest.mark.parametrize(
    ("span", "problem"),
    [
        ("--map contributions --class tumor", "--map contributions"),
        ("wsi-ips export RUN --format geojsn", "--format geojsn"),
        ("wsi-ips tiles slides", "no command tiles"),
        ("tile --contour DIR", "tile has no --contour"),
        ("predict --pool max\\|median", "--pool median"),
        ("--no-such-option", "no command has --no-such-option"),
        ("selection.rule: globl", "selection.rule: globl"),
        ("--set training.epoch=5", "no setting training.epoch"),
    ],
)
def test_wrong_code_within_sentences_is_found(span: str, problem: str) -> None:
    (said,) = wrong_in(span)
    assert problem in said


@pytest.mark.parametrize(
    "span",
    [
        "--map contribution",
        "predict --pool max\\|mean",
        "data.csv",
        "find",
        "--workers 4",
        "wsi-ips data",
        "-v",
    ],
)
def test_right_code_within_sentences_is_left_alone(span: str) -> None:
    assert wrong_in(span) == []


def test_a_wrong_option_and_a_wrong_command_are_found() -> None:
    with pytest.raises(Exception, match="No such option"):
        parse("wsi-ips tile slides --out tiles --patch-size 256")
    with pytest.raises(AssertionError, match="no command"):
        parse("wsi-ips tiles slides")


def test_readme_is_two_screens() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1100
