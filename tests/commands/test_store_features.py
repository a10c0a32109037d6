"""``features``: stored as CLAM and TRIDENT do, opened by code that knows their formats and nothing of ours."""

import csv
import json
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.commands.console import Console
from tests.conftest import SmallData
from tests.datasets.feature_folders import write_recipe
from tests.tiling.foreign_files import write_clam
from wsi_ips.datasets.feature_files import open_features
from wsi_ips.errors import ConfigError
from wsi_ips.inference.feature_export import FeaturesFolder, save_rows
from wsi_ips.models.checkpoint import checkpoint_sha256, load_checkpoint
from wsi_ips.slides.registry import open_slide
from wsi_ips.storage.held_folder import locked
from wsi_ips.streaming.region_source import PatchRegion
from wsi_ips.tiling.coords import read_coords
from wsi_ips.units import Mpp

PATCHES = ("--patch-px", "32", "--patch-mpp", "2")
ENCODER = ("--encoder", "resnet10t", "--weights", "none", "--set", "encoder.stage=2")


def slides_in(data: SmallData) -> list[Path]:
    return sorted(data.slides.iterdir())


def rows(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "features.csv").open(newline="") as file:
        return {row["slide_id"]: row for row in csv.DictReader(file)}


def read_clam(folder: Path, slide_id: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """As CLAM's dataset classes do: the tensor alone, or features and coords of the HDF5."""
    tensor = torch.load(folder / "pt_files" / f"{slide_id}.pt", weights_only=True)
    with h5py.File(folder / "h5_files" / f"{slide_id}.h5", "r") as file:
        features, coords = file["features"][:], file["coords"][:]
    assert coords.dtype == np.int32
    assert coords.shape == (len(features), 2)
    assert np.array_equal(tensor.numpy(), features)
    return features, coords


def read_trident(folder: Path, encoder: str, slide_id: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """As TRIDENT does: features with the coordinates' own attributes, the coordinates in ``patches``."""
    with h5py.File(folder / f"features_{encoder}" / f"{slide_id}.h5", "r") as file:
        features, coords, attributes = file["features"][:], file["coords"][:], dict(file["coords"].attrs)
        assert file["features"].attrs["name"] == slide_id
        assert file["features"].attrs["encoder"] == encoder
        assert isinstance(file["features"].attrs["savetodir"], str)
    with h5py.File(folder / "patches" / f"{slide_id}_patches.h5", "r") as file:
        assert np.array_equal(file["coords"][:], coords)
        given = dict(file["coords"].attrs)
    for name in ("patch_size", "patch_size_level0", "level0_magnification", "target_magnification", "overlap",
                 "level0_width", "level0_height", "name"):  # fmt: skip
        assert given[name] == attributes[name]
    assert attributes["patch_size"] == 32
    assert attributes["target_magnification"] == 5
    assert coords.dtype == np.int64
    return features, coords


@pytest.mark.parametrize("layout", ["clam", "trident"])
def test_both_layouts_hold_what_the_encoder_makes_of_each_patch(
    console: Console, small_data: SmallData, small_checkpoint: Path, tmp_path: Path, layout: str
) -> None:
    said = console("features", small_data.slides, "--checkpoint", small_checkpoint, "--layout", layout,
                   "--out", tmp_path / "f", "--set", "streaming.batch=13")  # fmt: skip
    assert said.code == 0, said.err
    net, pipeline = load_checkpoint(small_checkpoint)
    name = f"wsi_ips_{checkpoint_sha256(small_checkpoint)[:12]}"
    root = tmp_path / "f" if layout == "clam" else tmp_path / "f" / f"features_{name}"
    assert list(rows(root)) == [path.stem for path in slides_in(small_data)]
    for path in slides_in(small_data)[:2]:
        features, coords = (
            read_clam(root, path.stem) if layout == "clam" else read_trident(tmp_path / "f", name, path.stem)
        )
        assert features.dtype == np.float32
        assert rows(root)[path.stem]["n_patches"] == str(len(features))
        picked = [0, len(features) // 2, len(features) - 1]
        with open_slide(path) as slide:
            mpp = slide.info.known_mpp()
            region = PatchRegion.of(slide.info, patch_px=32, patch_mpp=Mpp(2.0), slide_mpp=mpp)
            pixels = np.stack([region.read(slide, tuple(coords[n].tolist())) for n in picked])
        with torch.no_grad():
            expected = net.encoder(torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy()
        np.testing.assert_allclose(features[picked], expected, rtol=0.1, atol=0.05)
        assert np.abs(features[picked] - expected).mean() < 0.02 * np.abs(expected).mean()
    assert pipeline.tiling.patch_px == 32


@pytest.mark.parametrize("layout", ["clam", "trident"])
def test_they_teach_and_are_labelled_by_our_own_commands(
    console: Console, small_data: SmallData, tmp_path: Path, layout: str
) -> None:
    said = console(
        "features", small_data.slides, *ENCODER, *PATCHES, "--layout", layout, "--out", tmp_path / "f"
    )
    assert said.code == 0, said.err
    folder = tmp_path / "f" if layout == "clam" else tmp_path / "f" / "features_resnet10t"
    width = open_features(next(folder.rglob("*.h5"))).width
    write_recipe(tmp_path / "r.yaml", width=width, positions="raster")
    said = console("finetune", small_data.manifest, "--features", folder, "--recipe", tmp_path / "r.yaml",
                   "--out", tmp_path / "m")  # fmt: skip
    assert said.code == 0, said.err
    said = console("predict", "--features", folder, "--checkpoint", tmp_path / "m" / "model.safetensors",
                   "--out", tmp_path / "p")  # fmt: skip
    assert said.code == 0, said.err
    assert "do not say how large" not in said.out


def test_half_is_stored_in_half(console: Console, small_data: SmallData, tmp_path: Path) -> None:
    slide = slides_in(small_data)[0]
    assert console("features", slide, *ENCODER, *PATCHES, "--out", tmp_path / "a").code == 0
    assert console("features", slide, *ENCODER, *PATCHES, "--half", "--out", tmp_path / "b").code == 0
    (whole, _), (half, _) = (read_clam(tmp_path / name, slide.stem) for name in "ab")
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, whole, rtol=1e-3, atol=1e-4)


def test_what_is_done_is_left_alone(console: Console, small_data: SmallData, tmp_path: Path) -> None:
    """Also after a kill between the HDF5 and its tensor; a slide that lies elsewhere is another slide."""
    copies = tmp_path / "slides"
    copies.mkdir()
    for path in slides_in(small_data)[:3]:
        shutil.copy(path, copies)
    names = [path.stem for path in slides_in(small_data)[:3]]
    start = ("features", copies, *ENCODER, *PATCHES, "--out", tmp_path / "f")
    assert console(*start).code == 0
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "f").rglob("*.[hp][5t]")}
    assert len(files) == 6
    table = rows(tmp_path / "f")
    (tmp_path / "f" / "pt_files" / f"{names[0]}.pt").unlink()
    (tmp_path / "f" / "h5_files" / f"{names[1]}.h5").write_bytes(b"broken")
    partial = tmp_path / "f" / "h5_files" / f".{names[1]}.1-2.partial.h5"
    partial.write_bytes(b"killed")
    said = console(*start)
    assert said.code == 0
    assert "2 of 3 slides were encoded already, from the same files and settings" in said.out
    assert not partial.exists()
    assert rows(tmp_path / "f") == table
    changed = {path.name for path, then in files.items() if path.stat().st_mtime_ns != then}
    assert changed == {f"{names[0]}.pt", f"{names[1]}.h5", f"{names[1]}.pt"}
    for name in names:
        read_clam(tmp_path / "f", name)
    said = console("features", slides_in(small_data)[2], *ENCODER, *PATCHES, "--out", tmp_path / "f")
    assert said.code == 0
    path = tmp_path / "f" / "h5_files" / f"{names[2]}.h5"
    assert path.stat().st_mtime_ns != files[path]
    assert list(rows(tmp_path / "f")) == [names[2], *names[:2]]  # those of the other slides are still there


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (("--half",), "half False there, True here"),
        (("--patch-px", "64"), "tiling.patch_px 32 there, 64 here"),
        (("--set", "encoder.stage=1"), "encoder.stage 2 there, 1 here"),
        (("--slide-mpp", "0.5"), "slide_mpp None there, 0.5 here"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(
    console: Console, small_data: SmallData, tmp_path: Path, other: tuple[str, ...], named: str
) -> None:
    start = ("features", slides_in(small_data)[0], *ENCODER, *PATCHES, "--out", tmp_path / "f")
    assert console(*start).code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "f").rglob("*") if path.is_file()}
    said = console(*start, *other)
    assert said.code == 2
    assert named in said.complaint
    assert {path: path.read_bytes() for path in (tmp_path / "f").rglob("*") if path.is_file()} == before


