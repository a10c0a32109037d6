"""``--profile`` of every command that has it: which stages ``timeline.json`` holds, and how often."""

from collections import Counter
from pathlib import Path

import pytest
import yaml

from tests.commands.console import Console
from tests.conftest import SMALL_MODEL, SmallData
from tests.test_timeline import Event, spans
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.inference.telemetry import read_slide_table
from wsi_ips.timeline import TIMELINE_NAME, read_timeline


def names(events: list[Event], slide_id: str) -> Counter[str]:
    return Counter(event["name"] for event in events if event.get("args", {}).get("slide") == slide_id)


def one_slide(data: SmallData) -> Path:
    return min(data.slides.glob("*.tif"))


def test_predict_writes_each_stage_as_often_as_it_says(
    console: Console, small_data: SmallData, small_checkpoint: Path, tmp_path: Path
) -> None:
    slide, out = one_slide(small_data), tmp_path / "run"
    said = console("predict", slide, "--checkpoint", small_checkpoint, "--out", out, "--profile",
                   "--set", "streaming.batch=16", "--set", "streaming.threads=2")  # fmt: skip
    assert said.code == 0, said.err
    assert "slowest: " in said.out
    assert f"timeline: {out / TIMELINE_NAME} (https://ui.perfetto.dev opens it)" in said.out
    events, row = spans(out), read_slide_table(RunFolder(out).slides)[slide.stem]
    chunks = -(-int(row.telemetry.patches) // 16)
    assert chunks > 2
    told = names(events, slide.stem)
    assert told[slide.stem] == told["tissue"] == told["head"] == told["draw overlay"] == 1
    assert told["open"] == 2, "once to read it, once to draw it"
    assert told["plan"] == 2, "the grid of the slide, and the tiles of the pass"
    for stage in ("wait for decoder", "copy to device", "encode", "chunk", "decode", "read"):
        assert told[stage] == chunks, stage
    assert told["select"] == chunks + 1
    assert all(event["cat"] == "threads" for event in events if event["name"] in ("chunk", "decode", "read"))

    # The stages of the main thread are the slide, and the tables that are written after it. What has no stage of
    # its own is a fiftieth on a machine with nothing else to do; on one that makes this process wait, it may wait
    # there.
    stages = read_timeline(out / TIMELINE_NAME)
    assert (stages.slides, stages.left_out) == (1, 0)
    (of_slide,) = (event for event in events if event["name"] == slide.stem)
    whole, end = of_slide["dur"] / 1e6, of_slide["ts"] + of_slide["dur"]
    after = sum(event["dur"] / 1e6 for event in events if event["cat"] == "main" and event["ts"] >= end)
    assert stages.seconds("main") == pytest.approx(whole + after, rel=1e-3)
    rest = sum(one.seconds for one in stages.of("main") if one.name == "the rest")
    assert rest < 0.4 * whole
    assert {event["cat"] for event in events} == {"slide", "main", "threads"}


def test_the_numbers_are_those_of_the_table(
    console: Console, small_data: SmallData, small_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    console("predict", small_data.slides, "--checkpoint", small_checkpoint, "--out", out, "--profile")
    rows = read_slide_table(RunFolder(out).slides).values()
    told = {(one.who, one.name): one.seconds for one in read_timeline(out / TIMELINE_NAME).stages}
    assert read_timeline(out / TIMELINE_NAME).slides == len(rows) == 6
    for stage, column in ((("threads", "decode"), "decode_s"), (("main", "encode"), "encode_s")):
        measured = sum(getattr(row.telemetry, column) for row in rows)
        assert told[stage] == pytest.approx(measured, rel=0.3), stage  # two clocks, and the machine between


def test_nothing_is_written_without_it(
    console: Console, small_data: SmallData, small_checkpoint: Path, tmp_path: Path
) -> None:
    console("predict", one_slide(small_data), "--checkpoint", small_checkpoint, "--out", tmp_path / "run")
    console("tile", one_slide(small_data), "--out", tmp_path / "tiled")
    console("features", one_slide(small_data), "--checkpoint", small_checkpoint, "--out", tmp_path / "f")
    assert not list(tmp_path.rglob("*timeline*"))


def test_results_are_the_same_with_it(
    console: Console, small_data: SmallData, small_checkpoint: Path, tmp_path: Path
) -> None:
    words = ("predict", one_slide(small_data), "--checkpoint", small_checkpoint, "--out")
    for more in ((), ("--profile",)):
        assert console(*words, tmp_path / str(len(more)), *more).code == 0
    for name in ("predictions.csv", f"attention/{one_slide(small_data).stem}.h5"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()


@pytest.mark.usefixtures("torn_tile")
def test_a_slide_that_fails_leaves_a_valid_file(
    console: Console, small_data: SmallData, small_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "b.tif").symlink_to(one_slide(small_data))
    (tmp_path / "slides" / "a.tif").write_bytes(one_slide(small_data).read_bytes()[:3000])
    out = tmp_path / "run"
    said = console("predict", tmp_path / "slides", "--checkpoint", small_checkpoint, "--out", out, "--profile",
                   "--set", "streaming.max_bad_tiles=0")  # fmt: skip
    assert said.code == 3
    failed = {event["name"]: event["args"]["error"] for event in spans(out) if event["cat"] == "slide"}
    assert failed["b"] == "SlideReadError"
    assert failed["a"] in ("DamagedSlide", "UnsupportedSlide")

    # Given by itself, its error ends the command.
    said = console("predict", tmp_path / "slides" / "b.tif", "--checkpoint", small_checkpoint,
                   "--out", tmp_path / "one", "--profile", "--set", "streaming.max_bad_tiles=0")  # fmt: skip
    assert said.code == 2
    assert names(spans(tmp_path / "one"), "b")["tissue"] == 1


def test_replacing_a_run_removes_its_timeline(
    console: Console, small_data: SmallData, small_checkpoint: Path, tmp_path: Path
) -> None:
    words = ("predict", one_slide(small_data), "--checkpoint", small_checkpoint, "--out", tmp_path / "run")
    assert console(*words, "--profile").code == 0
    assert console(*words).code == 0
    assert (tmp_path / "run" / TIMELINE_NAME).exists(), "the same run goes on, and has nothing to do"
    RunFolder(tmp_path / "run").attention(one_slide(small_data).stem).unlink()
    assert console(*words).code == 0
    assert not (tmp_path / "run" / TIMELINE_NAME).exists(), "it told of another start than made the result"
    RunFolder(tmp_path / "run").attention(one_slide(small_data).stem).unlink()
    assert console(*words, "--profile").code == 0
    assert console(*words, "--force", "--slide-mpp", "0.6").code == 0
    assert not (tmp_path / "run" / TIMELINE_NAME).exists()


@pytest.mark.slow
def test_features_and_tile_write_theirs(
    console: Console, small_data: SmallData, small_checkpoint: Path, tmp_path: Path
) -> None:
    slide_id = one_slide(small_data).stem
    said = console("features", one_slide(small_data), "--checkpoint", small_checkpoint,
                   "--out", tmp_path / "f", "--layout", "trident", "--profile",
                   "--set", "streaming.batch=8")  # fmt: skip
    assert said.code == 0, said.err
    assert "share of" in said.out
    (folder,) = (path.parent for path in tmp_path.rglob(TIMELINE_NAME))
    assert (folder / f"{slide_id}.h5").is_file(), "beside the features of this encoder"
    told = names(spans(folder), slide_id)
    assert told["encode"] == told["copy to device"] == told["write results"] == told["chunk"] > 1
    assert told["tissue"] == told["open"] == 1

    for workers in ("1", "2"):
        out = tmp_path / workers
        said = console("tile", small_data.slides, "--out", out, "--workers", workers, "--profile")
        assert said.code == 0, said.err
        events = spans(out)
        assert len({event["pid"] for event in events}) == int(workers)
        told = names(events, slide_id)
        assert told["tissue"] == told["open"] == told["write results"] == told["draw preview"] == 1
        assert read_timeline(out / TIMELINE_NAME).slides == 6
        assert "tissue " in said.out
        # A later start without it leaves no timeline of another start, unless it has nothing to do.
        again = ("tile", small_data.slides, "--out", out, "--workers", workers)
        assert console(*again).code == 0
        assert (out / TIMELINE_NAME).exists()
        assert console(*again, "--min-tissue", "0.31").code == 0
        assert not (out / TIMELINE_NAME).exists()
    words = ("features", one_slide(small_data), "--checkpoint", small_checkpoint, "--out", tmp_path / "f",
             "--layout", "trident", "--set", "streaming.batch=8")  # fmt: skip
    assert console(*words).code == 0
    assert (folder / TIMELINE_NAME).exists()
    (folder / f"{slide_id}.h5").unlink()
    assert console(*words).code == 0
    assert not (folder / TIMELINE_NAME).exists()


@pytest.mark.slow
def test_workers_of_a_cluster_add_their_part(
    console: Console, small_data: SmallData, small_checkpoint: Path, tmp_path: Path
) -> None:
    said = console("predict", small_data.slides, "--checkpoint", small_checkpoint, "--out", tmp_path / "run",
                   "--workers", "2", "--profile")  # fmt: skip
    assert said.code == 0, said.err
    events = spans(tmp_path / "run")
    slides = [event for event in events if event["cat"] == "slide"]
    assert {event["name"] for event in slides} == {path.stem for path in small_data.slides.iterdir()}
    assert len({event["pid"] for event in slides}) == 2
    assert read_timeline(tmp_path / "run" / TIMELINE_NAME).slides == 6


def test_finetune_writes_its_steps(console: Console, small_data: SmallData, tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    training = {"epochs": 2, "slides_per_step": 2, "micro_batch": 3}
    recipe.write_text(yaml.safe_dump({**SMALL_MODEL, "training": training, "profile": True}))
    out = tmp_path / "model"
    said = console("finetune", small_data.manifest, "--recipe", recipe, "--out", out,
                   "--set", "training.head_start=null")  # fmt: skip
    assert said.code == 0, said.err
    assert "backward " in said.out
    told = Counter(event["name"] for event in spans(out))
    assert told["step 1"] == told["step 2"] == 1
    assert told["optimizer"] == 2
    assert told["backward"] == 2 * (1 + 3), "the loss, and 8 kept patches in micro-batches of 3"
    assert told["tissue"] == 4, "each slide of train and val"
    assert told["kept patches"] > 0

    assert console("finetune", small_data.manifest, "--recipe", recipe, "--out", out, "--restart",
                   "--set", "profile=false", "--set", "training.head_start=null").code == 0  # fmt: skip
    assert not (out / TIMELINE_NAME).exists(), "another training is not what it was about"


def test_stored_features_are_profiled_too(
    console: Console, small_data: SmallData, small_checkpoint: Path, tmp_path: Path
) -> None:
    """``predict --features`` has no slides to decode: its stages are those of the network."""
    from tests.commands.test_features_command import RECIPE, data

    manifest, recipe = data(tmp_path, clam=False), tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump({**RECIPE, "training": {**RECIPE["training"], "epochs": 1}}))
    said = console("finetune", manifest, "--features", tmp_path / "features", "--recipe", recipe,
                   "--out", tmp_path / "model", "--profile")  # fmt: skip
    assert said.code == 0, said.err
    assert "optimizer" in {event["name"] for event in spans(tmp_path / "model")}
    said = console("predict", "--features", tmp_path / "features", "--out", tmp_path / "run", "--profile",
                   "--checkpoint", tmp_path / "model" / "model.safetensors")  # fmt: skip
    assert said.code == 0, said.err
    told = Counter(event["name"] for event in spans(tmp_path / "run"))
    assert told["head"] == 20
    assert told["s3"] == 1
