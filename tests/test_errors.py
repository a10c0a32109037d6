"""Words of errors: whatever a file states, a terminal may be given them."""

import logging
import pickle

import pytest

from wsi_ips.commands.application import log_to_terminal
from wsi_ips.errors import LONGEST_WORDS, ConfigError, FileError, harmless
from wsi_ips.storage.location import is_file_name, is_there


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain µm, ç, 𝔘, é", "plain µm, ç, 𝔘, é"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\0b\x7f\x85", "a\\x00b\\x7f\\x85"),
        ("gpj\u202e.exe", "gpj\\u202e.exe"),
        ("a\u2028b", "a\\u2028b"),
        ("s\udcff.tif", "s\\udcff.tif"),
        ("two\n\tlines", "two\n\tlines"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text: str, shown: str) -> None:
    assert harmless(text) == shown


def test_an_error_is_one_line_and_no_longer_than_a_page() -> None:
    error = FileError("a.csv", f"line 3: {'x' * 200_000} is no\nlabel\x1b", "write another one")
    assert len(str(error)) <= LONGEST_WORDS + 10
    assert str(error).startswith("a.csv: line 3: xxx")
    assert str(error).endswith("is no label\\x1b; write another one")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert str(ConfigError("a\rb")) == "a\\x0db"


def test_the_log_s_lines_are_escaped_and_a_library_s_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.Logger("root")
    monkeypatch.setattr(logging, "root", root)
    log_to_terminal()
    (handler,) = root.handlers
    record = logging.LogRecord("wsi_ips.x", logging.WARNING, "", 0, "row %s", ("\x1b[2J",), None)
    assert handler.format(record) == "wsi_ips.x: row \\x1b[2J"
    stray = logging.LogRecord("tifffile", logging.WARNING, "", 0, "odd tag", (), None)
    assert not logging.getLogger("tifffile").filter(stray)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a\0b", "a\nb", "x" * 241, "é" * 125])
def test_no_file_can_be_called_so(name: str) -> None:
    assert not is_file_name(name)


def test_a_file_can_be_called_so() -> None:
    assert all(map(is_file_name, ("a b.c", "S23.1", "é" * 110, "s\udcff")))


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "gone"])
def test_a_path_that_cannot_be_is_not_there(tmp_path, name: str) -> None:
    assert not is_there(tmp_path / name)
    assert is_there(tmp_path)
