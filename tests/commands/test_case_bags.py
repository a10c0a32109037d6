"""``bag: case``: all slides of a patient as one bag, from the command line."""

import csv
import json
import pickle
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from shapely import box

from tests.commands.console import Console, uncaptured
from tests.conftest import SMALL_MODEL, SmallData
from tests.datasets.feature_folders import write_features
from wsi_ips.commands.finetune import FinetuneJob
from wsi_ips.commands.recipe import make_job
from wsi_ips.datasets.annotations import write_asap
from wsi_ips.datasets.camelyon import STAGES
from wsi_ips.errors import SlideReadError
from wsi_ips.evaluation.staging import quadratic_kappa
from wsi_ips.inference.in_hand import IN_HAND, Died
from wsi_ips.inference.results import read_result
from wsi_ips.models.build import build_net
from wsi_ips.models.checkpoint import load_checkpoint, save_checkpoint
from wsi_ips.slides.base import RgbImage
from wsi_ips.slides.tiff.layout import TiffReader

WIDTH = 4
SPLITS = ("train", "train", "val", "test")
SETTINGS: dict[str, Any] = {
    "bag": "case",
    "model": {"encoder": {"name": "features", "features": WIDTH, "project": 0},
              "attention": {"heads": 2, "key_dim": 4, "dropout": 0},
              "tasks": [{"name": "label", "classes": ["normal", "tumor"], "activation": "softmax"}]},
    "selection": {"rule": "global", "m": 5, "i": 4},
    "streaming": {"batch": 4},
    "training": {"epochs": 3, "lr": 0.02, "slides_per_step": 4},
}  # fmt: skip


def draw(folder: Path, cases: int = 16, *, sizes: tuple[int, ...] = (7, 3), cells: str = "") -> Path:
    """Features of slides, and their manifest. A case is a tumor's if one patch of one of its slides is marked."""
    rng = np.random.default_rng(0)
    lines = ["slide_id,case_id,split,path,label"]
    for number in range(cases):
        tumor, split = number // 4 % 2, SPLITS[number % len(SPLITS)]
        for place, size in enumerate(sizes):
            slide = f"c{number:02}_{place}"
            features = rng.normal(size=(size, WIDTH)).astype(np.float32)
            if tumor and place == number % len(sizes):
                features[1] = 4
            write_features(folder / "features" / f"{slide}.h5", features, trident=True)
            label = cells or ("tumor" if tumor else "normal")
            lines.append(f"{slide},c{number:02},{split},{slide}.tif,{label}")
    manifest = folder / "manifest.csv"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


