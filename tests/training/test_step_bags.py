"""Bags of a step: opened once, the next one ahead of time, and nothing of that changes a number or an error."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import SMALL_MODEL
from tests.slides.tiff_files import tissue_like, write_pyramid
from tests.training.memory_bags import MemoryBag
from wsi_ips.config import FinetuneConfig, StreamingConfig, TaskConfig, TilingConfig
from wsi_ips.datasets.manifest import SlideRecord
from wsi_ips.errors import SlideReadError
from wsi_ips.slides.registry import open_slide
from wsi_ips.slides.tile_layout import TileFile
from wsi_ips.streaming.stream import Chunk, PatchStream
from wsi_ips.tiling.patches import PatchesInTissue, tile_slide
from wsi_ips.training import bags as bags_module
from wsi_ips.training import step_bags
from wsi_ips.training.bags import CaseBag, SlideBag, tile_bag
from wsi_ips.training.fit import train_bags
from wsi_ips.training.step_bags import StepBags
from wsi_ips.units import Mpp

CPU = torch.device("cpu")
TILING = TilingConfig(patch_px=64, patch_mpp=0.5, min_tissue=0)
STREAMING = StreamingConfig(batch=8, threads=2, chunks_in_flight=3)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> list[SlideBag]:
    folder = tmp_path_factory.mktemp("slides")
    found = []
    for number in range(4):
        path = folder / f"{number}.tif"
        write_pyramid(path, np.roll(tissue_like(400, 300), 40 * number, axis=1), mpp=Mpp(0.5), tile=48)
        record = SlideRecord(f"{number}", f"{number}", {"label": str(number % 2)}, "train", path)
        found.append(
            tile_bag(
                record,
                tasks=[TaskConfig(classes=("0", "1"))],
                find_patches=PatchesInTissue(TILING),
                slide_mpp=lambda _: Mpp(0.5),
            )
        )
    return found


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the slides that were opened, in turn."""
    names: list[str] = []

    def noted(path: Path) -> object:
        names.append(path.stem)
        return open_slide(path)

    monkeypatch.setattr(bags_module, "open_slide", noted)
    return names


def decoders() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("wsi_ips-decode")]


def all_pixels(source: Iterator[Chunk] | PatchStream) -> torch.Tensor:
    return torch.cat([chunk.pixels_n3PP for chunk in source])


def test_a_bag_is_opened_once_in_a_step_and_anew_in_the_next(
    slides: list[SlideBag], opened: list[str]
) -> None:
    bags = StepBags(STREAMING)
    for _ in range(2):
        with bags.step():
            for _ in range(3):
                with bags.open(slides[0], "0", CPU) as source:
                    all_pixels(source)  # type: ignore[arg-type]
    assert opened == ["0", "0"]
    for _ in range(2):  # outside of a step
        with bags.open(slides[0], "0", CPU):
            pass
    assert len(opened) == 4


def test_a_prepared_bag_has_the_same_pixels_and_is_not_opened_again(
    slides: list[SlideBag], opened: list[str]
) -> None:
    with slides[1].open(STREAMING, CPU) as stream:
        plain = all_pixels(stream)
    opened.clear()
    bags = StepBags(STREAMING)
    with bags.step():
        bags.prepare(slides[1], "1", CPU, begin=True)
        bags.prepare(slides[1], "1", CPU, begin=True)
        with bags.open(slides[1], "1", CPU) as source:
            assert torch.equal(all_pixels(source), plain)  # type: ignore[arg-type]
            assert torch.equal(all_pixels(source), plain)  # type: ignore[arg-type]
    assert opened == ["1"]
    assert not decoders()


def test_what_is_prepared_outlives_the_step_and_what_is_not_wanted_is_closed(
    slides: list[SlideBag], opened: list[str]
) -> None:
    bags = StepBags(STREAMING)
    with bags.step():
        bags.prepare(slides[1], "1", CPU, begin=True)
    with bags.step():
        with bags.open(slides[1], "1", CPU):
            pass
        assert opened == ["1"]
        bags.prepare(slides[2], "2", CPU, begin=True)
        bags.prepare(slides[3], "3", CPU, begin=True)
        bags.prepare(slides[0], "0", CPU, begin=True)
        assert [*bags._coming] == ["3", "0"]
    bags.forget_prepared()
    assert opened == ["1", "2", "3", "0"]
    assert not decoders()


def test_a_step_that_fails_leaves_nothing_open(slides: list[SlideBag]) -> None:
    bags = StepBags(STREAMING)

    def step() -> None:
        with bags.step():
            bags.prepare(slides[1], "1", CPU, begin=True)
            with bags.open(slides[0], "0", CPU) as source:
                next(iter(source))
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        step()
    assert not decoders()
    assert not bags._held
    assert not bags._coming


def test_the_error_of_a_prepared_bag_is_raised_when_it_is_asked_for(slides: list[SlideBag]) -> None:
    missing = replace(slides[0], record=replace(slides[0].record, path=Path("no_such.tif")))
    bags = StepBags(STREAMING)
    with bags.step():
        bags.prepare(missing, "0", CPU, begin=True)
        with bags.open(slides[1], "1", CPU):
            pass
        with pytest.raises(Exception, match="no_such"), bags.open(missing, "0", CPU):
            pass


def test_a_bag_that_failed_is_opened_again(slides: list[SlideBag], opened: list[str]) -> None:
    bags = StepBags(STREAMING)
    with bags.step():
        with pytest.raises(SlideReadError), bags.open(slides[0], "0", CPU):
            raise SlideReadError("0", "was lost", "try again")
        with bags.open(slides[0], "0", CPU) as source:
            assert len(all_pixels(source))  # type: ignore[arg-type]
    assert opened == ["0", "0"]


