"""A slide without patches says which setting left everything out."""

import pickle

import pytest

from tests.tiling.drawn import Drawing
from wsi_ips.config import TilingConfig, TissueConfig
from wsi_ips.errors import NoTissue
from wsi_ips.tiling.patches import PatchesInTissue

SIZE = (1600, 1200)


def message(drawing: Drawing, **tiling: object) -> str:
    with pytest.raises(NoTissue) as caught:
        PatchesInTissue(TilingConfig(**{"patch_mpp": 2.0, **tiling}))(
            drawing.reader(), slide_id="s", mpp=None
        )  # type: ignore[arg-type]
    return str(caught.value)


def test_bare_glass() -> None:
    assert "nothing on it differs from the bare glass" in message(Drawing(SIZE))


def test_everything_was_pen() -> None:
    drawing = Drawing(SIZE).paint((30, 60, 190), 300, 300, 900, 200)
    told = message(drawing)
    assert "0.72 mm²" in told
    assert "tiling.tissue.drop_pen=false" in told
    kept = TilingConfig(patch_mpp=2.0, tissue=TissueConfig(drop_pen=False))
    assert len(PatchesInTissue(kept)(drawing.reader(), slide_id="s", mpp=None))


def test_everything_was_too_small() -> None:
    told = message(Drawing(SIZE).tissue(300, 300, 40, 40))
    assert "tiling.tissue.min_object_um2 asks for 20000" in told
    assert "piece has 6" in told, "80 by 80 µm are 6400 µm²"


def test_no_patch_is_full_enough() -> None:
    told = message(Drawing(SIZE).tissue(304, 304, 200, 200), patch_px=1024, patch_mpp=2.0, min_tissue=0.5)
    assert "tiling.min_tissue asks for 0.5 of a patch, the fullest patch has 0.038" in told


def test_it_survives_pickling() -> None:
    error = NoTissue("a.tif", "no tissue was found: because", "do this")
    assert str(pickle.loads(pickle.dumps(error))) == "a.tif: no tissue was found: because; do this"
