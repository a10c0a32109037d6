"""Every public name has an example in its docstring, and each of them runs; so do docs/python.md and the first
tutorial."""

import doctest
import re
from pathlib import Path

import pytest

import wsi_ips as wi

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def run(text: str, name: str, here: Path) -> int:
    """Run the ``>>>`` examples of a text and hold what they print against what they say; how many there are."""
    test = doctest.DocTestParser().get_doctest(text, {}, name, None, 0)
    said: list[str] = []
    doctest.DocTestRunner(optionflags=FLAGS).run(test, out=said.append)
    assert not said, "".join(said)
    return len(test.examples)


@pytest.mark.parametrize("name", [*wi.__all__, "wsi_ips"])
def test_the_example_in_a_docstring_runs_and_says_what_it_prints(name: str, here: Path) -> None:
    documented = wi if name == "wsi_ips" else getattr(wi, name)
    assert run(documented.__doc__ or "", name, here) >= 2, f"{name} has no example"


@pytest.mark.parametrize(("page", "fewest"), [("python.md", 8), ("tutorials/first_slide.md", 1)])
def test_a_page_runs_from_top_to_bottom(page: str, fewest: int, here: Path) -> None:
    blocks = BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))
    assert len(blocks) >= fewest
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
