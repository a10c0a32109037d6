"""``wsi-ips report``: one file with everything in it; what is missing is said, what cannot be is one line."""

import csv
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from benchmarks.chromium import NAMES, QUIET, installed
from tests.commands.console import Console
from tests.conftest import SmallData
from tests.report.reported_run import Slide, make_run
from tests.slides.tiff_files import tissue_like, write_pyramid
from wsi_ips.commands.recipe import Job
from wsi_ips.config import TaskConfig
from wsi_ips.errors import ConfigError
from wsi_ips.evaluation import plots
from wsi_ips.inference.results import read_result, write_result

CHOICES = {"out": "o.html", "evaluation": "e", "training": "t", "slides": "s", "top": 3}
TWELVE = [Slide(f"s{place:02}", 0.9 - place / 14) for place in range(12)]


def flags(choices: dict[str, object]) -> list[str]:
    return [part for name, value in choices.items() for part in (f"--{name}", str(value))]


def manifest_of(folder: Path, slides: list[Slide]) -> Path:
    """Every third slide is a tumour."""
    path = folder / "labels.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["slide_id", "case_id", "label", "split", "path"])
        for place, slide in enumerate(slides):
            label = "normal" if place % 3 else "tumor"
            writer.writerow([slide.slide_id, f"p{place}", label, "test", f"slides/{slide.slide_id}.tif"])
    return path


def trained(folder: Path) -> Path:
    folder.mkdir()
    (folder / "history.csv").write_text("epoch,train_loss,val_loss\n0,0.9,0.8\n1,0.5,0.31\n2,0.2,0.6\n")
    return folder


def text_of(path: Path) -> str:
    """Without pictures, markup and line breaks."""
    html = re.sub(r"data:[^\"]*", "", path.read_text(encoding="utf-8"))
    html = re.sub(r"<(style|script).*?</\1>", "", html, flags=re.S)
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def test_everything_in_one_file(console: Console, tmp_path: Path) -> None:
    slides = [*TWELVE, Slide("broken", status="failed", error="cut.svs: truncated; copy it again")]
    run = make_run(tmp_path, slides)
    assert console("evaluate", run, manifest_of(tmp_path, slides), "--bootstrap", "20").code == 3
    said = console("report", run, "--training", trained(tmp_path / "model"))
    assert said.code == 0, said.err
    assert f"13 slides in {run / 'report.html'} (" in said.out
    html = (run / "report.html").read_text()
    text = text_of(run / "report.html")
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text())["tasks"]["label"]["metrics"]
    for name, figure in metrics.items():
        assert f"{figure['value']:.3f}" in text, name
    assert metrics["auc"]["low"] is None
    assert metrics["auc"]["why_none"].endswith("of a class, and 5 are needed")
    assert "too few for an interval" in text
    assert "Slides 13 Labelled 12 Failed 1 Unfinished 0" in text
    assert "cut.svs: truncated; copy it again" in text
    assert "3 epochs, lowest validation loss in epoch 2" in text
    assert "ab" * 32 in text
    assert html.count("data:image/png;base64,") == 3  # ROC, calibration, losses
    assert html.count("data:image/jpeg;base64,") == 12 * (2 + 9)
    assert html.count("✗") == 2 * sum(
        (slide.tumor or 0) > 0.5 if place % 3 else (slide.tumor or 0) <= 0.5
        for place, slide in enumerate(TWELVE)
    )
    assert sorted(path.name for path in run.iterdir() if path.is_file()) == [
        "predictions.csv", "report.html", "run.json", "slides.csv",
    ]  # fmt: skip


