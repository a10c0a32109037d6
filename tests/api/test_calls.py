"""What the front door takes and refuses."""

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import wsi_ips as wi
from wsi_ips.api.streams import Stream
from wsi_ips.config import EncoderConfig, ModelConfig, PipelineConfig, StreamingConfig
from wsi_ips.errors import (
    ConfigError,
    MissingResolution,
    NoTissue,
    ResultsError,
    SlideClosed,
    SlideNotFound,
    TooCoarse,
)
from wsi_ips.models.build import build_net
from wsi_ips.models.checkpoint import save_checkpoint
from wsi_ips.slides.registry import open_slide


def test_a_slide_reads_what_its_reader_reads_and_says_what_it_cannot(here: Path) -> None:
    with wi.open_slide("slide.svs") as slide, open_slide("slide.svs") as reader:
        region = slide.read((256, 128), (64, 32), level=1)
        assert np.array_equal(region, reader.read((256, 128), level=1, size_px=(64, 32)))
        assert slide.levels[0] == slide.size
        with pytest.raises(ConfigError, match=r"slide\.svs: there is no level 7; it has 0 to 1"):
            slide.read((0, 0), (8, 8), level=7)
        with pytest.raises(ConfigError, match="0x8 px"):
            slide.read((0, 0), (0, 8))
        with pytest.raises(ConfigError, match="0 px"):
            slide.thumbnail(0)
        with pytest.raises(ConfigError):
            slide.picture("label")
    with pytest.raises(SlideClosed):
        slide.read((0, 0), (8, 8))


def test_an_open_slide_is_borrowed_and_stays_open(here: Path) -> None:
    with wi.open_slide("slide.svs") as slide:
        batches = list(wi.stream(slide, px=64, mpp=1.0))
        assert np.array_equal(
            torch.cat([batch.xy for batch in batches]).numpy(), wi.tile(slide, px=64, mpp=1.0).xy
        )
        by_path = wi.predict("slide.svs", "model.safetensors", device="cpu")
        assert wi.predict(slide, "model.safetensors", device="cpu").probabilities == by_path.probabilities
        wi.overlay(by_path, slide, side_px=100)
        assert len(list(wi.PatchDataset(slide, px=64, mpp=1.0))) == sum(len(batch.xy) for batch in batches)
        assert slide.read((0, 0), (8, 8)).shape == (8, 8, 3)


