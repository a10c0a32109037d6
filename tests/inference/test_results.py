"""What a run writes comes back exactly; what is not ours is refused in one line."""

import json
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from wsi_ips.config import TaskConfig
from wsi_ips.errors import ResultsError
from wsi_ips.inference import results
from wsi_ips.inference.results import (
    SlideResult,
    read_result,
    write_result,
)
from wsi_ips.inference.telemetry import SlideTelemetry
from wsi_ips.storage.hdf5 import fixed_text
from wsi_ips.tiling.coords import read_coords
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.units import Mpp

LABEL = TaskConfig(name="label", classes=("normal", "tumor"))
STAGE = TaskConfig(name="stage", classes=("a", "b_c", "tumor"), activation="sigmoid")
AGE = TaskConfig(name="age", classes=("years", "sd"), activation="linear")


def result_of(n: int = 5, *, heads: int = 2, queries: int = 3) -> SlideResult:
    rng = np.random.default_rng(n)
    logits = rng.normal(size=(n, heads, queries)).astype(np.float32)
    attention = np.exp(logits) / np.exp(logits).sum(axis=0)
    ids = np.arange(n, dtype=np.int64) * 2 + 1
    coords = PatchCoords(
        slide_id="slide_01",
        l0_size=(100_003, 99_991),
        slide_mpp=Mpp(0.243),
        patch_px=256,
        patch_mpp=Mpp(0.5),
        overlap_px=0,
        l0_patch=256 * 0.5 / 0.243,
        g_size=(2 * n + 1, 1),
        ids_N=ids,
        l0_xy_N2=np.stack([np.rint(ids * 526.75), np.zeros(n)], axis=1).astype(np.int64),
        tissue_N=rng.random(n).astype(np.float32),
    )
    return SlideResult(
        slide_path="slides/Präparat 01.svs",
        coords=coords,
        logits_NHT=logits,
        attention_NHT=attention,
        kept_ids_M=ids[::-1][:2].copy(),
        kept_scores_M=np.array([0.5, 0.1], np.float32),
        probabilities={"label": {"normal": 0.1, "tumor": 0.9}, "stage": {"a": 1 / 3}},
        checkpoint="0123abcd",
    )


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "attention" / "slide_01.h5"
    write_result(path, result_of())
    return path


def assert_equal(one: object, other: object) -> None:
    for each in fields(one):  # type: ignore[arg-type]
        left, right = getattr(one, each.name), getattr(other, each.name)
        if isinstance(left, PatchCoords):
            assert_equal(left, right)
        elif isinstance(left, np.ndarray):
            assert left.dtype == right.dtype, each.name
            np.testing.assert_array_equal(left, right, err_msg=each.name)
        else:
            assert left == right, each.name


def test_a_result_comes_back_exactly(written: Path) -> None:
    result = read_result(written)
    assert_equal(result_of(), result)
    assert list(result.probabilities) == ["label", "stage"]


def test_a_slide_of_a_quarter_million_patches_comes_back(tmp_path: Path) -> None:
    result = result_of(250_000, heads=8, queries=1)
    write_result(tmp_path / "big.h5", result)
    np.testing.assert_array_equal(read_result(tmp_path / "big.h5").attention_NHT, result.attention_NHT)


def test_coordinates_are_readable_on_their_own(written: Path) -> None:
    """By TRIDENT's recognition rule, and by our own reader of coordinate files."""
    assert_equal(read_coords(written), result_of().coords)
    with h5py.File(written) as file:
        attributes = file["coords"].attrs
        assert {"patch_size", "level0_magnification", "target_magnification"} <= set(attributes)
        assert attributes["patch_size_level0"] == 527


