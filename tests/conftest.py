"""Where the shared real files and golden arrays lie. Tests that need them skip, saying so, where absent."""

import os
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real slides and images (``WSI_IPS_TEST_DATA``, default ``../shared/data``)."""
    folder = Path(os.environ.get("WSI_IPS_TEST_DATA", SHARED / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real test data at {folder}; name its folder with WSI_IPS_TEST_DATA")
    return folder
