"""A slide that is coarser than the patches is refused before it is read, or enlarged with a word."""

import csv
from pathlib import Path

import pytest

from tests.commands.console import Console
from tests.conftest import SMALL_MODEL, SmallData
from tests.streaming.test_stream import picture
from wsi_ips.config import TilingConfig
from wsi_ips.errors import TooCoarse
from wsi_ips.slides.image_reader import MemoryReader
from wsi_ips.tiling.patches import PatchesInTissue, tile_slide
from wsi_ips.units import Mpp

PATCH = ("--patch-px", "32", "--patch-mpp", "2.0")
COARSE = ("--slide-mpp", "3")
ALLOW = ("--set", "tiling.allow_upsampling=true")
ENCODER = ("--encoder", "resnet10t", "--weights", "none", "--set", "encoder.stage=2")
REFUSED = "has 3 µm per pixel and the patches are to have 2 µm"
NOTE = "patches of 2 µm are enlarged 1.5 times from 3 µm; 3 µm per pixel were given, the file states 0.5 µm"


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def two_slides(small_data: SmallData, tmp_path: Path) -> Path:
    folder = tmp_path / "slides"
    folder.mkdir()
    for source in sorted(small_data.slides.iterdir())[:2]:
        (folder / source.name).symlink_to(source)
    return folder


class Unread(MemoryReader):
    def read(self, *_: object, **__: object) -> None:  # type: ignore[override]
        raise AssertionError("nothing is to be read")


@pytest.mark.parametrize(("slide_mpp", "refused"), [(0.55, False), (0.56, True), (28.97, True)])
def test_ten_per_cent_are_let_through(slide_mpp: float, refused: bool) -> None:
    tiling = TilingConfig(patch_px=32, patch_mpp=0.5)
    if refused:
        slide = Unread(picture(), mpp=Mpp(slide_mpp), levels=(1,))
        with pytest.raises(
            TooCoarse, match=f"memory: has {slide_mpp} µm .* 0.5 µm.*--patch-mpp.*--slide-mpp"
        ):
            PatchesInTissue(tiling)(slide, slide_id="s", mpp=None)
    allowed = tiling.model_copy(update={"allow_upsampling": refused})
    coords, _ = tile_slide(MemoryReader(picture(), mpp=Mpp(slide_mpp)), allowed, slide_id="s")
    assert coords.slide_mpp == slide_mpp


def test_tile(console: Console, two_slides: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    one = sorted(two_slides.iterdir())[0]
    said = console("tile", one, "--out", out, *PATCH, *COARSE)
    assert said.code == 2
    assert f"{one.name}: {REFUSED}" in said.complaint
    assert "tiling.allow_upsampling=true" in said.complaint
    assert console("tile", two_slides, "--out", out, *PATCH, *COARSE).code == 3
    assert {(row["status"], row["note"]) for row in table(out / "tiles.csv")} == {("failed", "")}
    assert all(REFUSED in row["error"] for row in table(out / "tiles.csv"))
    assert console("tile", two_slides, "--out", out, *PATCH, *COARSE, *ALLOW).code == 0
    assert {(row["status"], row["note"]) for row in table(out / "tiles.csv")} == {("ok", NOTE)}


def test_predict_says_so_and_goes_on(
    console: Console, two_slides: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = (
        "predict",
        two_slides,
        "--checkpoint",
        small_checkpoint,
        "--out",
        out,
        *COARSE,
        "--no-overlays",
    )
    assert console(*command).code == 3
    assert all(REFUSED in row["error"] for row in table(out / "slides.csv"))
    assert console(*command, *ALLOW).code == 0
    assert [(row["status"], row["note"]) for row in table(out / "slides.csv")] == [("ok", NOTE)] * 2
    before = {path: path.read_bytes() for path in [*(out / "attention").iterdir(), out / "slides.csv"]}
    # Nothing is done again, and the tables stay as they are.
    assert console(*command, *ALLOW).code == 0
    assert {path: path.read_bytes() for path in before} == before


def test_predict_of_others_coordinates(
    console: Console, two_slides: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    assert console("tile", two_slides, "--out", tmp_path / "t", *PATCH, *COARSE, *ALLOW).code == 0
    one = sorted(two_slides.iterdir())[0]
    command = ("predict", one, "--checkpoint", small_checkpoint, "--out", tmp_path / "run", *COARSE,
               "--no-overlays", "--from-coords", tmp_path / "t")  # fmt: skip
    said = console(*command)
    assert said.code == 2
    assert REFUSED in said.complaint
    assert console(*command, *ALLOW).code == 0
    assert [row["note"] for row in table(tmp_path / "run" / "slides.csv")] == [NOTE]


@pytest.mark.parametrize("own", [True, False])
def test_features(
    console: Console, two_slides: Path, small_checkpoint: Path, tmp_path: Path, own: bool
) -> None:
    encoder = ("--checkpoint", small_checkpoint) if own else (*ENCODER, *PATCH)
    one, out = sorted(two_slides.iterdir())[0], tmp_path / "out"
    said = console("features", one, "--out", out, *encoder, *COARSE)
    assert said.code == 2
    assert REFUSED in said.complaint
    for _ in range(2):  # the second time it is there already
        assert console("features", one, "--out", out, *encoder, *COARSE, *ALLOW).code == 0
        assert [(row["status"], row["note"]) for row in table(out / "features.csv")] == [("ok", NOTE)]


def test_a_checkpoints_tiling_stays_its_own(
    console: Console, two_slides: Path, small_checkpoint: Path
) -> None:
    said = console("features", two_slides, "--out", two_slides / "out", "--checkpoint", small_checkpoint,
                   "--set", "tiling.patch_px=64", *ALLOW)  # fmt: skip
    assert said.code == 2
    assert "a checkpoint has its own tiling" in said.complaint


def test_finetune(console: Console, small_data: SmallData, tmp_path: Path) -> None:
    import yaml

    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump({**SMALL_MODEL, "training": {"epochs": 1, "slides_per_step": 2}}))
    said = console("finetune", small_data.manifest, "--out", tmp_path / "m", "--recipe", recipe, *COARSE)
    assert said.code == 2
    assert REFUSED in said.complaint


def test_detect_at_a_finer_resolution_than_the_run_s_slide(
    console: Console, two_slides: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    """The run was allowed to enlarge; the detector asks again."""
    import torch

    from wsi_ips.nuclei.config import DetectorConfig
    from wsi_ips.nuclei.models import build_retinanet, save_detector

    torch.manual_seed(0)
    config = DetectorConfig(backbone="resnet10t", pyramid_channels=8, head_channels=8, head_convs=1, mpp=2.0,
                            score_threshold=0.0, most_per_image=3)  # fmt: skip
    save_detector(tmp_path / "d.safetensors", build_retinanet(config), config)
    one, run = sorted(two_slides.iterdir())[0], tmp_path / "run"
    model = ("--checkpoint", small_checkpoint, "--no-overlays")
    assert console("predict", one, *model, "--out", run, *COARSE, *ALLOW).code == 0
    command = ("detect", one, "--detector", tmp_path / "d.safetensors", "--out", tmp_path / "o")
    for given in (("--run", run), COARSE):
        said = console(*command, *given)
        assert said.code == 2
        assert REFUSED in said.complaint
    assert console(*command, "--run", run, *ALLOW).code == 0
    assert [row["note"] for row in table(tmp_path / "o" / "detections.csv")] == [NOTE]
