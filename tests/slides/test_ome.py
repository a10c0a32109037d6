"""OME-TIFF: levels, colours and resolution as its OME-XML has them."""

from contextlib import suppress

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.slides.ome_files import halves, ome_image, ome_xml, write_ome
from tests.slides.tiff_files import halved, tissue_like
from wsi_ips.config import StreamingConfig
from wsi_ips.errors import DamagedSlide, RefusedSlide, UnsupportedSlide, WsiIpsError
from wsi_ips.slides import open_slide
from wsi_ips.slides.openslide_reader import OpenSlideReader
from wsi_ips.slides.tiff.layout import TiffReader
from wsi_ips.streaming.stream import PatchStream
from wsi_ips.testing.readers import MPP, ReaderContract, contract_image
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.units import Mpp

SIZE = WIDTH, HEIGHT = 520, 392
RGB = tissue_like(WIDTH, HEIGHT)
RGB_COLOURS = (-16776961, 16711935, 65535)  # OME's signed RGBA of red, green and blue


class TestOmeTiff(ReaderContract):
    @pytest.fixture(scope="class")
    @classmethod
    def drawn(cls, class_folder):
        path = class_folder / "käse.ome.tif"
        xml = ome_xml(ome_image(600, 424, mpp=MPP))
        write_ome(path, contract_image(), levels=2, compression="lzw", xml=xml)
        return path

    @pytest.fixture
    def slide(self, drawn):
        with TiffReader(drawn) as reader:
            yield reader


class TestPlanesApart(ReaderContract):
    @pytest.fixture(scope="class")
    @classmethod
    def drawn(cls, class_folder):
        path = class_folder / "a.ome.tif"
        write_ome(path, contract_image(), levels=2, compression="deflate", apart=True)
        return path

    @pytest.fixture
    def slide(self, drawn):
        with TiffReader(drawn) as reader:
            yield reader


def assert_levels(path, expected, *, mpp=0.5):
    """The file opens with the native reader, and its levels hold these pixels in every tile and at the edges."""
    with open_slide(path) as slide:
        info = slide.info
        assert (info.reader, info.vendor) == ("tiff", "ome-tiff")
        assert [level.size for level in info.levels] == [(e.shape[1], e.shape[0]) for e in expected]
        assert info.mpp == (mpp and pytest.approx(mpp))
        for number, (level, pixels) in enumerate(zip(info.levels, expected, strict=True)):
            whole = slide.read((0, 0), level=number, size_px=level.size)
            np.testing.assert_array_equal(whole, pixels)
            layout = slide.tile_layout(number)
            for row in range(layout.rows):
                for col in range(layout.cols):
                    tile = slide.read_tile(number, col, row)
                    top, left = row * layout.tile_size[1], col * layout.tile_size[0]
                    inside = pixels[top : top + layout.tile_size[1], left : left + layout.tile_size[0]]
                    np.testing.assert_array_equal(tile[: inside.shape[0], : inside.shape[1]], inside)
                    assert (tile[inside.shape[0] :] == 255).all()
                    assert (tile[:, inside.shape[1] :] == 255).all()


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("scale", [1, 257])
@pytest.mark.parametrize("apart", [False, True])
def test_colours_together_planar_or_apart_in_8_or_16_bits(tmp_path, planar, scale, apart):
    path = tmp_path / "a.ome.tif"
    options = {"planarconfig": "separate"} if planar and not apart else {}
    if apart:
        options["xml"] = ome_xml(ome_image(WIDTH, HEIGHT, channels=("R", "G", "B"), samples=1))
    write_ome(path, RGB, levels=3, apart=apart, scale=scale, compression="zstd", **options)
    assert_levels(path, halves(RGB, 3))
    with TiffReader(path) as slide:
        assert [level.downsample for level in slide.info.levels] == [1, 2, 4]
    if not apart:
        with TiffReader(path) as slide, OpenSlideReader(path) as other:
            assert len(other.info.levels) == 1  # OpenSlide knows no SubIFDs
            for l0_xy in ((-30, -20), (100, 90), (WIDTH - 70, HEIGHT - 60)):
                ours, theirs = (s.read(l0_xy, level=0, size_px=(120, 100)) for s in (slide, other))
                np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("apart", [False, True])
def test_jpeg_is_tifffiles(tmp_path, apart):
    path = tmp_path / "a.ome.tif"
    write_ome(path, RGB, levels=2, apart=apart, compression="jpeg")
    with tifffile.TiffFile(path) as tiff:
        planes = [tiff.pages[number] for number in range(3 if apart else 1)]
        expected = [
            np.concatenate([p.reshape(*p.shape[:2], -1) for p in parts], axis=2)
            for parts in ([p.asarray() for p in planes], [p.pages[0].asarray() for p in planes])
        ]
    assert_levels(path, expected)
    if not apart:
        with TiffReader(path) as slide, OpenSlideReader(path) as other:
            ours, theirs = (s.read((0, 0), level=0, size_px=SIZE) for s in (slide, other))
            np.testing.assert_array_equal(ours, theirs)