def test_another_tissue_model_under_the_same_name_is_another_setting(
    console: Console, small_data: SmallData, tmp_path: Path
) -> None:
    """Its contents count, not its date."""
    model = tmp_path / "tissue.pt"
    (tmp_path / "tissue.json").write_text(
        '{"mpp": 16, "tile_px": 64, "overlap_px": 8, "activation": "sigmoid"}'
    )
    start = ("features", slides_in(small_data)[0], *ENCODER, *PATCHES, "--out", tmp_path / "f",
             "--set", f"tiling.tissue.model={model}")  # fmt: skip
    save_tissue_model(model, 1.0)
    assert console(*start).code == 0
    os.utime(model, (0, 0))
    assert console(*start).code == 0
    save_tissue_model(model, 2.0)
    said = console(*start)
    assert said.code == 2
    assert "tiling.tissue.model.sha256" in said.complaint


def save_tissue_model(path: Path, factor: float) -> None:
    """Everything is tissue, whatever the factor."""

    class Bright(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("factor", torch.tensor(factor))

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return (batch + 10) * self.factor

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(Bright(), torch.zeros(1, 3, 64, 64)), str(path))


def test_two_encoders_share_trident_s_patches(
    console: Console, small_data: SmallData, tmp_path: Path
) -> None:
    slide = slides_in(small_data)[0]
    start = ("features", slide, "--weights", "none", "--layout", "trident", "--out", tmp_path / "f")
    for encoder in ("resnet10t", "resnet14t"):
        assert console(*start, "--encoder", encoder, *PATCHES).code == 0
    first, second = (read_trident(tmp_path / "f", name, slide.stem) for name in ("resnet10t", "resnet14t"))
    assert np.array_equal(first[1], second[1])
    said = console(*start, "--encoder", "resnet18", "--patch-px", "64", "--patch-mpp", "2")
    assert said.code == 2
    assert "holds other patches" in said.complaint
    assert not (tmp_path / "f" / "features_resnet18").exists()