def test_a_run_of_predict_is_reported(
    console: Console, small_data: SmallData, small_checkpoint: Path, tmp_path: Path
) -> None:
    """The folder as predict itself writes it, with a file that is no slide."""
    (tmp_path / "slides").mkdir()
    for slide in sorted(small_data.slides.glob("*.tif"))[:2]:
        (tmp_path / "slides" / slide.name).symlink_to(slide)
    (tmp_path / "slides" / "text.svs").write_text("no slide")
    run = tmp_path / "run"
    predicted = console(
        "predict", tmp_path / "slides", "--checkpoint", small_checkpoint, "--out", run, "--no-overlays"
    )
    assert predicted.code == 3
    said = console("report", run)
    assert said.code == 0, said.out
    text = text_of(run / "report.html")
    assert "Slides 3 Labelled 2 Failed 1 Unfinished 0" in text
    assert "no reader could open it" in text
    assert f"checkpoint: {small_checkpoint}" in text
    assert "patch_px: 32" in text
    assert "encoding" in text
    assert json.loads((run / "run.json").read_text())["checkpoint"]["sha256"] in text
    assert (run / "report.html").read_text().count("data:image/jpeg") == 2 * (2 + 9)


def test_a_slide_without_a_patch_is_shown_without_heat(console: Console, tmp_path: Path) -> None:
    run = make_run(tmp_path, TWELVE[:1])
    result = read_result(run / "attention" / "s00.h5")
    coords = result.coords
    none = replace(coords, ids_N=coords.ids_N[:0], l0_xy_N2=coords.l0_xy_N2[:0], tissue_N=coords.tissue_N[:0])
    empty = replace(
        result, coords=none, logits_NHT=result.logits_NHT[:0], attention_NHT=result.attention_NHT[:0],
        kept_ids_M=result.kept_ids_M[:0], kept_scores_M=result.kept_scores_M[:0],
    )  # fmt: skip
    write_result(run / "attention" / "s00.h5", empty)
    said = console("report", run)
    assert said.code == 0, said.out
    assert (run / "report.html").read_text().count("data:image/jpeg") == 2


def test_the_same_run_gives_the_same_bytes(console: Console, tmp_path: Path) -> None:
    run = make_run(tmp_path, TWELVE[:2])
    for name in ("a.html", "b.html"):
        assert console("report", run, "--out", tmp_path / name, "--top", "2").code == 0
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_a_slide_that_is_gone_says_so_and_has_its_attention(console: Console, tmp_path: Path) -> None:
    run = make_run(tmp_path, TWELVE[:3])
    (tmp_path / "slides" / "s01.tif").unlink()
    said = console("report", run, "--top", "2")
    assert said.code == 3
    assert "failed: s01: the slide is gone: " in said.out
    text = text_of(run / "report.html")
    assert f"The slide is gone: {tmp_path / 'slides' / 's01.tif'}: " in text
    html = (run / "report.html").read_text()
    assert html.count("data:image/jpeg") == 2 * (2 + 2) + 1
    card = html.split('id="s2"')[1].split("</article>")[0]
    assert 'alt="the slide\'s attention"' in card or 'alt="the slide&#39;s attention"' in card


def test_slides_that_moved_are_found_again(console: Console, tmp_path: Path) -> None:
    run = make_run(tmp_path, TWELVE[:3])
    (tmp_path / "slides").rename(tmp_path / "moved")
    (tmp_path / "moved" / "s02.tif").unlink()
    said = console("report", run, "--slides", tmp_path / "moved", "--top", "0")
    assert said.code == 3
    assert [line for line in said.out.splitlines() if "failed" in line] == [
        "failed: s02: the slide is gone: s02: is not in the folder that --slides names"
    ]
    assert (run / "report.html").read_text().count("data:image/jpeg") == 5


def test_another_slide_under_the_same_name_is_not_shown(console: Console, tmp_path: Path) -> None:
    run = make_run(tmp_path, TWELVE[:1])
    (tmp_path / "slides" / "s00.tif").unlink()
    write_pyramid(tmp_path / "slides" / "s00.tif", tissue_like(600, 500), mpp=0.25)
    said = console("report", run)
    assert said.code == 3
    assert "is 600x500 pixels, but s00 was 1000x700 when predicted" in said.out


