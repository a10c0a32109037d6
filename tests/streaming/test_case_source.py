"""Several slides as one source of patches."""

import pytest
import torch
from torch import Tensor

from wsi_ips.errors import SlideReadError
from wsi_ips.streaming.patch_source import SLOT_UM, CaseSource, Chunk
from wsi_ips.units import PlaceKind


class Drawn:
    """Patches whose ids are sparse, as in a grid, and whose one pixel is ``first`` and counts up."""

    def __init__(self, ids: list[int], first: int, *, widest_um: float = 1000.0, torn: bool = False) -> None:
        self.ids_N = torch.tensor(ids)
        self.pixels_N = torch.arange(first, first + len(ids), dtype=torch.float32)[:, None]
        self.um_N2 = torch.linspace(0, widest_um, len(ids), dtype=torch.float64)[:, None].repeat(1, 2)
        self.torn = torn

    def __iter__(self):  # type: ignore[no-untyped-def]
        for ids_n in self.ids_N.split(2):
            if self.torn:
                raise SlideReadError("b.svs", "is torn")
            yield self.read(ids_n)

    def ids(self) -> Tensor:
        return self.ids_N

    def _rows(self, ids_n: Tensor) -> Tensor:
        return torch.tensor([self.ids_N.tolist().index(one) for one in ids_n.tolist()])

    def read(self, ids_n: Tensor) -> Chunk:
        rows = self._rows(ids_n)
        return Chunk(ids_n, torch.stack([ids_n, ids_n], dim=1), self.pixels_N[rows])

    def places(self, ids_n: Tensor, kind: PlaceKind) -> Tensor:
        assert kind == "um"
        return self.um_N2[self._rows(ids_n)]


def test_slides_follow_each_other_and_keep_their_own_ids() -> None:
    source = CaseSource([Drawn([5, 9, 11], 0), Drawn([5, 6], 100)])
    chunks = list(source)
    assert torch.cat([chunk.ids_n for chunk in chunks]).tolist() == [0, 1, 2, 3, 4]
    assert torch.cat([chunk.pixels_n3PP for chunk in chunks])[:, 0].tolist() == [0, 1, 2, 100, 101]
    assert [len(chunk) for chunk in chunks] == [2, 1, 2]  # no chunk holds patches of two slides
    assert source.parts() == [range(3), range(3, 5)]
    assert source.own_ids(1, torch.tensor([4, 3])).tolist() == [6, 5]


def test_patches_are_read_again_in_the_order_given() -> None:
    source = CaseSource([Drawn([5, 9, 11], 0), Drawn([5, 6], 100)])
    chunk = source.read(torch.tensor([4, 0, 3, 2]))
    assert chunk.ids_n.tolist() == [4, 0, 3, 2]
    assert chunk.pixels_n3PP[:, 0].tolist() == [101, 0, 100, 2]
    assert chunk.l0_xy_n2[:, 0].tolist() == [6, 5, 5, 11]
    for outside in (-1, 5):
        with pytest.raises(KeyError, match="no patch"):
            source.read(torch.tensor([0, outside]))


def test_slides_lie_side_by_side_and_never_overlap() -> None:
    wide = Drawn([0, 1], 0, widest_um=1.5 * SLOT_UM)
    source = CaseSource([wide, Drawn([0, 1], 0), Drawn([0], 0)])
    um_N2 = source.places(source.ids(), "um")
    assert um_N2[:, 0].tolist() == [0, 1.5 * SLOT_UM, 2 * SLOT_UM, 2 * SLOT_UM + 1000, 3 * SLOT_UM]
    assert torch.equal(um_N2[:2], wide.um_N2)  # the first slide lies as it does by itself
    assert torch.equal(um_N2[2:4, 1], torch.tensor([0.0, 1000.0], dtype=torch.float64))


def test_it_is_known_which_slide_cannot_be_read() -> None:
    source = CaseSource([Drawn([0, 1], 0), Drawn([0], 0, torn=True)])
    assert source.lost is None
    with pytest.raises(SlideReadError):
        list(source)
    assert source.lost == 1