def test_a_failed_write_leaves_the_old_file(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = written.read_bytes()

    def full_disk(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(results, "put_coords", full_disk)
    with pytest.raises(OSError, match="disk full"):
        write_result(written, result_of(3))
    assert written.read_bytes() == before
    assert list(written.parent.iterdir()) == [written]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logits_NHT", np.zeros((4, 2, 3), np.float32)),
        ("attention_NHT", np.zeros((5, 2), np.float32)),
        ("kept_scores_M", np.zeros(3, np.float32)),
        ("kept_ids_M", np.array([1, 2])),
    ],
)
def test_parts_that_do_not_fit_are_refused(field: str, value: np.ndarray) -> None:
    parts = {each.name: getattr(result_of(), each.name) for each in fields(SlideResult)}
    with pytest.raises(ValueError, match=r"logits|kept"):
        SlideResult(**{**parts, field: value})


def refused(path: Path) -> str:
    with pytest.raises(ResultsError) as caught:
        read_result(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    # Without the path: pytest names it after the test, words and all.
    return message.removeprefix(str(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "none.h5")


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.h5").write_text("slide_id,prob_tumor\n")
    assert "is not an HDF5 file" in refused(tmp_path / "x.h5")


def test_a_truncated_file_is_refused(written: Path) -> None:
    written.write_bytes(written.read_bytes()[:-100])
    assert "damaged" in refused(written)


def test_another_schema_version_is_refused(written: Path) -> None:
    with h5py.File(written, "r+") as file:
        file.attrs["schema_version"] = 2
    assert "schema version 2; this wsi_ips reads 4" in refused(written)


def test_a_file_without_a_version_is_refused(written: Path) -> None:
    with h5py.File(written, "r+") as file:
        del file.attrs["schema_version"]
    assert "no schema_version" in refused(written)


@pytest.mark.parametrize("name", results.DATASETS)
def test_every_dataset_is_needed(written: Path, name: str) -> None:
    with h5py.File(written, "r+") as file:
        del file[name]
    assert f"no dataset {name}" in refused(written)


def rewrite_about(path: Path, text: str) -> None:
    with h5py.File(path, "r+") as file:
        del file["about"]
        file["about"] = fixed_text(text)


def about(path: Path) -> dict[str, Any]:
    with h5py.File(path) as file:
        held: dict[str, Any] = json.loads(file["about"][()])
        return held


@pytest.mark.parametrize("name", ["slide_path", "probabilities", "task_queries", "bad_tiles", "made_from"])
def test_everything_about_a_slide_is_needed(written: Path, name: str) -> None:
    known = about(written)
    del known[name]
    rewrite_about(written, json.dumps(known))
    assert name in refused(written)


def test_text_of_variable_length_is_not_read(written: Path) -> None:
    """HDF5's library crashes where it is damaged."""
    text = json.dumps(about(written))
    with h5py.File(written, "r+") as file:
        del file["about"]
        file["about"] = text
    assert "about is object of shape (), not a text" in refused(written)


def test_damaged_bytes_never_crash(written: Path) -> None:
    """A crash would end the test run: one after the other, bytes all over the file are others."""
    image = written.read_bytes()
    places = [at for at in range(len(image)) if image[at : at + 4] != bytes(4)]
    for at in places[:: len(places) // 150]:
        written.write_bytes(image[:at] + bytes([image[at] ^ 0xFF]) + image[at + 1 :])
        with suppress(ResultsError):
            read_result(written)


def test_which_query_a_task_reads_comes_back(tmp_path: Path) -> None:
    result = replace(result_of(), task_queries={"label": 2, "stage": 0})
    write_result(tmp_path / "r.h5", result)
    assert read_result(tmp_path / "r.h5").task_queries == {"label": 2, "stage": 0}


@pytest.mark.parametrize("value", [[1], {"label": "0"}, {"label": 3}, {"label": -1}, None])
def test_broken_task_queries_are_refused(written: Path, value: Any) -> None:
    rewrite_about(written, json.dumps(about(written) | {"task_queries": value}))
    refused(written)


@pytest.mark.parametrize("text", ["[1]", "{", "[" * 50_000, "\xff"])
def test_broken_json_is_refused(written: Path, text: str) -> None:
    rewrite_about(written, text)
    refused(written)


def test_text_where_numbers_belong_is_refused(written: Path) -> None:
    with h5py.File(written, "r+") as file:
        del file["kept_scores"]
        file["kept_scores"] = [b"a", b"b"]
    assert "not numbers" in refused(written)


def test_a_file_that_claims_terabytes_is_refused_before_memory_is_taken(written: Path) -> None:
    with h5py.File(written, "r+") as file:
        del file["logits"]
        file.create_dataset("logits", shape=(5, 2**20, 2**20), dtype="f4", chunks=(5, 64, 64))
    assert "claims" in refused(written)


def test_a_chunk_that_claims_gigabytes_is_refused(written: Path) -> None:
    with h5py.File(written, "r+") as file:
        del file["kept_ids"]
        chunk = 2**28 + 1
        file.create_dataset("kept_ids", shape=(2,), maxshape=(None,), dtype="i8", chunks=(chunk,))
    assert "claims" in refused(written)


def test_datasets_in_other_files_are_refused(written: Path, tmp_path: Path) -> None:
    with h5py.File(written, "r+") as file:
        file.move("logits", "moved")
        file["logits"] = h5py.ExternalLink(str(tmp_path / "elsewhere.h5"), "logits")
    with h5py.File(tmp_path / "elsewhere.h5", "w") as file:
        file["logits"] = result_of().logits_NHT
    assert "another file" in refused(written)


def test_raw_data_of_other_files_is_refused(written: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(40))
    with h5py.File(written, "r+") as file:
        del file["kept_scores"]
        file.create_dataset(
            "kept_scores", shape=(2,), dtype="f4", external=[(str(tmp_path / "secret"), 0, 8)]
        )
    assert "kept_scores is not a plain dataset" in refused(written)


@pytest.mark.parametrize("value", [[1], {"label": 3}, {"label": {"a": "x"}}, {"label": {"a": 10**400}}, None])
def test_broken_probabilities_are_refused(written: Path, value: Any) -> None:
    rewrite_about(written, json.dumps(about(written) | {"probabilities": value}))
    refused(written)


def test_lengths_that_differ_are_refused(written: Path) -> None:
    with h5py.File(written, "r+") as file:
        del file["attention"]
        file["attention"] = np.zeros((5, 2, 2), np.float32)
    assert "logits (5, 2, 3), attention (5, 2, 2)" in refused(written)


def test_json_is_what_other_tools_can_parse(written: Path) -> None:
    assert about(written)["probabilities"]["label"]["tumor"] == 0.9


def test_the_same_result_is_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was killed and gone on with cannot be told from one that was not; nor can one whose datasets
    were held open by others (dask's profiler holds the frames that it looks at)."""
    first, second = tmp_path / "a.h5", tmp_path / "b.h5"
    write_result(first, result_of())
    held, create = [], h5py.Group.create_dataset

    def held_open(self: h5py.Group, *args: Any, **options: Any) -> h5py.Dataset:
        held.append(create(self, *args, **options))
        return held[-1]

    monkeypatch.setattr(h5py.Group, "create_dataset", held_open)
    write_result(second, replace(result_of(), telemetry=SlideTelemetry(seconds=7.0)))
    assert first.read_bytes() == second.read_bytes()


def test_embeddings_are_stored_where_they_are_wanted(tmp_path: Path) -> None:
    emb_MD = np.arange(6, dtype=np.float32).reshape(2, 3)
    result = replace(result_of(), kept_emb_MD=emb_MD)
    write_result(tmp_path / "with.h5", result, embeddings=True)
    write_result(tmp_path / "without.h5", result)
    np.testing.assert_array_equal(read_result(tmp_path / "with.h5").kept_emb_MD, emb_MD)
    assert read_result(tmp_path / "without.h5").kept_emb_MD is None
    with h5py.File(tmp_path / "with.h5", "r+") as file:
        del file["kept_embeddings"]
        file["kept_embeddings"] = np.zeros((3, 3), np.float32)
    assert "3 embeddings of 2 kept patches" in refused(tmp_path / "with.h5")
