"""``PatchDataset``: every patch exactly once, however many share the work, and what a bad slide costs."""

import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import wsi_ips as wi
from wsi_ips.api import dataset
from wsi_ips.api.dataset import Share
from wsi_ips.errors import ConfigError, SlideFailed, SlideReadError, UnsupportedSlide

SIZE: dict[str, Any] = {"px": 64, "mpp": 1.0}
Key = tuple[str, int]


def keys(batches: Iterable[Any]) -> Counter[Key]:
    return Counter(
        (slide_id, int(patch))
        for batch in batches
        for slide_id, patch in zip(batch.slide_id, batch.ids, strict=True)
    )


@pytest.fixture
def wanted(here: Path) -> Counter[Key]:
    """Every patch of both slides, once, as tiling finds them."""
    found = {name: wi.tile(f"slides/{name}.tif", **SIZE) for name in "ab"}
    return Counter((name, int(patch)) for name, patches in found.items() for patch in patches.ids)


@pytest.mark.parametrize("share", ["patches", "slides"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2])
def test_workers_and_ranks_together_give_every_patch_exactly_once(
    wanted: Counter[Key], share: Any, workers: int, ranks: int
) -> None:
    given: Counter[Key] = Counter()
    for rank in range(ranks):
        patches = wi.PatchDataset("slides", **SIZE, share=share, rank=rank, ranks=ranks)
        own = keys(DataLoader(patches, batch_size=16, num_workers=workers))
        if share == "patches":
            assert abs(own.total() - wanted.total() / ranks) <= 2
        given += own
    assert given == wanted


def test_three_shares_of_a_few_patches_are_parts_of_the_whole() -> None:
    for n in range(8):
        for slide in range(4):
            parts = [Share(index, 3).part(n, slide=slide) for index in range(3)]
            assert sorted(row for part in parts for row in part) == list(range(n))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
    longest = {
        max(range(3), key=lambda index: len(Share(index, 3).part(1, slide=slide))) for slide in range(3)
    }
    assert longest == {0, 1, 2}


def test_patches_are_those_of_a_stream_pixel_for_pixel(here: Path) -> None:
    streamed = list(wi.stream("slide.svs", **SIZE, batch=16))
    for batch in DataLoader(wi.PatchDataset("slide.svs", **SIZE), batch_size=16):
        expected = streamed.pop(0)
        assert torch.equal(batch.pixels, expected.pixels)
        assert torch.equal(batch.xy, expected.xy)
    assert not streamed


def test_a_transform_is_given_each_patch(here: Path) -> None:
    patches = wi.PatchDataset("slide.svs", **SIZE, transform=lambda pixels: pixels.float().mean())
    assert next(iter(patches)).pixels.shape == ()


