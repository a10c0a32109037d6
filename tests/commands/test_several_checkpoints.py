"""``predict --checkpoint A B C``: the mean of several models, and how far apart they are."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.commands.console import Console, Said
from tests.conftest import SMALL_MODEL, SmallData
from tests.datasets.feature_folders import features_of, write_features
from wsi_ips.commands.finetune import FinetuneJob
from wsi_ips.commands.predict import PredictJob, repeated
from wsi_ips.commands.recipe import make_job, with_overrides
from wsi_ips.errors import ConfigError
from wsi_ips.inference.results import read_result
from wsi_ips.inference.telemetry import read_slide_table
from wsi_ips.models.build import build_net
from wsi_ips.models.checkpoint import save_checkpoint


def another(path: Path, seed: int, *overrides: str, width: int | None = None) -> Path:
    values: dict[str, Any] = {"command": "finetune", "manifest": "m", "out": "o", **SMALL_MODEL}
    if width is not None:
        encoder = {"name": "features", "features": width}
        values |= {"features": "f", "model": {**SMALL_MODEL["model"], "encoder": encoder}}
    job = make_job(with_overrides(values, overrides), source="test")
    assert isinstance(job, FinetuneJob)
    torch.manual_seed(seed)
    save_checkpoint(path, build_net(job.model), job.pipeline)
    return path


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    folder = tmp_path_factory.mktemp("trio")
    return tuple(another(folder / f"{name}.safetensors", seed) for seed, name in enumerate("abc"))


@pytest.fixture
def two_slides(small_data: SmallData, tmp_path: Path) -> Path:
    folder = tmp_path / "slides"
    folder.mkdir()
    for source in sorted(small_data.slides.iterdir())[:2]:
        (folder / source.name).symlink_to(source)
    return folder


def rows(run: Path) -> dict[str, dict[str, str]]:
    with (run / "predictions.csv").open(newline="") as file:
        return {row["slide_id"]: row for row in csv.DictReader(file)}


def check_mean(together: Path, alone: list[Path]) -> None:
    """The mean and the sample's deviation, slide by slide, in the table and in the stored result."""
    for slide_id, row in rows(together).items():
        told = [float(rows(run)[slide_id]["prob_tumor"]) for run in alone]
        assert float(row["prob_tumor"]) == pytest.approx(np.mean(told), abs=1e-12)
        assert float(row["sd_tumor"]) == pytest.approx(np.std(told, ddof=1), abs=1e-12)
        assert float(row["sd_normal"]) == pytest.approx(float(row["sd_tumor"]), abs=1e-6)
        result = read_result(together / "attention" / f"{slide_id}.h5")
        assert result.spread["label"]["tumor"] == float(row["sd_tumor"])
        first = read_result(alone[0] / "attention" / f"{slide_id}.h5")
        assert (result.logits_NHT == first.logits_NHT).all()
        assert (result.kept_ids_M == first.kept_ids_M).all()
        assert result.checkpoint != first.checkpoint


@pytest.mark.slow
def test_the_mean_of_three_and_its_resumption(
    console: Console, trio: tuple[Path, ...], two_slides: Path, tmp_path: Path
) -> None:
    def predict(out: str, *checkpoints: Path, more: tuple[str, ...] = ()) -> Said:
        given = ("--checkpoint", *checkpoints) if checkpoints else ()
        return console("predict", two_slides, *given, "--no-overlays", "--out", tmp_path / out, *more)

    for number, checkpoint in enumerate(trio):
        assert predict(str(number), checkpoint).code == 0
    together = tmp_path / "together"
    said = predict("together", *trio)
    assert said.code == 0, said
    check_mean(together, [tmp_path / name for name in "012"])
    described = json.loads((together / "run.json").read_text())
    assert [Path(one["path"]).name for one in described["checkpoints"]] == [path.name for path in trio]
    table, alone = (read_slide_table(run / "slides.csv") for run in (together, tmp_path / "0"))
    for slide_id, row in table.items():
        assert row.telemetry.patches == 3 * alone[slide_id].telemetry.patches
        assert row.telemetry.seconds > row.telemetry.open_s > 0
    before = {path: path.stat().st_mtime_ns for path in (together / "attention").iterdir()}
    one = min(before)
    stored = one.read_bytes()
    one.unlink()
    table_before = (together / "predictions.csv").read_bytes()
    assert predict("together", *trio).code == 0
    assert (together / "predictions.csv").read_bytes() == table_before
    assert one.read_bytes() == stored
    assert all(path.stat().st_mtime_ns == at for path, at in before.items() if path != one)
    for others in (trio[:2], trio[::-1], trio[:1]):
        said = predict("together", *others)
        assert said.code == 2
        assert "holds a run with other settings (checkpoint" in said.complaint


