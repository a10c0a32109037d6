"""Writes the table of encoders into ``docs/encoders.md``: ``python -m tests.models.encoders.make_table``."""

from pathlib import Path

from wsi_ips.models.encoders.listing import markdown_table

PAGE = Path(__file__).resolve().parents[3] / "docs" / "encoders.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->"


def with_table(page: str) -> str:
    """The page with the registry's table between its two marks."""
    head, _, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not end:
        raise ValueError(f"the page lacks {BEGIN.strip()} or {END}")
    return "\n".join([head + BEGIN, *markdown_table(), "", END + tail])


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