def test_the_rank_is_torchrun_s_where_nobody_says_it(
    wanted: Counter[Key], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: Counter[Key] = Counter()
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        own = keys([_as_batch(patch) for patch in wi.PatchDataset("slides", **SIZE)])
        assert 0 < own.total() < wanted.total()
        given += own
    assert given == wanted


def test_a_process_that_is_sent_the_data_set_knows_the_rank_of_its_sender(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patches = wi.PatchDataset("slides", **SIZE)  # before torch.distributed is there
    with monkeypatch.context() as patched:
        patched.setattr(torch.distributed, "is_initialized", lambda: True)
        patched.setattr(torch.distributed, "get_rank", lambda: 1)
        patched.setattr(torch.distributed, "get_world_size", lambda: 2)
        sent = pickle.dumps(patches)
    half = wi.PatchDataset("slides", **SIZE, rank=1, ranks=2)
    assert [int(patch.ids) for patch in pickle.loads(sent)] == [int(patch.ids) for patch in half]


def test_a_bad_slide_is_raised_or_skipped_with_a_warning(
    wanted: Counter[Key], here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Path("slides/aa.tif").write_bytes(b"no slide")
    with pytest.raises(UnsupportedSlide, match=r"aa\.tif"):
        list(wi.PatchDataset("slides", **SIZE))
    with caplog.at_level(logging.WARNING):
        given = keys([_as_batch(patch) for patch in wi.PatchDataset("slides", **SIZE, on_error="skip")])
    assert given == wanted
    assert ["aa.tif" in line for line in caplog.messages] == [True]


def test_a_slide_that_fails_halfway_costs_the_rest_of_itself(
    wanted: Counter[Key], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = dataset.PatchStream

    class Torn(whole):  # type: ignore[misc, valid-type]
        def __iter__(self) -> Any:
            if self._coords.slide_id == "b":
                return super().__iter__()
            return iter([next(super().__iter__()), None])  # what is no chunk raises

    monkeypatch.setattr(dataset, "DECODED_TOGETHER", 8)
    monkeypatch.setattr(dataset, "PatchStream", Torn)
    given = keys([_as_batch(patch) for patch in wi.PatchDataset("slides", **SIZE, on_error="skip")])
    assert Counter(slide_id for slide_id, _ in given) == {
        "a": 8,
        "b": sum(slide_id == "b" for slide_id, _ in wanted),
    }
    assert "a slide is skipped: a: TypeError" in caplog.text


def test_no_slide_at_all_is_no_empty_epoch(here: Path) -> None:
    shutil.rmtree("slides")
    Path("slides").mkdir()
    Path("slides/a.tif").write_bytes(b"no slide")
    with pytest.raises(SlideFailed, match="none of the 1 slide could be read"):
        list(wi.PatchDataset("slides", **SIZE, on_error="skip"))


def test_an_error_of_the_transform_is_not_the_slide_s(here: Path) -> None:
    def broken(_: torch.Tensor) -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        list(wi.PatchDataset("slides", **SIZE, on_error="skip", transform=broken))


def test_stored_coordinates_say_which_patches(wanted: Counter[Key], here: Path) -> None:
    few = {}
    for name in "ab":
        patches = wi.tile(f"slides/{name}.tif", **SIZE)
        patches.save(f"coords/{name}.h5")
        few[name] = patches.ids.tolist()
    given = keys([_as_batch(patch) for patch in wi.PatchDataset("slides", patches="coords")])
    assert given == wanted
    with pytest.raises(ConfigError, match="px is stated by the files"):
        wi.PatchDataset("slides", patches="coords", px=64)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rank": 2, "ranks": 2}, "rank 2 of 2"),
        ({"rank": 0}, "give both"),
        ({"on_error": "ignore"}, "on_error is raise or skip"),
        ({"share": "tiles"}, "share is patches or slides"),
        ({"slide_mpp": {"c": 0.5}}, "'c', which is not one of the slides"),
        ({"slide_mpp": {"a": -1.0}}, "no resolution of a slide"),
        ({"threads": 0}, "threads"),
        ({"px": 0}, "patch_px"),
        ({"mpp": 0.5, "mag": 20}, "give one of them"),
    ],
)
def test_settings_that_cannot_be_are_named(here: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        wi.PatchDataset("slides", **settings)


def test_resolutions_may_be_given_slide_by_slide(here: Path) -> None:
    patches = wi.PatchDataset(["slides/a.tif", "slides/b.tif"], **SIZE, slide_mpp={"a": 0.25})
    counts = Counter(patch.slide_id for patch in patches)
    assert counts["a"] == len(wi.tile("slides/a.tif", **SIZE, slide_mpp=0.25))
    assert counts["b"] == len(wi.tile("slides/b.tif", **SIZE))
    assert counts["a"] != len(wi.tile("slides/a.tif", **SIZE))


@pytest.mark.usefixtures("torn_tile")
def test_a_slide_with_too_many_torn_tiles_fails(here: Path) -> None:
    with pytest.raises(SlideReadError, match="torn"):
        list(wi.PatchDataset("slide.svs", px=64, mpp=0.5))


def _as_batch(patch: Any) -> Any:
    """One patch as a batch of one."""
    return patch._replace(slide_id=[patch.slide_id], ids=np.array([int(patch.ids)]))


OF_A_RANK = """
import json, sys
import torch.distributed as distributed
from torch.utils.data import DataLoader
import wsi_ips as wi

def main():
    dataset = wi.PatchDataset("slides", px=64, mpp=1.0)  # before it knows its rank
    meeting, rank, start = sys.argv[1:]
    distributed.init_process_group("gloo", init_method="file://" + meeting, rank=int(rank), world_size=2)
    loader = DataLoader(dataset, batch_size=16, num_workers=2, multiprocessing_context=start)
    given = [pair for batch in loader for pair in zip(batch.slide_id, batch.ids.tolist())]
    distributed.barrier()
    distributed.destroy_process_group()
    print(json.dumps(given))

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_two_real_ranks_with_two_workers_each_give_every_patch_exactly_once(
    wanted: Counter[Key], here: Path, start: str
) -> None:
    Path("rank.py").write_text(OF_A_RANK)
    words = [sys.executable, "rank.py", str(here / "meeting")]
    ranks = [
        subprocess.Popen([*words, str(rank), start], stdout=subprocess.PIPE, text=True, env=_with_package())
        for rank in range(2)
    ]
    given = [json.loads(rank.communicate(timeout=200)[0].splitlines()[-1]) for rank in ranks]
    assert Counter((slide_id, patch) for one in given for slide_id, patch in one) == wanted
    assert abs(len(given[0]) - len(given[1])) <= 2


def _with_package() -> dict[str, str]:
    """The environment of a process that runs this checkout, and is no rank of torchrun's."""
    paths = os.pathsep.join([str(Path(wi.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return {**environment, "PYTHONPATH": paths}
