from pathlib import Path
from time import process_time
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_ips.commands.features import FeaturesJob
from wsi_ips.commands.finetune import FinetuneJob
from wsi_ips.commands.options import start
from wsi_ips.commands.recipe import (
    DONE_BY,
    JOBS,
    Job,
    Origin,
    as_section,
    find_recipe,
    load_recipe,
    make_job,
    shipped_recipe,
    with_overrides,
)
from wsi_ips.config import ModelConfig, SelectionConfig
from wsi_ips.config.heat import Colormap
from wsi_ips.drawn.command import DemoJob
from wsi_ips.errors import ConfigError
from wsi_ips.heatmaps.display_scale import Scale

PIPELINES = Path(__file__).resolve().parents[1] / "pipelines"


@pytest.mark.parametrize("recipe", sorted(PIPELINES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_a_job(recipe: Path) -> None:
    job = make_job(load_recipe(recipe), source=recipe.name)
    assert job.command in (
        *(
            "demo",
            "finetune",
            "images",
            "predict",
            "overlay",
            "evaluate",
            "train-detector",
            "search",
            "compare",
        ),
    )


def test_overrides_reach_into_sections_and_leave_the_rest() -> None:
    values = load_recipe(shipped_recipe("demo"), ["training.epochs=9", "selection.m=3", "out=elsewhere"])
    job = make_job(values, source="demo")
    assert isinstance(job, DemoJob)
    assert (job.training.epochs, job.selection.memory_size, job.out) == (9, 3, Path("elsewhere"))
    untouched = make_job(load_recipe(shipped_recipe("demo")), source="demo")
    assert job.model == untouched.model


def test_overrides_do_not_change_what_they_are_laid_over() -> None:
    values = {"training": {"epochs": 2}}
    with_overrides(values, ["training.epochs=9"])
    assert values == {"training": {"epochs": 2}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"command": "finetune", "out": "x"}, "'manifest' is missing"),
        ({"command": "finetune", "manifest": "m", "out": "x", "epoch": 3}, "unknown key 'epoch'"),
        (
            {"command": "finetune", "manifest": "m", "out": "x", "training": {"epoch": 3}},
            "unknown key 'training.epoch'",
        ),
        (
            {"command": "predict", "slides": "s", "checkpoint": "c", "out": "o", "streaming": {"threads": 0}},
            "streaming.threads",
        ),
        ({"command": "bake"}, "'command' must be one of tile, .*, train-detector, detect, "),
        ({"command": "detect", "slides": "s", "detector": "d", "out": "o", "patch_px": 3}, ": patch_px: "),
        ({}, "'command' must be one of"),
        (
            {"command": "tile", "slides": "s", "out": "o", "tiling": {"patch_px": 64, "overlap_px": 64}},
            "must be smaller than patch_px",
        ),
    ],
)
def test_a_wrong_recipe_is_refused_by_the_name_of_the_key(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make_job(values, source="r.yaml")
    assert str(caught.value).startswith("r.yaml: ")
    assert "\n" not in str(caught.value)


def overlay_job(**values: object) -> Job:
    return make_job({"command": "overlay", "run": "r", **values}, source="r.yaml")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"colormap": "jet"}, "colormap: .*blue_yellow"),
        ({"scale": "log"}, "scale: "),
        ({"head": -1}, "head: "),
        ({"query": -1}, "query: "),
        ({"task": "label", "query": 0}, "give one of them"),
        ({"low": 60, "high": 40}, "low 60 must be below high 40"),
        ({"scale": "rank", "low": 100}, "low 100 must be below high 100"),
        ({"scale": "rank", "high": 101}, "percentiles, 0 to 100"),
        ({"low": -1}, "low -1 must be above 0"),
        ({"low": 64}, "low 64 must be below high 64"),
        ({"high": 0.2}, "low 0.25 must be below high 0.2"),
        ({"scale": "rank", "low": -1}, "percentiles, 0 to 100"),
        ({"scale": "absolute", "low": 0.2, "high": 0.2}, "low 0.2 must be below high 0.2"),
        ({"scale": "absolute", "low": float("nan")}, "low: "),
        ({"side_px": 0}, "side_px: "),
        ({"side_px": 10**6}, "side_px: "),
        ({"alpha": 1.5}, "alpha: "),
    ],
)
def test_an_overlay_that_cannot_be_drawn_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        overlay_job(**values)
    assert str(caught.value).startswith("r.yaml: ")
    assert "\n" not in str(caught.value)


def test_every_colour_map_and_scale_can_be_asked_for() -> None:
    for colormap in get_args(Colormap):
        for scale in get_args(Scale):
            if scale != "signed":  # contributions have no other
                overlay_job(colormap=colormap, scale=scale)
    assert overlay_job(scale="percentile", high=90).scale == "rank"  # as recipes of earlier versions say
    overlay_job(scale="absolute", low=-3)
    overlay_job(scale="absolute", high=2000)


@pytest.mark.parametrize("override", ["training.epochs", "=3", "out.deeper=1", "x=[unclosed"])
def test_a_wrong_override_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        with_overrides({"out": "folder"}, [override])