def test_a_bad_slide_is_reported_and_the_others_finish(
    console: Console, small_data: SmallData, tmp_path: Path
) -> None:
    """And --from-coords: exactly those patches."""
    slides = tmp_path / "slides"
    slides.mkdir()
    good = slides_in(small_data)[0]
    shutil.copy(good, slides)
    (slides / "broken.tif").write_bytes(good.read_bytes()[:5000])
    shutil.copy(good, slides / "unknown.tif")
    corners = np.array([[5, 7], [500, 333], [200, 100]])
    with open_slide(good) as slide:
        info = slide.info
    side = round(64 / info.known_mpp())
    for name in (good.stem, "broken"):
        write_clam(tmp_path / "c" / f"{name}.h5", corners, patch_size=side, level=0, downsample=1.0,
                   level_size=info.l0_size)  # fmt: skip
    said = console("features", slides, *ENCODER, *PATCHES, "--from-coords", tmp_path / "c", "--out",
                   tmp_path / "f")  # fmt: skip
    assert said.code == 3
    table = rows(tmp_path / "f")
    assert {name: row["status"] for name, row in table.items()} == {
        good.stem: "ok", "broken": "failed", "unknown": "failed"
    }  # fmt: skip
    assert "no coordinates of unknown" in table["unknown"]["error"]
    assert table["broken"]["error"] in said.out
    features, coords = read_clam(tmp_path / "f", good.stem)
    assert coords.tolist() == corners.tolist()
    assert len(features) == 3
    assert sorted(path.name for path in (tmp_path / "f").rglob("*.h5")) == [f"{good.stem}.h5"]
    held = open_features(tmp_path / "f" / "h5_files" / f"{good.stem}.h5")
    assert not held.on_grid  # its numbers are no cells: nothing for positions: raster


