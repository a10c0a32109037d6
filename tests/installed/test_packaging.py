"""Files that others build from agree with pyproject.toml, and copy what is there.

Neither Docker, Apptainer nor conda is here: that these build is seen elsewhere.
"""

import re
import shlex
import tomllib
from datetime import date
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from tests.installed import smoke
from tests.installed.environment import required
from wsi_ips import __version__

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ON_CONDA = {"torch": "pytorch", "dask": "distributed", "openslide-bin": "openslide"}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def floors(requirements: list[str]) -> dict[str, str]:
    """``{package: lowest version}`` of requirements with one bound, ``>=``."""
    found = {}
    for text in requirements:
        wanted = Requirement(text)
        (bound,) = wanted.specifier
        assert bound.operator == ">="
        found[wanted.name] = bound.version
    return found


def constraints() -> dict[str, str]:
    pinned = (line.split("==") for line in read("constraints.txt").split())
    return {name.lower().replace("_", "-"): version for name, version in pinned}


def dockerfile() -> list[list[str]]:
    """The instructions of the Dockerfile, each as its words."""
    lines = re.sub(r"^#.*\n", "", read("Dockerfile"), flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip()]


def apptainer(section: str) -> list[str]:
    body = read("wsi_ips.def").split(f"%{section}\n")[1].split("\n%")[0]
    return [line.strip() for line in body.splitlines() if line.strip() and not line.strip().startswith("#")]


def extras_named(text: str) -> set[str]:
    """Extras in ``.[a,b]``, and in ``ARG EXTRAS=a,b``."""
    lists = re.findall(r"\.\[([\w,]+)\]", text) + re.findall(r"^ARG EXTRAS=(\S+)$", text, re.MULTILINE)
    return {name for names in lists for name in names.split(",")}


