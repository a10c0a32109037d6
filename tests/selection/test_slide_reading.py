"""Both rules over a slide in memory, through the stream and a small untrained network."""

from collections.abc import Iterable, Iterator

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from wsi_ips.config import PipelineConfig, SelectionConfig, StreamingConfig, TaskConfig, TilingConfig
from wsi_ips.models.attention import CrossAttention
from wsi_ips.models.heads import Heads
from wsi_ips.models.ips_net import IPSNet, Positions, RasterSinusoid, SlideSinusoid
from wsi_ips.selection.memory import select_over_parts
from wsi_ips.selection.score_store import ScoreStore
from wsi_ips.selection.slide_reading import encode_again, places_for, read_scored, read_slide, select
from wsi_ips.slides.image_reader import MemoryReader
from wsi_ips.streaming.stream import Chunk, PatchStream
from wsi_ips.tiling.grid import PatchCoords, PatchGrid
from wsi_ips.units import Mpp, PlaceKind

SIZE, PATCH, BATCH, M = (331, 277), 16, 10, 12
DIM = 16


def coords_of(part: slice = slice(None)) -> PatchCoords:
    """Patches of the grid, 378 in all."""
    tiling = TilingConfig(patch_px=PATCH, patch_mpp=0.5)
    grid = PatchGrid.cover(SIZE, slide_mpp=Mpp(0.5), tiling=tiling)
    ids_N = np.arange(grid.g_cols * grid.g_rows, dtype=np.int64)[part]
    return PatchCoords.on_grid(grid, ids_N, slide_id="drawn", l0_size=SIZE, slide_mpp=Mpp(0.5),
                               tiling=tiling, tissue_N=np.ones(len(ids_N), np.float32))  # fmt: skip


class Source:
    """A stream that remembers how many patches were asked for at once, and may hand out chunks out of order."""

    def __init__(self, part: slice = slice(None), *, order: Iterable[int] | None = None) -> None:
        slide = MemoryReader(
            np.random.default_rng(5).integers(0, 255, (SIZE[1], SIZE[0], 3), dtype=np.uint8),
            mpp=Mpp(0.5),
        )
        self.stream = PatchStream(slide, coords_of(part), config=StreamingConfig(batch=BATCH))
        self.asked: list[int] = []
        self.order = order

    def __iter__(self) -> Iterator[Chunk]:
        if self.order is None:
            yield from self.stream
        else:
            chunks = [Chunk(chunk.ids_n, chunk.l0_xy_n2, chunk.pixels_n3PP.clone()) for chunk in self.stream]
            yield from (chunks[number] for number in self.order)

    def read(self, ids_n: Tensor) -> Chunk:
        self.asked.append(len(ids_n))
        return self.stream.read(ids_n)

    def places(self, ids_n: Tensor, kind: PlaceKind) -> Tensor:
        return self.stream.places(ids_n, kind)

    def everything(self) -> Chunk:
        return self.stream.read(torch.from_numpy(self.stream._coords.ids_N))


