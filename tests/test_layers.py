"""Data walks left to right: a room imports only rooms to its left. Read from the code's own imports."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "wsi_ips"

# Left to right, as in ARCHITECTURE.md.
ORDER = [
    "location", "byte_cache", "errors", "units", "plain_yaml", "config", "files", "outside_causes", "hdf5",
    "library_lines", "progress", "versions", "fingerprint", "lock_file", "held_folder", "slides", "qupath",
    "tiling", "streaming", "attention_sampling", "survival", "models", "selection", "datasets", "training",
    "evaluation", "search", "inference", "heatmaps", "report", "viewer", "recipe", "demo", "commands",
    "progress_bars", "cli",
]  # fmt: skip

LIGHT = {"config": {"numpy", "torch"}, "recipe": {"numpy", "torch"}, "cli": {"numpy", "torch", "pydantic"}}


def light_modules() -> list[tuple[Path, set[str]]]:
    return [(path, heavy) for name, heavy in LIGHT.items() for path in modules() if room(path) == name]


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(tree: ast.Module) -> set[str]:
    """Dotted names of everything imported anywhere in the module."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "wsi_ips":
                found |= {f"wsi_ips.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_from_its_left(path: Path) -> None:
    here = room(path)
    assert here in ORDER, f"{here} has no place in the order of rooms: add it to ARCHITECTURE.md and here"
    for name in imports(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] == "wsi_ips" and len(parts) > 1 and parts[1] != "__version__":
            assert ORDER.index(parts[1]) <= ORDER.index(here), (
                f"{here} imports {name}, which lies to its right"
            )


@pytest.mark.parametrize(
    ("path", "heavy"), light_modules(), ids=lambda value: value.name if isinstance(value, Path) else ""
)
def test_light_modules_import_nothing_heavy_at_the_top(path: Path, heavy: set[str]) -> None:
    tree = ast.parse(path.read_text())
    top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    assert not {imported.split(".")[0] for imported in imports(top)} & heavy


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_and_functions_stay_readable(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 50, f"{node.name} is too long"