@pytest.mark.slow
def test_on_workers_it_is_the_same(
    console: Console, trio: tuple[Path, ...], two_slides: Path, tmp_path: Path
) -> None:
    for out, more in (("here", ()), ("there", ("--workers", "2"))):
        said = console(
            "predict", two_slides, "--checkpoint", *trio, "--no-overlays", "--threads", "1",
            "--out", tmp_path / out, *more,
        )  # fmt: skip
        assert said.code == 0, said
    for slide_id, row in rows(tmp_path / "here").items():
        other = rows(tmp_path / "there")[slide_id]
        for column in ("prob_tumor", "sd_tumor"):
            assert float(row[column]) == pytest.approx(float(other[column]), abs=1e-6)


@pytest.mark.parametrize("trident", [True, False])
def test_of_stored_features(console: Console, tmp_path: Path, trident: bool) -> None:
    models = [another(tmp_path / f"{name}.safetensors", seed, width=6) for seed, name in enumerate("abc")]
    for number in range(3):
        path = tmp_path / "features" / f"s{number}.h5"
        write_features(path, features_of(9, 6, seed=number), trident=trident)
    for out, checkpoints in (("0", models[:1]), ("1", models[1:2]), ("2", models[2:]), ("together", models)):
        said = console(
            "predict",
            "--features",
            tmp_path / "features",
            "--checkpoint",
            *checkpoints,
            "--out",
            tmp_path / out,
        )
        assert said.code == 0, said
    if trident:
        check_mean(tmp_path / "together", [tmp_path / name for name in "012"])
    told = [float(rows(tmp_path / name)["s0"]["prob_tumor"]) for name in "012"]
    assert float(rows(tmp_path / "together")["s0"]["prob_tumor"]) == pytest.approx(np.mean(told), abs=1e-12)


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (("tiling.patch_mpp=1.0",), "its tiling.patch_mpp is 1.0, not 2.0"),
        (("selection.m=5",), "its selection.memory_size is 5, not 4"),
        (
            ("model.tasks=[{name: label, classes: [normal, cancer]}]",),
            "its tasks are label (softmax: normal, cancer), not label (softmax: normal, tumor)",
        ),
    ],
)
def test_models_that_differ_are_refused_in_one_line(
    console: Console,
    trio: tuple[Path, ...],
    two_slides: Path,
    tmp_path: Path,
    overrides: tuple[str, ...],
    why: str,
) -> None:
    other = another(tmp_path / "other.safetensors", 9, *overrides)
    said = console("predict", two_slides, "--checkpoint", trio[0], other, "--out", tmp_path / "out")
    assert said.code == 2
    assert f"other.safetensors: cannot be averaged with {trio[0]}" in said.complaint
    assert why in said.complaint
    assert not (tmp_path / "out").exists()


def test_a_model_of_features_beside_one_of_slides_is_refused(
    console: Console, trio: tuple[Path, ...], two_slides: Path, tmp_path: Path
) -> None:
    other = another(tmp_path / "other.safetensors", 9, width=6)
    said = console("predict", two_slides, "--checkpoint", trio[0], other, "--out", tmp_path / "out")
    assert said.code == 2
    assert "it reads features of width 6, not slides" in said.complaint


def test_a_model_that_is_given_twice_is_refused(
    console: Console, trio: tuple[Path, ...], two_slides: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(trio[0].read_bytes())
    said = console("predict", two_slides, "--checkpoint", trio[0], copy, "--out", tmp_path / "out")
    assert said.code == 2
    assert "are the same checkpoint" in said.complaint


def test_parts_of_slides_go_with_one_model(
    console: Console, trio: tuple[Path, ...], two_slides: Path, tmp_path: Path
) -> None:
    said = console(
        "predict",
        two_slides,
        "--checkpoint",
        *trio,
        "--set",
        "batch.shard_patches=100",
        "--out",
        tmp_path / "out",
    )
    assert said.code == 2
    assert "batch.shard_patches goes with one checkpoint" in said.complaint


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("--checkpoint a b.safetensors c.safetensors x",
         "--checkpoint a --checkpoint b.safetensors --checkpoint c.safetensors x"),
        ("--checkpoint a.safetensors slides", "--checkpoint a.safetensors slides"),
        ("--checkpoint a b", "--checkpoint a b"),
        ("--checkpoint=a b.safetensors", "--checkpoint=a --checkpoint b.safetensors"),
        ("--out o.safetensors b.safetensors", "--out o.safetensors b.safetensors"),
        ("--checkpoint a.safetensors x b.safetensors", "--checkpoint a.safetensors x b.safetensors"),
        ("--checkpoint", "--checkpoint"),
    ],
)  # fmt: skip
def test_values_that_follow_the_option(given: str, meant: str) -> None:
    assert list(repeated(given.split())) == meant.split()


def test_a_recipe_names_one_or_several() -> None:
    values = {"command": "predict", "slides": "s", "out": "o"}
    several = make_job({**values, "checkpoint": ["a", "b"]}, source="test")
    one, in_a_list = (make_job({**values, "checkpoint": given}, source="test") for given in ("a", ["a"]))
    assert isinstance(several, PredictJob)
    assert isinstance(one, PredictJob)
    assert several.checkpoints == (Path("a"), Path("b"))
    assert one.checkpoint == Path("a")
    assert one == in_a_list
    with pytest.raises(ConfigError, match="name a checkpoint"):
        make_job({**values, "checkpoint": []}, source="test")
