"""What a notebook shows: pictures of slides and results, and progress bars; a script shows none."""

import logging
import sys
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

import wsi_ips as wi
from wsi_ips.api import progress
from wsi_ips.api.progress import NotebookProgress, in_notebook, shown_progress
from wsi_ips.progress import silent


def opened(png: bytes | None) -> Image.Image:
    assert png is not None
    return Image.open(BytesIO(png))


class Output:
    """A cell's output: what is shown in it, and how often that changed."""

    def __init__(self) -> None:
        self.shown: list[list[str]] = []

    def display(self, content: Any) -> "Output":
        self.shown.append([content._repr_html_()])
        return self

    def update(self, content: Any) -> None:
        self.shown[-1].append(content._repr_html_())


def test_a_slide_is_shown_as_its_thumbnail(here: Path) -> None:
    with wi.open_slide("slide.svs") as slide:
        assert opened(slide._repr_png_()).size == slide.thumbnail(512).size
        assert max(slide.thumbnail(512).size) == 512


def test_patches_are_shown_as_the_tile_command_s_preview(here: Path) -> None:
    patches = wi.tile("slide.svs", px=64, mpp=1.0)
    shown = opened(patches._repr_png_())
    assert shown.size == patches.picture().size
    assert shown.height > 1000  # the slide, and a legend below


def test_a_result_is_shown_as_its_overlay(here: Path) -> None:
    result = wi.predict("slide.svs", "model.safetensors", device="cpu")
    assert opened(result._repr_png_()).tobytes() == wi.overlay(result, side_px=1024).tobytes()


def test_a_result_whose_slide_is_gone_is_shown_in_words(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    result = wi.predict("slide.svs", "model.safetensors", device="cpu")
    Path("slide.svs").unlink()
    with caplog.at_level(logging.WARNING):
        assert result._repr_png_() is None
    assert "slide.svs: no such file" in caplog.text
    assert repr(result).startswith("Result('slide', label: ")


def test_a_training_is_shown_as_its_losses_and_scores_as_their_curve(here: Path) -> None:
    training = wi.train("labels.csv", "trained", config="small.yaml", device="cpu")
    assert len(training.history["train_loss"]) == 2
    assert min(opened(training._repr_png_()).size) > 100
    run = wi.predict("slides", training.checkpoint, "run", device="cpu", overlays=False)
    scores = wi.evaluate(run, "labels.csv", bootstrap=20, plots=True)
    with Image.open("run/evaluation/roc.png") as drawn:
        assert opened(scores._repr_png_()).tobytes() == drawn.convert("RGB").tobytes()
    assert wi.evaluate(run, "labels.csv", bootstrap=0, plots=False, out="plain")._repr_png_() is None


def test_bars_of_a_notebook_say_how_far_work_is() -> None:
    output = Output()
    bars = NotebookProgress(output.display)
    with bars("Predicting", total=2) as advance:
        with bars("<a>", total=3) as inner:
            inner()
        advance("a: ok")
        advance("b: ok")
    (cell,) = output.shown
    assert 'max="2"' in cell[0]
    assert "Predicting 0/2" in cell[0]
    assert "&lt;a&gt; 0/3" in cell[1]
    assert "Predicting 2/2 b: ok" in cell[-1]
    assert "&lt;a&gt;" not in cell[-1]
    with bars("Scoring", total=1):
        pass
    assert len(output.shown) == 2, "another piece of work has an output of its own"


def test_a_notebook_shows_bars_unasked_and_a_script_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not in_notebook()
    with shown_progress(None) as bars:
        assert bars is silent
    for shell, is_notebook in ((None, False), (SimpleNamespace(), False), (SimpleNamespace(kernel=1), True)):
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda shell=shell: shell))
        assert in_notebook() == is_notebook
    with shown_progress(None) as bars:
        assert isinstance(bars, NotebookProgress)
    with shown_progress(False) as bars:
        assert bars is silent


def test_a_prediction_in_a_notebook_moves_a_bar(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = Output()
    shell = SimpleNamespace(kernel=1)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr(progress, "_display", output.display)
    wi.predict("slide.svs", "model.safetensors", device="cpu")
    assert "slide 1/1" in output.shown[0][-1]


def test_a_script_may_ask_for_bars(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wi.predict("slide.svs", "model.safetensors", device="cpu", progress=True)
    assert "slide (1)" in capsys.readouterr().err
