"""Features say which encoder made them of which patches: a model reads those that it learned from, and refuses
others."""

import shutil
from pathlib import Path

import h5py
import numpy as np

from tests.commands.console import Console, Said
from tests.conftest import SmallData
from wsi_ips.datasets.feature_files import MADE_BY_ENCODER, open_features
from wsi_ips.models.checkpoint_head import checkpoint_config
from wsi_ips.models.encoders.identity import EncoderIdentity, FeaturesOrigin

PATCHES = ("--patch-px", "32", "--patch-mpp", "2")
FAST = ("--set", "training.epochs=1", "--set", "selection.m=4", "--set", "selection.i=4",
        "--set", "training.head_start.epochs=0")  # fmt: skip


def stored(
    console: Console, data: SmallData, out: Path, *how: str, patches: tuple[str, ...] = PATCHES
) -> Path:
    """Features of all slides by a small random network."""
    said = console("features", data.slides, "--out", out, *patches, "--encoder", "resnet10t", "--weights", "none",
                   "--set", "encoder.stage=1", *how)  # fmt: skip
    assert said.code == 0, said.err
    return out


def finetune(console: Console, data: SmallData, features: Path, out: Path, *how: str) -> Said:
    width = open_features(next((features / "h5_files").iterdir())).width
    of_features = ("--set", "model.encoder.name=features", "--set", f"model.encoder.features={width}")
    return console("finetune", data.manifest, "--features", features, "--out", out, *FAST, *of_features, *how)


def trained(console: Console, data: SmallData, features: Path, out: Path, *how: str, code: int = 0) -> Path:
    said = finetune(console, data, features, out, *how)
    assert said.code == code, said.err
    return out / "model.safetensors"


def test_a_model_reads_the_features_of_its_own_encoder_alone(
    console: Console, small_data: SmallData, tmp_path: Path
) -> None:
    ours = stored(console, small_data, tmp_path / "ours")
    others = stored(console, small_data, tmp_path / "others", "--set", "encoder.transform.resize=48")
    checkpoint = trained(console, small_data, ours, tmp_path / "model")
    names = sorted(path.name for path in (ours / "h5_files").iterdir())
    identity = open_features(ours / "h5_files" / names[0]).encoder
    assert identity is not None
    assert identity.name == "resnet10t"
    assert checkpoint_config(checkpoint).model.encoder.features_of == str(identity)
    assert "| made by | resnet10t |" in (tmp_path / "model" / "MODEL_CARD.md").read_text()
    predict = ("predict", "--checkpoint", checkpoint, "--features")
    assert console(*predict, ours, "--out", tmp_path / "run").code == 0
    # The same precision and other layouts are the same encoder.
    trident = stored(console, small_data, tmp_path / "trident", "--layout", "trident")
    assert console(*predict, trident / "features_resnet10t", "--out", tmp_path / "run_trident").code == 0
    said = console(*predict, others, "--out", tmp_path / "run_others")
    assert said.code == 2
    assert "holds features of resnet10t with other settings" in said.err
    assert "the checkpoint learned from features of resnet10t" in said.err
    assert not (tmp_path / "run_others").exists()
    # Files of both in one folder: those of the other encoder fail, and the others are labelled.
    both = shutil.copytree(ours, tmp_path / "both")
    shutil.copy(*[folder / "h5_files" / names[-1] for folder in (others, both)])
    said = console(*predict, both, "--out", tmp_path / "run_both")
    assert said.code == 3
    assert (tmp_path / "run_both" / "predictions.csv").read_text().count("with other settings") == 1

    # A training begins from a model of the same features, and learns from one encoder.
    start = ("--set", f"training.start={checkpoint}")
    trained(console, small_data, others, tmp_path / "begun", *start, code=2)
    mixed = shutil.copytree(ours, tmp_path / "mixed")
    shutil.copy(others / "h5_files" / names[-1], mixed / "h5_files" / names[-1])
    said = finetune(console, small_data, mixed, tmp_path / "m2")
    assert said.code == 2
    assert said.err.count("wsi-ips: ") == 1
    assert "other files hold features of resnet10t" in said.err

    # So does a scorer.
    scorer = ("--set", f"selection.scorer={checkpoint}")
    trained(console, small_data, ours, tmp_path / "scored", *scorer)
    said = finetune(console, small_data, others, tmp_path / "s2", *scorer)
    assert said.code == 2
    assert "learned from features of resnet10t" in said.err