def train(console: Console, folder: Path, manifest: Path, name: str = "m", **more: Any) -> Path:
    recipe = folder / f"{name}.yaml"
    recipe.write_text(yaml.safe_dump({**SETTINGS, **more}))
    given = ("--recipe", recipe, "--features", folder / "features", "--out", folder / name)
    said = console("finetune", manifest, *given)
    assert said.code == 0, said.err
    return folder / name / "model.safetensors"


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def by_case(rows: list[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        found.setdefault(row["case_id"], []).append(row)
    return found


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of features, their manifest, and a checkpoint that read cases."""
    folder = tmp_path_factory.mktemp("learned")
    train(uncaptured, folder, draw(folder))
    return folder


@pytest.fixture
def trained(learned: Path, tmp_path: Path) -> tuple[Path, Path, Path]:
    """A copy of these three, which a test may change."""
    shutil.copytree(learned, tmp_path, dirs_exist_ok=True)
    return tmp_path / "features", tmp_path / "manifest.csv", tmp_path / "m" / "model.safetensors"


def test_a_patient_has_one_answer_and_attention_goes_back_to_its_slides(
    console: Console, trained: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    features, manifest, checkpoint = trained
    run = tmp_path / "run"
    given = ("--features", features, "--checkpoint", checkpoint, "--out", run)
    assert console("predict", *given, "--cases", manifest).code == 0
    answers = {row["case_id"]: row for row in table(run / "cases.csv")}
    assert len(answers) == 16
    net, pipeline = load_checkpoint(checkpoint)
    assert pipeline.bag == "case"
    for case, rows in by_case(table(run / "predictions.csv")).items():
        assert {row["prob_tumor"] for row in rows} == {answers[case]["prob_tumor"]}
        assert answers[case]["n_slides"] == "2"
        slides = [read_result(run / "attention" / f"{row['slide_id']}.h5") for row in rows]
        attention = sum(slide.attention_NHT.sum(axis=0, dtype=np.float64) for slide in slides)
        np.testing.assert_allclose(attention, 1, atol=1e-6)
        assert sum(len(slide.kept_ids_M) for slide in slides) == 5  # of the case, not of each slide
        for row, slide in zip(rows, slides, strict=True):
            assert slide.case is not None
            assert slide.case.patches == sum(len(each.coords) for each in slides) == 10
            assert slide.case.slides == (f"{case}_0", f"{case}_1")
            share = slide.attention_NHT.mean(axis=(1, 2), dtype=np.float64).sum()
            assert slide.case.share == float(row["attention_share"]) == pytest.approx(share, abs=1e-6)
        # Over all slides, contributions and the bias make the answer.
        together = sum(slide.contribution("label", "tumor").sum(dtype=np.float64) for slide in slides)
        bias = net.heads.layers[0].bias.detach().double()
        centred = together + (bias - bias.mean())[1].item()  # half the difference of the two logits
        probability = 1 / (1 + np.exp(-2 * centred))
        assert probability == pytest.approx(float(answers[case]["prob_tumor"]), abs=1e-5)


def test_evaluate_counts_patients(console: Console, trained: tuple[Path, Path, Path], tmp_path: Path) -> None:
    features, manifest, checkpoint = trained
    run = tmp_path / "run"
    given = ("--features", features, "--checkpoint", checkpoint, "--out", run)
    assert console("predict", *given, "--cases", manifest).code == 0
    said = console("evaluate", run, manifest, "--bootstrap", "20")
    assert said.code == 0
    assert "4 of 4 cases of split test scored" in said.out
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert metrics["slides"]["bag"] == "case"
    assert (metrics["slides"]["scored"], metrics["slides"]["cases"]) == (4, 4)
    assert sum(row["slides"] for row in metrics["tasks"]["label"]["per_class"]) == 4
    rows = table(run / "evaluation" / "slides.csv")
    assert [row["slide_id"] for row in rows] == [f"c{n:02}_0;c{n:02}_1" for n in (3, 7, 11, 15)]
    assert [row["slides"] for row in table(run / "evaluation" / "cases.csv")] == ["2"] * 4
    console("report", run)  # the slides themselves are not there to be drawn
    html = (run / "report.html").read_text()
    assert "other predictions" not in html
    assert "4 of 4 cases of split" in html
    # A calibration knows the slides of its cases, so that none of them is judged by it.
    calibration = tmp_path / "c.json"
    said = console("calibrate", run, manifest, "--split", "test", "--out", calibration, "--risk", "0.4")
    assert said.code == 0, said.err
    assert "4 cases of split test calibrated on" in said.out
    slides = json.loads(calibration.read_text())["slides"]
    assert slides == [f"c{n:02}_{place}" for n in (3, 7, 11, 15) for place in (0, 1)]
    # Another manifest's cases are not those that were read.
    other = tmp_path / "other.csv"
    other.write_text(manifest.read_text().replace("c03_1,c03,", "c03_1,c07,"))
    said = console("evaluate", run, other, "--bootstrap", "20", "--out", tmp_path / "e")
    assert said.code == 2
    assert "'c03_1' belongs to case 'c07', and was read as part of 'c03'" in said.complaint


def test_lesions_are_found_on_slides_by_the_attention_of_their_case(
    console: Console, trained: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    features, manifest, checkpoint = trained
    run, outlines = tmp_path / "run", tmp_path / "outlines"
    given = ("--features", features, "--checkpoint", checkpoint, "--out", run)
    assert console("predict", *given, "--cases", manifest).code == 0
    outlines.mkdir()
    for slide in ("c07_1", "c15_1"):  # around the marked patches of the test split, larger than single cells
        write_asap(outlines / f"{slide}.xml", [box(0, 0, 1536, 1536)])
    for by in ("attention", "contribution"):
        out = tmp_path / by
        said = console("evaluate", run, manifest, "--bootstrap", "20", "--annotations", outlines,
                       "--detections", by, "--out", out)  # fmt: skip
        assert said.code == 3  # two slides of positive cases have no outlines
        assert "c07_0: left out of FROC: no outlines" in said.err + said.out
        strongest = {
            path.stem: float(path.read_text().partition(",")[0]) for path in (out / "detections").iterdir()
        }
        assert sorted(strongest) == ["c03_0", "c03_1", "c07_1", "c11_0", "c11_1", "c15_1"]
        chances = {row["case_id"]: float(row["prob_tumor"]) for row in table(run / "cases.csv")}
        expected = {}
        for slide in strongest:
            case = slide.partition("_")[0]
            results = {
                name: read_result(run / "attention" / f"{name}.h5") for name in (f"{case}_0", f"{case}_1")
            }
            largest = {
                name: result.attention_NHT.mean(axis=(1, 2)).max()
                if by == "attention"
                else max(0, (-result.contribution("label", "normal")).max())
                for name, result in results.items()
            }
            expected[slide] = chances[case] * largest[slide] / max(*largest.values(), 1e-30)
        assert strongest == pytest.approx(expected, rel=1e-4, abs=1e-6)
        below = [slide for slide in strongest if strongest[slide] < 0.999 * chances[slide.partition("_")[0]]]
        assert below  # not every slide is at the top of its case
    froc = json.loads((tmp_path / "attention" / "metrics.json").read_text())["froc"]
    assert froc["lesions"] == 2


def test_cases_of_one_slide_are_slides(console: Console, tmp_path: Path) -> None:
    manifest = draw(tmp_path, sizes=(6,))
    models = {name: train(console, tmp_path, manifest, name, bag=name) for name in ("case", "slide")}
    nets = [load_checkpoint(path)[0].state_dict() for path in models.values()]
    assert all(torch.equal(nets[0][name], nets[1][name]) for name in nets[1])
    assert "bag" not in json.loads((tmp_path / "slide" / "run.json").read_text())["config"]
    for name, checkpoint in models.items():
        given = ("--features", tmp_path / "features", "--checkpoint", checkpoint, "--cases", manifest)
        assert console("predict", *given, "--out", tmp_path / f"run_{name}").code == 0
    cases, slides = (table(tmp_path / f"run_{name}" / "predictions.csv") for name in ("case", "slide"))
    for of_case, of_slide in zip(cases, slides, strict=True):
        assert {name: of_case[name] for name in of_slide} == of_slide
        results = [
            read_result(tmp_path / f"run_{name}" / "attention" / f"{of_slide['slide_id']}.h5")
            for name in ("case", "slide")
        ]
        assert np.array_equal(results[0].attention_NHT, results[1].attention_NHT)
        assert np.array_equal(results[0].kept_ids_M, results[1].kept_ids_M)


def test_the_order_of_lines_does_not_matter(console: Console, tmp_path: Path) -> None:
    manifest = draw(tmp_path, 8)
    header, *lines = manifest.read_text().splitlines()
    swapped = tmp_path / "swapped.csv"
    pairs = [lines[start : start + 2][::-1] for start in range(0, len(lines), 2)]
    swapped.write_text("\n".join([header, *(line for pair in pairs for line in pair)]) + "\n")
    one, other = (train(console, tmp_path, path, path.stem) for path in (manifest, swapped))
    nets = [load_checkpoint(path)[0].state_dict() for path in (one, other)]
    assert all(torch.equal(nets[0][name], nets[1][name]) for name in nets[1])


def test_labels_that_differ_within_a_case_are_refused(console: Console, tmp_path: Path) -> None:
    manifest = draw(tmp_path, 8)
    manifest.write_text(
        manifest.read_text().replace("c05_1,c05,train,c05_1.tif,tumor", "c05_1,c05,train,x,normal")
    )
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump(SETTINGS))
    given = ("--recipe", recipe, "--features", tmp_path / "features", "--out", tmp_path / "m")
    said = console("finetune", manifest, *given)
    assert said.code == 2
    assert (
        "'c05' have different labels: label 'tumor' for 'c05_0', label 'normal' for 'c05_1'" in said.complaint
    )
    assert not (tmp_path / "m" / "model.safetensors").exists()


def test_a_slide_that_cannot_be_read_is_named_and_its_case_read_without_it(
    console: Console, trained: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    features, manifest, checkpoint = trained
    (features / "c02_0.h5").write_bytes(b"no HDF5")
    (features / "c03_1.h5").unlink()  # not given at all, though the table of cases lists it
    run = tmp_path / "run"
    given = ("--features", features, "--checkpoint", checkpoint, "--out", run, "--cases", manifest)
    said = console("predict", *given)
    assert said.code == 3
    assert "c03_1: belongs to case 'c03'" in said.err + said.out
    cases = {row["case_id"]: row for row in table(run / "cases.csv")}
    for case, missing in (("c02", "c02_0"), ("c03", "c03_1")):
        assert (cases[case]["n_slides"], cases[case]["n_failed"], cases[case]["failed"]) == (
            "1",
            "1",
            missing,
        )
        assert cases[case]["prob_tumor"]
    rows = {row["slide_id"]: row for row in table(run / "predictions.csv")}
    assert (rows["c02_0"]["status"], rows["c02_0"]["case_id"], rows["c02_0"]["prob_tumor"]) == (
        "failed",
        "c02",
        "",
    )
    assert float(rows["c02_1"]["attention_share"]) == pytest.approx(1, abs=1e-9)
    assert not (run / "attention" / "c02_0.h5").exists()
    stopped = console("predict", *given[:-2], "--cases", manifest, "--on-error", "stop", "--force")
    assert stopped.code != 0
    assert "c02_0.h5" in stopped.complaint


def test_a_bad_slide_counts_and_its_case_is_learned_from_without_it(console: Console, tmp_path: Path) -> None:
    manifest = draw(tmp_path)
    (tmp_path / "features" / "c00_1.h5").write_bytes(b"no HDF5")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump(SETTINGS))
    given = ("--recipe", recipe, "--features", tmp_path / "features", "--out", tmp_path / "m")
    said = console("finetune", manifest, *given, "--set", "training.max_bad_slides=0")
    assert said.code != 0
    assert "max_bad_slides" in said.complaint
    said = console("finetune", manifest, *given)
    assert said.code == 3  # as for any slide that is left out
    assert "(case 'c00' goes on with 1 other slide(s))" in said.err + said.out


def test_predicting_needs_the_cases(
    console: Console, trained: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    features, _, checkpoint = trained
    said = console("predict", "--features", features, "--checkpoint", checkpoint, "--out", tmp_path / "run")
    assert said.code == 2
    assert "--cases CSV" in said.complaint
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "wrong", [{"selection": {"selector": "cascade"}}, {"model": {"attention": {"positions": "raster"}}}]
)
def test_what_cannot_be_read_by_case_is_refused(
    console: Console, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump({"bag": "case", **wrong}))
    said = console("finetune", draw(tmp_path, 4), "--recipe", recipe, "--out", tmp_path / "m")
    assert said.code == 2
    assert "bag: case" in said.complaint


@pytest.mark.parametrize("bag", ["case", "slide"])
def test_stages_are_scored_by_kappa(console: Console, tmp_path: Path, bag: str) -> None:
    manifest = draw(tmp_path, 20)
    header, *lines = manifest.read_text().splitlines()
    staged = [line.rsplit(",", 1)[0] + f",{STAGES[int(line[1:3]) % 5]}" for line in lines]
    manifest.write_text("\n".join([header.replace("label", "stage"), *staged]) + "\n")
    task = {"name": "stage", "classes": list(STAGES), "kind": "ordinal"}
    checkpoint = train(console, tmp_path, manifest, bag=bag, model={**SETTINGS["model"], "tasks": [task]})
    run = tmp_path / "run"
    given = ("--features", tmp_path / "features", "--checkpoint", checkpoint, "--out", run)
    assert console("predict", *given, "--cases", manifest).code == 0
    said = console("evaluate", run, manifest, "--bootstrap", "20")
    assert said.code == 0, said.err
    assert "pN stage, quadratic kappa" in said.out
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text())["stages"]["stage"]
    patients = metrics["patients"]
    assert len(patients) == 5  # every fourth is in the test split
    labels, told = ([one[what] for one in patients.values()] for what in ("label", "predicted"))
    assert labels == [STAGES[n % 5] for n in (3, 7, 11, 15, 19)]
    if len(set(labels) | set(told)) > 1:
        assert metrics["quadratic_kappa"]["value"] == pytest.approx(quadratic_kappa(labels, told))
    submitted = table(run / "evaluation" / "submission.csv")
    assert [row["patient"] for row in submitted] == [f"c{n:02}.zip" for n in (3, 7, 11, 15, 19)]
    if bag == "case":
        cases = {row["case_id"]: row["pred"] for row in table(run / "cases.csv")}
        assert {case: one["predicted"] for case, one in patients.items()}.items() <= cases.items()


def in_cases(data: SmallData, folder: Path) -> Path:
    """The drawn slides: those to learn from are a case each, the others two cases of two slides."""
    with data.manifest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["path"] = str(data.manifest.parent / row["path"])
        row["case_id"] = row["slide_id"] if row["split"] == "train" else f"of_{row['split']}"
        row["label"] = {"val": "tumor", "test": "normal"}.get(row["split"], row["label"])
    manifest = folder / "cases.csv"
    with manifest.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return manifest


@pytest.mark.slow
def test_slides_are_streamed_as_one_bag_and_a_killed_run_goes_on(
    console: Console, small_data: SmallData, small_case_checkpoint: Path, tmp_path: Path
) -> None:
    manifest, run = in_cases(small_data, tmp_path), tmp_path / "run"
    given = (
        "predict",
        small_data.slides,
        "--checkpoint",
        small_case_checkpoint,
        "--out",
        run,
        "--cases",
        manifest,
    )
    said = console(*given)
    assert said.code == 0, said.err
    rows = by_case(table(run / "predictions.csv"))
    assert sorted(map(len, rows.values())) == [1, 1, 2, 2]
    for its in rows.values():
        slides = [read_result(run / "attention" / f"{row['slide_id']}.h5") for row in its]
        attention = sum(slide.attention_NHT.sum(axis=0, dtype=np.float64) for slide in slides)
        np.testing.assert_allclose(attention, 1, atol=1e-5)
        assert sum(len(slide.kept_ids_M) for slide in slides) == 4
        assert all((run / "overlays" / f"{row['slide_id']}.png").is_file() for row in its)
    # What a second start finds is not done again; a case that lacks a slide is, and no other.
    stored = {
        row["slide_id"]: run / "attention" / f"{row['slide_id']}.h5" for its in rows.values() for row in its
    }
    before = {slide: path.read_bytes() for slide, path in stored.items()}
    times = {slide: path.stat().st_mtime_ns for slide, path in stored.items()}
    first, second = (row["slide_id"] for row in rows["of_test"])
    stored[second].unlink()
    assert console(*given).code == 0
    assert {s for s, path in stored.items() if path.stat().st_mtime_ns != times[s]} == {first, second}
    assert {slide: path.read_bytes() for slide, path in stored.items()} == before
    # Everything that shows a run shows one of cases.
    for form in ("geojson", "sheet"):
        said = console("export", run, "--format", form, "--out", tmp_path / form)
        assert said.code == 0, said.err
    assert console("report", run).code == 0


def test_a_slide_that_tears_while_it_is_streamed_is_left_out(
    console: Console,
    small_data: SmallData,
    untrained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manifest = in_cases(small_data, tmp_path)
    torn_id, other_id = (row["slide_id"] for row in table(manifest) if row["case_id"] == "of_test")
    decode_tile = TiffReader.decode_tile

    def torn(self: TiffReader, level: int, number: int, data: memoryview, out: RgbImage) -> None:
        if Path(str(self.info.path)).stem == torn_id and threading.current_thread().name.startswith(
            "wsi_ips-decode"
        ):
            raise SlideReadError(self.info.path, "is torn")
        decode_tile(self, level, number, data, out)

    monkeypatch.setattr(TiffReader, "decode_tile", torn)
    given = ("predict", small_data.slides, "--checkpoint", untrained, "--cases", manifest, "--no-overlays")
    assert console(*given, "--out", tmp_path / "torn").code == 3
    monkeypatch.undo()
    rows = {row["slide_id"]: row for row in table(tmp_path / "torn" / "predictions.csv")}
    assert rows[torn_id]["status"] == "failed"
    assert "tiles" in rows[torn_id]["error"]
    cases = {row["case_id"]: row for row in table(tmp_path / "torn" / "cases.csv")}
    assert (cases["of_test"]["n_slides"], cases["of_test"]["failed"]) == ("1", torn_id)
    assert not (tmp_path / "torn" / "attention" / f"{torn_id}.h5").exists()
    assert float(rows[other_id]["attention_share"]) == pytest.approx(1, abs=1e-9)
    # The answer is that of the case without the slide.
    alone = tmp_path / "alone"
    alone.mkdir()
    for slide in small_data.slides.glob("*.tif"):
        if slide.stem != torn_id:
            (alone / slide.name).symlink_to(slide)
    assert console("predict", alone, *given[2:], "--out", tmp_path / "without").code == 3
    without = {row["case_id"]: row for row in table(tmp_path / "without" / "cases.csv")}
    assert without["of_test"] == cases["of_test"]


def test_a_case_that_an_earlier_start_died_of_is_read_in_a_process_of_its_own(
    console: Console,
    small_data: SmallData,
    untrained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manifest, run = in_cases(small_data, tmp_path), tmp_path / "run"
    tried = []

    def alone(work: Any, argument: Any) -> Any:
        _, case = pickle.loads(pickle.dumps(argument))
        tried.append(case.case_id)
        raise Died(-9)

    monkeypatch.setattr("wsi_ips.inference.in_hand.alone", alone)
    run.mkdir()
    (run / IN_HAND).write_text(json.dumps({"slides": {"case of_val": "read"}}))
    given = ("predict", small_data.slides, "--checkpoint", untrained, "--cases", manifest, "--no-overlays")
    said = console(*given, "--out", run)
    assert said.code == 3
    assert tried == ["of_val"]
    rows = table(run / "predictions.csv")
    failed = [row for row in rows if row["case_id"] == "of_val"]
    assert all("killed by SIGKILL" in row["error"] for row in failed)
    assert {row["status"] for row in rows if row["case_id"] != "of_val"} == {"ok"}
    cases = {row["case_id"]: row for row in table(run / "cases.csv")}
    assert (cases["of_val"]["prob_tumor"], cases["of_val"]["n_failed"]) == ("", "2")
    said = console(*given, "--workers", "2", "--out", tmp_path / "workers")
    assert said.code == 2
    assert "batch.workers" in said.complaint


@pytest.mark.parametrize("aggregator", ["abmil", "transmil"])
def test_an_aggregator_that_reads_in_order_warns(
    console: Console, tmp_path: Path, caplog: pytest.LogCaptureFixture, aggregator: str
) -> None:
    model = {**SETTINGS["model"], "attention": {}, "aggregator": aggregator}
    model["encoder"] = {**SETTINGS["model"]["encoder"], "project": 8}
    train(console, tmp_path, draw(tmp_path, 8), model=model, selection={"selector": "all"})
    assert ("with bag: case the last patches of a slide" in caplog.text) == (aggregator == "transmil")


@pytest.fixture
def untrained(tmp_path: Path) -> Path:
    settings = {"command": "finetune", "manifest": "m", "out": "o", **SMALL_MODEL, "bag": "case"}
    job = make_job(settings, source="test")
    assert isinstance(job, FinetuneJob)
    path = tmp_path / "untrained.safetensors"
    save_checkpoint(path, build_net(job.model), job.pipeline)
    return path


def test_each_case_of_a_cross_validation_by_the_model_that_has_not_seen_it(
    console: Console, tmp_path: Path
) -> None:
    manifest = draw(tmp_path, 16)
    recipe, out = tmp_path / "r.yaml", tmp_path / "cv"
    recipe.write_text(yaml.safe_dump({**SETTINGS, "inner_val": 0}))
    given = ("--recipe", recipe, "--features", tmp_path / "features", "--out", out, "--folds", "2")
    said = console("finetune", manifest, *given)
    assert said.code == 0, said.err
    rows = by_case(table(out / "held_out" / "predictions.csv"))
    assert len(rows) == 12  # the test split is in no fold
    assert all(len({row["prob_tumor"] for row in its}) == 1 for its in rows.values())
    assert len(table(out / "held_out" / "cases.csv")) == 12
    fold_of = {row["case_id"]: row["fold"] for row in table(out / "folds.csv")}
    right = [
        (float(its[0]["prob_tumor"]) >= 0.5) == bool(int(case[1:]) // 4 % 2)
        for case, its in rows.items()
        if fold_of[case] == "0"
    ]
    measured = next(row for row in table(out / "cv.csv") if row["fold"] == "0")
    assert float(measured["held_out_accuracy"]) == pytest.approx(np.mean(right))


def test_several_models_are_averaged_case_by_case(console: Console, tmp_path: Path) -> None:
    manifest = draw(tmp_path, 8)
    training = [{**SETTINGS["training"], "seed": seed} for seed in (0, 1)]
    models = [train(console, tmp_path, manifest, f"m{n}", training=one) for n, one in enumerate(training)]
    given = ("predict", "--features", tmp_path / "features", "--cases", manifest)
    for number, model in enumerate(models):
        assert console(*given, "--checkpoint", model, "--out", tmp_path / f"run{number}").code == 0
    both = console(*given, "--checkpoint", *models, "--out", tmp_path / "both")
    assert both.code == 0, both.err
    told = [table(tmp_path / run / "cases.csv") for run in ("run0", "run1", "both")]
    for one, other, mean in zip(*told, strict=True):
        expected = (float(one["prob_tumor"]) + float(other["prob_tumor"])) / 2
        assert float(mean["prob_tumor"]) == pytest.approx(expected, abs=1e-9)
    by_slide = train(console, tmp_path, manifest, "by_slide", bag="slide")
    said = console(*given, "--checkpoint", models[0], by_slide, "--out", tmp_path / "mixed")
    assert said.code == 2
    assert "its bag is slide, not case" in said.complaint


@pytest.fixture
def small_case_checkpoint(console: Console, small_data: SmallData, tmp_path: Path) -> Path:
    recipe, out = tmp_path / "r.yaml", tmp_path / "m"
    model = {**SMALL_MODEL["model"], "attention": {"heads": 2, "key_dim": 8, "positions": "slide"}}
    settings = {
        **SMALL_MODEL,
        "model": model,
        "bag": "case",
        "training": {"epochs": 1, "head_start": {"epochs": 1}},
    }
    recipe.write_text(yaml.safe_dump(settings))
    manifest = in_cases(small_data, tmp_path)
    (tmp_path / "learn.csv").write_text(manifest.read_text().replace(",val,", ",train,"))
    said = console("finetune", tmp_path / "learn.csv", "--recipe", recipe, "--out", out)
    assert said.code == 0, said.err
    return out / "model.safetensors"
