"""What every selector must do, whatever it keeps: see :class:`wsi_ips.selection.reading.BagReader`.

Shape suffixes: n patches of a chunk, N patches of the bag, M kept patches, D embedding width.
"""

import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wsi_ips.config import SelectionConfig, TaskConfig
from wsi_ips.errors import SlideReadError
from wsi_ips.models.attention import CrossAttention
from wsi_ips.models.heads import Heads
from wsi_ips.models.ips_net import IPSNet
from wsi_ips.registry import Registry
from wsi_ips.selection.reading import BAG_READERS
from wsi_ips.selection.slide_reading import SlideReading
from wsi_ips.streaming.patch_source import Chunk
from wsi_ips.testing.own_names import OwnNameContract
from wsi_ips.units import PlaceKind

PATCH_PX, DIM, PATCHES, M = 6, 8, 150, 12


class PixelEncoder(nn.Module):
    """A linear layer over the pixels; in float64, so that the size of a chunk does not show."""

    def __init__(self) -> None:
        super().__init__()
        self.dim = DIM
        self.linear = nn.Linear(3 * PATCH_PX**2, DIM)

    def forward(self, pixels_n3PP: Tensor) -> Tensor:
        """(n, 3, P, P) uint8 to (n, D) float64."""
        emb_nD: Tensor = self.linear((pixels_n3PP.double() / 255 - 0.5).flatten(1))
        return emb_nD


class PatchesInMemory:
    """A bag of random patches, 6 pixels wide; a :class:`wsi_ips.streaming.patch_source.PatchSource`.

    order: the ids in the order of streaming. batch: patches of a chunk. torn_at: the number of the chunk that
    cannot be read. alive: after a pass, how many chunks' pixels were held at once, at most.
    """

    def __init__(
        self,
        count: int = PATCHES,
        *,
        order: Sequence[int] | None = None,
        batch: int = 10,
        torn_at: int | None = None,
    ) -> None:
        drawn = torch.Generator().manual_seed(7)
        self._pixels_N3PP = torch.randint(
            0, 256, (count, 3, PATCH_PX, PATCH_PX), dtype=torch.uint8, generator=drawn
        )
        self._ids_N = torch.arange(count) if order is None else torch.tensor(order)
        self._batch = batch
        self._torn_at = torn_at
        self._held: list[weakref.ref[Tensor]] = []
        self.alive = 0

    def __iter__(self) -> Iterator[Chunk]:
        for number, ids_n in enumerate(self._ids_N.split(self._batch) if len(self._ids_N) else ()):
            if number == self._torn_at:
                raise SlideReadError("drawn", "is torn")
            self._held = [each for each in self._held if each() is not None]
            self.alive = max(self.alive, len(self._held))
            yield self._noted(self.read(ids_n))

    def _noted(self, chunk: Chunk) -> Chunk:
        self._held.append(weakref.ref(chunk.pixels_n3PP))
        return chunk

    def only(self, ids_n: Tensor) -> "PatchesInMemory":
        """The same bag, but streaming only the patches with these ids, in the order of the bag. What is held is
        counted by this bag too.
        """
        return _Narrowed(self, self._ids_N[torch.isin(self._ids_N, ids_n)])

    def ids(self) -> Tensor:
        """(N,) int64 in the order of streaming."""
        return self._ids_N

    def read(self, ids_n: Tensor) -> Chunk:
        """The patches with these ids."""
        return Chunk(ids_n, torch.stack([ids_n, ids_n], dim=1), self._pixels_N3PP[ids_n].clone())

    def places(self, ids_n: Tensor, kind: PlaceKind) -> Tensor:
        """(n,) int64, the ids; or (n, 2) float64, patches side by side."""
        return (
            ids_n if kind == "ids" else torch.stack([ids_n.double(), torch.zeros(len(ids_n)).double()], dim=1)
        )


class _Narrowed(PatchesInMemory):
    """Some patches of another bag, which counts the pixels that are held."""

    def __init__(self, whole: PatchesInMemory, ids_n: Tensor) -> None:
        self.__dict__.update(vars(whole))
        self._whole, self._ids_N = whole, ids_n

    def __iter__(self) -> Iterator[Chunk]:
        for chunk in super().__iter__():
            self._whole.alive = max(self._whole.alive, self.alive)
            yield chunk


