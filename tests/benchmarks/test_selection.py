"""The selection benchmark runs and answers in the keys that are promised. No figure is asserted."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.kept_results import COMMITTED, digest_of
from benchmarks.selection import chosen, flat, main, parsed, read_seeds, relevant
from tests.images.small_mnist import write_small_mnist


def options(monkeypatch: pytest.MonkeyPatch, *given: object) -> None:
    monkeypatch.setattr(sys, "argv", ["selection.py", *map(str, given)])


def test_what_was_not_run_is_null_and_the_bar_is_of_what_was() -> None:
    assert flat({})["ats_mnist_error"] is None
    assert flat({"mnist_ats": {"accuracy": 0.9, "size": {}}})["ats_mnist_error"] == pytest.approx(0.1)


def test_a_method_is_run_again_only_for_settings_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_small_mnist(tmp_path, train=10, test=10)
    options(monkeypatch, "--mnist", tmp_path, "--out", tmp_path)
    first = chosen(parsed())
    options(monkeypatch, "--mnist", tmp_path, "--out", tmp_path / "elsewhere")
    assert relevant("mnist_ats", first) == relevant("mnist_ats", chosen(parsed()))
    options(monkeypatch, "--mnist", tmp_path, "--out", tmp_path, "--epochs", 9)
    assert relevant("mnist_ats", first) != relevant("mnist_ats", chosen(parsed()))


def test_a_folder_without_digits_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    options(monkeypatch, "--mnist", tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "holds no MNIST/raw" in capfd.readouterr().err


def test_results_are_kept_by_seed_and_committed_ones_are_of_mnist_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_small_mnist(tmp_path, train=20, test=10)
    found = {"encoder_passes": 9, "encoder_passes_test": 3, "patches_decoded_test": 3, "size": {}}
    learned: list[tuple[str, int]] = []

    def learn(name: str, settings: Path, *, again: bool) -> dict[str, Any]:
        seed = json.loads(settings.read_text())["mnist"]["training"]["seed"]
        learned.append((name, seed))
        return {**found, "accuracy": 0.9 - 0.1 * seed}

    monkeypatch.setattr("benchmarks.selection.run_step", learn)
    monkeypatch.setattr("benchmarks.kept_results.COMMITTED", tmp_path / "committed")
    monkeypatch.setattr("benchmarks.selection.COMMITTED", tmp_path / "committed")
    given = ("--mnist", tmp_path, "--out", tmp_path / "run", "--only", "mnist_ats")
    options(monkeypatch, *given)
    main()
    assert not (tmp_path / "committed").exists()  # these digits are not MNIST's
    digits = digest_of((tmp_path / "MNIST" / "raw").glob("*-ubyte"))
    monkeypatch.setattr("benchmarks.selection.MNIST_DIGEST", digits)
    for more in ((), ("--seed", 1), ("--seed", 1), ("--epochs", 2)):
        options(monkeypatch, *given, *more)
        main()
    assert learned == [("mnist_ats", seed) for seed in (0, 0, 1, 0)]
    assert len(list((tmp_path / "committed").iterdir())) == 2
    capfd.readouterr()
    options(monkeypatch, "--table")
    main()
    assert "| attention sampling | 2 | 0.150 ± 0.071 | 0.200 | 9 | 3 | 0 |" in capfd.readouterr().out


def test_committed_results_are_those_of_today_s_settings() -> None:
    held = read_seeds(COMMITTED)
    assert sum(len(seeds) for seeds in held.values()) == len(list(COMMITTED.glob("selection_*.json")))
    for seeds in held.values():
        for run in seeds.values():
            assert not run["commit"].endswith("+"), "found by a program that was not committed"


@pytest.mark.slow
def test_methods_on_images_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_small_mnist(tmp_path, train=300, test=100)
    options(monkeypatch, "--mnist", tmp_path, "--out", tmp_path / "run", "--quick", "--json")
    main()
    figures = json.loads(capfd.readouterr().out)
    for method in ("ats", "ips", "cascade", "random"):
        assert 0 <= figures[f"mnist_{method}_accuracy"] <= 1
    # 12 test images: 8 samples; all 49 patches; 15 of them; 8 at random.
    passes = {
        name: figures[f"mnist_{name}_encoder_passes_test"] for name in ("ats", "ips", "cascade", "random")
    }
    assert passes == {"ats": 96, "ips": 588, "cascade": 180, "random": 96}
    assert 0 <= figures["ats_mnist_error"] <= 1
    assert figures["ats_mnist_size"]["side_px"] == 140
