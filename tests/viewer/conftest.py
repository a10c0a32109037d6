import pytest

from tests.viewer.made_run import MadeRun, make_run


@pytest.fixture(scope="session")
def made_run(tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    """Not to be written to."""
    return make_run(tmp_path_factory.mktemp("viewed"))