def test_a_stream_can_be_read_again_and_left_early(here: Path) -> None:
    stream = wi.stream("slide.svs", px=64, mpp=1.0, batch=16)
    first = next(iter(stream))
    again = list(stream)
    assert len(again) == len(stream) == -(-stream.n_patches // 16)
    assert torch.equal(first.pixels, again[0].pixels)
    assert again[-1].images.shape == (len(again[-1].xy), 64, 64, 3)
    with wi.open_slide("slide.svs") as slide:  # a patch of level 1 is the pixels of level 1
        x, y = first.xy[0].tolist()
        assert np.array_equal(first.images[0], slide.read((x, y), (64, 64), level=1))


@pytest.mark.usefixtures("torn_tile")
def test_tiles_that_were_given_as_white_are_warned_of(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    coords = wi.tile("slide.svs", px=64, mpp=0.5).coords
    stream = Stream("slide.svs", coords, StreamingConfig(max_bad_tiles=1.0))
    with caplog.at_level(logging.WARNING):
        assert len(list(stream)) == len(stream)
    assert len(stream.bad_tiles) == 1
    assert "1 tile unreadable, read as white" in caplog.text


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"px": 0}, ConfigError, "patch_px"),
        ({"px": 64, "overlap": 64}, ConfigError, "overlap_px 64 must be smaller"),
        ({"mpp": 0.5, "mag": 20}, ConfigError, "mag and mpp say the same thing"),
        ({"mag": 0}, ConfigError, "mag 0 is not a magnification"),
        ({"batch": 0}, ConfigError, "batch"),
        ({"mpp": 0.2}, TooCoarse, r"slide\.svs.*in Python: .*allow_upsampling=True"),
        (
            {"px": 1024, "mpp": 1.0, "min_tissue": 1.0},
            NoTissue,
            "lower tiling.min_tissue .in Python: min_tissue=",
        ),
        (
            {"tiling": wi.TilingConfig(tissue={"min_object_um2": 1e9})},
            NoTissue,
            r"in Python: tiling=wi\.TilingConfig\(tissue=.'min_object_um2': 0",
        ),
        ({"slide_mpp": -1.0}, ConfigError, "slide_mpp=. is no resolution of a slide"),
        ({"patches": ".", "tiling": wi.TilingConfig()}, ConfigError, "tiling is stated by the files"),
        ({"patches": "nowhere"}, ConfigError, "nowhere is not a folder"),
        ({"device": "abacus"}, ConfigError, "abacus"),
    ],
)
def test_a_stream_refuses_at_once_and_says_why(
    here: Path, settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        wi.stream("slide.svs", **settings)


def test_the_arguments_that_the_messages_name_are_taken(here: Path) -> None:
    fine = wi.TilingConfig(patch_px=64, patch_mpp=0.2, allow_upsampling=True)
    enlarged = wi.tile("slide.svs", px=64, mpp=0.2, allow_upsampling=True)
    assert enlarged.side == 25.6
    assert wi.stream("slide.svs", tiling=fine).n_patches == len(enlarged)
    assert len(list(wi.PatchDataset("slide.svs", tiling=fine))) == len(enlarged)


def test_patches_of_another_slide_are_refused(here: Path) -> None:
    patches = wi.tile("slides/a.tif", px=64, mpp=1.0)
    with pytest.raises(ResultsError, match="give the patches of this slide"):
        list(wi.stream("slide.svs", patches=patches))
    with pytest.raises(ConfigError, match="px is stated by patches"):
        wi.stream("slides/a.tif", patches=patches, px=64)


def test_saved_patches_are_read_again_where_the_slide_s_resolution_was_given(here: Path) -> None:
    patches = wi.tile("slide.svs", px=64, mpp=1.0, slide_mpp=0.25)
    patches.save("coords/slide.h5")
    given = wi.stream("slide.svs", patches=patches)
    stored = list(wi.stream("slide.svs", patches="coords", slide_mpp=0.25))
    assert sum(len(batch.xy) for batch in stored) == len(patches)
    for ours, theirs in zip(stored, given, strict=True):
        assert torch.equal(ours.pixels, theirs.pixels)
        assert torch.equal(ours.xy, theirs.xy)


def test_an_encoder_takes_tensors_and_arrays_and_nothing_else(here: Path) -> None:
    encoder = wi.Encoder("test_convnext", weights=None, device="cpu")
    batch = next(iter(wi.stream("slide.svs", px=64, mpp=1.0, batch=4)))
    features = encoder(batch.pixels)
    assert features.shape == (4, encoder.dim)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    assert torch.allclose(encoder(batch.images), features, atol=1e-5)
    assert torch.allclose(encoder(batch.pixels / 255), features, atol=1e-5)
    assert torch.equal(wi.Encoder("test_convnext", weights=None, device="cpu")(batch.pixels), features)
    for wrong in (
        batch.pixels[0],
        batch.images.transpose(0, 3, 1, 2),
        torch.zeros(1, 4, 8, 8),
        batch.pixels.long(),
    ):
        with pytest.raises(ConfigError, match="an encoder takes"):
            encoder(wrong)


def test_an_encoder_that_is_not_known_is_named() -> None:
    with pytest.raises(ConfigError, match="did you mean"):
        wi.Encoder("resnet18x", weights=None)
    with pytest.raises(ConfigError, match="features"):
        wi.Encoder("features", weights=None)
    with pytest.raises(ConfigError, match="leave project"):
        wi.Encoder(EncoderConfig(name="test_convnext", weights="none", project=8))


def test_a_model_is_loaded_once_and_its_encoder_too(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = wi.load("model.safetensors", device="cpu")
    first = model.predict("slides/a.tif")
    Path("model.safetensors").rename("moved")  # nobody needs it any more
    assert model.predict("slides/a.tif").probabilities == first.probabilities
    Path("moved").rename("model.safetensors")
    assert model.encoder is model.encoder
    assert torch.equal(next(model.encoder.module.parameters()), next(model.network().encoder.parameters()))


def test_a_model_of_stored_features_reads_no_slides(here: Path) -> None:
    pipeline = PipelineConfig(model=ModelConfig(encoder=EncoderConfig(name="features", features=8)))
    save_checkpoint(Path("features.safetensors"), build_net(pipeline.model), pipeline)
    model = wi.load("features.safetensors", device="cpu")
    with pytest.raises(ConfigError, match=r"features\.safetensors: reads stored features"):
        model.predict("slide.svs")
    with pytest.raises(ConfigError, match="no encoder of its own"):
        model.encoder  # noqa: B018


def test_a_slide_coarser_than_its_patches_is_enlarged_only_where_that_is_allowed(here: Path) -> None:
    stream = wi.stream("slide.svs", px=64, mpp=0.2, allow_upsampling=True)
    assert next(iter(stream)).pixels.shape == (64, 3, 64, 64)


def test_what_each_patch_contributes_adds_up_as_the_result_has_it(here: Path) -> None:
    result = wi.predict("slide.svs", "model.safetensors", device="cpu")
    contribution = result.contribution("tumor")
    assert np.flatnonzero(contribution).tolist() == sorted(result.kept.tolist())
    assert result.attention("label").sum() == pytest.approx(1, abs=1e-5)
    assert np.array_equal(result.stored.coords.ids_N[result.kept], result.stored.kept_ids_M)
    with pytest.raises(ConfigError, match="slide: no output 'cat'"):
        result.contribution("cat")
    with pytest.raises(ConfigError, match="task 'cat' is not there"):
        result.attention("cat")


def test_an_overlay_reads_its_options_as_the_command_does(here: Path) -> None:
    result = wi.predict("slide.svs", "model.safetensors", device="cpu")
    assert wi.overlay(result, side_px=100).info["map"] == "contribution"
    assert wi.overlay(result, side_px=100, scale="rank").info["map"] == "attention"
    with pytest.raises(ConfigError, match="task and query name the same thing"):
        wi.overlay(result, task="label", query=0)
    with pytest.raises(ConfigError, match="side_px"):
        wi.overlay(result, side_px=0)


def test_a_list_of_slides_is_refused_in_a_line(here: Path) -> None:
    for more in ({}, {"out": "run"}):
        with pytest.raises(
            ConfigError, match=r"an open slide, not a list; of several slides, give the folder"
        ):
            wi.predict(["a.tif", "b.tif"], "model.safetensors", **more)  # type: ignore[call-overload]


def test_predict_says_what_needs_a_folder_to_write_into(here: Path) -> None:
    with pytest.raises(ConfigError, match="slides is a folder of slides: name out"):
        wi.predict("slides", "model.safetensors")
    with pytest.raises(ConfigError, match="go with out"):
        wi.predict("slide.svs", "model.safetensors", workers=2)  # type: ignore[call-overload]
    with pytest.raises(SlideNotFound, match=r"missing\.svs"):
        wi.predict("missing.svs", "model.safetensors")
    with pytest.raises(ConfigError, match="name a checkpoint"):
        wi.predict("slide.svs", [])


def test_a_bad_slide_of_a_folder_is_warned_of_and_in_the_run(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Path("slides/c.tif").write_bytes(b"no slide")
    with caplog.at_level(logging.WARNING):
        run = wi.predict("slides", "model.safetensors", "run", device="cpu", overlays=False)
    assert list(run) == ["a", "b"]
    assert len(run) == 2
    assert "c.tif" in run.failed["c"]
    assert any("c.tif" in line for line in caplog.messages)
    with pytest.raises(KeyError):
        run["c"]
    with pytest.raises(ResultsError, match="name the folder"):
        wi.Run("nowhere")


def test_training_takes_settings_in_any_form(here: Path) -> None:
    import yaml

    recipe = yaml.safe_load(Path("small.yaml").read_text())
    sections = {name: value for name, value in recipe.items() if name != "command"}
    given: list[Any] = ["small.yaml", recipe, wi.FinetuneConfig(**sections)]
    for number, config in enumerate(given):
        training = wi.train(
            "labels.csv", f"run{number}", config=config, epochs=1, px=64, mag=10, device="cpu"
        )
        tiling = training.load(device="cpu").config.tiling
        assert (tiling.patch_px, tiling.patch_mpp, tiling.min_tissue) == (64, 1.0, 0.2)
        assert len(training.history["epoch"]) == 1
    checkpoints = {Path(f"run{number}/model.safetensors").read_bytes() for number in range(3)}
    assert len(checkpoints) == 1, "the same settings learn the same"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"config": {"folds": 5}}, "finetune --folds"),
        ({"config": {"trainig": {}}}, "unknown key 'trainig'; did you mean training"),
        ({"config": {"training": 3}}, "'training' is a value, not a section"),
        ({"epochs": 0}, "training.epochs"),
        ({"px": -1}, "patch_px"),
        ({"config": "missing.yaml"}, "no such recipe"),
    ],
)
def test_training_names_the_setting_that_cannot_be(here: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        wi.train("labels.csv", "run", **settings)
    assert not Path("run").exists()


def test_a_slide_without_a_resolution_says_how_to_give_it(here: Path) -> None:
    from PIL import Image

    Image.new("RGB", (400, 300), "white").save("plain.png")
    with pytest.raises(MissingResolution, match=r"plain\.png.*in Python: slide_mpp="):
        wi.tile("plain.png")
    shutil.copy("slide.svs", "copy.tif")
    assert wi.tile("copy.tif", px=64, mpp=1.0, slide_mpp=0.25).side == 256.0