def test_files_that_are_no_recipes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    (tmp_path / "broken.yaml").write_text("a: [1,\n")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "code.yaml").write_text("!!python/object/apply:os.system ['true']\n")
    for name in ("list", "broken", "binary", "code", "absent"):
        with pytest.raises(ConfigError, match=f"{name}.yaml"):
            load_recipe(tmp_path / f"{name}.yaml")


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("pipelines/finetune_features.yaml", "finetune_features"),
        ("finetune_features.yaml", "finetune_features"),
        ("demo", "demo"),
        ("pipelines/tables/panda.yaml", "tables/panda"),
    ],
)
def test_recipes_of_the_package_are_found_by_their_names(
    asked: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    path = find_recipe(Path(asked))
    assert path == PIPELINES / f"{found}.yaml"
    (line,) = caplog.messages
    assert line == f"{asked} is not a file here: taking the recipe {found} that comes with wsi_ips"
    assert load_recipe(Path(asked))["command"] == load_recipe(path)["command"]


def test_a_file_wins_over_a_recipe_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pipelines").mkdir()
    Path("pipelines/demo.yaml").write_text("command: report\n")
    assert load_recipe(Path("pipelines/demo.yaml")) == {"command": "report"}
    assert not caplog.messages


@pytest.mark.parametrize("asked", ["pipelines/demos.yaml", "/pipelines/demo.yaml", "../pipelines/demo.yaml"])
def test_a_name_that_no_recipe_has_lists_them(
    asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match=r"no such recipe; those that come with wsi_ips are .*demo, .*tables/panda"
    ):
        load_recipe(Path(asked))


@given(st.integers(1, 500), st.floats(1e-6, 1, allow_nan=False))
def test_a_job_survives_being_written_as_yaml(epochs: int, lr: float) -> None:
    job = make_job(
        {"command": "finetune", "manifest": "m", "out": "o", "training": {"epochs": epochs, "lr": lr}},
        source="test",
    )
    assert isinstance(job, FinetuneJob)
    assert make_job(job.model_dump(mode="json"), source="again") == job


def test_every_job_is_done_by_a_function_that_is_there() -> None:
    assert DONE_BY.names() == JOBS.names()
    for name in JOBS.names():
        assert JOBS.load(name).model_fields["command"].default == name
        assert callable(DONE_BY.load(name))


@pytest.mark.parametrize("name", ["recipe_d", "recipe_deep", "recipe_bomb"])
def test_hostile_recipes_are_refused_in_one_line_within_a_second(cases_folder: Path, name: str) -> None:
    began = process_time()
    path = cases_folder / "hostile" / f"{name}.yaml"
    if name == "recipe_d":  # a date is a text like any other: a folder to write into may be called so
        assert load_recipe(path)["out"] == "2020-13-45"
    else:
        with pytest.raises(ConfigError, match=name) as caught:
            load_recipe(path)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500
    assert process_time() - began < 1


@pytest.mark.parametrize("command", JOBS.names())
def test_what_is_missing_has_a_name(command: str) -> None:
    try:
        make_job({"command": command}, source="r.yaml")
    except ConfigError as error:
        assert "''" not in str(error)  # noqa: PT017 - some commands need nothing more


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("training.epoch", "training.epochs"),
        ("epochs", "training.epochs"),
        ("trainng", "training"),
        ("tiling.tissue.min_tisue", "tiling.min_tissue"),
        ("model.encoder.nam", "model.encoder.name"),
        ("bananas", None),
    ],
)
def test_an_unknown_key_is_told_what_it_may_have_meant(key: str, meant: str | None) -> None:
    values = with_overrides({"command": "finetune", "manifest": "m", "out": "x"}, [f"{key}=1"])
    with pytest.raises(ConfigError) as caught:
        make_job(values, source="r.yaml")
    expected = f"unknown key '{key}'" + (f"; did you mean {meant}?" if meant else "")
    assert str(caught.value) == f"r.yaml: {expected}"


FINETUNE = {"command": "finetune", "manifest": "m", "out": "o"}


def task(**values: object) -> dict[str, object]:
    return {**FINETUNE, "model": {"tasks": [values]}}


def test_classes_that_are_numbers_are_their_texts() -> None:
    job = make_job(task(classes=[0, 1]), source="r.yaml")
    assert isinstance(job, FinetuneJob)
    assert job.model.tasks[0].classes == ("0", "1")


@pytest.mark.parametrize("classes", [[True, False], [0.5, 1.5]])
def test_classes_that_may_have_been_written_otherwise_are_to_be_put_in_quotes(classes: list[object]) -> None:
    with pytest.raises(ConfigError, match="put the classes in quotes"):
        make_job(task(classes=classes), source="r.yaml")


@pytest.mark.parametrize("value", [32, "32", "bf16"])
def test_precision_may_be_a_number(value: object) -> None:
    values = with_overrides(dict(FINETUNE), [f"training.precision={value}"])
    job = make_job(values, source="r.yaml")
    assert isinstance(job, FinetuneJob)
    assert job.training.precision == str(value)


