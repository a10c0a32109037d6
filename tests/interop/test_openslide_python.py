"""What openslide-python's users rely on, of our slides and of OpenSlide's on the same files, through one shim.

The behaviours are those that its own tests look at (openslide/openslide-python at c63ac05: tests/test_openslide.py
and test_deepzoom.py), in our words and on files written here or shared: geometry of levels, regions beyond the
edges, associated images, properties, thumbnails, Deep Zoom, what a closed or unreadable slide does. Where ours
differs on purpose, the test says so.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
from numpy.typing import NDArray
from openslide.deepzoom import DeepZoomGenerator
from PIL import Image

import wsi_ips as wi
from tests.heatmaps.maps_of_slides import L0_SIZE, drawn
from tests.slides.tiff_files import tissue_like, write_pyramid
from wsi_ips.config import HeatOptions
from wsi_ips.errors import ConfigError, SlideClosed, SlideNotFound, SlideReadError, UnsupportedSlide
from wsi_ips.heatmaps.export import make_exporter
from wsi_ips.slides.registry import open_slide

APERIO = "Aperio Image Library v11.2.1 \r\n1304x976 (256x256) JPEG/RGB Q=90|AppMag = 20|MPP = 0.4990"
REAL = ["CMU-1-Small-Region.svs", "cmu-1-small-region-dicom/level-0-frames-0-30.dcm", "fluorescence-dapi.ndpi",
        "mirax-incomplete/Mirax2-Fluorescence-2.mrxs"]  # fmt: skip
WRITTEN = ["generic.tif", "aperio 😐.svs"]


@dataclass(frozen=True)
class Shim:
    """Our slide with the names of ``openslide.OpenSlide``."""

    slide: wi.Slide

    @property
    def dimensions(self) -> tuple[int, int]:
        return self.slide.size

    @property
    def level_count(self) -> int:
        return len(self.slide.levels)

    @property
    def level_dimensions(self) -> tuple[tuple[int, int], ...]:
        return self.slide.levels

    @property
    def level_downsamples(self) -> tuple[float, ...]:
        return tuple(level.downsample for level in self.slide.info.levels)

    def get_best_level_for_downsample(self, downsample: float) -> int:
        return self.slide.info.level_for(downsample)

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        return self.slide.read(location, size, level=level)

    def get_thumbnail(self, size: tuple[int, int]) -> Image.Image:
        return self.slide.thumbnail(max(size))

    @property
    def associated(self) -> dict[str, tuple[int, int]]:
        return dict(self.slide.info.associated)

    @property
    def properties(self) -> dict[str, str]:
        info, found = self.slide.info, {"openslide.vendor": self.slide.info.vendor}
        if info.mpp_xy is not None:
            found |= {f"openslide.mpp-{axis}": str(mpp) for axis, mpp in zip("xy", info.mpp_xy, strict=True)}
        if info.bounds is not None:
            sides = {"x": info.bounds.l0_x, "y": info.bounds.l0_y, "width": info.bounds.l0_width,
                     "height": info.bounds.l0_height}  # fmt: skip
            found |= {f"openslide.bounds-{name}": str(value) for name, value in sides.items()}
        return found


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    picture = tissue_like(1304, 976)
    write_pyramid(folder / WRITTEN[0], picture, levels=4, compression="lzw", mpp=0.25, tile=128)
    write_pyramid(folder / WRITTEN[1], picture, levels=2, compression="jpeg", description=APERIO, mpp=None)
    return folder


@pytest.fixture(params=[*WRITTEN, *REAL])
def path(request: pytest.FixtureRequest) -> Path:
    if request.param in WRITTEN:
        return Path(request.getfixturevalue("written")) / request.param
    return Path(request.getfixturevalue("real_data")) / "slides" / request.param


@pytest.fixture
def both(path: Path) -> Iterator[tuple[Shim, openslide.OpenSlide]]:
    with wi.open_slide(path) as ours, openslide.OpenSlide(path) as theirs:
        yield Shim(ours), theirs


def on_white(picture: Image.Image) -> NDArray[np.uint8]:
    """RGBA, transparent where there is no slide, over white: that is how we read it."""
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, picture).convert("RGB"))


def test_levels_and_properties(both: tuple[Shim, openslide.OpenSlide]) -> None:
    ours, theirs = both
    assert ours.level_count == theirs.level_count
    assert ours.dimensions == theirs.dimensions
    assert ours.level_dimensions == theirs.level_dimensions
    assert ours.level_downsamples == pytest.approx(theirs.level_downsamples, rel=1e-3)
    for factor in (0.5, 1, 1.5, 3, 7, 37, 1e6):
        # Ours takes 1.99 for 2, where levels are padded.
        wanted = max(theirs.get_best_level_for_downsample(factor * slack) for slack in (1, 1.01))
        assert ours.get_best_level_for_downsample(factor) == wanted
    told = theirs.properties
    for name, value in ours.properties.items():
        if name == "openslide.vendor":
            assert value == told[name]
        else:
            assert float(value) == pytest.approx(float(told[name]), rel=1e-6)
    geometry = {name for name in told if name.startswith(("openslide.mpp", "openslide.bounds"))}
    assert geometry <= set(ours.properties)


@pytest.mark.parametrize("corner", ["before the slide", "over its end", "within", "far outside"])
def test_regions_beyond_the_edges(both: tuple[Shim, openslide.OpenSlide], corner: str) -> None:
    """The same pixels, but for rounding in a decoder; white for transparent."""
    ours, theirs = both
    level = theirs.level_count - 1
    step = round(theirs.level_downsamples[level])
    width, height = theirs.dimensions
    place = {"before the slide": (-7 * step, -11 * step), "over its end": (width - 40 * step, height - 30 * step),
             "within": (width // 2 // step * step, height // 2 // step * step),
             "far outside": (width + 10**6, -(10**6))}[corner]  # fmt: skip
    mine = ours.read_region(place, level, (64, 48))
    assert mine.shape == (48, 64, 3)
    reference = on_white(theirs.read_region(place, level, (64, 48)))
    differs = np.abs(mine.astype(int) - reference)
    exact = all(map(math.isclose, theirs.level_downsamples, map(round, theirs.level_downsamples)))
    # Where a level is no whole fraction of level 0, OpenSlide interpolates and we take the nearest pixel.
    assert differs.mean() < (1.0 if exact else 12.0)
    if corner == "far outside":
        assert (mine == 255).all()


def test_associated_images(both: tuple[Shim, openslide.OpenSlide]) -> None:
    ours, theirs = both
    assert ours.associated == {name: picture.size for name, picture in theirs.associated_images.items()}
    for name in ours.associated:
        mine = np.asarray(ours.slide.picture(name)).astype(int)
        assert np.abs(mine - on_white(theirs.associated_images[name])).mean() < 1.5
    with pytest.raises(ConfigError):
        ours.slide.picture("__missing")


def test_thumbnails(both: tuple[Shim, openslide.OpenSlide]) -> None:
    """As large, within a pixel, and of the same colours; what is not scanned is white, whatever the file says."""
    ours, theirs = both
    mine, reference = ours.get_thumbnail((100, 100)), theirs.get_thumbnail((100, 100))
    assert max(mine.size) == 100
    assert np.abs(np.subtract(mine.size, reference.size)).max() <= 1
    if theirs.properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "FFFFFF") != "FFFFFF":
        level = theirs.level_count - 1
        whole = theirs.read_region((0, 0), level, theirs.level_dimensions[level])
        reference = Image.fromarray(on_white(whole)).resize(mine.size)
    small = [
        np.asarray(each.resize((16, 16), Image.Resampling.BOX)).astype(int) for each in (mine, reference)
    ]
    assert np.abs(small[0] - small[1]).mean() < 4


def test_sizes_and_levels_that_cannot_be_are_refused(both: tuple[Shim, openslide.OpenSlide]) -> None:
    """OpenSlide gives an empty picture for a level that is not there, and for no pixels: a silent error."""
    ours, theirs = both
    for level, size in ((theirs.level_count, (10, 10)), (0, (10, 0)), (0, (10, -5)), (-1, (10, 10))):
        with pytest.raises(ConfigError):
            ours.read_region((0, 0), level, size)


def test_a_closed_slide_still_tells_what_it_is(written: Path) -> None:
    slide = wi.open_slide(written / "generic.tif")
    with slide:
        assert len(slide.levels) == 4
    slide.close()
    assert slide.size == (1304, 976)
    with pytest.raises(SlideClosed):
        slide.read((0, 0), (10, 10))


def test_what_is_no_slide_is_refused(tmp_path: Path) -> None:
    (tmp_path / "setup.py").write_text("setup()\n")
    (tmp_path / "unopenable.tiff").write_bytes(b"II*\0\x08\0\0\0\0\0\0\0\0\0")
    with pytest.raises(SlideNotFound):
        wi.open_slide(tmp_path / "__does_not_exist")
    for name in ("setup.py", "unopenable.tiff"):
        with pytest.raises(openslide.OpenSlideUnsupportedFormatError):
            openslide.OpenSlide(tmp_path / name)
        with pytest.raises(UnsupportedSlide):
            wi.open_slide(tmp_path / name)


def test_an_unreadable_region_does_not_end_the_slide(tmp_path: Path) -> None:
    """OpenSlide's handle is useless after a failure; ours reads the next region."""
    path = tmp_path / "unreadable.tif"
    write_pyramid(path, tissue_like(512, 512), compression="jpeg", tile=256, mpp=0.5)
    with openslide.OpenSlide(path) as theirs, open_slide(path) as reader:
        layout: Any = reader.tile_layout(0)  # type: ignore[attr-defined]
        start, length = int(layout.offsets[0]), int(layout.byte_counts[0])
        blob = bytearray(path.read_bytes())
        blob[start : start + length] = b"\xff" * length
        path.write_bytes(blob)
    with openslide.OpenSlide(path) as theirs:
        for x in (0, 300):
            with pytest.raises(openslide.OpenSlideError):
                theirs.read_region((x, 300 if x else 0), 0, (16, 16))
    with wi.open_slide(path) as ours:
        with pytest.raises(SlideReadError):
            ours.read((0, 0), (16, 16))
        assert ours.read((300, 300), (16, 16)).std() > 0