def test_a_model_reads_features_of_patches_of_its_own_size_alone(
    console: Console, small_data: SmallData, tmp_path: Path
) -> None:
    ours = stored(console, small_data, tmp_path / "ours")
    smaller = stored(
        console, small_data, tmp_path / "smaller", patches=("--patch-px", "32", "--patch-mpp", "1")
    )
    checkpoint = trained(console, small_data, ours, tmp_path / "model")
    assert checkpoint_config(checkpoint).model.encoder.features_patch_um == 64
    assert ", of patches of 64 µm |" in (tmp_path / "model" / "MODEL_CARD.md").read_text()
    said = console("predict", "--checkpoint", checkpoint, "--features", smaller, "--out", tmp_path / "run")
    assert said.code == 2
    assert (
        "holds features of patches of 32 µm, and the checkpoint learned from features of patches of 64 µm"
        in said.err
    )
    assert not (tmp_path / "run").exists()

    # So do a training that begins from it, a scorer, a training of mixed files, and the mean of two models.
    for setting in ("training.start", "selection.scorer"):
        said = finetune(console, small_data, smaller, tmp_path / "m", "--set", f"{setting}={checkpoint}")
        assert said.code == 2
        assert "patches of 64 µm" in said.err
        assert "patches of 32 µm" in said.err
    mixed = shutil.copytree(ours, tmp_path / "mixed")
    last = max((smaller / "h5_files").iterdir())
    shutil.copy(last, mixed / "h5_files" / last.name)
    said = finetune(console, small_data, mixed, tmp_path / "m2")
    assert said.code == 2
    assert "patches of 32 µm, and other files hold features of patches of 64 µm" in said.err
    other = trained(console, small_data, smaller, tmp_path / "other")
    said = console(
        *("predict", "--checkpoint", checkpoint, other, "--features", ours, "--out", tmp_path / "mean")
    )
    assert said.code == 2
    assert "it reads features of patches of 32 µm, not of patches of 64 µm" in said.err


def test_patches_of_almost_one_size_are_the_same() -> None:
    of_256 = FeaturesOrigin(None, 128.0)
    for um_patch in (112.0, 128.0 * 0.2428 / 0.25, 150.0, None):
        assert of_256.difference(FeaturesOrigin(None, um_patch)) is None
    for um_patch in (64.0, 256.0, 170.0, 100.0):
        said = (f"patches of {um_patch:g} µm", "patches of 128 µm")
        assert of_256.difference(FeaturesOrigin(None, um_patch)) == said


def test_features_that_do_not_say_their_encoder_are_taken_as_they_are(
    console: Console, small_data: SmallData, tmp_path: Path
) -> None:
    ours = stored(console, small_data, tmp_path / "ours")
    checkpoint = trained(console, small_data, ours, tmp_path / "model")
    for path in (ours / "h5_files").iterdir():
        with h5py.File(path, "r+") as file:
            del file.attrs[MADE_BY_ENCODER]
    assert (
        console("predict", "--checkpoint", checkpoint, "--features", ours, "--out", tmp_path / "run").code
        == 0
    )
    trained(console, small_data, ours, tmp_path / "again")
    held = checkpoint_config(tmp_path / "again" / "model.safetensors")
    assert held.model.encoder.features_of is None


def test_weights_from_a_file_and_weights_by_name_may_be_the_same() -> None:
    encoder = {"name": "uni", "weights": "timm", "transform": "own", "trainable": True}
    named = EncoderIdentity.of_settings("uni", {"encoder": encoder, "weights_sha256": None})
    filed = EncoderIdentity.of_settings(
        "uni",
        {"encoder": {**encoder, "weights": "/data/uni.bin", "trainable": False}, "weights_sha256": "ab" * 32},
    )
    other = EncoderIdentity.of_settings("uni", {"encoder": encoder, "weights_sha256": "cd" * 32})
    assert named.difference(filed) == filed.difference(named) == ""
    assert filed.difference(other) == "uni with other weights"
    resized = EncoderIdentity.of_settings("uni", {"encoder": {**encoder, "transform": "none"}})
    assert named.difference(resized) == "uni with other settings"
    for identity in (named, filed, other):
        assert EncoderIdentity.from_text(str(identity)) == identity
    assert EncoderIdentity.from_text("uni") is None


def test_an_encoder_of_the_user_is_the_same_in_another_folder() -> None:
    here, there = (
        EncoderIdentity.of_settings(
            "mine_build", {"encoder": {"name": f"{folder}/mine.py:build"}, "code_sha256": code}
        )
        for folder, code in (("/home/ann", "a" * 64), ("/data/bob", "a" * 64))
    )
    assert here.difference(there) == ""
    changed = EncoderIdentity.of_settings(
        "mine_build", {"encoder": {"name": "/home/ann/mine.py:build"}, "code_sha256": "b" * 64}
    )
    assert here.difference(changed) == "mine_build with other settings"


def test_a_text_that_names_no_encoder_is_refused_and_not_passed_over(
    console: Console, small_data: SmallData, tmp_path: Path
) -> None:
    ours = stored(console, small_data, tmp_path / "ours")
    said = finetune(console, small_data, ours, tmp_path / "m", "--set", "model.encoder.features_of=uni")
    assert said.code == 2
    assert "features_of" in said.err
    assert not (tmp_path / "m").exists()


def test_a_file_that_calls_its_encoder_features_still_gets_a_model_card(
    console: Console, small_data: SmallData, tmp_path: Path
) -> None:
    ours = stored(console, small_data, tmp_path / "ours")
    for path in (ours / "h5_files").iterdir():
        with h5py.File(path, "r+") as file:
            file.attrs[MADE_BY_ENCODER] = np.bytes_(b"features 0123456789ab timm")
    trained(console, small_data, ours, tmp_path / "model")
    assert "| made by | features |" in (tmp_path / "model" / "MODEL_CARD.md").read_text()