def test_a_damaged_result_costs_its_slide_only(console: Console, tmp_path: Path) -> None:
    run = make_run(tmp_path, TWELVE[:2])
    (run / "attention" / "s00.h5").write_bytes(b"no HDF5")
    said = console("report", run, "--top", "1")
    assert said.code == 3
    assert "failed: s00: its attention cannot be shown: " in said.out
    assert (run / "report.html").read_text().count("data:image/jpeg") == 3


def test_a_failed_slide_that_opens_is_shown(console: Console, tmp_path: Path) -> None:
    """No tissue, say: the picture tells why."""
    run = make_run(tmp_path, [Slide("s00"), Slide("bad", status="failed", error="no tissue was found")])
    shutil.copy(tmp_path / "drawn.tif", tmp_path / "slides" / "bad.tif")
    assert console("report", run, "--top", "0").code == 0
    html = (run / "report.html").read_text()
    assert html.split('id="s2"')[1].split("</article>")[0].count("data:image/jpeg") == 1


def test_a_run_that_was_cut_short(console: Console, tmp_path: Path) -> None:
    run = make_run(tmp_path, [TWELVE[0], Slide("b", status="running"), Slide("c", status="waiting")])
    assert console("report", run).code == 0
    text = text_of(run / "report.html")
    assert "Slides 3 Labelled 1 Failed 0 Unfinished 2" in text
    assert "The run is not finished: 2 of 3 slides are left to do." in text


def test_several_tasks(console: Console, tmp_path: Path) -> None:
    tasks = (
        TaskConfig(name="type", classes=("a", "b", "c")),
        TaskConfig(name="found", classes=("x", "y"), activation="sigmoid"),
        TaskConfig(name="age", classes=("years",), activation="linear"),
    )
    outputs = {"type": {"a": 0.2, "b": 0.7, "c": 0.1}, "found": {"x": 0.9, "y": 0.6}, "age": {"years": 61.5}}
    run = make_run(tmp_path, [Slide("s", probabilities=outputs)], tasks)
    assert console("report", run).code == 0
    text = text_of(run / "report.html")
    assert "s ok b 0.700 x, y 0.900 61.5 176 2.0 s" in text


@pytest.mark.slow
def test_a_hundred_slides_are_less_than_ten_megabytes(console: Console, tmp_path: Path) -> None:
    """Of a drawn slide that JPEG packs badly."""
    run = make_run(
        tmp_path, [Slide(f"slide_{place:03}", place / 100) for place in range(100)], l0_size=(500, 350)
    )
    assert console("report", run, "--top", "4").code == 0
    html = (run / "report.html").read_text()
    assert 5_000_000 < (run / "report.html").stat().st_size < 10_000_000
    assert html.count('alt="the slide"') == 100
    assert html.count('<figure><img src="data:image/jpeg') == 400