def test_no_more_bags_are_open_than_allowed(
    slides: list[SlideBag], opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_bags, "MOST_OPEN", 2)
    bags = StepBags(STREAMING)
    with bags.step():
        for number in (0, 1, 2, 2, 1, 0):
            with bags.open(slides[number], str(number), CPU):
                assert len(bags._held) <= 2
    assert opened == ["0", "1", "2", "0"]


def test_a_case_is_prepared_too(slides: list[SlideBag], opened: list[str]) -> None:
    case = CaseBag("case", (slides[0], slides[1]), {})
    with case.open(STREAMING, CPU) as source:
        plain = torch.cat([chunk.pixels_n3PP for chunk in source])
    opened.clear()
    bags = StepBags(STREAMING)
    with bags.step():
        bags.prepare(case, "case", CPU, begin=True)
        with bags.open(case, "case", CPU) as prepared:
            assert torch.equal(torch.cat([chunk.pixels_n3PP for chunk in prepared]), plain)
    assert opened == ["0", "1"]
    assert not decoders()


def test_bags_that_compute_when_they_are_opened_are_not_prepared() -> None:
    bag = MemoryBag("0", torch.zeros(3, 1), {})
    bags = StepBags(STREAMING)
    with bags.step():
        bags.prepare(bag, "0", CPU, begin=True)
        assert not bag.opened


@dataclass
class _Plain:
    """A bag that is opened when it is asked for, and read again a micro-batch at a time."""

    bag: SlideBag

    def __len__(self) -> int:
        return len(self.bag)

    @property
    def bag_id(self) -> str:
        return self.bag.bag_id

    @property
    def targets(self) -> object:
        return self.bag.targets

    @contextmanager
    def open(self, streaming: StreamingConfig, device: torch.device) -> Iterator["_PlainSource"]:
        with self.bag.open(streaming, device) as stream:
            yield _PlainSource(stream)


class _PlainSource:
    def __init__(self, stream: PatchStream) -> None:
        self._stream = stream
        self.ids, self.read, self.places = stream.ids, stream.read, stream.places

    def __iter__(self) -> Iterator[Chunk]:
        return iter(self._stream)


@pytest.mark.parametrize("rule", ["buffer", pytest.param("global", marks=pytest.mark.slow)])
def test_training_ends_with_the_weights_of_bags_that_are_opened_one_by_one(
    slides: list[SlideBag], tmp_path: Path, rule: str, opened: list[str]
) -> None:
    recipe = {
        **SMALL_MODEL,
        "tiling": TILING.model_dump(),
        "streaming": STREAMING.model_dump(),
        "selection": {"m": 20, "i": 16, "rule": rule},
        "training": {"epochs": 2, "slides_per_step": 2, "micro_batch": 6, "flips": True},
    }
    config = FinetuneConfig.model_validate(recipe)
    report = train_bags(slides, [], config, tmp_path / "ahead", device=CPU)
    assert sorted(opened) == sorted(["0", "1", "2", "3"] * 2)  # once in each of two epochs
    plain = train_bags([_Plain(bag) for bag in slides], [], config, tmp_path / "plain", device=CPU)  # type: ignore[misc]
    assert report.history == plain.history
    assert report.checkpoint.read_bytes() == plain.checkpoint.read_bytes()


@pytest.mark.parametrize("most", [1, 5, 7, 24, 100])
def test_patches_in_turn_are_those_that_were_asked_for(slides: list[SlideBag], most: int) -> None:
    """In any order, some of them twice, more than one pass over the file holds."""
    with slides[0].open(STREAMING, CPU) as stream:
        everything = all_pixels(stream)
        rows = np.random.default_rng(0).integers(0, len(slides[0]), size=61)
        ids_n = stream.ids()[rows]
        chunks = list(stream.read_in_turn(ids_n, most))
        assert [len(chunk) for chunk in chunks] == [len(part) for part in ids_n.split(most)]
        assert torch.equal(torch.cat([chunk.ids_n for chunk in chunks]), ids_n)
        assert torch.equal(all_pixels(iter(chunks)), everything[rows])
        assert all(chunk.pixels_n3PP.is_contiguous(memory_format=torch.channels_last) for chunk in chunks)
        assert torch.equal(chunks[0].l0_xy_n2, stream.read(ids_n[:most]).l0_xy_n2)
        assert not list(stream.read_in_turn(ids_n[:0], most))
        with pytest.raises(KeyError, match="99999"):
            list(stream.read_in_turn(torch.tensor([99999]), most))


def test_the_file_is_read_in_its_own_order(slides: list[SlideBag], monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept patches come sorted by their scores; the disk does not go back and forth."""
    offsets: list[int] = []
    read = TileFile.read

    def noted(file: TileFile, offset: int, count: int) -> bytes:
        offsets.append(offset)
        return read(file, offset, count)

    streaming = STREAMING.model_copy(update={"threads": 1})
    tiling = TILING.model_copy(update={"patch_px": 48})  # as the tiles: nothing is needed by two patches
    with open_slide(slides[0].record.path) as slide:
        coords, _ = tile_slide(slide, tiling, slide_id="0", mpp=Mpp(0.5))
        stream = PatchStream(slide, coords, config=streaming)
        ids_n = stream.ids()[torch.randperm(len(coords), generator=torch.Generator().manual_seed(0))[:20]]
        monkeypatch.setattr(TileFile, "read", noted)
        list(stream.read_in_turn(ids_n, 4))
    assert len(offsets) > 1
    assert offsets == sorted(offsets)
