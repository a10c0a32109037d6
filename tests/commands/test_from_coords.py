"""``predict --from-coords``: exactly the patches that somebody laid out."""

import csv
import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.commands.console import Console
from tests.conftest import SmallData
from tests.tiling.foreign_files import write_atlaspatch, write_clam, write_trident
from wsi_ips.config import StreamingConfig
from wsi_ips.inference.checkpoints import Checkpoints
from wsi_ips.inference.results import SlideResult, read_result
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.inference.slide_work import Done, SlideJob
from wsi_ips.inference.worker import SlideWorker, WorkerSetup
from wsi_ips.models.checkpoint import checkpoint_config
from wsi_ips.slides.registry import open_slide
from wsi_ips.tiling.patches import stored_patches

PATCH = ("--patch-px", "32", "--patch-mpp", "2.0", "--set", "tiling.min_tissue=0.2")


def slides_in(data: SmallData) -> list[Path]:
    return sorted(data.slides.iterdir())


def results(run: Path) -> dict[str, SlideResult]:
    return {path.stem: read_result(path) for path in sorted((run / "attention").glob("*.h5"))}


def rows(run: Path) -> dict[str, dict[str, str]]:
    with (run / "predictions.csv").open(newline="") as file:
        return {row["slide_id"]: row for row in csv.DictReader(file)}


def same_numbers(a: SlideResult, b: SlideResult) -> None:
    for name in ("logits_NHT", "attention_NHT", "kept_ids_M", "kept_scores_M"):
        assert getattr(a, name).tobytes() == getattr(b, name).tobytes(), name
    assert a.probabilities == b.probabilities
    assert np.array_equal(a.coords.l0_xy_N2, b.coords.l0_xy_N2)
    assert np.array_equal(a.coords.ids_N, b.coords.ids_N)


@pytest.mark.parametrize("layout", ["clam", "trident"])
def test_our_tiles_give_the_same_numbers(
    console: Console, small_data: SmallData, small_checkpoint: Path, tmp_path: Path, layout: str
) -> None:
    model = ("--checkpoint", small_checkpoint, "--no-overlays")
    assert console("tile", small_data.slides, "--out", tmp_path / "t", "--layout", layout, *PATCH).code == 0
    assert console("predict", small_data.slides, *model, "--out", tmp_path / "direct").code == 0
    said = console(
        "predict", small_data.slides, *model, "--from-coords", tmp_path / "t", "--out", tmp_path / "r"
    )
    assert said.code == 0, said.err
    direct, stored = results(tmp_path / "direct"), results(tmp_path / "r")
    assert len(direct) == 6
    for slide_id in direct:
        same_numbers(direct[slide_id], stored[slide_id])


def test_a_worker_reads_them_too(
    console: Console, small_data: SmallData, small_checkpoint: Path, tmp_path: Path
) -> None:
    """What a worker is sent is pickled; it finds the same patches as the process that was asked."""
    slide = slides_in(small_data)[0]
    _scatter(slide, tmp_path / "c" / f"{slide.stem}.h5")
    said = console("predict", slide, "--checkpoint", small_checkpoint, "--no-overlays", "--from-coords",
                   tmp_path / "c", "--out", tmp_path / "one")  # fmt: skip
    assert said.code == 0
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "run.json").write_text("{}")
    tiling = checkpoint_config(small_checkpoint).tiling
    setup = WorkerSetup(
        models=Checkpoints.of([small_checkpoint]),
        run=RunFolder(tmp_path / "two"),
        streaming=StreamingConfig(),
        find_patches=stored_patches(tmp_path / "c", tiling),
    )
    done = SlideWorker(pickle.loads(pickle.dumps(setup)), 0).work(SlideJob(slide.stem, slide))
    assert isinstance(done, Done)
    assert done.row.status == "ok"
    same_numbers(results(tmp_path / "one")[slide.stem], results(tmp_path / "two")[slide.stem])


def test_exactly_the_patches_of_the_file_are_labelled(
    console: Console, small_data: SmallData, small_checkpoint: Path, tmp_path: Path
) -> None:
    """Two slides have coordinates (one CLAM's, one AtlasPatch's), one has none, one has another slide's, one of
    another resolution, one outside: four are reported, each with its reason, and two are labelled."""
    slides, folder = slides_in(small_data), tmp_path / "coords"
    corners = _scatter(slides[0], folder / f"{slides[0].stem}.h5")
    write_atlaspatch(folder / f"{slides[1].stem}.h5", corners, **_whole(slides[1]))
    other = {
        slides[2]: (corners, {**_whole(slides[2]), "size": (999, 999)}),
        slides[3]: (corners, {**_whole(slides[3]), "target": 10}),
        slides[4]: (corners - 700, _whole(slides[4])),
    }
    for slide, (theirs, about) in other.items():
        write_trident(folder / f"{slide.stem}_patches.h5", theirs, **about)
    said = console("predict", small_data.slides, "--checkpoint", small_checkpoint, "--from-coords", folder,
                   "--out", tmp_path / "run")  # fmt: skip
    assert said.code == 3
    table, found = rows(tmp_path / "run"), results(tmp_path / "run")
    assert [table[path.stem]["status"] for path in slides] == ["ok", "ok", *["failed"] * 4]
    for path in slides[:2]:
        assert np.array_equal(found[path.stem].coords.l0_xy_N2, corners)
        assert found[path.stem].attention_NHT.sum(axis=0) == pytest.approx(1, abs=1e-4)
        assert (tmp_path / "run" / "overlays" / f"{path.stem}.png").is_file()
    reasons = [table[path.stem]["error"] for path in slides]
    for reason, part in zip(
        reasons[2:], ("999x999", "32 px at", "begin outside", "no coordinates of"), strict=True
    ):
        assert part in reason
        assert reason in said.out


def test_going_on_with_other_coordinates_is_refused(
    console: Console, small_data: SmallData, small_checkpoint: Path, tmp_path: Path
) -> None:
    slide = slides_in(small_data)[0]
    _scatter(slide, tmp_path / "c" / f"{slide.stem}.h5")
    model = ("--checkpoint", small_checkpoint, "--no-overlays", "--out", tmp_path / "run")
    assert console("predict", slide, *model).code == 0
    said = console("predict", slide, *model, "--from-coords", tmp_path / "c")
    assert said.code == 2
    assert "--from-coords not given there" in said.complaint
    said = console("predict", slide, *model, "--force", "--from-coords", tmp_path / "nowhere")
    assert said.code == 2
    assert "no such folder" in said.complaint
    said = console("predict", slide, *model, "--force", "--from-coords", tmp_path)
    assert said.code == 2
    assert "no coordinates of" in said.complaint


def _whole(slide: Path) -> dict[str, Any]:
    """What TRIDENT and AtlasPatch say of patches of 32 px at 2 µm."""
    with open_slide(slide) as opened:
        info = opened.info
    return {"patch_size": 32, "size": info.l0_size, "level0": round(10 / info.known_mpp()), "target": 5}


def _scatter(slide: Path, path: Path) -> NDArray[np.int64]:
    """CLAM's file of 60 patches of 32 px at 2 µm, at corners on no grid."""
    with open_slide(slide) as opened:
        info = opened.info
    side = round(32 * 2.0 / info.known_mpp())
    corners = np.random.default_rng(1).integers(0, min(info.l0_size) - side, (60, 2))
    write_clam(path, corners, patch_size=side, level=0, downsample=1.0, level_size=info.l0_size)
    with h5py.File(path) as file:
        assert file["coords"].shape == (60, 2)
    return corners
