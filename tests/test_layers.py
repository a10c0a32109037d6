"""The core is one straight flight, and wings stand beside it. Read from the code's own imports.

A room of the core imports only rooms to its left. A wing imports the core, and the core never imports a wing: it
finds what a wing adds by name (``wsi_ips/registry.py``).
"""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "wsi_ips"

# Left to right, as in ARCHITECTURE.md. A module that has a place of its own is named with its room.
CORE = [
    "storage.location", "errors", "units", "registry", "config", "storage", "progress", "timeline", "slides",
    "tiling", "streaming", "survival", "models", "selection", "datasets", "training", "evaluation", "inference",
    "heatmaps", "evaluation.run", "report", "viewer", "doctor", "commands", "api", "cli", "__main__", "testing",
]  # fmt: skip
# A wing, and the wings that it stands on.
WINGS: dict[str, set[str]] = {
    "nuclei": set(), "search": {"nuclei", "drawn"}, "images": set(), "drawn": set(), "planning": {"drawn"},
}  # fmt: skip
# A command's --help answers at once: its file, in the core or in a wing, imports nothing of these at the top.
HEAVY = {"numpy", "torch", "PIL", "h5py", "scipy", "shapely", "skimage"}
LIGHT = {
    "config/*.py": {"numpy", "torch"},
    "commands/*.py": HEAVY,
    "*/command.py": HEAVY,
    "commands/application.py": {*HEAVY, "pydantic"},
    "commands/options.py": {*HEAVY, "pydantic"},
}


def light_modules() -> list[tuple[Path, set[str]]]:
    return [(path, heavy) for pattern, heavy in LIGHT.items() for path in sorted(PACKAGE.glob(pattern))]


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


def place(name: str) -> int:
    """Where a dotted name stands in the core: as its module does if that is listed, else as its room."""
    parts = name.split(".")
    own = ".".join(parts[1:3])
    return CORE.index(own if own in CORE else parts[1])


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_from_its_left(path: Path) -> None:
    here = room(path)
    assert here in CORE or here in WINGS, f"{here} has no place: add it to ARCHITECTURE.md and here"
    dotted = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for name in imports(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] != "wsi_ips" or len(parts) == 1 or parts[1] == "__version__":
            continue
        assert parts[1] != "testing" or here == "testing", (
            f"{dotted} imports {name}, which is for tests alone"
        )
        if parts[1] in WINGS:
            allowed = {here, *WINGS.get(here, set())}
            assert parts[1] in allowed, f"{dotted} imports {name}, which is in a wing"
        elif here in CORE:
            assert place(name) <= place(dotted), f"{dotted} imports {name}, which lies to its right"


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
    assert len(text.splitlines()) < 700
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            about = node.body[0] if ast.get_docstring(node) else None
            said = 0 if about is None else (about.end_lineno or 0) - about.lineno + 1
            assert node.end_lineno - node.lineno - said < 50, f"{node.name} is too long"
