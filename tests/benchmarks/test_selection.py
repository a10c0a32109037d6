"""The selection benchmark runs and answers in the keys that are promised. No figure is asserted."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.selection import chosen, flat, main, parsed, relevant
from tests.datasets.drawn_textures import draw_outlines, draw_textures
from tests.datasets.small_mnist import write_small_mnist


def options(monkeypatch: pytest.MonkeyPatch, *given: object) -> None:
    monkeypatch.setattr(sys, "argv", ["selection.py", *map(str, given)])


def test_what_was_not_run_is_null_and_the_bars_are_ratios_of_what_was() -> None:
    ips = {"auc": 0.98, "encoder_passes_test": 1000}
    cascade = {"auc": 0.975, "encoder_passes_test": 150, "recall": 0.9}
    figures = flat({"slides_ips": ips, "slides_cascade": cascade})
    assert figures["cascade_encoder_share"] == pytest.approx(0.15)
    assert figures["cascade_auc_drop"] == pytest.approx(0.005)
    assert figures["ats_mnist_error"] is None
    assert flat({"slides_ips": ips})["cascade_encoder_share"] is None
    assert flat({"mnist_ats": {"accuracy": 0.9, "size": {}}})["ats_mnist_error"] == pytest.approx(0.1)


def test_a_method_is_run_again_only_for_settings_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_small_mnist(tmp_path, train=10, test=10)
    options(monkeypatch, "--mnist", tmp_path, "--out", tmp_path)
    first = chosen(parsed())
    options(monkeypatch, "--mnist", tmp_path, "--out", tmp_path, "--epochs", 9)
    second = chosen(parsed())
    for name in ("slides_ips", "slides_random"):
        assert relevant(name, first) == relevant(name, second)
    for name in ("mnist_ats", "slides_cascade", "slides_ats"):
        assert relevant(name, first) != relevant(name, second)


def test_nothing_to_do_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    options(monkeypatch)
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "give --mnist, or --textures and --outlines" in capfd.readouterr().err


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


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_methods_on_slides_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "textures").mkdir()
    (tmp_path / "outlines").mkdir()
    folders = (draw_textures(tmp_path / "textures"), draw_outlines(tmp_path / "outlines"))
    given = (
        "--textures",
        folders[0],
        "--outlines",
        folders[1],
        "--out",
        tmp_path / "run",
        "--quick",
        "--json",
    )
    options(monkeypatch, *given, "--only", "slides_ips", "slides_cascade", "slides_ats")
    main()
    figures = json.loads(capfd.readouterr().out)
    for method in ("ips", "cascade", "ats"):
        low, high = (figures[f"slides_{method}_auc_{end}"] for end in ("low", "high"))
        assert low <= figures[f"slides_{method}_auc"] <= high
        assert (
            figures[f"slides_{method}_patches_decoded_test"]
            == figures[f"slides_{method}_encoder_passes_test"]
        )
    assert 0.2 <= figures["cascade_encoder_share"] < 0.3  # of few patches, rounded up
    assert figures["slides_cascade_let_through"] == pytest.approx(figures["cascade_encoder_share"])
    assert 0 <= figures["slides_cascade_recall"] <= 1
    assert figures["slides_ips_let_through"] == 1
    assert figures["cascade_auc_drop"] == figures["slides_ips_auc"] - figures["slides_cascade_auc"]
    assert figures["ats_mnist_error"] is None
