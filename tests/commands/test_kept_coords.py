"""Coordinates that are made once and found again: ``--coords``, the folder of a training, and slides at URLs."""

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml

import wsi_ips.tiling.patches as patches
from tests.commands.console import Console
from tests.conftest import SMALL_MODEL, SmallData
from tests.slides.range_server import serving
from tests.tiling.foreign_files import write_clam
from wsi_ips.config import TilingConfig
from wsi_ips.inference.results import read_result
from wsi_ips.slides.registry import open_slide
from wsi_ips.tiling.coords import stored_tiled_from
from wsi_ips.tiling.kept_coords import KeptPatches
from wsi_ips.tiling.patches import PatchesInTissue

TILE = ("--patch-px", "32", "--patch-mpp", "2.0", "--min-tissue", "0.2", "--no-mask-preview")
TILING = TilingConfig(**SMALL_MODEL["tiling"])  # type: ignore[arg-type]


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the tissue of each slide was searched, by the name of its file."""
    counted: Counter[str] = Counter()
    search = patches.find_tissue

    def find_tissue(slide: Any, *arguments: Any, **named: Any) -> Any:
        counted[slide.info.path.name] += 1
        return search(slide, *arguments, **named)

    monkeypatch.setattr(patches, "find_tissue", find_tissue)
    return counted


def recipe(folder: Path, **training: Any) -> Path:
    path = folder / "small.yaml"
    values = {"epochs": 1, "slides_per_step": 2, "head_start": {"epochs": 0}, **training}
    path.write_text(yaml.safe_dump({**SMALL_MODEL, "training": values}))
    return path


def results(run: Path) -> dict[str, tuple[bytes, ...]]:
    return {
        path.stem: tuple(
            getattr(read_result(path), name).tobytes()
            for name in ("logits_NHT", "attention_NHT", "kept_ids_M", "kept_scores_M")
        )
        for path in sorted((run / "attention").glob("*.h5"))
    }


def rows(table: Path) -> dict[str, dict[str, str]]:
    with table.open(newline="") as file:
        return {row["slide_id"]: row for row in csv.DictReader(file)}


def losses(run: Path) -> list[str]:
    with (run / "history.csv").open(newline="") as file:
        return [row["train_loss"] for row in csv.DictReader(file)]


@pytest.mark.parametrize("layout", ["clam", "trident"])
def test_what_tile_wrote_is_found_and_changes_no_number(
    console: Console,
    small_data: SmallData,
    small_checkpoint: Path,
    tmp_path: Path,
    searches: Counter[str],
    layout: str,
) -> None:
    model = ("--checkpoint", small_checkpoint)
    assert console("tile", small_data.slides, "--out", tmp_path / "t", "--layout", layout, *TILE).code == 0
    plain = ("predict", small_data.slides, *model, "--no-overlays", "--out")
    assert console(*plain, tmp_path / "plain").code == 0
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "t" / "patches").iterdir()}
    searches.clear()
    said = console(*plain, tmp_path / "kept", "--coords", tmp_path / "t")
    assert said.code == 0, said.err
    said = console("features", small_data.slides, *model, "--out", tmp_path / "f", "--coords", tmp_path / "t")
    assert said.code == 0, said.err
    assert not searches
    assert results(tmp_path / "kept") == results(tmp_path / "plain")
    assert len(results(tmp_path / "kept")) == 6
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "t" / "patches").iterdir()} == files


def test_missing_and_stale_coordinates_are_made_and_stored(
    console: Console, small_data: SmallData, small_checkpoint: Path, tmp_path: Path, searches: Counter[str]
) -> None:
    slides, kept = tmp_path / "slides", tmp_path / "kept"
    slides.mkdir()
    first, second, other = sorted(small_data.slides.glob("*.tif"))[:3]
    (slides / "a.tif").symlink_to(first)
    (slides / "b.tif").symlink_to(second)
    features = ("features", slides, "--checkpoint", small_checkpoint, "--coords", kept, "--out")
    assert console(*features, tmp_path / "1").code == 0
    assert searches == {"a.tif": 1, "b.tif": 1}
    again = ("features", slides, "--encoder", "test_convnext", "--weights", "none", "--patch-px", "32",
             "--patch-mpp", "2.0", "--set", "tiling.min_tissue=0.2", "--coords", kept)  # fmt: skip
    assert console(*again, "--out", tmp_path / "2").code == 0
    assert searches == {"a.tif": 1, "b.tif": 1}, "the same tiling by another way"

    (slides / "a.tif").unlink()
    (slides / "a.tif").symlink_to(other)  # another slide under the old name
    assert console(*features, tmp_path / "3").code == 0
    assert searches == {"a.tif": 2, "b.tif": 1}
    with h5py.File(tmp_path / "3" / "h5_files" / "a.h5") as file, open_slide(other) as slide:
        expected = PatchesInTissue(TILING)(slide, slide_id="a", mpp=None)
        assert np.array_equal(file["coords"][:], expected.l0_xy_N2)

    assert console(*again, "--set", "tiling.min_tissue=0.9", "--out", tmp_path / "4").code == 0
    assert searches == {"a.tif": 3, "b.tif": 2, other.name: 1}, "the last one by this test itself"
    assert [path.name for path in sorted((kept / "patches").iterdir())] == ["a.h5", "b.h5"]
    assert not console("tile", slides, "--out", kept, *TILE).code
    assert console(*features, tmp_path / "5").code == 0
    assert searches == {"a.tif": 4, "b.tif": 3, other.name: 1}, "tile made them, features found them"

    before = rows(kept / "tiles.csv")
    assert console(*again, "--set", "tiling.min_tissue=0.9", "--out", tmp_path / "6").code == 0
    for slide_id, row in rows(kept / "tiles.csv").items():
        with h5py.File(kept / "patches" / f"{slide_id}.h5") as file:
            assert row["n_patches"] == str(len(file["coords"])) != before[slide_id]["n_patches"]


def test_what_somebody_else_made_is_not_replaced(
    console: Console, small_data: SmallData, small_checkpoint: Path, tmp_path: Path
) -> None:
    slide, kept = min(small_data.slides.glob("*.tif")), tmp_path / "kept"
    theirs = kept / "patches" / f"{slide.stem}.h5"
    with open_slide(slide) as opened:
        size = opened.info.l0_size
    write_clam(theirs, np.array([[0, 0]]), patch_size=32, level=0, downsample=1, level_size=size)
    before = theirs.read_bytes()
    features = (
        "features",
        slide,
        "--checkpoint",
        small_checkpoint,
        "--coords",
        kept,
        "--out",
        tmp_path / "f",
    )
    said = console(*features)
    assert said.code == 2
    assert "does not say what it was made from" in said.complaint
    assert "--from-coords" in said.complaint
    assert theirs.read_bytes() == before

    theirs.unlink()
    assert console("tile", slide, "--out", tmp_path / "t", *TILE).code == 0
    outlines = tmp_path / "t" / "contours_geojson"
    assert console("tile", slide, "--out", kept, "--contours", outlines, *TILE).code == 0
    before = theirs.read_bytes()
    said = console(*features)
    assert said.code == 2
    assert "tile --contours" in said.complaint
    assert theirs.read_bytes() == before


def test_options_that_contradict_each_other_are_refused(
    console: Console, small_data: SmallData, small_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    folders = ("--coords", tmp_path / "a", "--from-coords", tmp_path)
    for command in (
        ("predict", small_data.slides, "--checkpoint", small_checkpoint),
        ("features", small_data.slides, "--checkpoint", small_checkpoint),
        ("finetune", small_data.manifest),
    ):
        said = console(*command, "--out", out, *folders)
        assert said.code == 2
        assert "give one of them" in said.complaint
        said = console(*command, "--out", out, "--coords", small_checkpoint)
        assert said.code == 2
        assert "is a file" in said.complaint
    assert not out.exists()
    assert not (tmp_path / "a").exists()


def test_coordinates_are_not_kept_where_trident_has_those_of_the_features(
    console: Console, small_data: SmallData, small_checkpoint: Path, tmp_path: Path
) -> None:
    given = ("features", small_data.slides, "--checkpoint", small_checkpoint, "--out", tmp_path / "f")
    said = console(*given, "--coords", tmp_path / "." / "f", "--layout", "trident")
    assert said.code == 2
    assert "name another folder for coords" in said.complaint
    assert not (tmp_path / "f").exists()


def test_a_training_searches_each_slide_once_and_another_start_none(
    console: Console, small_data: SmallData, tmp_path: Path, searches: Counter[str]
) -> None:
    out = tmp_path / "model"
    command = ("finetune", small_data.manifest, "--out", out, "--recipe", recipe(tmp_path))
    assert console(*command).code == 0
    assert len(searches) == 4
    assert set(searches.values()) == {1}
    model = (out / "model.safetensors").read_bytes()
    assert console(*command).code == 0
    assert console(*command, "--restart").code == 0
    assert searches.total() == 4
    assert (out / "model.safetensors").read_bytes() == model
    predict = ("predict", small_data.slides, "--checkpoint", out / "model.safetensors", "--coords",
               out / "coords", "--no-overlays", "--out", tmp_path / "run")  # fmt: skip
    assert console(*predict).code == 0
    assert searches.total() == 6, "only the two of the split test, which training does not read"


def test_folds_and_their_held_out_slides_search_each_slide_once(
    console: Console, small_data: SmallData, tmp_path: Path, searches: Counter[str]
) -> None:
    out = tmp_path / "cv"
    command = ("finetune", small_data.manifest, "--out", out, "--recipe", recipe(tmp_path), "--folds", "2",
               "--set", "inner_val=0")  # fmt: skip
    said = console(*command)
    assert said.code == 0, said.err
    assert len(searches) == 4
    assert set(searches.values()) == {1}
    assert len(list((out / "coords" / "patches").glob("*.h5"))) == 4
    assert not list(out.glob("fold_*/coords"))


def test_a_process_of_torchrun_begins_with_its_own_share(
    small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other half it finds made where another process has been; the order of bags is that of the manifest."""
    from tests.training.test_finetune import config_of
    from wsi_ips.config import TaskConfig
    from wsi_ips.datasets.manifest import read_manifest
    from wsi_ips.slides.resolution import SlideMpp
    from wsi_ips.training.fit import _tile_bags

    records = read_manifest(small_data.manifest, tasks=[TaskConfig()]).records
    begun: list[str] = []

    class Noting(KeptPatches):
        __slots__ = ()

        def __call__(self, slide: Any, *, slide_id: str, mpp: Any) -> Any:
            begun.append(slide_id)
            return super().__call__(slide, slide_id=slide_id, mpp=mpp)

    for name, value in (("TORCHELASTIC_RUN_ID", "none"), ("RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    bags, bad = _tile_bags(
        records, config_of(), Noting(tmp_path, TILING), SlideMpp(), patches_silent(), allowed=0
    )
    ids = [record.slide_id for record in records]
    assert begun == ids[1::2] + ids[::2]
    assert [bag.bag_id for bag in bags] == ids
    assert not bad


def patches_silent() -> Any:
    from wsi_ips.progress import silent

    return silent


@pytest.mark.slow
def test_finetune_reads_exactly_the_given_patches(
    console: Console, small_data: SmallData, tmp_path: Path, searches: Counter[str]
) -> None:
    """Another run is one with other coordinates, and held-out slides are labelled on the same ones."""
    tiles = ("tile", small_data.slides, "--out", tmp_path / "t", *TILE)
    assert console(*tiles).code == 0
    searches.clear()
    given = ("--recipe", recipe(tmp_path), "--from-coords", tmp_path / "t")
    plain = ("finetune", small_data.manifest, "--recipe", recipe(tmp_path), "--out", tmp_path / "plain")
    out = tmp_path / "model"
    assert console("finetune", small_data.manifest, "--out", out, *given).code == 0
    assert not searches
    assert not (out / "coords").exists()
    assert console(*plain).code == 0
    assert losses(out) == losses(tmp_path / "plain"), "tile's patches are those that training finds"

    for path in (tmp_path / "t" / "patches").iterdir():
        with h5py.File(path, "r+") as file:
            for name in ("coords", "wsi_ips_patch_ids", "wsi_ips_tissue"):
                kept, attributes = file[name][::2], dict(file[name].attrs)
                del file[name]
                file.create_dataset(name, data=kept, chunks=kept.shape).attrs.update(attributes)
    said = console("finetune", small_data.manifest, "--out", out, *given)
    assert said.code == 2
    assert "coordinates of --from-coords" in said.complaint
    said = console("finetune", small_data.manifest, "--out", tmp_path / "half", *given)
    assert said.code == 0, said.err
    assert losses(tmp_path / "half") != losses(out)
    folds = ("--folds", "2", "--set", "inner_val=0")
    assert console("finetune", small_data.manifest, "--out", tmp_path / "cv", *given, *folds).code == 0
    for path in (tmp_path / "cv" / "held_out" / "attention").iterdir():
        with h5py.File(tmp_path / "t" / "patches" / path.name) as file:
            assert len(read_result(path).coords) == len(file["coords"])


@pytest.mark.slow
def test_a_manifest_names_slides_at_urls(
    console: Console, small_data: SmallData, tmp_path: Path, searches: Counter[str]
) -> None:
    """They teach what the files teach; another start finds their coordinates, unless a file has changed."""
    torch.manual_seed(0)
    served = tmp_path / "served"
    served.mkdir()
    with small_data.manifest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        (served / Path(row["path"]).name).write_bytes((small_data.manifest.parent / row["path"]).read_bytes())
    command = ("--recipe", recipe(tmp_path), "--out")
    assert console("finetune", small_data.manifest, *command, tmp_path / "files").code == 0
    with serving(served) as server:
        manifest = tmp_path / "urls.csv"
        with manifest.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows({**row, "path": server.url(Path(row["path"]).name)} for row in rows)
        searches.clear()
        said = console("finetune", manifest, *command, tmp_path / "urls")
        assert said.code == 0, said.err
        assert searches.total() == 4
        assert losses(tmp_path / "urls") == pytest.approx(losses(tmp_path / "files"))
        stored = stored_tiled_from(next((tmp_path / "urls" / "coords" / "patches").glob("*.h5")))
        assert stored is not None
        assert stored.slide
        assert console("finetune", manifest, *command, tmp_path / "urls").code == 0
        assert searches.total() == 4
        one = min(served.iterdir())
        if not searches[one.name]:
            one = next(path for path in served.iterdir() if searches[path.name])
        one.write_bytes(one.read_bytes() + b"changed")
        assert console("finetune", manifest, *command, tmp_path / "urls", "--restart").code == 0
        assert searches.total() == 5
        (served / one.name).unlink()
        said = console("finetune", manifest, *command, tmp_path / "urls", "--restart",
                       "--set", "training.max_bad_slides=0.5")  # fmt: skip
        assert said.code == 3, said
        assert f"{server.url(one.name)}" in said.out


def test_a_slide_at_a_url_is_tiled_once(
    console: Console, small_data: SmallData, tmp_path: Path, searches: Counter[str]
) -> None:
    """By what its bytes are: a copy on the disk is the same slide."""
    slide, served = min(small_data.slides.glob("*.tif")), tmp_path / "served"
    served.mkdir()
    (served / "s.tif").write_bytes(slide.read_bytes())
    with serving(served) as server:
        tile = ("tile", server.url("s.tif"), "--out", tmp_path / "t", *TILE)
        assert console(*tile).code == 0
        said = console(*tile)
        assert "1 slide was tiled already" in said.out
    said = console("tile", served, "--out", tmp_path / "t", *TILE)
    assert "1 slide was tiled already" in said.out
    assert searches == {"s.tif": 1}
