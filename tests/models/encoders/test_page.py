"""The page on encoders says what the registry says."""

from tests.models.encoders.make_table import PAGE, with_table
from wsi_ips.models.encoders.registry import ENCODERS


def test_the_table_is_the_registry_s() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_table(page), "make it again: python -m tests.models.encoders.make_table"
    assert sum(line.startswith("| `") for line in page.splitlines()) == len(ENCODERS)
