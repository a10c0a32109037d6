"""Makes a clean environment around a built wheel, without network and without copies.

``python -m tests.installed.environment WHEEL FOLDER`` makes a virtual environment of the running interpreter. It
holds the wheel, and of the running environment the packages that the wheel requires and no others, as hard links:
seconds instead of gigabytes. So it shows whether what the wheel requires is enough to run it. Whether an index has
these packages is shown by ``pip install`` elsewhere (.github/workflows/release.yml).
"""

import argparse
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterable, Iterator
from email.parser import Parser
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def requirements_of(wheel: Path) -> list[str]:
    """What the wheel's metadata requires, the requirements of its extras too."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode()).get_all("Requires-Dist") or []


def required(requirements: Iterable[str], extras: Iterable[str] = ()) -> Iterator[Distribution]:
    """The installed packages that the requirements ask for, and those that these ask for, each once.

    Raises:
        SystemExit: A package is missing here, or its version is not allowed.
    """
    seen: set[tuple[str, str]] = set()
    given: set[str] = set()
    waiting = [(text, extra) for text in requirements for extra in ("", *extras)]
    while waiting:
        text, extra = waiting.pop()
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
            continue
        found = distribution(wanted.name)
        if not wanted.specifier.contains(found.version, prereleases=True):
            raise SystemExit(f"{wanted.name} {found.version} is installed here, {wanted} is required")
        name = canonicalize_name(wanted.name)
        if name not in given:
            given.add(name)
            yield found
        for its in {"", *wanted.extras}:
            if (name, its) not in seen:
                seen.add((name, its))
                waiting += [(each, its) for each in found.requires or []]


def link(package: Distribution, into: Path) -> None:
    """Link the files of an installed package into the folder ``into``, programs left out."""
    for file in package.files or []:
        source = Path(str(package.locate_file(file)))
        if ".." in file.parts or not source.is_file():
            continue
        target = into / file
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():  # two packages have it, such as a shared __init__.py
            continue
        try:
            os.link(source, target)
        except OSError:  # on another disk
            shutil.copy2(source, target)


def make_environment(wheel: Path, folder: Path, extras: Iterable[str] = ()) -> Path:
    """Make the environment in ``folder``, which is replaced. Returns its interpreter."""
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    asked = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    for package in required(requirements_of(wheel), extras):
        link(package, Path(asked.stdout.strip()))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", str(python)]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", str(wheel)], check=True)
    return python


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--extra", action="append", default=[])
    arguments = parser.parse_args()
    print(make_environment(arguments.wheel, arguments.folder, arguments.extra))


if __name__ == "__main__":
    main()
