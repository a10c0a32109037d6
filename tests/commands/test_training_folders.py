"""Two training runs in one folder would write over each other: the second is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.commands.console import Console
from tests.commands.test_images_command import SMALL, settings
from tests.commands.test_train_detector_command import RECIPE, draw_images
from tests.conftest import SMALL_MODEL, SmallData
from tests.images.small_mnist import write_small_mnist
from wsi_ips.commands.recipe import shipped_recipe
from wsi_ips.errors import ResultsError
from wsi_ips.training.run_state import training_folder

Words = tuple[str | Path, ...]


def small_recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({**SMALL_MODEL, "training": {"epochs": 1, "slides_per_step": 2}}))
    return path


def finetune(data: SmallData, tmp_path: Path) -> Words:
    return ("finetune", data.manifest, "--recipe", small_recipe(tmp_path))


def restart(data: SmallData, tmp_path: Path) -> Words:
    return (*finetune(data, tmp_path), "--restart")


def folds(data: SmallData, tmp_path: Path) -> Words:
    return (*finetune(data, tmp_path), "--folds", "2")


def detector(data: SmallData, tmp_path: Path) -> Words:
    (tmp_path / "r.yaml").write_text(RECIPE)
    return ("train-detector", draw_images(tmp_path / "images", {"train": 3}), "--recipe", tmp_path / "r.yaml")


@pytest.mark.parametrize("command", [finetune, restart, folds, detector])
def test_a_folder_that_another_run_writes_into_is_refused(
    console: Console, small_data: SmallData, tmp_path: Path, command: Callable[[SmallData, Path], Words]
) -> None:
    out, words = tmp_path / "out", command(small_data, tmp_path)
    with training_folder(out):
        (out / "training_state.pt").write_bytes(b"the other run's")
        said = console(*words, "--out", out)
        assert said.code == 2
        assert "out: another run is writing into it" in said.complaint
        assert [path.name for path in sorted(out.iterdir())] == [".lock", ".lock-holder", "training_state.pt"]


def test_an_image_job_holds_its_folder_too(console: Console, tmp_path: Path) -> None:
    mnist = write_small_mnist(tmp_path / "mnist", train=20, test=10)
    data = (
        f"data={{kind: megapixel_mnist, mnist: {mnist}, side_px: 140, train: 8, val: 4, test: 6, noise: 2}}"
    )
    small = settings(data, f"out={tmp_path / 'out'}", *SMALL)
    with training_folder(tmp_path / "out"):
        said = console("run", shipped_recipe("megapixel_mnist"), *small)
    assert said.code == 2
    assert "another run is writing into it" in said.complaint


def fail(out: Path, *learned: str) -> None:
    with training_folder(out):
        (out / "run.json").write_text("{}")
        for name in learned:
            (out / name).parent.mkdir(exist_ok=True)
            (out / name).write_bytes(b"something")
        raise ValueError("as told")


def test_a_run_that_fails_before_it_learned_anything_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="as told"):
        fail(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="as told"):
        fail(tmp_path / "out", "fold_0/training_state.pt")
    assert (tmp_path / "out" / "run.json").is_file()


def test_the_other_processes_of_a_run_are_let_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with training_folder(tmp_path / "out"):
        with pytest.raises(ResultsError, match="another run"), training_folder(tmp_path / "out"):
            pass
        monkeypatch.setenv("LOCAL_RANK", "1")
        with training_folder(tmp_path / "out"):
            pass