def test_wrong_input_is_one_line(
    console: Console, small_data: SmallData, small_checkpoint: Path, tmp_path: Path
) -> None:
    slide, out = slides_in(small_data)[0], tmp_path / "f"
    for arguments, part in (
        ((), "one of them"),
        (("--encoder", "resnet10t", "--checkpoint", small_checkpoint), "one of them"),
        (("--checkpoint", small_checkpoint, "--patch-px", "64"), "has its own tiling"),
        (("--encoder", "resnet10", "--weights", "none"), "did you mean"),
        (
            ("--encoder", "resnet10t", "--set", "encoder.project=8"),
            "leave features, project and standardise out",
        ),
        (
            ("--encoder", "features", "--set", "encoder.features=8"),
            "leave features, project and standardise out",
        ),
        (("--encoder", "resnet10t", "--set", "encoder.standardise=true"), "standardise out"),
        ((*ENCODER, "--from-coords", tmp_path / "none"), "no such folder"),
        ((*ENCODER, "--layout", "other"), "layout"),
    ):
        said = console("features", slide, *arguments, "--out", out)
        assert said.code == 2, arguments
        assert part in said.complaint
    assert not out.exists()
    out.mkdir()
    with locked(out):
        assert "another run" in console("features", slide, *ENCODER, *PATCHES, "--out", out).complaint