class Encoder(nn.Module):
    """Bright patches and colourful ones differ; in float64, so that batches do not."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * PATCH * PATCH, DIM)
        self.batch_norm = nn.BatchNorm1d(DIM)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.batch_norm(self.linear((pixels.double() / 255 - 0.5).flatten(1)))


def net(*, heads: int = 4, queries: int = 2, positions: Positions | None = None) -> IPSNet:
    torch.manual_seed(0)
    attention = CrossAttention(DIM, queries=queries, heads=heads, key_dim=4, value_dim=4, inner_dim=16,
                               attention_dropout=0.1, dropout=0.1)  # fmt: skip
    tasks = [TaskConfig(name=f"task {number}") for number in range(queries)]
    model = IPSNet(Encoder(), attention, Heads(DIM, tasks), positions=positions).double().train()
    with torch.no_grad():
        attention.query.weight *= 30  # an untrained attention is almost flat
    return model


def rule(name: str, *, m: int = M) -> SelectionConfig:
    return SelectionConfig(rule=name, memory_size=m, iteration_size=7)  # type: ignore[arg-type]


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


@torch.no_grad()
def scores_of(model: IPSNet, source: Source) -> Tensor:
    """Brute force: all patches at once, one softmax."""
    everything = source.everything()
    model.eval()
    logits = model.logits(
        model.encode(everything.pixels_n3PP), places_for(model, source, everything.ids_n)
    ).float()
    return logits.double().softmax(0).mean(dim=(1, 2))


POSITIONS = {
    "none": lambda: None,
    "raster": lambda: RasterSinusoid(DIM),
    "slide": lambda: SlideSinusoid(DIM, shortest_um=16, longest_um=1000),
}


@pytest.mark.parametrize("positions", POSITIONS)
def test_the_global_rule_keeps_the_slide_s_best_and_reads_the_label_from_them(positions: str) -> None:
    model, source = net(positions=POSITIONS[positions]()), Source()
    reading = read_slide(model, source, rule("global"))
    scores_N = scores_of(model, source)
    assert reading.kept.ids_M.tolist() == scores_N.argsort(descending=True)[:M].tolist()
    assert reading.kept.scores_M.tolist() == pytest.approx(scores_N[reading.kept.ids_M].tolist(), rel=1e-6)
    kept = source.stream.read(reading.kept.ids_M)
    with torch.no_grad():
        alone = model.eval()(kept.pixels_n3PP, places_for(model, source, kept.ids_n), [M])
    torch.testing.assert_close(reading.bag.tokens_BTD, alone.tokens_BTD)
    torch.testing.assert_close(reading.bag.attention_BHTM, alone.attention_BHTM)


def test_the_kept_are_read_again_a_chunk_at_a_time() -> None:
    """Never M patches at once: they may be thousands."""
    source = Source()
    read_slide(net(), source, rule("global", m=35))
    assert source.asked == [BATCH, BATCH, BATCH, 5]


def in_turns(model: IPSNet, pixels: Tensor, turns: int) -> Tensor:
    """The mean of the features of the first so many of the eight symmetries of a square."""
    seen = [pixels.rot90(quarters, (2, 3)) for quarters in range(4)]
    seen += [each.flip(3) for each in seen]
    with torch.no_grad():
        return torch.stack([model.eval().encoder(each) for each in seen[:turns]]).mean(dim=0)


@pytest.mark.parametrize("name", ["buffer", "global"])
@pytest.mark.parametrize("turns", [4, 8])
def test_kept_patches_are_read_in_several_orientations(name: str, turns: int) -> None:
    """Which ones are kept, and the map of all patches, are those of one orientation."""
    model, source = net(positions=RasterSinusoid(DIM)), Source()
    once, turned = (
        read_slide(model, source, rule(name).model_copy(update={"turns": each})) for each in (1, turns)
    )
    assert torch.equal(turned.kept.ids_M, once.kept.ids_M)
    assert torch.equal(turned.store.attention(), once.store.attention())
    ids_M = turned.kept.ids_M
    emb_MD = in_turns(model, source.stream.read(ids_M).pixels_n3PP, turns)
    torch.testing.assert_close(turned.emb_MD, emb_MD)
    with torch.no_grad():
        alone = model.read_bag(emb_MD, places_for(model, source, ids_M))
    torch.testing.assert_close(turned.bag.tokens_BTD, alone.tokens_BTD)
    assert not torch.allclose(turned.bag.tokens_BTD, once.bag.tokens_BTD)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"selection": {"turns": 4, "selector": "all"}}, "turns goes with selector: ips or cascade"),
        ({"selection": {"turns": 4, "selector": "random"}}, "turns goes with selector: ips or cascade"),
        ({"selection": {"turns": 3}}, "turns"),
        (
            {"selection": {"turns": 8}, "model": {"encoder": {"name": "features", "features": 8}}},
            "stored features have none",
        ),
    ],
)
def test_orientations_that_cannot_be_are_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        PipelineConfig.model_validate(values)


def test_one_orientation_is_stored_as_before_there_was_the_setting() -> None:
    assert "turns" not in SelectionConfig(turns=1).model_dump()
    assert SelectionConfig(turns=4).model_dump()["turns"] == 4


def test_all_orientations_together_have_no_orientation() -> None:
    model = net()
    pixels = torch.randint(256, (3, 3, PATCH, PATCH), dtype=torch.uint8, generator=torch.Generator())
    model.eval()
    for turns, other in ((4, pixels.rot90(1, (2, 3))), (8, pixels.flip(2).contiguous())):
        with torch.no_grad():
            torch.testing.assert_close(
                model.encode(other.contiguous(), turns=turns), model.encode(pixels, turns=turns)
            )


def test_the_paper_s_rule_reads_nothing_again() -> None:
    source = Source()
    read_slide(net(), source, rule("buffer"))
    assert source.asked == []


def test_with_one_head_and_one_query_both_rules_read_the_same() -> None:
    buffer, exact = (
        read_slide(net(heads=1, queries=1), Source(), rule(name)) for name in ("buffer", "global")
    )
    assert exact.kept.ids_M.tolist() == buffer.kept.ids_M.tolist()
    torch.testing.assert_close(exact.bag.tokens_BTD, buffer.bag.tokens_BTD)


@pytest.mark.parametrize("positions", POSITIONS)
def test_the_attention_map_is_the_same_under_both_rules(positions: str) -> None:
    """A by-product of either: all N patches, one softmax; which were kept does not matter."""
    model = net(positions=POSITIONS[positions]())
    buffer, exact = (read_slide(model, Source(), rule(name)) for name in ("buffer", "global"))
    assert set(buffer.kept.ids_M.tolist()) != set(exact.kept.ids_M.tolist())
    assert torch.equal(buffer.store.ids(), exact.store.ids())
    assert torch.equal(buffer.store.attention(), exact.store.attention())
    assert buffer.store.attention().sum(0).flatten().tolist() == pytest.approx([1.0] * 8, abs=1e-5)


def test_the_order_of_chunks_changes_nothing_under_the_global_rule() -> None:
    count = len(Source().stream)
    straight = read_slide(net(), Source(), rule("global"))
    shuffled = read_slide(net(), Source(order=np.random.default_rng(1).permutation(count)), rule("global"))
    assert torch.equal(shuffled.kept.ids_M, straight.kept.ids_M)
    assert torch.equal(shuffled.bag.tokens_BTD, straight.bag.tokens_BTD)


@pytest.mark.parametrize("name", ["buffer", "global"])
def test_a_slide_of_fewer_patches_than_m_is_read_whole(name: str) -> None:
    source = Source(slice(40, 45))
    model = net()
    reading = read_slide(model, source, rule(name))
    assert sorted(reading.kept.ids_M.tolist()) == [40, 41, 42, 43, 44]
    with torch.no_grad():
        everything = source.everything()
        alone = model.eval()(everything.pixels_n3PP, everything.ids_n, [5])
    torch.testing.assert_close(reading.bag.tokens_BTD, alone.tokens_BTD)


@pytest.mark.parametrize("name", ["buffer", "global"])
def test_select_keeps_what_reading_keeps(name: str) -> None:
    """Training's way in: ids, no label. The logits are gathered for who wants them."""
    store = ScoreStore()
    model = net()
    before = modes(model)
    kept = select(model, Source(), rule(name), store=store)
    reading = read_slide(model, Source(), rule(name))
    assert kept.ids_M.tolist() == reading.kept.ids_M.tolist()
    assert torch.equal(kept.logits_MHT.float(), reading.kept.logits_MHT.float())
    assert torch.equal(store.attention(), reading.store.attention())
    assert modes(model) == before
    assert not any(tensor.requires_grad for tensor in (kept.scores_M, kept.logits_MHT))


