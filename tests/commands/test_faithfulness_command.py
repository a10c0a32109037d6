"""``evaluate --faithfulness``: tables, figures, a plot, the report; and what cannot be is one line."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from tests.commands.console import Console
from tests.conftest import SMALL_MODEL, SmallData
from wsi_ips.commands.finetune import FinetuneJob
from wsi_ips.commands.recipe import make_job
from wsi_ips.evaluation.faithfulness import faithfulness
from wsi_ips.evaluation.run.config import EvaluationConfig
from wsi_ips.evaluation.run.kept_bags import KeptBags
from wsi_ips.inference.results import read_result
from wsi_ips.models.build import build_net
from wsi_ips.models.checkpoint import save_checkpoint

ABMIL = {"aggregator": {"name": "abmil", "hidden": 6}}
TRANSMIL = {"aggregator": {"name": "transmil", "heads": 2, "landmarks": 4}}
PAPER = {"attention": {"heads": 2, "key_dim": 8, "value_dim": 8, "inner_dim": 16, "block": "paper"}}


class Made:
    """A checkpoint, four slides, a manifest and a run."""

    def __init__(self, folder: Path, data: SmallData) -> None:
        self.folder, self.slides, self.run = folder, folder / "slides", folder / "run"
        self.manifest, self.checkpoint = folder / "labels.csv", folder / "model.safetensors"
        self.slides.mkdir()
        lines = ["slide_id,case_id,label,split,path"]
        for number, slide in enumerate(sorted(data.slides.glob("*.tif"))[:4]):
            (self.slides / slide.name).symlink_to(slide)
            label = ("normal", "tumor")[number % 2]
            lines.append(f"{slide.stem},{slide.stem},{label},test,slides/{slide.name}")
        self.manifest.write_text("\n".join(lines) + "\n")

    def save(self, model: dict[str, Any], *, seed: int = 1, **sections: Any) -> "Made":
        values = {**SMALL_MODEL, "selection": {"m": 8, "i": 8}, **sections}
        values |= {"command": "finetune", "manifest": "m", "out": "o"}
        encoder = {**SMALL_MODEL["model"]["encoder"], "project": 16}
        values["model"] = {"encoder": encoder, **model}
        job = make_job(values, source="test")
        assert isinstance(job, FinetuneJob)
        torch.manual_seed(seed)
        net = build_net(job.model)
        for layer in net.heads.layers:
            torch.nn.init.normal_(layer.weight, std=3)  # what is decided has to depend on the patches
        save_checkpoint(self.checkpoint, net, job.pipeline)
        return self

    def predict(self, console: Console, *flags: str) -> "Made":
        said = console("predict", self.slides, "--checkpoint", self.checkpoint, "--out", self.run, "--no-overlays",
                       *flags)  # fmt: skip
        assert said.code == 0, said.err
        return self

    def keep(self, slides: int) -> None:
        """Leave only so many slides."""
        for slide in sorted(self.slides.iterdir())[slides:]:
            slide.unlink()
        lines = self.manifest.read_text().splitlines()
        self.manifest.write_text("\n".join(lines[: 1 + slides]) + "\n")

    def rows(self) -> list[dict[str, str]]:
        with (self.run / "evaluation" / "faithfulness.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    def figures(self) -> dict[str, Any]:
        return dict(
            json.loads((self.run / "evaluation" / "metrics.json").read_text())["faithfulness"]["label"]
        )


Evaluate = Callable[..., Any]


@pytest.fixture
def made(small_data: SmallData, tmp_path: Path) -> Made:
    return Made(tmp_path, small_data)


def evaluated(console: Console, made: Made, *flags: str) -> Any:
    return console("evaluate", made.run, made.manifest, "--bootstrap", "50", "--faithfulness", *flags)


@pytest.mark.parametrize(("stored", "asked"), [(4, ()), (1, ("--turns", "4")), (4, ("--turns", "1"))])
def test_patches_kept_in_several_orientations_are_read_again_as_the_run_read_them(
    made: Made, console: Console, stored: int, asked: tuple[str, ...]
) -> None:
    """Without stored embeddings; what the network says of them is compared with what the run stored."""
    made.save(ABMIL, selection={"m": 8, "i": 8, "turns": stored}).predict(console, *asked)
    said = evaluated(console, made)
    assert said.code == 0, said.err
    assert len(made.rows()) == 4 * 3


def test_tables_figures_plot_and_report(made: Made, console: Console) -> None:
    made.save(ABMIL).predict(console, "--embeddings", "--explain", "gradient")
    said = evaluated(console, made)
    assert said.code == 0, said.err
    for name in ("attention", "contribution", "gradient"):
        assert f"label, faithfulness of {name}: area between the curves " in said.out
    rows = made.rows()
    assert len(rows) == 4 * 3
    by = made.figures()
    assert (by["slides"], by["random_orders"], by["seed"]) == (4, 10, 0)
    for name, figures in by["explanations"].items():
        of = [row for row in rows if row["explanation"] == name]
        areas = np.array(
            [[float(row[key]) for key in ("most_first", "least_first", "between", "random")] for row in of]
        )
        np.testing.assert_allclose(areas[:, 1] - areas[:, 0], areas[:, 2], atol=1e-7)
        for key, column in zip(("most_first", "least_first", "between", "random"), areas.T, strict=True):
            assert figures[key]["value"] == pytest.approx(column.mean())
            assert (figures[key]["low"], figures[key]["high"]) == (None, None)
            assert figures[key]["why_none"] == "4 cases, and 10 are needed"
        assert figures["above_random"]["value"] == pytest.approx((areas[:, 2] - areas[:, 3]).mean())
    assert {row["patches"] for row in rows} == {"8"}
    with Image.open(made.run / "evaluation" / "faithfulness.png") as picture:
        assert np.ptp(np.asarray(picture.convert("L"))) > 200
    assert console("report", made.run).code == 0
    page = (made.run / "report.html").read_text()
    assert "Faithfulness of the maps" in page
    assert 'alt="Faithfulness' in page or "<figcaption>Faithfulness" in page


def test_a_row_is_what_the_formula_gives_for_the_slide(made: Made, console: Console) -> None:
    """Attention of the kept patches, the probability of the likeliest class, the network asked anew."""
    made.save(ABMIL).predict(console, "--embeddings")
    assert evaluated(console, made).code == 0
    bags = KeptBags.of(EvaluationConfig(run=made.run, manifest=made.manifest, faithfulness=True))
    for row in made.rows():
        if row["explanation"] != "attention":
            continue
        bag = bags.read(row["slide_id"])
        likeliest = max(bag.result.probabilities["label"].items(), key=lambda item: item[1])
        assert (row["decided"], float(row["probability"])) == (
            likeliest[0],
            pytest.approx(likeliest[1], abs=1e-5),
        )
        place = ["normal", "tumor"].index(row["decided"])
        scores = bag.result.attention_NHT[bag.result.kept_rows(), 0, 0][bag.order_M.numpy()]
        wanted = faithfulness(
            lambda x, at=place: bags.net.read_placed(x).probabilities["label"][0, at],
            bag.x_MD,
            torch.from_numpy(scores),
        )
        assert float(row["most_first"]) == pytest.approx(wanted.most_first, abs=1e-6)
        assert float(row["between"]) == pytest.approx(wanted.between, abs=1e-6)


@pytest.mark.parametrize(
    ("model", "sections"),
    [
        pytest.param(ABMIL, {}, id="abmil"),
        pytest.param(PAPER, {}, id="paper"),
        pytest.param(TRANSMIL, {"selection": {"selector": "all"}}, id="transmil", marks=pytest.mark.slow),
    ],
)
def test_embeddings_that_were_not_stored_are_made_anew_and_give_the_same(
    made: Made, console: Console, model: dict[str, Any], sections: dict[str, Any]
) -> None:
    made.keep(2)
    made.save(model, **sections).predict(console)
    assert evaluated(console, made).code == 0
    without = made.rows()
    assert {row["explanation"] for row in without} == (
        {"attention", "contribution", "gradient"} if model is ABMIL else {"attention", "gradient"}
    )
    made.predict(console, "--embeddings", "--explain", "gradient")
    assert evaluated(console, made).code == 0
    for one, other in zip(without, made.rows(), strict=True):
        for key in ("most_first", "least_first", "between", "random"):
            assert float(one[key]) == pytest.approx(float(other[key]), abs=2e-3)


@pytest.mark.slow
def test_random_orders_are_the_seed_s_and_each_slide_has_its_own(made: Made, console: Console) -> None:
    made.keep(2)
    made.save(ABMIL).predict(console, "--embeddings")
    randoms = []
    for seed in ("3", "3", "4"):
        assert evaluated(console, made, "--seed", seed).code == 0
        randoms.append([row["random"] for row in made.rows()])
    assert randoms[0] == randoms[1] != randoms[2]


def test_slides_and_checkpoint_that_have_moved_are_named(made: Made, console: Console) -> None:
    made.save(ABMIL).predict(console)
    moved = made.folder / "moved"
    made.slides.rename(moved)
    made.manifest.write_text(made.manifest.read_text().replace("slides/", "moved/"))
    made.checkpoint.rename(made.folder / "other.safetensors")
    said = evaluated(console, made)
    assert said.code == 2
    assert "is not there, and faithfulness needs it" in said.complaint
    assert "--checkpoint" in said.complaint
    said = evaluated(console, made, "--checkpoint", str(made.folder / "other.safetensors"))
    assert said.code == 2
    assert "no such" in said.complaint or "does not exist" in said.complaint
    assert not (made.run / "evaluation").exists()
    said = evaluated(
        console, made, "--checkpoint", str(made.folder / "other.safetensors"), "--slides", str(moved)
    )
    assert said.code == 0, said.err


def test_another_checkpoint_is_refused(made: Made, console: Console) -> None:
    made.save(ABMIL).predict(console)
    made.save(ABMIL, seed=2)
    said = evaluated(console, made)
    assert said.code == 2
    assert "is not the checkpoint that made" in said.complaint


def test_a_slide_whose_patches_are_not_those_of_the_run_is_named_and_the_others_are_scored(
    made: Made, console: Console
) -> None:
    made.save(ABMIL).predict(console, "--embeddings")
    spoilt, whole, *_ = sorted((made.run / "attention").glob("*.h5"))
    with h5py.File(spoilt, "r+") as file:
        file["kept_embeddings"][:] = file["kept_embeddings"][:] * 5 + 1
    said = evaluated(console, made)
    assert said.code == 3
    assert f"{spoilt}: says" in said.out
    assert "the network now says" in said.out
    assert {row["slide_id"] for row in made.rows()} == {
        path.stem for path in sorted((made.run / "attention").glob("*.h5"))[1:]
    }
    assert read_result(whole).kept_emb_MD is not None
    with h5py.File(whole, "r+") as file:
        del file["kept_embeddings"]
        file["kept_embeddings"] = np.zeros((8, 3), np.float32)
    said = evaluated(console, made)
    assert said.code == 3
    assert "holds kept patches that its network cannot read" in said.out


@pytest.mark.parametrize("flag", [("--checkpoint", "m.safetensors"), ("--slides", "s"), ("--open-urls",)])
def test_what_only_faithfulness_needs_goes_with_it(
    made: Made, console: Console, flag: tuple[str, ...]
) -> None:
    made.save(ABMIL).predict(console)
    said = console("evaluate", made.run, made.manifest, *flag)
    assert said.code == 2
    assert "goes with faithfulness" in said.complaint


def test_without_the_flag_nothing_of_it_is_written(made: Made, console: Console) -> None:
    made.save(ABMIL).predict(console)
    assert console("evaluate", made.run, made.manifest, "--bootstrap", "0").code == 0
    assert not list((made.run / "evaluation").glob("faithfulness*"))
    assert "faithfulness" not in json.loads((made.run / "evaluation" / "metrics.json").read_text())
