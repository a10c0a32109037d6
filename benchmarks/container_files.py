"""Writes tiles that are encoded already in the containers of slide scanners, for benchmarks.

Each container is written small, with nothing in it but what OpenSlide asks for: what a scanner adds beside that
does not change a speed. Rules: CONTAINERS.md, whose sections are named here. NDPI, which is no grid of tiles, is
written by :mod:`benchmarks.ndpi_file`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import tifffile
from pydicom import Dataset, FileDataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit, generate_uid

from wsi_ips.drawn.containers import philips_xml
from wsi_ips.slides.base import RgbImage
from wsi_ips.units import Mpp, Size

UM_PER_CM = 1e4
APERIO_JPEG2000_RGB = 33005
WHOLE_SLIDE_MICROSCOPY = "1.2.840.10008.5.1.4.1.1.77.1.6"
SCN_NAMESPACE = "http://www.leica-microsystems.com/scn/2010/10/01"


@dataclass(frozen=True, slots=True)
class StoredLevel:
    """The tiles of one level as they are stored, row by row; empty bytes stand for a tile that is not written."""

    cols: int
    tile_size: Size
    tiles: Sequence[bytes]

    @property
    def rows(self) -> int:
        return len(self.tiles) // self.cols

    @property
    def size(self) -> Size:
        """(width, height) in whole tiles."""
        return self.cols * self.tile_size[0], self.rows * self.tile_size[1]

    @property
    def stored_bytes(self) -> int:
        return sum(map(len, self.tiles))

    def columns(self, first: int, end: int) -> "StoredLevel":
        """The part of the level that these columns of tiles are."""
        numbers = (row * self.cols + col for row in range(self.rows) for col in range(first, end))
        return StoredLevel(end - first, self.tile_size, [self.tiles[number] for number in numbers])


@dataclass(frozen=True, slots=True)
class ScannedArea:
    """A rectangle that was scanned. l0_xy: where its first pixel lies on the slide."""

    levels: Sequence[StoredLevel]
    l0_xy: tuple[int, int]


def write_tiff(path: Path, levels: Iterable[StoredLevel], *, mpp: Mpp) -> None:
    """A pyramid of JPEG tiles with chroma at half resolution; OpenSlide's "generic-tiff"."""
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for number, level in enumerate(levels):
            writer.write(
                **_jpeg_tiles(level, subsampling=(2, 2)),
                **_resolution(mpp, number),
                subfiletype=1 if number else 0,
                metadata=None,
                software="wsi_ips",
            )


def write_philips(path: Path, levels: Iterable[StoredLevel], *, count: int, mpp: Mpp) -> None:
    """Philips TIFF (section 1): ``count`` levels in whole tiles, some of them missing, a label and a macro.

    The last level is one tile: the macro is made from it.
    """
    last = None
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for number, level in enumerate(levels):
            last = level
            writer.write(
                **_jpeg_tiles(level, subsampling=(2, 2)),
                subfiletype=1 if number else 0,
                metadata=None,
                description=None if number else philips_xml(count, mpp),
                software="Philips DP v1.0",
            )
        assert last is not None
        whole = simplejpeg.decode_jpeg(last.tiles[0], "RGB")
        for name, picture in (("Macro", whole), ("Label", _label())):
            writer.write(picture, photometric="rgb", metadata=None, description=name, subfiletype=1)


def write_dicom(folder: Path, levels: Iterable[StoredLevel], *, mpp: Mpp) -> None:
    """DICOM whole slide images (section 2), a file per level: JPEG tiles of YBR_FULL_422, TILED_FULL."""
    folder.mkdir()
    series = generate_uid()
    for number, level in enumerate(levels):
        image = _dicom_image(level, series=series, mpp=mpp * 2**number)
        image.save_as(folder / f"level_{number}.dcm", enforce_file_format=True)


def write_ome_tiff(path: Path, levels: Sequence[StoredLevel], *, mpp: Mpp) -> None:
    """OME-TIFF (section 3): the smaller levels are SubIFDs of the first, where OpenSlide does not look."""
    physical = {f"PhysicalSize{axis}{unit}": value
                for axis in "XY" for unit, value in (("", float(mpp)), ("Unit", "µm"))}  # fmt: skip
    with tifffile.TiffWriter(path, bigtiff=True, ome=True) as writer:
        for number, level in enumerate(levels):
            writer.write(
                **_jpeg_tiles(level, subsampling=(2, 2)),
                **_resolution(mpp, number),
                subfiletype=1 if number else 0,
                subifds=None if number else len(levels) - 1,
                metadata=None if number else {"axes": "YXS", **physical},
            )