def test_without_matplotlib_the_losses_are_a_table(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> None:
        raise ConfigError("plots need matplotlib")

    monkeypatch.setattr(plots, "check_can_plot", absent)
    monkeypatch.setattr("wsi_ips.report.pictures.check_can_plot", absent)
    run = make_run(tmp_path, TWELVE)
    assert console("evaluate", run, manifest_of(tmp_path, TWELVE), "--bootstrap", "5", "--no-plots").code == 0
    assert console("report", run, "--training", trained(tmp_path / "model"), "--top", "0").code == 0
    text = text_of(run / "report.html")
    assert "The losses are a table only: matplotlib is not installed: pip install" in text
    assert "holds no plots: evaluate again where matplotlib is installed" in text
    assert "0.310" in text
    assert "data:image/png" not in (run / "report.html").read_text()


def test_an_evaluation_of_other_predictions(console: Console, tmp_path: Path) -> None:
    """Named, it is refused; the one in the run's own folder is left out, and the page says so."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    run = make_run(tmp_path / "old", TWELVE)
    assert console("evaluate", run, manifest_of(tmp_path, TWELVE), "--bootstrap", "5", "--no-plots").code == 0
    other = make_run(tmp_path / "new", [Slide(slide.slide_id, 0.123) for slide in TWELVE])
    said = console("report", other, "--evaluation", run / "evaluation")
    assert said.code == 2
    assert (
        "slide 's00' was scored with other predictions than this run's; evaluate this run" in said.complaint
    )
    assert not (other / "report.html").exists()
    (run / "evaluation").rename(other / "evaluation")
    assert console("report", other, "--top", "0").code == 0
    assert "The evaluation in the run's folder is left out" in text_of(other / "report.html").replace(
        "&#39;", "'"
    )


def test_a_plot_that_is_none_is_left_out(console: Console, tmp_path: Path) -> None:
    run = make_run(tmp_path, TWELVE)
    assert console("evaluate", run, manifest_of(tmp_path, TWELVE), "--bootstrap", "5", "--no-plots").code == 0
    (run / "evaluation" / "roc.png").write_bytes(b"<script>")
    Image.new("1", (9000, 9000)).save(run / "evaluation" / "froc.png")
    Image.new("RGB", (30, 20), "red").save(run / "evaluation" / "reliability.png")
    assert console("report", run, "--top", "0").code == 0
    text = text_of(run / "report.html")
    assert "roc.png is not shown: " in text
    assert "froc.png is not shown: 9000x9000 pixels are no plot" in text
    assert (run / "report.html").read_text().count("data:image/png") == 1


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["nowhere"], "nowhere: no such folder; name the folder that wsi-ips predict wrote"),
        (["empty"], "empty: holds no run.json; name a folder that wsi-ips predict finished"),
        (["none"], "predictions.csv: holds no slides; let wsi-ips predict finish some first"),
        (["torn"], "predictions.csv: does not exist"),
        (["run", "--evaluation", "empty"], "empty: holds no metrics.json; name the folder that wsi-ips"),
        (["run", "--evaluation", "nonsense"], "metrics.json: is no evaluation ("),
        (["run", "--training", "empty"], "empty: holds no history.csv; name the folder that wsi-ips"),
        (["run", "--training", "folds"], "folds: holds no history.csv; name one fold's: folds/fold_0"),
        (["run", "--slides", "empty"], "empty"),
        (["run", "--out", "run/predictions.csv"], "out run/predictions.csv must end in .html"),
        (["run", "--out", "folder.html"], "folder.html: is a folder; name another file with --out"),
        (["run", "--out", "file/r.html"], "file/r.html: cannot be written ("),
        (["run", "--top", "101"], "top"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line_and_writes_nothing(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path, TWELVE[:2])
    none = make_run(tmp_path / "n", [], files=False)
    none.rename(tmp_path / "none")
    torn = make_run(tmp_path / "t", TWELVE[:1], files=False)
    (torn / "predictions.csv").unlink()
    torn.rename(tmp_path / "torn")
    for name in ("empty", "nonsense", "folder.html", "folds"):
        (tmp_path / name).mkdir()
    (tmp_path / "nonsense" / "metrics.json").write_text('{"slides": 3}')
    (tmp_path / "file").touch()
    trained(tmp_path / "folds" / "fold_0")
    before = sorted(path for path in tmp_path.rglob("*"))
    said = console("report", *arguments)
    assert said.code == 2
    assert problem in said.complaint
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_flags_and_a_recipe_make_the_same_job(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Job] = []
    for module in ("options", "application"):  # flags by one, recipes by the other
        monkeypatch.setattr(f"wsi_ips.commands.{module}.start_job", jobs.append)
    (tmp_path / "full.yaml").write_text(yaml.safe_dump({"command": "report", "run": "r", **CHOICES}))
    for arguments in (["report", "r", *flags(dict(CHOICES))], ["run", tmp_path / "full.yaml"]):
        console(*arguments)
    assert jobs[0] == jobs[1]
    assert jobs[0].model_dump(mode="json").items() >= CHOICES.items()


def test_reporting_loads_no_torch() -> None:
    code = "import sys, wsi_ips.commands.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def browser_path() -> str:
    """Skips where there is none."""
    found = installed()
    if found is None:
        pytest.skip(f"none of {', '.join(NAMES)} is installed")
    return found


def chromium(*arguments: str | Path, profile: Path) -> subprocess.CompletedProcess[str]:
    """Run a page in Chromium without a window."""
    return subprocess.run(
        [browser_path(), "--headless", *QUIET, f"--user-data-dir={profile}", *map(str, arguments)],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip


@pytest.mark.browser
def test_chromium_prints_the_page(console: Console, tmp_path: Path) -> None:
    """On A4: the first slides' cards begin on a page of their own, and all of it is there."""
    run = make_run(tmp_path, [*TWELVE, Slide("b", status="failed", error="why")])
    pdf = tmp_path / "r.pdf"
    assert console("report", run).code == 0
    chromium(
        f"--print-to-pdf={pdf}", "--no-pdf-header-footer", run / "report.html", profile=tmp_path / "profile"
    )
    content = pdf.read_bytes()
    assert content.startswith(b"%PDF-")
    assert content.rstrip().endswith(b"%%EOF")
    pages = len(re.findall(rb"/Type\s*/Page\b", content))
    assert 6 <= pages <= 12  # three cards a page, and summary, table, settings
    assert re.search(rb"/MediaBox\s*\[0 0 59[45](\.\d+)? 84[12]", content)
    assert len(re.findall(rb"/Subtype\s*/Image", content)) >= 12 * 2


@pytest.mark.browser
def test_the_script_runs_and_no_name_does(console: Console, tmp_path: Path) -> None:
    name = "<img src=x onerror=document.body.append('fired')>"
    run = make_run(tmp_path, [Slide(name), Slide("<script>")])
    assert console("report", run, "--top", "1").code == 0
    said = chromium(
        "--dump-dom", "--enable-logging=stderr", run / "report.html", profile=tmp_path / "profile"
    )
    assert '<div id="tools">' in said.stdout  # shown by the script, which the page's policy therefore let run
    assert '<th scope="col"><button type="button">Slide</button></th>' in said.stdout
    assert not said.stdout.rstrip().endswith("fired</body></html>")
    assert "fired</body>" not in said.stdout
    assert "CONSOLE" not in said.stderr


@pytest.mark.browser
def test_slides_are_searched_and_sorted(console: Console, tmp_path: Path) -> None:
    """By number where there is one: 0.9 comes after 0.1 and before nothing at all; cards follow their rows."""
    playwright = pytest.importorskip("playwright.sync_api")
    run = make_run(
        tmp_path, [Slide("b", 0.5), Slide("a10", 0.9), Slide("a9", 0.1), Slide("bad", status="failed")]
    )
    assert console("report", run, "--top", "0").code == 0
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=browser_path(), args=list(QUIET))
        page = browser.new_page(viewport={"width": 390, "height": 800})
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url.partition(":")[0]))
        page.goto(f"file://{run / 'report.html'}")

        def shown(selector: str) -> list[str]:
            return [each.inner_text() for each in page.locator(selector).all() if each.is_visible()]

        names, cards = "#slides-table tbody th", "#cards h3"
        assert shown(names) == shown(cards) == ["b", "a10", "a9", "bad"]
        page.get_by_role("button", name="Slide").click()
        assert shown(names) == shown(cards) == ["a9", "a10", "b", "bad"]
        page.get_by_role("button", name="p(tumor)").click()
        page.get_by_role("button", name="p(tumor)").click()
        assert shown(names) == ["a10", "b", "a9", "bad"]
        page.get_by_label("Search the slides").fill("A1")
        assert shown(names) == shown(cards) == ["a10"]
        page.get_by_label("Search the slides").fill("")
        page.get_by_label("Which slides").select_option("failed")
        assert shown(names) == ["bad"]
        assert page.locator("#found").inner_text() == "1 of 4"
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        page.emulate_media(media="print")
        assert shown(names) == ["a10", "b", "a9", "bad"]  # paper cannot be searched: nothing is left out
        browser.close()
    assert set(asked) <= {"file", "data"}


