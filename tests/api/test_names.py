"""The front door's names: light to import, the same for Python and for type checkers, none of them taken."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import wsi_ips as wi

PACKAGE = Path(wi.__file__).parent
HEAVY = ("torch", "torchvision", "timm", "lightning", "numpy", "pydantic", "h5py", "PIL", "rich", "dask")


def imported_by(code: str) -> list[str]:
    """What a fresh interpreter has imported after ``code``."""
    ask = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    names: list[str] = json.loads(done.stdout.splitlines()[-1])
    return names


def test_importing_the_package_imports_nothing_heavy_and_nothing_of_its_own() -> None:
    before, after = imported_by(""), imported_by("import wsi_ips as wi; dir(wi)")
    new = set(after) - set(before)
    assert not new & set(HEAVY)
    assert [name for name in new if name.startswith("wsi_ips")] == ["wsi_ips"]
    assert len(new) < 40, "an import of a millisecond each: 0.2 s are not reached"


def test_opening_and_tiling_a_slide_need_no_torch() -> None:
    assert not set(imported_by("import wsi_ips as wi; wi.open_slide; wi.tile")) & {
        "torch",
        "timm",
        "lightning",
    }


def test_python_and_type_checkers_know_the_same_names_from_the_same_modules() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    static = {
        alias.name: node.module
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert static == {name: f"wsi_ips.{module}" for name, module in wi._MODULE_OF.items()}
    assert sorted(static) == sorted(wi.__all__)


@pytest.mark.parametrize("name", wi.__all__)
def test_a_name_is_listed_and_there_and_is_no_module_s(name: str) -> None:
    assert name in dir(wi)
    assert getattr(wi, name).__name__ == name
    assert not (PACKAGE / f"{name}.py").exists()
    assert not (PACKAGE / name).exists()


def test_nothing_else_is_listed_and_installed_packages_have_types() -> None:
    assert [name for name in dir(wi) if not name.startswith("__")] == sorted(wi.__all__)
    assert (PACKAGE / "py.typed").exists()


def test_a_name_that_is_not_offered_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'opne_slide'"):
        wi.opne_slide  # type: ignore[attr-defined]  # noqa: B018
