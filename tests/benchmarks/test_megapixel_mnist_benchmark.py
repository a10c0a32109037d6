"""The Megapixel MNIST benchmark runs and answers in the keys that are promised. No figure is asserted."""

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.image_baselines import MeanPooling, RandomPatches
from benchmarks.megapixel_mnist import FINETUNE, main
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
    for name in ("mnist", "mnist_random", "mnist_mean_pool"):
        for task in ("majority", "max", "top", "multi"):
            assert 0 <= figures[f"{name}_{task}"] <= 1
        assert figures[f"{name}_seconds"] > 0
    # 8 x 8 patches: 16 training images scored and 12 kept, 12 for validation, 12 for the test.
    patches = ((140 - 32) // 16 + 1) ** 2
    assert figures["mnist_size"]["patches"] == patches
    assert figures["mnist_encoder_passes"] == 16 * (patches + 12) + 24 * patches
    assert figures["mnist_random_encoder_passes"] == 12 * (16 + 24)
    main()
    assert json.loads(capsys.readouterr().out) == figures


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
    config = FinetuneConfig.model_validate(FINETUNE)
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
