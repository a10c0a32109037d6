"""The Megapixel MNIST benchmark runs and answers in the keys that are promised. No figure is asserted."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.image_baselines import MeanPooling, RandomPatches
from benchmarks.kept_results import COMMITTED, digest_of
from benchmarks.megapixel_mnist import ATTENTION, FINETUNE, TASKS, main, read_seeds
from tests.images.small_mnist import write_small_mnist
from wsi_ips.config import FinetuneConfig, TilingConfig
from wsi_ips.images.bags import ImageBag, ImageGrid

CPU = torch.device("cpu")


# A dozen images do not show every digit.
@pytest.mark.filterwarnings("ignore:No (positive|negative) samples in targets")
def test_every_method_answers_and_is_not_run_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mnist = write_small_mnist(tmp_path, train=300, test=100)
    options = ("--mnist", mnist, "--out", tmp_path / "run", "--json", "--quick", "--device", "cpu")
    monkeypatch.setattr(sys, "argv", ["megapixel_mnist.py", *map(str, options)])
    main()
    figures = json.loads(capsys.readouterr().out)
    names = ["mnist", "mnist_direct", "mnist_cascade", "mnist_cascade_direct", "mnist_random"]
    for name in [*names, "mnist_random_direct", "mnist_sampling", "mnist_mean_pool"]:
        for task in ("majority", "max", "top", "multi"):
            assert 0 <= figures[f"{name}_{task}"] <= 1
        assert figures[f"{name}_seconds"] > 0
    # 8 x 8 patches: 16 training images scored and 12 kept, 12 for validation, 12 for the test.
    patches = ((140 - 32) // 16 + 1) ** 2
    assert figures["mnist_size"]["patches"] == patches
    assert figures["mnist_encoder_passes"] == 16 * (patches + 12) + 24 * patches
    assert figures["mnist_random_encoder_passes"] == 12 * (16 + 24)
    assert figures["mnist_sampling_encoder_passes"] == 12 * (16 + 24)
    # The only epoch of the cascade reads all patches in training, a third of them (rounded up) elsewhere, and all
    # of the validation images to calibrate.
    third = -(-patches // 3)
    assert (
        figures["mnist_cascade_encoder_passes"] == 16 * (patches + 12) + 12 * (third + patches) + 12 * third
    )
    kept = sorted(path.name for path in (tmp_path / "run" / "results").iterdir())
    assert kept == [
        *("mnist_cascade_direct_seed0.json", "mnist_cascade_paper_seed0.json", "mnist_ips_direct_seed0.json"),
        *("mnist_ips_paper_seed0.json", "mnist_mean_pool_seed0.json", "mnist_random_direct_seed0.json"),
        *("mnist_random_paper_seed0.json", "mnist_sampling_seed0.json"),
    ]
    monkeypatch.setattr("benchmarks.megapixel_mnist.result", None)  # nothing is run twice
    main()
    assert json.loads(capsys.readouterr().out) == figures


def test_a_seed_and_a_head_are_results_of_their_own_and_committed_ones_are_of_mnist_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mnist = write_small_mnist(tmp_path, train=20, test=10)
    asked: list[tuple[str, int, str]] = []

    def answer(method: str, job: Any, *, device: torch.device) -> dict[str, Any]:
        asked.append((method, job.training.seed, job.model.attention.block))
        return {**dict.fromkeys(TASKS, 0.25 * (1 + job.training.seed)), "encoder_passes": 5, "size": {}}

    monkeypatch.setattr("benchmarks.megapixel_mnist.result", answer)
    monkeypatch.setattr("benchmarks.kept_results.COMMITTED", tmp_path / "committed")
    monkeypatch.setattr("benchmarks.megapixel_mnist.COMMITTED", tmp_path / "committed")
    options = ["--mnist", str(mnist), "--out", str(tmp_path / "run"), "--device", "cpu", "--only", "ips"]
    for seed in ("0", "1", "1"):
        monkeypatch.setattr(sys, "argv", ["megapixel_mnist.py", *options, "--seed", seed])
        main()
    assert asked == [("ips", seed, head) for seed in (0, 1) for head in ("paper", "direct")]
    assert not (tmp_path / "committed").exists()  # these digits are not MNIST's
    digits = digest_of((mnist / "MNIST" / "raw").glob("*-ubyte"))
    monkeypatch.setattr("benchmarks.megapixel_mnist.MNIST_DIGEST", digits)
    for seed in ("0", "1"):
        monkeypatch.setattr(sys, "argv", ["megapixel_mnist.py", *options, "--seed", seed])
        main()
    monkeypatch.setattr(sys, "argv", ["megapixel_mnist.py", *options, "--epochs", "2"])
    main()  # other settings than the usual ones
    assert len(list((tmp_path / "committed").iterdir())) == 4
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["megapixel_mnist.py", "--table"])
    main()
    assert "| IPS | direct | 2 | 0.375 ± 0.177 |" in capsys.readouterr().out


def test_committed_results_are_those_of_today_s_settings() -> None:
    held = read_seeds(COMMITTED)
    assert sum(len(seeds) for seeds in held.values()) == len(list(COMMITTED.glob("mnist_*.json")))
    for seeds in held.values():
        for run in seeds.values():
            assert not run["commit"].endswith("+"), "found by a program that was not committed"


def test_a_folder_without_mnist_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["megapixel_mnist.py", "--mnist", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "holds no MNIST/raw" in capsys.readouterr().err


@pytest.fixture
def bags() -> list[ImageBag]:
    """Two images of 140 px in which every pixel differs from its neighbours."""
    grid = ImageGrid.cover(140, 140, TilingConfig(patch_px=32, overlap_px=16))
    images = torch.randint(0, 256, (2, 140, 140, 1), dtype=torch.uint8).numpy()
    return [ImageBag(f"{k}", {}, grid, lambda _key, k=k: images[k]) for k in range(2)]


def test_mean_pooling_reads_every_patch_and_random_patches_a_draw_per_epoch(bags: list[ImageBag]) -> None:
    model = {**FINETUNE["model"], "attention": ATTENTION["paper"]}
    config = FinetuneConfig.model_validate({**FINETUNE, "model": model})
    mean, draw = MeanPooling(config).eval(), RandomPatches(config).eval()
    with torch.no_grad():
        together = mean.read(bags, epoch=0, device=CPU).probabilities["majority"]
        alone = [mean.read([bag], epoch=3, device=CPU).probabilities["majority"][0] for bag in bags]
        assert torch.allclose(together, torch.stack(alone), atol=1e-5)
    first, again, later = (draw._drawn(bags[0], epoch) for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert len(first.unique()) == 12
    assert not torch.equal(first, draw._drawn(bags[1], 0))
