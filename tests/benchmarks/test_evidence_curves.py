"""benchmarks/evidence_curves.py and node_bags.py: what is drawn, what is kept, and that every method runs."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import evidence, evidence_curves
from benchmarks.curve_table import METHODS, POINTS, asked, draw, figures_of, markdown, read_curves
from benchmarks.kept_results import COMMITTED
from benchmarks.node_bags import TURNS, DrawnBag, EncodedPatches, draw_bags, encode_patches, turned_anew
from tests.drawn.drawn_nodes import SIDE_PX, draw_nodes
from wsi_ips.config import StreamingConfig
from wsi_ips.drawn.node_patches import METASTASIS, NORMAL, NodePatch, read_patch, read_patches, turned
from wsi_ips.training.bags import AugmentedBag

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
COUNTS = {"train": 8, "val": 4, "test": 8}
ENCODER = {"name": "test_convnext", "weights": "none"}


@pytest.fixture
def held() -> EncodedPatches:
    """240 patches in groups of two; feature 0 of a patch is its row, feature 1 its turn."""
    patches = [
        NodePatch(f"{row}.png", (NORMAL, METASTASIS)[row // 4 % 2], f"g{row // 2}", f"{row // 2 % 2}", 0.9)
        for row in range(240)
    ]
    turns_TP, rows_TP = np.mgrid[:TURNS, : len(patches)]
    return EncodedPatches(patches, np.stack([rows_TP, turns_TP], axis=2).astype(np.float32))


def labels_of(bag: DrawnBag) -> list[str]:
    return [bag.held.patches[row].label for row in bag.row_N]


def test_every_positive_slide_has_exactly_so_many_tumor_patches_of_its_own_stain_and_split(
    held: EncodedPatches,
) -> None:
    bags = draw_bags(held, counts=COUNTS, patches=40, tumor=3, seed=0)
    groups: dict[str, set[str]] = {}
    for split, of_split in bags.items():
        assert len(of_split) == COUNTS[split]
        for bag in of_split:
            assert len(bag) == 40
            assert labels_of(bag).count(METASTASIS) == 3 * bag.targets["label"]
            assert len({held.patches[row].family for row in bag.row_N}) == 1
            groups.setdefault(split, set()).update(held.patches[row].group for row in bag.row_N)
        families = [(held.patches[bag.row_N[0]].family, bag.targets["label"]) for bag in of_split]
        assert {families.count(kind) for kind in families} == {len(of_split) // 4}  # labels within a stain
    assert not groups["train"] & groups["val"]
    assert not groups["train"] & groups["test"]
    assert not groups["val"] & groups["test"]


def test_fewer_slides_are_the_first_of_more_and_other_seeds_draw_others(held: EncodedPatches) -> None:
    few = draw_bags(held, counts=COUNTS, patches=40, tumor=3, seed=0)
    many = draw_bags(held, counts=COUNTS | {"train": 16}, patches=40, tumor=3, seed=0)
    other = draw_bags(held, counts=COUNTS, patches=40, tumor=3, seed=1)
    for one, same in zip(few["train"] + few["test"], many["train"][:8] + many["test"], strict=True):
        assert np.array_equal(one.row_N, same.row_N)
        assert np.array_equal(one.turn_N, same.turn_N)
    assert not np.array_equal(few["train"][0].row_N, other["train"][0].row_N)


def test_too_few_patches_are_an_error(held: EncodedPatches) -> None:
    with pytest.raises(ValueError, match="val: 4000 patches of class normal from"):
        draw_bags(held, counts={"train": 0, "val": 1, "test": 0}, patches=4000, tumor=3, seed=0)


def test_a_turned_slide_shows_every_patch_turned_once_more(held: EncodedPatches) -> None:
    bag = draw_bags(held, counts=COUNTS, patches=40, tumor=3, seed=0)["train"][2]
    plain, once = bag.features(), bag.seen([1]).features()
    assert plain[:, 0].tolist() == bag.row_N.tolist() == once[:, 0].tolist()
    assert plain[:, 1].tolist() == bag.turn_N.tolist()
    assert once[:, 1].tolist() == ((bag.turn_N + 1) % TURNS).tolist()
    assert bag.seen(range(TURNS)).features()[:, 1].tolist() == [1.5] * 40  # the mean of 0, 1, 2 and 3
    with bag.seen([1]).open(StreamingConfig(), CPU) as source:
        (chunk,) = source
        assert torch.equal(chunk.pixels_n3PP, once)
        some = torch.tensor([7, 3])
        assert torch.equal(source.read(some).pixels_n3PP, once[some])


def test_a_slide_to_learn_from_shows_other_turns_each_time(held: EncodedPatches) -> None:
    bag = draw_bags(held, counts=COUNTS, patches=40, tumor=3, seed=0)["train"][2]
    turned = turned_anew(bag)
    assert isinstance(turned, AugmentedBag)
    assert not isinstance(bag, AugmentedBag)
    assert torch.equal(turned.features(), bag.features())
    first, again, later = (turned.as_seen(key) for key in ("epoch 0", "epoch 0", "epoch 1"))
    assert torch.equal(first.features(), again.features())
    assert not np.array_equal(first.turn_N, later.turn_N)
    assert np.array_equal(first.row_N, bag.row_N)
    assert set(first.turn_N.tolist()) == set(range(TURNS))


def test_patches_are_encoded_turned_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []

    class Mean(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            seen.extend(pixels.permute(0, 2, 3, 1).numpy())
            return pixels[:, :, 0, 0].float()

    class Net(torch.nn.Module):
        encoder = Mean()

    monkeypatch.setattr("benchmarks.node_bags.build_net", lambda _config: Net())
    (tmp_path / "patches").mkdir()
    folder = draw_nodes(tmp_path / "patches")
    held = encode_patches(folder, tmp_path / "features", ENCODER, side_px=SIDE_PX)
    assert held.features_TPC.shape == (TURNS, len(held.patches), 3)
    last = read_patch(folder / held.patches[-1].name, side_px=SIDE_PX)
    for turn in range(TURNS):
        shown = turned(last, turn)
        assert np.array_equal(seen[(turn + 1) * len(held.patches) - 1], shown)
        assert held.features_TPC[turn, -1].tolist() == shown[0, 0].tolist()
    encoded = len(seen)
    again = encode_patches(folder, tmp_path / "features", ENCODER, side_px=SIDE_PX)
    assert len(seen) == encoded
    assert np.array_equal(again.features_TPC, held.features_TPC)


def point(auc: float, *, share: float = 5.0, slides: int = 144, **more: Any) -> dict[str, Any]:
    wrong, right = [0.5] * 12, [0.1] * 6 + [0.9] * 6
    return {
        **{"share": share, "slides": slides, "tumor": 6, "auc": auc, "views_auc": {}, "commit": "abc"},
        **{"p_tumor": {"one": wrong, "features": right}, "target": [0] * 6 + [1] * 6},
        **more,
    }


def keep(folder: Path, method: str, seed: int, *points: dict[str, Any]) -> Path:
    path = folder / f"curve_{method}_seed{seed}.json"
    named = {evidence_curves.name_of(each["share"], each["slides"]): each for each in points}
    evidence_curves.keep(path, {"asked": asked(method, quick=False), "seed": seed, "points": named})
    return path


@pytest.mark.slow
def test_figures_are_over_seeds_and_views_are_paired(tmp_path: Path) -> None:
    views = {"views_auc": {"features": 1.0}}
    keep(tmp_path, "ips", 0, point(0.5, **views), point(0.9, share=10.0), point(0.8, slides=36))
    keep(tmp_path, "ips", 1, point(0.5, **views), point(0.7, share=10.0))
    keep(tmp_path, "abmil", 0, point(0.6))
    keep(tmp_path, "abmil_last", 0, point(0.4))
    found = read_curves(tmp_path, quick=False)
    figures = figures_of(found)
    assert (figures["curve_ips_10_144_auc"], figures["curve_ips_10_144_worst"]) == (pytest.approx(0.8), 0.7)
    assert (figures["curve_ips_10_144_seeds"], figures["curve_ips_10_144_learned"]) == (2, 1)
    assert figures["curve_ips_5_36_auc"] == 0.8
    assert [figures[f"views_ips_features_{end}"] for end in ("gain", "low", "high", "runs")] == [
        0.5,
        0.5,
        0.5,
        2,
    ]
    assert not any(key.startswith("views_abmil") for key in figures)
    table = markdown(found)
    assert "| 10 % | 0.800 (worst 0.700, 1 of 2) |  |" in table
    assert "| 144 | 0.500 (worst 0.500, 0 of 2) | 0.600 (worst 0.600, 0 of 1) |" in table
    stages, _, last = table.partition("**The encoder's last layer as it is**")
    assert "| 144 | 0.400 (worst 0.400, 0 of 1) |" in last
    assert "0.400" not in stages
    assert "| IPS, features averaged | +0.500 (+0.500 to +0.500) | 2 |" in table


def test_results_of_other_settings_do_not_count(tmp_path: Path) -> None:
    path = keep(tmp_path, "ips", 0, point(0.9))
    assert set(read_curves(tmp_path, quick=False)) == {"ips"}
    held = json.loads(path.read_text())
    held["asked"]["selection"]["m"] = 7
    path.write_text(json.dumps(held))
    assert read_curves(tmp_path, quick=False) == {}
    assert evidence_curves.stored_curve(path, "ips", 0, quick=False)["points"] == {}


def test_committed_curves_are_those_of_today_s_settings() -> None:
    folder = ROOT / "benchmarks" / "results"
    held = read_curves(folder, quick=False)
    assert sum(len(seeds) for seeds in held.values()) == len(list(folder.glob("curve_*.json")))
    known = {each for points in POINTS.values() for each in points}
    for seeds in held.values():
        for points in seeds.values():
            assert set(points) <= known
            for run in points.values():
                assert not run["commit"].endswith("+"), "found by a program that was not committed"


@pytest.mark.slow
def test_the_page_shows_the_committed_points() -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    shown = page.partition("<!-- evidence_curves.py --table -->\n")[2].partition("\n<!-- end -->")[0]
    assert shown == markdown(read_curves(ROOT / "benchmarks" / "results", quick=False))


@pytest.mark.slow
def test_every_method_runs_once_and_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On drawn patches with random features: what it writes, not what it learns."""
    (tmp_path / "patches").mkdir()
    folder = draw_nodes(tmp_path / "patches")
    rng = np.random.default_rng(0)

    def encoded(_folder: Path, _out: Path, *_: Any, **__: Any) -> EncodedPatches:
        patches = [replace(patch, tissue_share=1.0) for patch in read_patches(folder)]
        return EncodedPatches(patches, rng.normal(size=(TURNS, len(patches), 16)).astype(np.float32))

    monkeypatch.setattr("benchmarks.evidence_curves.encode_patches", encoded)
    options = ("--nodes", folder, "--out", tmp_path / "run", "--seeds", 0, "--quick", "--json")
    monkeypatch.setattr(sys, "argv", ["evidence_curves.py", *map(str, options)])
    evidence_curves.main()
    figures = json.loads(capsys.readouterr().out)
    for method in METHODS:
        assert 0 <= figures[f"curve_{method}_5_144_auc"] <= 1
        path = tmp_path / "run" / "results" / f"curve_{method}_seed0.json"
        (kept,) = json.loads(path.read_text())["points"].values()
        assert kept["tumor"] == 3  # of 60
        assert set(kept["p_tumor"]) == (
            {"one"} if method.startswith("ips_paper") else {"one", "features", "probabilities"}
        )
        assert {len(p_S) for p_S in kept["p_tumor"].values()} == {len(kept["target"])}
    assert not list((tmp_path / "run" / "training").iterdir())
    monkeypatch.setattr("benchmarks.evidence_curves.run_point", None)  # nothing is run twice
    evidence_curves.main()
    assert json.loads(capsys.readouterr().out) == figures
    draw(read_curves(tmp_path / "run" / "results", quick=True), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("given", "said"),
    [((), "--nodes DIR: a folder"), (("--nodes", "nowhere"), "nowhere: holds no manifest.csv")],
)
def test_what_cannot_be_done_is_one_line(
    given: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["evidence_curves.py", *given])
    with pytest.raises(SystemExit, match="2"):
        evidence_curves.main()
    assert said in capsys.readouterr().err


def test_only_the_shared_folder_has_committed_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "manifest.csv").write_text("path,class,source_group,stain_family,tissue_share\n")
    options = ["evidence_curves.py", "--nodes", str(tmp_path), "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", options)
    assert evidence_curves.results_folder(evidence_curves.parsed()) == tmp_path / "run" / "results"
    monkeypatch.setitem(evidence.SHARED, "nodes", evidence.digest(tmp_path))
    assert evidence_curves.results_folder(evidence_curves.parsed()) == COMMITTED
    monkeypatch.setattr(sys, "argv", [*options, "--quick"])
    assert evidence_curves.results_folder(evidence_curves.parsed()) == tmp_path / "run" / "results"