def test_an_encoder_s_name_alone_takes_weights_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r.yaml").write_text("encoder: resnet10t\nslides: s\nout: o\n")
    jobs: list[object] = []
    monkeypatch.setattr("wsi_ips.commands.options.start_job", jobs.append)
    sections = {"encoder": {"name": None, "weights": "none"}}
    start("features", {}, recipe=tmp_path / "r.yaml", sections=sections)
    (job,) = jobs
    assert isinstance(job, FeaturesJob)
    assert job.encoder is not None
    assert (job.encoder.name, job.encoder.weights) == ("resnet10t", "none")
    (tmp_path / "r.yaml").write_text("encoder: [resnet10t]\nslides: s\nout: o\n")
    with pytest.raises(ConfigError, match="'encoder' is a value, not a section"):
        start("features", {}, recipe=tmp_path / "r.yaml", sections=sections)


@pytest.mark.parametrize(
    ("written", "override", "made"),
    [
        ({"attention": "paper"}, "model.attention.heads=2", {"attention": {"block": "paper", "heads": 2}}),
        (
            {"aggregator": "abmil"},
            "model.aggregator.hidden=8",
            {"aggregator": {"name": "abmil", "hidden": 8}},
        ),
        ({"encoder": "vits"}, "model.encoder.weights=none", {"encoder": {"name": "vits", "weights": "none"}}),
        ({}, "model.attention.heads=2", {"attention": {"heads": 2}}),
    ],
)
def test_a_setting_goes_beside_a_value_that_stands_for_its_section(
    written: dict[str, object], override: str, made: object
) -> None:
    assert with_overrides({"model": written}, [override])["model"] == made
    (value,) = written.values() or [None]
    if value is not None:  # the same where --set gives both
        name = next(iter(written))
        assert with_overrides({}, [f"model.{name}={value}", override])["model"] == made


@pytest.mark.parametrize(("key", "value"), [("model.attention", "paper"), ("model.aggregator", "abmil"),
                                            ("model.encoder", "resnet10t")])  # fmt: skip
def test_a_written_out_section_is_what_its_value_alone_is(key: str, value: str) -> None:
    name = key.rpartition(".")[2]
    assert as_section(key, value) != value
    assert ModelConfig.model_validate({name: as_section(key, value)}) == ModelConfig.model_validate(
        {name: value}
    )
    assert as_section("selection.coarse.scorer", "conv") == "conv", "no section, though another scorer is one"


def test_a_setting_of_what_is_no_section_is_refused() -> None:
    with pytest.raises(ConfigError, match="'epochs' is a value, not a section"):
        with_overrides({"training": {"epochs": 3}}, ["training.epochs.first=1"])
    with pytest.raises(ConfigError, match="'optimizer' is a value, not a section"):
        with_overrides({"training": {"optimizer": "adamw"}}, ["training.optimizer.first=1"])


def test_a_contradiction_of_recipe_and_set_names_both(tmp_path: Path) -> None:
    recipe = {"model": {"attention": "paper"}}
    origin = Origin("wsi-ips finetune", recipe=tmp_path / "r.yaml", in_recipe=recipe,
                    overrides=["training.epochs=2", "model.attention.layer_norm=true"])  # fmt: skip
    said = origin.place(["model", "attention"])
    assert said == f"{tmp_path / 'r.yaml'} with --set model.attention.layer_norm=true"
    assert origin.place(["model", "tasks"]) == str(tmp_path / "r.yaml")
    assert origin.place([]) == str(tmp_path / "r.yaml")
    assert origin.place(["training", "epochs"]) == "--set training.epochs=2"
    assert Origin("wsi-ips finetune", overrides=["a.b=1"]).place(["a"]) == "wsi-ips finetune with --set a.b=1"


def test_letters_of_the_paper_are_names_of_settings() -> None:
    short = SelectionConfig.model_validate({"m": 9, "i": 5})
    assert (short.memory_size, short.iteration_size) == (9, 5)
    assert short == SelectionConfig(memory_size=9, iteration_size=5)
    assert "m" not in short.model_dump()
    with pytest.raises(ValueError, match="m and memory_size are the same setting"):
        SelectionConfig.model_validate({"m": 9, "memory_size": 9})


@pytest.mark.parametrize(
    "setting", ["selection.memory_size=8", "selection.m=8", "tiling.patch_px=64", "model.aggregator=abmil"]
)
def test_what_a_checkpoint_fixes_is_said_with_what_can_be_set(setting: str) -> None:
    values = {"command": "predict", "slides": "s", "checkpoint": "c", "out": "o"}
    with pytest.raises(
        ConfigError, match=r"it is fixed by the checkpoint; predict takes .*streaming\.batch"
    ) as told:
        make_job(with_overrides(values, [setting]), source="wsi-ips predict")
    assert len(str(told.value)) < 900
    with pytest.raises(ConfigError, match=r"did you mean streaming\.batch"):
        make_job(with_overrides(values, ["streaming.bacth=3"]), source="wsi-ips predict")