def test_what_tifffile_writes_as_ome_is_read(tmp_path):
    """Its own XML, with planes apart, grey, and the pyramid in SubIFDs."""
    for name, axes, pixels in (
        ("rgb", "YXS", RGB),
        ("apart", "CYX", RGB.transpose(2, 0, 1).copy()),
        ("grey", "YX", RGB[..., 0].copy()),
    ):
        path = tmp_path / f"{name}.ome.tif"
        metadata = {"axes": axes, "PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 250,
                    "PhysicalSizeYUnit": "nm"}  # fmt: skip
        photometric = "rgb" if name == "rgb" else "minisblack"
        tifffile.imwrite(path, pixels, tile=(128, 128), photometric=photometric, metadata=metadata, ome=True)
        assert_levels(path, [RGB if name != "grey" else np.repeat(RGB[..., :1], 3, 2)], mpp=0.25)


@pytest.mark.parametrize(
    ("stated", "mpp"),
    [
        ({"mpp": 0.25}, 0.25),
        ({"mpp": 250, "unit": "nm"}, 0.25),
        ({"mpp": 0.00025, "unit": "mm"}, 0.25),
        ({"mpp": 0.25, "unit": "μm"}, 0.25),  # the Greek letter
        ({"mpp": 1, "unit": "pixel"}, None),
        ({"mpp": None}, None),
        ({"mpp": 0}, None),
        ({"mpp": "nan"}, None),
        ({"mpp": None, "PhysicalSizeX": 0.25}, 0.25),  # no unit: µm; no other side: as this one
    ],
)
def test_physical_size(tmp_path, stated, mpp):
    path = tmp_path / "a.ome.tif"
    write_ome(path, RGB, xml=ome_xml(ome_image(WIDTH, HEIGHT, **stated)))
    assert_levels(path, [RGB], mpp=mpp)


def test_the_xml_is_believed_before_the_tags(tmp_path):
    path = tmp_path / "a.ome.tif"
    tags = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    write_ome(path, RGB, xml=ome_xml(ome_image(WIDTH, HEIGHT, mpp=0.25)), **tags)
    assert_levels(path, [RGB], mpp=0.25)
    write_ome(path, RGB, xml=ome_xml(ome_image(WIDTH, HEIGHT, mpp=None)), **tags)
    assert_levels(path, [RGB], mpp=0.5)


@pytest.mark.parametrize(
    ("names", "colours", "order"),
    [
        (("R", "G", "B"), (), (0, 1, 2)),
        (("Blue", "green", "RED"), (), (2, 1, 0)),
        (("Channel 0", "Channel 1", "Channel 2"), (), (0, 1, 2)),
        (("", None, "C:2"), RGB_COLOURS, (0, 1, 2)),
        ((None, None, None), RGB_COLOURS[::-1], (2, 1, 0)),
        ((None, None, None), (-1, -1, -1), (0, 1, 2)),
    ],
)
def test_three_planes_are_placed_by_name_or_colour(tmp_path, names, colours, order):
    path = tmp_path / "a.ome.tif"
    xml = ome_xml(ome_image(WIDTH, HEIGHT, channels=names, samples=1, colours=colours))
    write_ome(path, RGB, levels=2, apart=True, order=order, xml=xml)
    assert_levels(path, halves(RGB, 2))


@pytest.mark.parametrize(
    ("described", "reason"),
    [
        ({"channels": ("DAPI", "FITC", "TRITC"), "samples": 1}, "not called red, green and blue"),
        ({"channels": (None,) * 3, "samples": 1, "colours": (65535, 1, 2)}, "not called red, green and blue"),
        ({"channels": (None,) * 4, "samples": 1}, "4 channels"),
        ({"channels": ("a", "b"), "samples": 1}, r"2 channels \(a, b\)"),
        ({"channels": (None,) * 3, "samples": 1, "SizeZ": 5}, "5 planes of depth and 1 points in time"),
        ({"channels": (None,) * 3, "samples": 1, "SizeT": 2}, "1 planes of depth and 2 points in time"),
    ],
)
def test_other_channels_depths_and_times_are_refused_by_every_reader(tmp_path, described, reason):
    path = tmp_path / "a.ome.tif"
    write_ome(path, RGB, apart=True, xml=ome_xml(ome_image(WIDTH, HEIGHT, **described)))
    with pytest.raises(RefusedSlide, match=reason):
        open_slide(path)