class SelectorContract(OwnNameContract):
    """Subclass with ``name``, as ``selection.selector`` has it, e.g. ``"ips"``.

    settings: other settings of the section ``selection``. keeps_all: every patch is kept, not M of them at most.
    torn_at: the number of a chunk that the selector reads of 150 patches in chunks of 10.
    order_matters: whether the patches that are kept depend on the order in which they come. most_chunks: how many
    chunks' pixels may be held at once.
    """

    name: str
    settings: dict[str, object] = {}  # noqa: RUF012 - a default to be replaced
    keeps_all = False
    order_matters = False
    torn_at = 3
    most_chunks = 2

    def registry(self) -> Registry[Any]:
        return BAG_READERS

    @pytest.fixture
    def net(self) -> IPSNet:
        """A small network in training mode, with dropout, for one task; its attention has one head."""
        torch.manual_seed(0)
        attention = CrossAttention(DIM, queries=1, heads=1, key_dim=4, value_dim=4, inner_dim=16,
                                   attention_dropout=0.3, dropout=0.3)  # fmt: skip
        net = IPSNet(PixelEncoder(), attention, Heads(DIM, [TaskConfig()])).double().train()
        with torch.no_grad():
            attention.query.weight *= 30  # an untrained attention is almost flat
        return net

    def selection(self) -> SelectionConfig:
        """The section ``selection``, with M of 12 and I of 7."""
        return SelectionConfig.model_validate(
            {"selector": self.name, "memory_size": M, "iteration_size": 7, **self.settings}
        )

    def read(self, net: IPSNet, source: PatchesInMemory) -> SlideReading:
        """The bag, read by the selector."""
        return BAG_READERS.load(self.selection().way)(net, source, self.selection())

    def test_keeps_patches_of_the_bag_and_reads_the_label_from_them(self, net: IPSNet) -> None:
        source = PatchesInMemory()
        reading = self.read(net, source)
        ids_M = reading.kept.ids_M
        assert ids_M.dtype == torch.int64
        assert len(ids_M.unique()) == len(ids_M) == len(reading.kept.scores_M) == len(reading.emb_MD)
        assert len(ids_M) == PATCHES if self.keeps_all else 1 <= len(ids_M) <= M
        assert set(ids_M.tolist()) <= set(source.ids().tolist())
        with torch.no_grad():
            emb_MD = net.eval().encode(source.read(ids_M).pixels_n3PP)
            bag = net.read_bag(emb_MD, ids_M)
        torch.testing.assert_close(reading.emb_MD, emb_MD)
        torch.testing.assert_close(reading.bag.probabilities["label"], bag.probabilities["label"])

    def test_tells_the_attention_of_the_patches_that_it_looked_at(self, net: IPSNet) -> None:
        """As many rows as the network's attention has, so that a task finds the one that it is drawn from."""
        reading = self.read(net, PatchesInMemory())
        ids_N, attention_NHT = reading.store.ids(), reading.store.attention()
        assert set(reading.kept.ids_M.tolist()) <= set(ids_N.tolist()) <= set(range(PATCHES))
        assert len(ids_N.unique()) == len(ids_N) == len(attention_NHT)
        assert attention_NHT.shape[2] == reading.bag.attention_BHTM.shape[2]
        sums = attention_NHT.double().sum(dim=0)
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-5)

    def test_the_same_again_is_the_same(self, net: IPSNet) -> None:
        first, second = self.read(net, PatchesInMemory()), self.read(net, PatchesInMemory())
        assert torch.equal(first.kept.ids_M, second.kept.ids_M)
        assert torch.equal(first.bag.tokens_BTD, second.bag.tokens_BTD)

    def test_how_patches_come_in_chunks_does_not_matter(self, net: IPSNet) -> None:
        kept = [self.read(net, PatchesInMemory(batch=batch)).kept.ids_M for batch in (1, 10, PATCHES)]
        assert kept[0].tolist() == kept[1].tolist() == kept[2].tolist()

    def test_the_order_in_which_patches_come_does_not_matter(self, net: IPSNet) -> None:
        if self.order_matters:
            pytest.skip("it depends on the order by what it is")
        order = torch.randperm(PATCHES, generator=torch.Generator().manual_seed(4)).tolist()
        straight, shuffled = (self.read(net, PatchesInMemory(order=each)) for each in (None, order))
        assert set(straight.kept.ids_M.tolist()) == set(shuffled.kept.ids_M.tolist())
        torch.testing.assert_close(straight.bag.tokens_BTD, shuffled.bag.tokens_BTD)

    def test_a_bag_of_fewer_patches_is_read_whole(self, net: IPSNet) -> None:
        reading = self.read(net, PatchesInMemory(M - 3))
        assert sorted(reading.kept.ids_M.tolist()) == list(range(M - 3))

    def test_pixels_are_let_go(self, net: IPSNet) -> None:
        """However long the slide is: a chunk or two of pixels at a time."""
        source = PatchesInMemory(batch=5)
        self.read(net, source)
        assert source.alive <= self.most_chunks

    def test_chunks_go_through_what_counts_them(self, net: IPSNet) -> None:
        seen: list[int] = []

        def through(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
            for chunk in chunks:
                seen.extend(chunk.ids_n.tolist())
                yield chunk

        reader = BAG_READERS.load(self.selection().way)
        reader(net, PatchesInMemory(), self.selection(), through=through)
        assert len(seen) == len(set(seen))
        assert seen

    def test_leaves_the_network_as_it_was_and_no_graph(self, net: IPSNet) -> None:
        before = {name: value.clone() for name, value in net.state_dict().items()}
        reading = self.read(net, PatchesInMemory())
        assert not reading.emb_MD.requires_grad
        assert not reading.bag.tokens_BTD.requires_grad
        with pytest.raises(SlideReadError):
            self.read(net, PatchesInMemory(torn_at=self.torn_at))
        assert all(module.training for module in net.modules())
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())

    def test_a_bag_without_patches_is_refused(self, net: IPSNet) -> None:
        with pytest.raises(ValueError, match="no patches"):
            self.read(net, PatchesInMemory(0))