def test_a_disk_without_room_is_said_before_hdf5_dies_of_it(
    console: Console, small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr("wsi_ips.inference.feature_export.shutil.disk_usage", lambda _: full)
    said = console("features", small_data.slides, *ENCODER, *PATCHES, "--out", tmp_path / "f")
    assert said.code == 3
    assert said.out.count("no space left on device where the results are written") == 6
    assert "failed: train_000_normal: no space" in said.out
    assert not [*(tmp_path / "f").rglob("*.h5")]


def test_features_that_are_not_finite_fail_the_slide(
    console: Console, small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsi_ips.models.encoders.timm_encoder.TimmEncoder._features",
                        lambda self, x: torch.full((len(x), self.dim), 1e6))  # fmt: skip
    slide = slides_in(small_data)[0]
    assert console("features", slide, *ENCODER, *PATCHES, "--out", tmp_path / "whole").code == 0
    said = console("features", slide, *ENCODER, *PATCHES, "--half", "--out", tmp_path / "half")
    assert said.code == 2
    assert "not finite" in said.complaint
    assert not (tmp_path / "half").exists()


@pytest.mark.parametrize(("dtype", "name"), [(torch.float32, "float32"), (torch.float16, "float16")])
@pytest.mark.parametrize("n", [1, 7, 1000])
def test_a_tensor_in_blocks_is_the_tensor(tmp_path: Path, dtype: torch.dtype, name: str, n: int) -> None:
    values = np.random.default_rng(0).normal(size=(n, 33)).astype(name)
    save_rows(tmp_path / "t.pt", iter(np.array_split(values, 3)), shape=(n, 33), dtype=dtype)
    loaded = torch.load(tmp_path / "t.pt", weights_only=True)
    assert loaded.dtype == dtype
    assert np.array_equal(loaded.numpy(), values)
    assert np.array_equal(torch.load(tmp_path / "t.pt", weights_only=True, mmap=True).numpy(), values)
    with zipfile.ZipFile(tmp_path / "t.pt") as archive:  # its checksums are right
        assert archive.testzip() is None
    for wrong in (values[:-1], np.concatenate([values, values]), values[:, :-1], values.astype(float)):
        with pytest.raises(ValueError, match="rows"):
            save_rows(tmp_path / "w.pt", [wrong], shape=(n, 33), dtype=dtype)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.pt"]


MEMORY = """
import resource, sys, numpy as np, torch
from pathlib import Path
from wsi_ips.errors import SlideReadError
from wsi_ips.errors import ConfigError
from wsi_ips.inference.feature_export import FeaturesFolder, save_rows
def write(n):
    block = np.ones((1000, 1024), np.float32)
    path, blocks = Path(sys.argv[1]) / f"{n}.pt", (block for _ in range(n))
    save_rows(path, blocks, shape=(1000 * n, 1024), dtype=torch.float32)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
print(write(2), write(24))
"""


@pytest.mark.slow
def test_a_large_tensor_takes_no_more_memory(tmp_path: Path) -> None:
    """98 MB beside 8 MB."""
    said = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path], capture_output=True, text=True, check=True
    )
    small, large = map(int, said.stdout.split())
    assert large - small < 30
    assert (tmp_path / "24.pt").stat().st_size > 98e6


def test_the_description_says_what_it_was_made_with(
    console: Console, small_data: SmallData, small_checkpoint: Path, tmp_path: Path
) -> None:
    slide = slides_in(small_data)[0]
    assert console("features", slide, "--checkpoint", small_checkpoint, "--out", tmp_path / "f").code == 0
    description = json.loads((tmp_path / "f" / "run.json").read_text())
    assert description["settings"]["checkpoint"] == checkpoint_sha256(small_checkpoint)
    assert description["settings"]["tiling"]["patch_px"] == 32
    assert "torch" in description["versions"]
    coords = read_coords(tmp_path / "f" / "h5_files" / f"{slide.stem}.h5")
    assert coords.lies_on_grid


@pytest.mark.usefixtures("torn_tile")
def test_unreadable_tiles_are_told_again_by_a_second_start(
    console: Console, small_data: SmallData, tmp_path: Path
) -> None:
    start = ("features", slides_in(small_data)[0], *ENCODER, *PATCHES, "--out", tmp_path / "f",
             "--set", "streaming.max_bad_tiles=0.5")  # fmt: skip
    first, second = console(*start), console(*start)
    assert first.code == second.code == 3
    assert "1 tile unreadable, read as white" in first.out
    again = "1 of 1 slide was encoded already, from the same files and settings\n"
    assert second.out == again + first.out


def test_features_of_earlier_versions_are_gone_on_with_though_they_do_not_say_whose_the_encoder_is(
    tmp_path: Path,
) -> None:
    folder = FeaturesFolder(tmp_path, "clam", "theirs")
    before: dict[str, Any] = {"encoder": {"name": "theirs"}}
    now = {**before, "package": {"package": "outside", "version": "1.0"}}
    with folder.claimed(before, numerics={}):
        (tmp_path / "h5_files").mkdir(exist_ok=True)
        (tmp_path / "h5_files" / "s0.h5").touch()
    with folder.claimed(now, numerics={}):
        pass
    newer = {**before, "package": {"package": "outside", "version": "2.0"}}
    with (
        pytest.raises(ConfigError, match=r"package.version 1.0 there, 2.0 here"),
        folder.claimed(newer, numerics={}),
    ):
        pass