def test_three_unnamed_planes_of_16_bits_are_stains(tmp_path):
    write_ome(tmp_path / "a.ome.tif", RGB, apart=True, scale=257)
    with pytest.raises(RefusedSlide, match="not called red, green and blue"):
        open_slide(tmp_path / "a.ome.tif")


def test_levels_as_further_images(tmp_path):
    """As Bio-Formats wrote them before SubIFDs: an Image each."""
    path = tmp_path / "a.ome.tif"
    levels = halves(RGB, 3)
    images = [
        ome_image(level.shape[1], level.shape[0], name=f"a.svs #{n + 1}", mpp=0.5 if n == 0 else None,
                  planes=f'<TiffData IFD="{n}" PlaneCount="1"/>')
        for n, level in enumerate(levels)
    ]  # fmt: skip
    with tifffile.TiffWriter(path) as writer:
        for number, level in enumerate(levels):
            writer.write(level, tile=(128, 128), photometric="rgb", metadata=None,
                         description=ome_xml(*images).encode() if number == 0 else None)  # fmt: skip
    assert_levels(path, levels)


def test_levels_as_pages_that_the_xml_does_not_name(tmp_path):
    path = tmp_path / "a.ome.tif"
    levels, xml = halves(RGB, 2), ome_xml(ome_image(WIDTH, HEIGHT)).encode()
    with tifffile.TiffWriter(path) as writer:
        for number, level in enumerate([*levels, RGB[:100]]):
            writer.write(level, tile=(128, 128), photometric="rgb", metadata=None, subfiletype=min(number, 1),
                         description=xml if number == 0 else None)  # fmt: skip
    assert_levels(path, levels)
    with TiffReader(path) as slide:
        assert [(left.what, left.why) for left in slide.info.left_out] == [
            ("page 2, 520x100 px", "its shape is not that of the slide")
        ]


def test_pictures_and_other_images_beside_the_slide(tmp_path):
    """A label and a macro are pictures; a second region at the same resolution is not a level of the first."""
    path = tmp_path / "a.ome.tif"
    label, macro = tissue_like(60, 40, seed=1), tissue_like(200, 80, seed=2)
    pages = [
        (label, {"name": "label image", "mpp": None}),
        (RGB, {"name": "Macrophages.svs"}),
        (halved(RGB), {"name": "region 2"}),
        (macro, {"name": "macro image", "mpp": None}),
    ]
    images = [
        ome_image(pixels.shape[1], pixels.shape[0], planes=f'<TiffData IFD="{n}"/>', **described)
        for n, (pixels, described) in enumerate(pages)
    ]
    with tifffile.TiffWriter(path) as writer:
        for number, (pixels, _) in enumerate(pages):
            tiled = {"tile": (128, 128)} if number in (1, 2) else {}
            writer.write(pixels, photometric="rgb", metadata=None, **tiled,
                         description=ome_xml(*images).encode() if number == 0 else None)  # fmt: skip
    assert_levels(path, [RGB])
    with TiffReader(path) as slide:
        assert dict(slide.info.associated) == {"label": (60, 40), "macro": (200, 80)}
        np.testing.assert_array_equal(slide.read_associated("label"), label)
        np.testing.assert_array_equal(slide.read_associated("macro"), macro)
        assert [(left.what, left.why) for left in slide.info.left_out] == [
            (
                "image 'region 2', 260x196 px",
                "it shows another field than the slide, by its size and resolution",
            )
        ]