def test_deep_zoom_has_as_many_levels_and_tiles(tmp_path: Path) -> None:
    """Tiles of 254 px that overlap by one, as in openslide-python's viewer."""
    heat, side = drawn().heat, 900
    exporter = make_exporter("deepzoom", {"options": HeatOptions(side_px=side)})
    exporter.write(tmp_path / "a.dzi", heat, drawn().slide)
    levels = sorted((tmp_path / "a_files").iterdir(), key=lambda folder: int(folder.name))
    with Image.open(next(levels[-1].glob("0_0.*"))) as tile:
        assert max(tile.size) <= 255
    text = (tmp_path / "a.dzi").read_text()
    size = [int(text.split(f'{name}="')[1].split('"')[0]) for name in ("Width", "Height")]
    picture = openslide.ImageSlide(Image.new("RGB", (size[0], size[1])))
    zoom = DeepZoomGenerator(picture, tile_size=254, overlap=1)
    assert len(levels) == zoom.level_count
    assert sum(len(list(folder.iterdir())) for folder in levels) == zoom.tile_count
    for number, (columns, rows) in enumerate(zoom.level_tiles):
        for column, row in {(0, 0), (columns - 1, rows - 1)}:
            with Image.open(tmp_path / "a_files" / str(number) / f"{column}_{row}.jpeg") as tile:
                assert tile.size == zoom.get_tile_dimensions(number, (column, row))
    assert size[0] / size[1] == pytest.approx(L0_SIZE[0] / L0_SIZE[1], rel=0.01)
