"""Small sound inputs of every kind that the program reads, made here by the project's own writers.

A seed is called by its name alone, so that a stored finding can name the one that it was made of. The bytes are
the same each time, whatever the folder: with the same versions of the libraries that write them.
"""

import io
import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import chdir
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import imagecodecs
import numpy as np
import simplejpeg
from PIL import Image

from tests.fuzz.edits import Files, read_files
from tests.fuzz.seeds_of_runs import RUN_SEEDS
from tests.fuzz.seeds_of_text import TEXT_SEEDS
from tests.slides import dicom_files
from tests.slides.mirax_slide import MiraxSlide
from tests.slides.ndpi_files import tiled_level, whole_level, write_ndpi
from tests.slides.ome_files import write_ome
from tests.slides.philips_files import philips_xml, write_philips
from tests.slides.placed_files import BifArea, ScnArea, with_overlaps, write_bif, write_scn, write_trestle
from tests.slides.tiff_files import tissue_like, write_pyramid
from tests.slides.tiff_pages import Page, write_pages
from tests.slides.zarr_files import write_zarr

Write = Callable[[Path], Any]
"""Writes a seed's files below a folder."""

WIDTH, HEIGHT = 200, 150
DPI = (50800, 50800)
"""0.5 µm."""


def picture(width: int = WIDTH, height: int = HEIGHT) -> Any:
    """Strong colours with glass beside them, so that tissue is found."""
    image = tissue_like(width, height)
    image[:, -width // 4 :] = 245
    image[..., 1] //= 2
    return image


def one(name: str, write: Write) -> Write:
    """A seed of one file of this name."""
    return lambda folder: write(folder / name)


def _svs(path: Path) -> None:
    write_pyramid(path, picture(), tile=64, levels=2, tables_apart=True,
                  description="Aperio Image Library v1\r\n200x150|AppMag = 20|MPP = 0.4990")  # fmt: skip


def _philips(path: Path) -> None:
    xml = philips_xml([1, 2], label=tissue_like(20, 20), macro=tissue_like(30, 20))
    write_philips(path, picture(), factors=(1, 2), tile=64, xml=xml)


def _ventana(path: Path) -> None:
    mosaic = with_overlaps(picture(228, 178), (64, 64), (4, 2))
    write_bif(path, mosaic, [BifArea(4, 3)], overlap=(4, 2), tile=(64, 64))


def _trestle(path: Path) -> None:
    levels = [
        with_overlaps(picture(200, 150), (64, 64), (4, 2)),
        with_overlaps(picture(100, 75), (64, 64), (2, 1)),
    ]
    write_trestle(path, levels, overlaps="4 2 2 1", tile=64)


def _ndpi(path: Path) -> None:
    write_ndpi(path, [tiled_level(picture(256, 160), cols=2), tiled_level(picture(64, 40), lens=10.0),
                      whole_level(picture(96, 32), lens=-1.0)])  # fmt: skip


def _huron(path: Path) -> None:
    page = Page(picture(), tile=64, compression="lzw", mpp=0.5, extra_tags=[(271, 2, 0, "Huron X", True)])
    write_pages(path, [page, Page(picture(100, 75), tile=64, compression="lzw")])


def _argos(path: Path) -> None:
    xml = "<Argos.Scan.Metadata><MinZ>0</MinZ><MaxZ>0</MaxZ></Argos.Scan.Metadata>"
    page = Page(picture(), tile=64, compression="deflate", mpp=0.5, extra_tags=[(65000, 2, 0, xml, True)])
    write_pages(path, [page, Page(picture(100, 75), tile=64, compression="deflate")])


def _dicom(folder: Path, **kind: Any) -> None:
    dicom_files.write_series(folder / "series", picture(), levels=2, tile=(64, 64), **kind)


def _dicom_parts(folder: Path) -> None:
    (folder / "series").mkdir()
    dicom_files.write_concatenation(
        folder / "series", picture(), cuts=[3, 7], tile=(64, 64), syntax=dicom_files.JPEG
    )


def _mirax(folder: Path, **kind: Any) -> None:
    MiraxSlide(picture=picture(6 * 64, 4 * 48), levels=2, **kind).write(folder / "slide.mrxs")


def _zarr(folder: Path, **kind: Any) -> None:
    write_zarr(folder / "slide.zarr", picture(), chunk=64, **kind)


def _image(path: Path, **options: Any) -> None:
    Image.fromarray(picture()).save(path, **options)


def _tile(path: Path) -> None:
    block = np.ascontiguousarray(picture()[:64, :64])
    encode: Mapping[str, Callable[[], Any]] = {
        ".jpg": lambda: simplejpeg.encode_jpeg(block, 85, "RGB", "420"),
        ".j2k": lambda: imagecodecs.jpeg2k_encode(block, codecformat="j2k", level=45, mct=True),
        ".lzw": lambda: imagecodecs.lzw_encode(block.tobytes()),
        ".zlib": lambda: imagecodecs.zlib_encode(block.tobytes()),
        ".packbits": lambda: imagecodecs.packbits_encode(block.tobytes()),
        ".zstd": lambda: imagecodecs.zstd_encode(block.tobytes()),
        ".lzma": lambda: imagecodecs.lzma_encode(block.tobytes()),
        ".rle": lambda: dicom_files.encoded(block, dicom_files.RLE, "RGB"),
    }
    path.write_bytes(bytes(encode[path.suffix]()))


def _restart_jpeg(path: Path) -> None:
    out = io.BytesIO()
    Image.fromarray(picture()[:64, :64]).save(out, "JPEG", subsampling=1, restart_marker_blocks=2)
    path.write_bytes(out.getvalue())


SPARSE = {"positions": True, "organization": "TILED_SPARSE"}

SLIDE_SEEDS: Mapping[str, Write] = {
    "tiff/generic": one("s.tif", partial(write_pyramid, image=picture(), tile=64, levels=2)),
    "tiff/big_endian_lzw": one("s.tif", partial(write_pyramid, image=picture(), tile=64, levels=2,
                               compression="lzw", predictor=True, byteorder=">")),
    "tiff/big_deflate": one("s.tif", partial(write_pyramid, image=picture(), tile=64, compression="deflate",
                            bigtiff=True)),
    "tiff/svs": one("s.svs", _svs),
    "tiff/svs_jpeg2000": one("s.svs", partial(write_pyramid, image=picture(), tile=64, compression="jpeg2000",
                             description="Aperio x|MPP = 0.5")),
    "tiff/philips": one("s.tiff", _philips),
    "tiff/ome": one("s.ome.tif", partial(write_ome, image=picture(), levels=2, tile=64, compression="deflate")),
    "tiff/ome_channels": one("s.ome.tif", partial(write_ome, image=picture(), apart=True, tile=64)),
    "tiff/leica": one("s.scn", partial(write_scn, areas=[ScnArea(picture(), (10, 20))], l0_size=(300, 250),
                      tile=64)),
    "tiff/ventana": one("s.bif", _ventana),
    "tiff/trestle": one("s.tif", _trestle),
    "tiff/huron": one("s.tif", _huron),
    "tiff/argos": one("s.avs", _argos),
    "ndpi/small": one("s.ndpi", _ndpi),
    "dicom/jpeg": partial(_dicom, syntax=dicom_files.JPEG),
    "dicom/native": partial(_dicom, syntax=dicom_files.NATIVE),
    "dicom/rle": partial(_dicom, syntax=dicom_files.RLE),
    "dicom/jpeg2000": partial(_dicom, syntax=dicom_files.J2K_LOSSLESS),
    "dicom/sparse": partial(_dicom, syntax=dicom_files.JPEG, **SPARSE),
    "dicom/extended": partial(_dicom, syntax=dicom_files.JPEG, table="extended"),
    "dicom/undefined": partial(_dicom, syntax=dicom_files.JPEG, table="none", change=dicom_files.undefined_lengths,
                               **SPARSE),
    "dicom/parts": _dicom_parts,
    "mirax/plain": _mirax,
    "mirax/stitching": partial(_mirax, positions="stitching"),
    "mirax/no_positions": partial(_mirax, positions=None, jitter=0),
    "zarr/version2": partial(_zarr, version="0.4"),
    "zarr/version3": _zarr,
    "zarr/sharded": partial(_zarr, shard=128, levels=1),
    "image/png": one("s.png", partial(_image, dpi=DPI)),
    "image/jpeg": one("s.jpg", partial(_image, dpi=DPI)),
    "image/tiff": one("s.tif", partial(_image, compression="tiff_lzw", dpi=DPI)),
    "codec/jpeg": one("tile.jpg", _tile),
    "codec/restart": one("restart.jpg", _restart_jpeg),
    **{f"codec/{kind}": one(f"tile.{kind}", _tile)
       for kind in ("j2k", "lzw", "zlib", "packbits", "zstd", "lzma", "rle")},
}  # fmt: skip

SEEDS: Mapping[str, Write] = MappingProxyType({**SLIDE_SEEDS, **TEXT_SEEDS, **RUN_SEEDS})


@cache
def seed(name: str) -> Files:
    """The seed's files; what the program is given comes first."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        SEEDS[name](Path())
        found = read_files(Path(), _first(Path()))
    return MappingProxyType(_smaller(found))


def _first(folder: Path) -> str:
    """A file before a folder: of MIRAX the .mrxs is what the program is given."""
    return min(folder.iterdir(), key=lambda path: (path.name != "run", path.is_dir(), path.name)).name


def _smaller(files: dict[str, bytes]) -> dict[str, bytes]:
    """JSON without indents: an edit of one value is then a short one."""
    return {
        name: json.dumps(json.loads(data)).encode()
        if name.endswith((".json", ".zattrs", ".zarray"))
        else data
        for name, data in files.items()
    }