def test_the_report_of_a_training_shows_its_model_card(console: Console, tmp_path: Path) -> None:
    run = make_run(tmp_path, TWELVE)
    training = trained(tmp_path / "model")
    assert console("report", run, "--training", training).code == 0
    assert "Model card" not in (run / "report.html").read_text()
    (training / "MODEL_CARD.md").write_text("# Model card\n\nfor <b>research</b>\n")
    assert console("report", run, "--training", training).code == 0
    assert "# Model card\n\nfor &lt;b&gt;research&lt;/b&gt;" in (run / "report.html").read_text()
    (training / "MODEL_CARD.md").write_bytes(b"x" * (2**20 + 1))
    assert "MODEL_CARD.md: is larger than" in console("report", run, "--training", training).complaint


def test_a_comparison_with_another_run_is_told(console: Console, tmp_path: Path) -> None:
    """``evaluate --against``: both runs' figures, the differences, intervals and p values."""
    rng = np.random.default_rng(3)
    runs = {}
    for name, noise in (("ours", 0.2), ("theirs", 0.6)):
        (tmp_path / name).mkdir()
        slides = [
            Slide(f"s{n:02}", float(np.clip((0.3 if n % 3 else 0.7) + noise * rng.normal(), 0.01, 0.99)))
            for n in range(30 if name == "ours" else 28)
        ]
        runs[name] = make_run(tmp_path / name, slides)
    ours, theirs = runs.values()
    manifest = manifest_of(tmp_path, [Slide(f"s{n:02}", 0.5) for n in range(30)])
    evaluate = ("evaluate", ours, manifest, "--bootstrap", "50", "--no-plots")
    assert console(*evaluate, "--against", theirs).code == 0
    assert console("report", ours, "--top", "0").code == 0
    text = text_of(ours / "report.html")
    told = json.loads((ours / "evaluation" / "against.json").read_text())
    assert "Against another run 28 slides of split test that both have predicted" in text
    assert "2 slides that only A has predicted: left out" in text
    assert "50 bootstrap resamples of patients, drawn alike for both" in text
    (auc,) = [each for each in told["figures"] if each["figure"] == "auc"]
    row = " ".join(
        f"{auc[side]:.3f} {auc[f'{side}_low']:.3f} to {auc[f'{side}_high']:.3f}"
        for side in ("a", "b", "difference")
    )
    assert f"AUC {row} {auc['delong_p']:.2g}" in text
    told["b"] = "<script>alert(1)</script>"
    (ours / "evaluation" / "against.json").write_text(json.dumps(told))
    assert console("report", ours, "--top", "0").code == 0
    assert "<script>alert" not in (ours / "report.html").read_text()
    # A later evaluation without a comparison leaves none behind.
    assert console(*evaluate).code == 0
    assert console("report", ours, "--top", "0").code == 0
    assert "Against another run" not in text_of(ours / "report.html")
    (ours / "evaluation" / "against.json").write_text('{"a": 1}')
    said = console("report", ours, "--evaluation", ours / "evaluation")
    assert said.code == 2
    assert "against.json: is no comparison (a: " in said.complaint


def test_a_comparison_of_too_few_slides_says_so(console: Console, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    ours, theirs = (
        make_run(tmp_path / name, [Slide(s.slide_id, 0.1 + n / 20) for n, s in enumerate(slides)])
        for name, slides in (("a", TWELVE), ("b", TWELVE[::-1]))
    )
    manifest = manifest_of(tmp_path, TWELVE)
    assert (
        console("evaluate", ours, manifest, "--against", theirs, "--bootstrap", "20", "--no-plots").code == 0
    )
    assert console("report", ours, "--top", "0").code == 0
    html = (ours / "report.html").read_text()
    comparison = html[html.index('id="comparison"') :]
    assert '<span title="4 cases of a class, and 5 are needed">too few for an interval</span>' in comparison
