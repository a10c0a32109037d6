"""Members by name: ours stay ours, others are found and loaded late, and broken ones say whose they are."""

import sys
from collections.abc import Callable
from pathlib import Path
from time import process_time

import pytest

from wsi_ips.errors import ConfigError, ExportNotInstalled, ExtensionBroken, NameTaken, ReaderBroken
from wsi_ips.registry import Registry, check_known, did_you_mean

GROUP = "wsi_ips.nothings"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a package with these entry points at the end of ``sys.path``."""

    def install(package: str, **members: str) -> None:
        site = tmp_path / package
        info = site / f"{package}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = "".join(f"{name} = {value}\n" for name, value in members.items())
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{lines}")
        monkeypatch.setattr(sys, "path", [*sys.path, str(site)])

    return install


def registry(**more: object) -> Registry[object]:
    return Registry(
        "thing", {"pi": "math:pi", "data": {"a": 1}, "absent": "no_such_module:it"}, group=GROUP, **more
    )  # type: ignore[arg-type]


def test_names_are_ours_in_their_order_then_the_others_sorted(install: Callable[..., None]) -> None:
    install("first", zeta="math:tau", pi="math:e", alpha="math:inf")
    install("second", beta="math:nan")
    things = registry()
    assert list(things) == ["pi", "data", "absent", "alpha", "beta", "zeta"]
    assert len(things) == 6
    assert "beta" in things
    assert "gamma" not in things
    import math

    assert things.load("pi") == math.pi, "a name of ours stays ours"
    assert things.load("zeta") == math.tau
    assert (str(things.origin("zeta")), things.origin("pi")) == ("the package first 1.0", None)
    assert things.ignored() == ["thing pi of the package first 1.0 is ignored: the name is wsi_ips' own"]
    assert things.is_shadowed("pi")
    assert not things.is_shadowed("data")
    assert things.load("data") == {"a": 1}


def test_a_name_of_two_packages_is_an_error_when_it_is_asked_for(install: Callable[..., None]) -> None:
    install("first", zeta="math:tau", alpha="math:inf")
    install("second", zeta="math:e")
    things = registry()
    said = "thing zeta is offered by several packages: first, second; uninstall all but one of them"
    with pytest.raises(NameTaken, match=said):
        things.load("zeta")
    assert things.load("alpha") == float("inf")
    assert things.ignored() == [said]


def test_a_name_that_is_somebody_else_s_is_refused_with_its_package(install: Callable[..., None]) -> None:
    install("first", alpha="math:inf")
    things = registry(taken=lambda name: "timm's" if name == "alpha" else "")
    with pytest.raises(
        NameTaken, match=r"thing alpha: this name is timm's, and the package first 1\.0 offers"
    ):
        things.load("alpha")
    assert things.ignored() == ["thing alpha of the package first 1.0 is ignored: the name is timm's"]


def test_without_a_group_nothing_comes_from_outside(install: Callable[..., None]) -> None:
    install("first", alpha="math:inf")
    assert list(Registry("thing", {"pi": "math:pi"})) == ["pi"]


def test_a_name_that_nobody_has_names_the_known_ones(install: Callable[..., None]) -> None:
    install("first", alpha="math:inf")
    with pytest.raises(ConfigError, match="there is no thing 'beta'; known are pi, data, absent, alpha"):
        registry().load("beta")
    with pytest.raises(ConfigError, match="there is no thing 'beta'; known are pi, alpha"):
        check_known("thing", "beta", ("pi",), group=GROUP)
    assert check_known("thing", "alpha", ("pi",), group=GROUP) == "alpha"


def test_a_package_that_is_not_installed_is_told_as_the_registry_wants(install: Callable[..., None]) -> None:
    with pytest.raises(ImportError, match="no_such_module"):
        registry().load("absent")
    with pytest.raises(ExportNotInstalled, match=r"export absent .* pip install no_such_module"):
        registry(not_installed=ExportNotInstalled).load("absent")
    with pytest.raises(ExportNotInstalled, match=r"pip install 'wsi_ips\[x\]'"):
        registry(not_installed=ExportNotInstalled, extras={"absent": "'wsi_ips[x]'"}).load("absent")


def test_what_does_not_load_names_its_package_and_hides_no_other(install: Callable[..., None]) -> None:
    install("theirs", broken="no_such_module:it", nothing="math:no_such_name", odd="math:pi", good="math:tau")
    things = registry(problem=lambda member: "it is pi" if member == registry().load("pi") else "")
    for name in ("broken", "nothing"):
        with pytest.raises(
            ExtensionBroken, match=f"thing {name} of the package theirs does not load: .*Error: "
        ):
            things.load(name)
    with pytest.raises(ExtensionBroken, match="thing odd of the package theirs does not load: it is pi"):
        things.load("odd")
    with pytest.raises(ReaderBroken, match="reader broken of the package theirs"):
        registry(broken=ReaderBroken).load("broken")
    assert things.load("good") > 6  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "known", "said"),
    [
        ("abmli", ["mean", "abmil"], "; did you mean abmil?"),
        ("ABMIL", ["mean", "abmil"], "; did you mean abmil?"),
        ("qqq", ["mean", "abmil"], ""),
        ("", [], ""),
    ],
)
def test_the_name_that_may_have_been_meant(name: str, known: list[str], said: str) -> None:
    assert did_you_mean(name, known) == said


def test_a_name_that_is_endless_is_compared_in_no_time() -> None:
    """Names of a table's columns may come from anybody."""
    started = process_time()
    assert did_you_mean("a" * 10**6, (f"{'a' * 500}{number}" for number in range(10**6))) == ""
    assert process_time() - started < 5
