"""A package from outside adds one of each kind, as docs/extending.md says, and passes the contracts."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.extending.outside import entry_points, install, pyproject
from wsi_ips.heatmaps.export import EXPORTS
from wsi_ips.models.aggregators.registry import AGGREGATORS
from wsi_ips.models.encoders.registry import ENCODER_REGISTRY
from wsi_ips.selection.reading import BAG_READERS
from wsi_ips.slides import READERS
from wsi_ips.tiling.tissue import SEGMENTERS

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_page_adds_one_of_each_kind() -> None:
    kinds = (READERS, ENCODER_REGISTRY, AGGREGATORS, BAG_READERS, EXPORTS, SEGMENTERS)
    assert entry_points().keys() == {registry.group for registry in kinds}


@pytest.mark.slow
def test_what_the_page_writes_passes_its_contracts_and_is_used(tmp_path: Path) -> None:
    """In another process, so that nothing of it is found by other tests."""
    tests = install(tmp_path / "site")
    assert len(tests) == sum(map(len, entry_points().values()))
    modules = {path.stem for path in tests[0].parent.glob("*.py")} - {path.stem for path in tests}
    assert set(pyproject()["tool"]["setuptools"]["py-modules"]) == modules
    options = [
        "-q",
        "-p",
        "no:cacheprovider",
        "-W",
        "error",
        "--import-mode=importlib",
        f"--rootdir={tmp_path}",
        f"--basetemp={tmp_path / 'base'}",
    ]
    files = [*tests, REPOSITORY / "tests" / "extending" / "in_use.py"]
    command = [sys.executable, "-m", "pytest", *options, *map(str, files)]
    path = os.pathsep.join([str(tmp_path / "site"), str(REPOSITORY)])
    said = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert said.returncode == 0, said.stdout[-4000:] + said.stderr[-2000:]
    passed = re.search(r"(\d+) passed", said.stdout)
    assert passed
    assert int(passed[1]) > 70
    assert "skipped" not in said.stdout