def test_what_the_dockerfile_copies_is_here_and_passes_dockerignore() -> None:
    instructions = dockerfile()
    assert {words[0] for words in instructions} <= {
        "ARG", "FROM", "WORKDIR", "COPY", "RUN", "USER", "EXPOSE", "ENTRYPOINT", "CMD",
    }  # fmt: skip
    copied = [
        name
        for words in instructions
        if words[0] == "COPY" and "--from" not in words[1]
        for name in words[1:-1]
    ]
    assert {"pyproject.toml", "wsi_ips", "pipelines", "data_manifests", "constraints.txt"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
    assert {f"!{name}" for name in copied} <= set(read(".dockerignore").split())


def test_the_dockerfile_and_the_apptainer_recipe_copy_all_that_the_wheel_is_built_from() -> None:
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {
        *wheel["packages"],
        *wheel["force-include"],
        PROJECT["project"]["readme"],
        "pyproject.toml",
        "LICENSE",
    }
    copied = {name for words in dockerfile() if words[0] == "COPY" for name in words[1:-1]}
    files = [line.split() for line in apptainer("files")]
    assert needed <= copied
    assert needed <= {source for source, _ in files}
    assert all((ROOT / source).exists() and target == f"/source/{source}" for source, target in files)


@pytest.mark.parametrize("name", ["Dockerfile", "wsi_ips.def"])
def test_images_install_extras_that_exist_on_a_python_that_is_allowed(name: str) -> None:
    text = read(name)
    assert extras_named(text)
    assert extras_named(text) <= PROJECT["project"]["optional-dependencies"].keys()
    (python,) = set(re.findall(r"(?:ARG PYTHON=|From: python:)(3\.\d+)", text))
    assert Version(python) >= Version(PROJECT["project"]["requires-python"].removeprefix(">="))


def test_the_pythons_that_are_promised_are_those_on_which_tests_were_run() -> None:
    """docs/install.md has a row for each; one that was not run says so, and is not promised."""
    rows = dict(re.findall(r"^\| (3\.\d+) \| (.+) \|$", read("docs/install.md"), re.MULTILINE))
    run = {python for python, seen in rows.items() if "not run" not in seen}
    language = "Programming Language :: Python :: "
    promised = [line for line in PROJECT["project"]["classifiers"] if line.startswith(language)]
    assert promised == [f"{language}{python}" for python in sorted(run, key=Version)]
    assert min(run, key=Version) == PROJECT["project"]["requires-python"].removeprefix(">=")


def test_versions_agree() -> None:
    assert yaml.safe_load(read("CITATION.cff"))["version"] == __version__
    assert f"org.opencontainers.image.version {__version__}" in apptainer("labels")
    assert yaml.safe_load(read("conda/recipe.yaml"))["package"]["version"] == __version__


def test_the_conda_recipe_requires_what_the_wheel_requires() -> None:
    recipe = yaml.safe_load(read("conda/recipe.yaml"))
    run = dict(line.split(" >=") for line in recipe["requirements"]["run"])
    assert run.pop("python") == PROJECT["project"]["requires-python"].removeprefix(">=")
    assert run == {
        ON_CONDA.get(name, name): version
        for name, version in floors(PROJECT["project"]["dependencies"]).items()
    }
    ((program, target),) = PROJECT["project"]["scripts"].items()
    assert recipe["build"]["python"]["entry_points"] == [f"{program} = {target}"]
    files = [name for test in recipe["tests"] for name in test.get("files", {}).get("source", [])]
    assert files
    assert all((ROOT / name).is_file() for name in files)
    # Files are copied below the folder of the test under the paths that they have in the source.
    run = [line for test in recipe["tests"] for line in test.get("script", []) if line.startswith("python ")]
    assert run == [f"python {name}" for name in files]


def test_the_citation_names_the_authors_and_the_paper() -> None:
    """Its schema is checked by ``cffconvert --validate``, which is not among what tests need."""
    citation = yaml.safe_load(read("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors", "license"} <= citation.keys()
    assert [author["name"] for author in citation["authors"]] == [
        author["name"] for author in PROJECT["project"]["authors"]
    ]
    assert citation["license"] == PROJECT["project"]["license"]
    (paper,) = citation["references"]
    assert paper["year"] <= date.today().year
    assert paper["identifiers"][0]["value"].removeprefix("arXiv:") in paper["url"]


def test_the_release_tries_what_it_built_before_it_publishes() -> None:
    workflow = yaml.safe_load(read(".github/workflows/release.yml"))
    jobs = workflow["jobs"]
    assert (jobs["try"]["needs"], jobs["publish"]["needs"]) == ("build", "try")
    assert not any("checkout" in step.get("uses", "") for step in jobs["try"]["steps"])
    uploaded = [step["with"]["path"] for step in jobs["build"]["steps"] if "upload" in step.get("uses", "")]
    assert Path(smoke.__file__).relative_to(ROOT).as_posix() in uploaded
    tried = {Version(python) for python in jobs["try"]["strategy"]["matrix"]["python"]}
    assert min(tried) == Version(PROJECT["project"]["requires-python"].removeprefix(">="))
    assert "sdist" in str(jobs["try"]["strategy"]["matrix"]["include"])


def test_floors_are_below_what_is_pinned_and_openslide_has_no_known_hole() -> None:
    pinned = constraints()
    asked = [*PROJECT["project"]["dependencies"]]
    for name, wanted in PROJECT["project"]["optional-dependencies"].items():
        if name != "docs":
            asked += [text for text in wanted if not text.startswith(("wsi_ips[", "types-"))]
    lowest = floors(asked)
    assert Version(lowest["openslide-bin"]) >= Version("4.0.1")
    missing = {name for name in lowest if name.lower() not in pinned}
    assert not missing, f"constraints.txt does not pin {missing}"
    assert all(Version(version) <= Version(pinned[name.lower()]) for name, version in lowest.items())


def test_benchmark_packages_are_no_part_of_dev() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    inside = {name for text in extras["dev"] + extras["test"] for name in Requirement(text).extras}
    assert "bench" not in inside
    assert "fastslide" not in " ".join(extras["dev"] + extras["test"])


def test_each_extra_that_the_smoke_test_asks_for_exists() -> None:
    assert {extra for _, extra, _ in smoke.EXTRAS} <= PROJECT["project"]["optional-dependencies"].keys()


def test_a_clean_environment_holds_what_is_required_and_no_more() -> None:
    held = {package.name.lower() for package in required(["typer>=0.1", "pytest>=1; extra == 'test'"])}
    assert {"typer", "rich"} <= held
    assert "pytest" not in held
    assert "pytest" in {package.name for package in required(["pytest>=1; extra == 'test'"], extras=["test"])}
    with pytest.raises(SystemExit, match="is required"):
        list(required(["typer>=999"]))
    with pytest.raises(PackageNotFoundError):
        list(required(["no-such-package-anywhere"]))