def write_scn(path: Path, areas: Sequence[ScannedArea], *, l0_size: Size, mpp: Mpp) -> None:
    """Leica SCN (section 4): a tiled macro, then each area's levels. ``l0_size``: the whole slide's."""
    levels = [(number, level) for area in areas for number, level in enumerate(area.levels)]
    width, height = areas[0].levels[-1].tile_size
    macro = StoredLevel(1, (width, height), [jpeg_422(np.full((height, width, 3), 230, np.uint8))])
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for number, level in [(0, macro), *levels]:
            writer.write(
                **_jpeg_tiles(level, subsampling=(2, 1)),
                **_resolution(mpp, number),
                metadata=None,
                description=None if level is not macro else _scn_xml(areas, macro, l0_size=l0_size, mpp=mpp),
            )


def write_svs_jpeg2000(path: Path, levels: Iterable[StoredLevel], *, mpp: Mpp) -> None:
    """Aperio SVS with JPEG 2000 tiles of RGB (section 6, compression 33005)."""
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for level in levels:
            width, height = level.size
            writer.write(
                iter(level.tiles),
                shape=(height, width, 3),
                dtype=np.uint8,
                tile=level.tile_size[::-1],
                photometric="rgb",
                compression=APERIO_JPEG2000_RGB,
                metadata=None,
                description=f"Aperio Image Library |AppMag = 40|MPP = {mpp}",
            )


def jpeg_420(pixels: RgbImage) -> bytes:
    """A tile as JPEG with chroma at half resolution across and down."""
    return bytes(simplejpeg.encode_jpeg(pixels, 80, "RGB", "420"))


def jpeg_422(pixels: RgbImage) -> bytes:
    """A tile as JPEG with chroma at half resolution across."""
    return bytes(simplejpeg.encode_jpeg(pixels, 80, "RGB", "422"))


def _jpeg_tiles(level: StoredLevel, *, subsampling: tuple[int, int]) -> dict[str, Any]:
    """What tifffile needs to be told of tiles that are YCbCr JPEGs already."""
    width, height = level.size
    return {
        "data": iter(level.tiles),
        "shape": (height, width, 3),
        "dtype": np.uint8,
        "tile": level.tile_size[::-1],
        "photometric": "ycbcr",
        "subsampling": subsampling,
        "compression": "jpeg",
    }


def _resolution(mpp: Mpp, number: int) -> dict[str, Any]:
    per_cm = UM_PER_CM / (mpp * 2**number)
    return {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER"}


def _label() -> RgbImage:
    """White paper with black bars."""
    label = np.full((200, 200, 3), 255, np.uint8)
    label[60:140, 20:180][:, np.arange(160) // 5 % 3 == 0] = 0
    return label


def _dicom_image(level: StoredLevel, *, series: str, mpp: float) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = WHOLE_SLIDE_MICROSCOPY
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = JPEGBaseline8Bit
    image = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    image.SOPClassUID, image.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    image.SeriesInstanceUID, image.Modality = series, "SM"
    image.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    image.Columns, image.Rows = level.tile_size
    image.TotalPixelMatrixColumns, image.TotalPixelMatrixRows = level.size
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PlanarConfiguration = 3, "YBR_FULL_422", 0
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 8, 8, 7, 0
    image.NumberOfFrames = len(level.tiles)
    image.DimensionOrganizationType = "TILED_FULL"
    measures, shared = Dataset(), Dataset()
    measures.PixelSpacing = [mpp / 1000, mpp / 1000]
    shared.PixelMeasuresSequence = [measures]
    image.SharedFunctionalGroupsSequence = [shared]
    image.PixelData = encapsulate(list(level.tiles))
    image["PixelData"].VR, image["PixelData"].is_undefined_length = "OB", True
    return image


def _scn_xml(areas: Sequence[ScannedArea], macro: StoredLevel, *, l0_size: Size, mpp: Mpp) -> str:
    """Sizes and places in nanometres. The macro shows all of the slide; OpenSlide asks for it beside two areas."""
    nm, ifd = round(mpp * 1000), 0
    images = []
    for levels, size, (x, y) in [
        ([macro], l0_size, (0, 0)),
        *((area.levels, area.levels[0].size, area.l0_xy) for area in areas),
    ]:
        dimensions = []
        for level in levels:
            dimensions.append(f'<dimension sizeX="{level.size[0]}" sizeY="{level.size[1]}" ifd="{ifd}"/>')
            ifd += 1
        images.append(
            f"<image><pixels>{''.join(dimensions)}</pixels>"
            f'<view sizeX="{size[0] * nm}" sizeY="{size[1] * nm}" offsetX="{x * nm}" offsetY="{y * nm}"/>'
            "<scanSettings><objectiveSettings><objective>40</objective></objectiveSettings>"
            "<illuminationSettings><illuminationSource>brightfield</illuminationSource></illuminationSettings>"
            "</scanSettings></image>"
        )
    return (
        f'<?xml version="1.0"?><scn xmlns="{SCN_NAMESPACE}">'
        f'<collection sizeX="{l0_size[0] * nm}" sizeY="{l0_size[1] * nm}">{"".join(images)}</collection></scn>'
    )
