"""What the documents name exists: files of the repository, links, and the parts of every decision record."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DECISIONS = ROOT / "docs" / "decisions"

NAMED_FILE = re.compile(r"\b(?:wsi_ips|tests|benchmarks)/[\w/.-]*\w\.py\b")
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)#\s]*)(?:#([^)\s]*))?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
DATE_AND_FILES = re.compile(r"\n(\d{4}-\d\d-\d\d) · (`[\w/.]+`(?:, `[\w/.]+`)*)\n")
PARTS = ("Context", "Decision", "Consequences")


def documents() -> list[Path]:
    return [ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").rglob("*.md"))]


def records() -> list[tuple[str, str]]:
    """Every decision record: its address within docs/decisions, and its text from the heading on."""
    found = []
    for path in sorted(DECISIONS.glob("*.md")):
        if path.name == "README.md":
            continue
        for text in path.read_text(encoding="utf-8").split("\n## ")[1:]:
            heading = text.partition("\n")[0]
            found.append((f"{path.name}#{anchor(heading)}", text))
    return found


def anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def broken_links(path: Path, text: str) -> list[str]:
    """The relative links of a document whose file, or heading in it, is not there."""
    broken = []
    for target, fragment in LINK.findall(text):
        file = (path.parent / target).resolve() if target else path
        if not file.exists():
            broken.append(target)
        elif fragment and fragment not in map(anchor, HEADING.findall(file.read_text(encoding="utf-8"))):
            broken.append(f"{target}#{fragment}")
    return broken


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_a_document_names_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    missing = sorted({name for name in NAMED_FILE.findall(text) if not (ROOT / name).is_file()})
    assert not missing, f"{path.name} names files that are not there: {', '.join(missing)}"


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    assert not broken_links(path, path.read_text(encoding="utf-8"))


def test_a_link_to_a_missing_file_or_heading_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# A heading, with a comma\n", encoding="utf-8")
    text = "[a](there.md) [b](there.md#a-heading-with-a-comma) [c](gone.md) [d](there.md#gone) [e](https://x.org/y)"
    assert broken_links(tmp_path / "this.md", text) == ["gone.md", "there.md#gone"]


@pytest.mark.parametrize(("address", "text"), records(), ids=[address for address, _ in records()])
def test_a_decision_record_is_dated_complete_and_listed(address: str, text: str) -> None:
    dated = DATE_AND_FILES.search(text)
    assert dated, "the line below the heading has to be: 2026-11-21 · `wsi_ips/file.py`, `wsi_ips/other.py`"
    parts = re.findall(r"^\*\*(\w+)\.\*\* \S", text, re.MULTILINE)
    assert tuple(parts) == PARTS
    index = (DECISIONS / "README.md").read_text(encoding="utf-8")
    assert f"]({address}), {dated[1]}\n" in index, (
        f"docs/decisions/README.md does not list {address}, {dated[1]}"
    )


def test_the_index_lists_no_record_that_is_gone() -> None:
    index = (DECISIONS / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^- \[.*\]\((.*)\), ", index, re.MULTILINE)
    assert sorted(listed) == sorted(address for address, _ in records())