@pytest.mark.parametrize("name", ["buffer", "global"])
def test_select_scores_the_pixels_that_the_network_is_shown(name: str) -> None:
    """Augmentation by patch id: what is scored is what ``encode_again`` and training see."""

    def odd_ones_are_negatives(pixels_n3PP: Tensor, ids_n: Tensor) -> Tensor:
        shown = pixels_n3PP.clone()
        shown[ids_n % 2 == 1] = 255 - shown[ids_n % 2 == 1]
        return shown

    model, source = net(), Source()
    store = ScoreStore()
    select(model, source, rule(name), seen=odd_ones_are_negatives, store=store)
    everything = source.everything()
    with torch.no_grad():
        emb_ND = model.eval().encode(odd_ones_are_negatives(everything.pixels_n3PP, everything.ids_n))
        torch.testing.assert_close(store.logits(), model.logits(emb_ND, everything.ids_n).float())
    ids = torch.tensor([200, 123, 7])
    again_nD = encode_again(model, source, ids, batch=2, seen=odd_ones_are_negatives)
    torch.testing.assert_close(again_nD, emb_ND[ids])
    assert not again_nD.requires_grad


def test_parts_of_a_slide_are_read_as_the_whole_slide() -> None:
    """What a cluster does: each part scored by itself, merged, the kept patches encoded again."""
    model = net(positions=SlideSinusoid(DIM, shortest_um=16, longest_um=1000))
    whole = read_slide(model, Source(), rule("global"))
    stores = []
    for part in (slice(200, None), slice(0, 33), slice(33, 200)):
        stores.append(ScoreStore())
        select(model, Source(part), rule("global"), store=stores[-1])
    merged = select_over_parts(stores, M)
    assert torch.equal(merged.top.ids_M, whole.kept.ids_M)
    assert torch.equal(merged.attention_NHT, whole.store.attention())
    emb_MD = encode_again(model, Source(), merged.top.ids_M, batch=BATCH)
    with torch.no_grad():
        bag = model.eval().read_bag(emb_MD, places_for(model, Source(), merged.top.ids_M))
    torch.testing.assert_close(bag.tokens_BTD, whole.bag.tokens_BTD)
    turned = read_slide(model, Source(), rule("global").model_copy(update={"turns": 4}))
    apart = read_scored(model, Source(), stores, m=M, batch=BATCH, turns=4)
    torch.testing.assert_close(apart.bag.tokens_BTD, turned.bag.tokens_BTD)


@pytest.mark.parametrize("name", ["buffer", "global"])
def test_an_error_on_the_way_leaves_the_network_as_it_was(name: str) -> None:
    def broken(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        yield next(iter(chunks))
        raise OSError("the disk is gone")

    model = net()
    before = modes(model)
    with pytest.raises(OSError, match="disk"):
        read_slide(model, Source(), rule(name), through=broken)
    assert modes(model) == before
    assert any(before)


@pytest.mark.parametrize("name", ["buffer", "global"])
def test_no_patches_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no patches"):
        read_slide(net(), Source(), rule(name), through=lambda _: iter(()))
    with pytest.raises(ValueError, match="no patches"):
        encode_again(net(), Source(), torch.empty(0, dtype=torch.int64), batch=3)


def test_chunks_go_through_what_counts_them() -> None:
    counted = []

    def count(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        for chunk in chunks:
            counted.append(len(chunk))
            yield chunk

    reading = read_slide(net(), Source(), rule("global"), through=count)
    assert sum(counted) == len(reading.store.ids()) == len(coords_of())
    assert reading.encode_s > 0