def test_several_files(tmp_path):
    """Named by what holds each plane; a file that was renamed is still itself."""

    def tiff_data(name, uuid="urn:uuid:2"):
        return f'<TiffData IFD="0"><UUID FileName="{name}">{uuid}</UUID></TiffData>'

    path = tmp_path / "renamed.ome.tif"
    one = ome_image(WIDTH, HEIGHT, planes=tiff_data("before.ome.tif"))
    write_ome(path, RGB, xml=ome_xml(one))
    assert_levels(path, [RGB])
    two = ome_image(50, 50, name="other", planes=tiff_data("other.ome.tif"))
    write_ome(path, RGB, xml=ome_xml(one, two, uuid="urn:uuid:2"))
    assert_levels(path, [RGB])
    write_ome(path, RGB, xml=ome_xml(one, two, uuid="urn:uuid:1"))
    with pytest.raises(RefusedSlide, match=r"places pixels in another file, 'before\.ome\.tif'"):
        open_slide(path)
    write_ome(path, RGB, xml=ome_xml('<BinaryOnly MetadataFile="a.companion.ome" UUID="urn:uuid:1"/>'))
    with pytest.raises(RefusedSlide, match=r"described by 'a\.companion\.ome'"):
        open_slide(path)


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        ("<OME><Image></OME>", "cannot be understood"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><OME>&a;</OME>', "cannot be understood"),
        ("<OME></OME>", "describes no image"),
        (ome_xml(ome_image(WIDTH + 1, HEIGHT)), "states 521x392 px, and the image itself 520x392"),
        (ome_xml(ome_image(WIDTH, HEIGHT, SizeC=-3)), "states SizeC='-3'"),
        (ome_xml(ome_image(WIDTH, HEIGHT, SizeX="9" * 300)), "states SizeX='999"),
        (ome_xml(ome_image(WIDTH, HEIGHT, planes='<TiffData IFD="7"/>')), "names images that are not in the file"),
        (ome_xml(ome_image(WIDTH, HEIGHT, planes='<TiffData FirstC="5"/>')), "names images that are not"),
        (ome_xml(*[ome_image(9, 9)] * 1001), "more than 1000 images"),
        ("<OME>" * 3000 + "</OME>" * 3000, "OME-XML"),
    ],
)  # fmt: skip
def test_xml_that_cannot_be(tmp_path, xml, reason):
    path = tmp_path / "a.ome.tif"
    write_ome(path, RGB, xml=xml)
    with pytest.raises(DamagedSlide, match=reason):
        open_slide(path)


def test_a_huge_number_of_planes_takes_no_time(tmp_path):
    path = tmp_path / "a.ome.tif"
    planes = '<TiffData IFD="0" PlaneCount="99999999999"/>'
    write_ome(path, RGB, xml=ome_xml(ome_image(WIDTH, HEIGHT, planes=planes, SizeC=99999999999)))
    with pytest.raises(RefusedSlide, match="99999999999 channels"):
        open_slide(path)


def test_without_tiles_it_is_no_pyramid(tmp_path):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", metadata=None,
                     description=ome_xml(ome_image(WIDTH, HEIGHT)).encode())  # fmt: skip
    with pytest.raises(UnsupportedSlide, match="not tiled: a flat image of 520x392"):
        TiffReader(path)
    tifffile.imwrite(
        path, RGB.transpose(2, 0, 1), photometric="minisblack", metadata={"axes": "CYX"}, ome=True
    )
    with pytest.raises(RefusedSlide, match="colours lie apart"):
        open_slide(path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_bytes_are_broken_the_error_is_ours(tmp_path, data):
    path, whole = tmp_path / "fuzz.tif", tmp_path / "whole.tif"
    if not whole.exists():
        write_ome(whole, RGB[:200, :300], levels=2, apart=True, compression="deflate", predictor=True,
                  xml=ome_xml(ome_image(300, 200, channels=("R", "G", "B"), samples=1)))  # fmt: skip
    blob = bytearray(whole.read_bytes())
    limit = data.draw(st.sampled_from([16, 1200, len(blob)]))
    for _ in range(data.draw(st.integers(1, 6))):
        blob[data.draw(st.integers(0, limit - 1))] = data.draw(st.sampled_from([0, 1, 3, 0x3C, 0xFF, 0x39]))
    path.write_bytes(blob)
    # Anything else than our own error fails the test.
    with suppress(WsiIpsError), TiffReader(path) as slide:
        for level in range(len(slide.info.levels)):
            assert slide.read((0, 0), level=level, size_px=(300, 200)).shape == (200, 300, 3)


@pytest.mark.parametrize("corner", [(0, 0), (37, 21)])
@pytest.mark.parametrize("apart", [False, True])
def test_a_stream_over_it_gives_what_regions_give(tmp_path, corner, apart):
    path = tmp_path / "a.ome.tif"
    write_ome(path, RGB, levels=2, apart=apart, compression="jpeg")
    places = [(corner[0] + x, corner[1] + y) for y in range(0, 256, 128) for x in range(0, 384, 128)]
    coords = PatchCoords(
        slide_id="a",
        l0_size=SIZE,
        slide_mpp=Mpp(0.5),
        patch_px=128,
        patch_mpp=Mpp(0.5),
        overlap_px=0,
        l0_patch=128.0,
        g_size=(3, 2),
        ids_N=np.arange(6),
        l0_xy_N2=np.array(places, np.int64),
        tissue_N=np.ones(6, np.float32),
    )
    with TiffReader(path) as slide:
        stream = PatchStream(slide, coords, config=StreamingConfig(batch=4, threads=2))
        got = np.concatenate([chunk.pixels_n3PP.permute(0, 2, 3, 1).numpy() for chunk in stream])
        wanted = np.stack([slide.read(xy, level=0, size_px=(128, 128)) for xy in places])
    assert got.shape == wanted.shape
    np.testing.assert_array_equal(got, wanted)
