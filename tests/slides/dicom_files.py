"""DICOM whole-slide images, written for a test by pydicom: 40 attributes, frames by our codecs' own encoders."""

import struct
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import simplejpeg
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.uid import UID, generate_uid

from tests.slides.tiff_files import SUBSAMPLING, Rgb, halved

WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
NATIVE, IMPLICIT, RLE = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.5"
JPEG, J2K_LOSSLESS, J2K = (f"1.2.840.10008.1.2.4.{number}" for number in (50, 90, 91))

COLOURS = {JPEG: "YBR_FULL_422", J2K_LOSSLESS: "YBR_RCT", J2K: "YBR_ICT"}

Change = Callable[[Dataset], None]


def write_series(
    folder: Path, image: Rgb, *, levels: int = 1, mpp: float | None = 0.5, suffix: str = ".dcm", **kind: Any
) -> list[Rgb]:
    """Write ``image`` and its halves as ``level0.dcm``, … of one series; ``kind``: see :func:`write_image`."""
    images = [image]
    for _ in range(levels - 1):
        images.append(halved(images[-1]))
    folder.mkdir(parents=True, exist_ok=True)
    for number, level in enumerate(images):
        side = None if mpp is None else mpp / 1000 * 2**number
        spacing = None if side is None else (side, side)
        write_image(folder / f"level{number}{suffix}", level, spacing=spacing, **kind)
    return images


def write_image(
    path: Path,
    image: Rgb,
    *,
    tile: tuple[int, int] = (128, 128),
    syntax: str = NATIVE,
    photometric: str | None = None,
    subsampling: str = "4:2:2",
    spacing: tuple[float, float] | None = (0.0005, 0.0005),
    kind: str = "ORIGINAL\\PRIMARY\\VOLUME\\NONE",
    series: str = "series",
    positions: bool = False,
    organization: str | None = "TILED_FULL",
    tiles: Sequence[int] | None = None,
    copies: Sequence[Rgb] = (),
    copy_items: Callable[[int], Dataset] = lambda number: Dataset(),
    table: str = "basic",
    pieces: int = 1,
    change: Change = lambda file: None,
) -> None:
    """Write one image.

    spacing: PixelSpacing in mm, of rows and columns. positions: each frame says where it belongs. tiles: numbers
    of those that are stored (None: all). copies: further images of the same size, whose frames follow, as other
    focal planes or optical paths; copy_items(n) adds to the description of the frames of the nth (0: the image).
    table: basic, none or extended. pieces: items a frame. change: last changes to the data set.
    """
    photometric = photometric or COLOURS.get(syntax, "RGB")
    height, width = image.shape[:2]
    cols, rows = -(-width // tile[0]), -(-height // tile[1])
    stored = range(cols * rows) if tiles is None else tiles
    blocks = [_block(each, tile, number, cols) for each in (image, *copies) for number in stored]
    file = _header(path, (width, height), tile, len(blocks), syntax, photometric)
    file.SeriesInstanceUID = uid(series)
    file.ImageType = kind
    if organization:
        file.DimensionOrganizationType = organization
    if spacing:
        file.SharedFunctionalGroupsSequence = [
            _items(PixelMeasuresSequence=[_items(PixelSpacing=list(spacing))])
        ]
    if positions:
        file.PerFrameFunctionalGroupsSequence = [
            _place(number % cols * tile[0], number // cols * tile[1], copy_items(copy))
            for copy, number in product(range(1 + len(copies)), stored)
        ]
    frames = [encoded(block, syntax, photometric, subsampling) for block in blocks]
    if syntax in (NATIVE, IMPLICIT):
        data = b"".join(frames)
        file.PixelData = data + b"\0" * (len(data) % 2)
    elif table == "extended":
        file.PixelData, file.ExtendedOffsetTable, file.ExtendedOffsetTableLengths = encapsulate_extended(
            frames
        )
    else:
        file.PixelData = encapsulate(frames, fragments_per_frame=pieces, has_bot=table == "basic")
    if "PixelData" in file:
        file["PixelData"].VR = "OW" if syntax == IMPLICIT else "OB"
        file["PixelData"].is_undefined_length = syntax not in (NATIVE, IMPLICIT)
    change(file)
    file.save_as(path, enforce_file_format=True)


def write_concatenation(folder: Path, image: Rgb, cuts: Sequence[int], **kind: Any) -> list[Path]:
    """Write one image as several files, cut before these frames."""
    whole = folder / "whole.dcm"
    write_image(whole, image, **kind)
    file = pydicom.dcmread(whole)
    whole.unlink()
    frames = list(pydicom.encaps.generate_frames(file.PixelData, number_of_frames=file.NumberOfFrames))
    places = list(file.get("PerFrameFunctionalGroupsSequence", []))
    starts, paths = [0, *cuts], []
    for number, (start, end) in enumerate(zip(starts, [*cuts, len(frames)], strict=True), 1):
        part = deepcopy(file)
        path = folder / f"part{9 - number}.dcm"  # names do not tell the order
        part.SOPInstanceUID = part.file_meta.MediaStorageSOPInstanceUID = uid(path.name)
        part.ConcatenationUID = uid("concatenation")
        part.InConcatenationNumber, part.InConcatenationTotalNumber = number, len(starts)
        part.ConcatenationFrameOffsetNumber = start
        part.NumberOfFrames = end - start
        if places:
            part.PerFrameFunctionalGroupsSequence = places[start:end]
        part.PixelData = encapsulate(frames[start:end])
        part.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def uid(name: str) -> UID:
    """The same unique identifier for the same name."""
    return generate_uid(entropy_srcs=[name])


def encoded(block: Rgb, syntax: str, photometric: str, subsampling: str = "4:2:2") -> bytes:
    """One frame as it is stored, of an even number of bytes."""
    data = _encoded(np.ascontiguousarray(block), syntax, photometric, subsampling)
    return data if syntax in (NATIVE, IMPLICIT) else data + b"\0" * (len(data) % 2)


def _encoded(block: Rgb, syntax: str, photometric: str, subsampling: str) -> bytes:
    if syntax == JPEG and photometric == "RGB":
        return bytes(imagecodecs.jpeg8_encode(block, 85, colorspace="rgb", outcolorspace="rgb"))
    if syntax == JPEG:
        return bytes(simplejpeg.encode_jpeg(block, 85, "RGB", SUBSAMPLING[subsampling][0]))
    if syntax in (J2K, J2K_LOSSLESS):
        exact = syntax == J2K_LOSSLESS
        return bytes(
            imagecodecs.jpeg2k_encode(
                block, codecformat="j2k", mct=photometric != "RGB", reversible=exact, level=0 if exact else 45
            )
        )
    return _run_lengths(block) if syntax == RLE else block.tobytes()


def _run_lengths(block: Rgb) -> bytes:
    segments = [
        b"".join(bytes(imagecodecs.packbits_encode(row.tobytes())) for row in block[..., channel])
        for channel in range(3)
    ]
    segments = [segment + b"\0" * (len(segment) % 2) for segment in segments]
    starts = np.cumsum([64, *(len(segment) for segment in segments)])[:3].tolist()
    return struct.pack("<16I", 3, *starts, *([0] * 12)) + b"".join(segments)


def _block(image: Rgb, tile: tuple[int, int], number: int, cols: int) -> Rgb:
    """A tile, beyond the image's edge filled with its last pixels."""
    height, width = image.shape[:2]
    row, col = divmod(number, cols)
    ys = np.minimum(np.arange(row * tile[1], (row + 1) * tile[1]), height - 1)
    xs = np.minimum(np.arange(col * tile[0], (col + 1) * tile[0]), width - 1)
    block: NDArray[np.uint8] = image[ys][:, xs]
    return block


def _header(
    path: Path, size: tuple[int, int], tile: tuple[int, int], frames: int, syntax: str, photometric: str
) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(WHOLE_SLIDE)
    meta.MediaStorageSOPInstanceUID = uid(str(path))
    meta.TransferSyntaxUID = UID(syntax)
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = WHOLE_SLIDE, meta.MediaStorageSOPInstanceUID
    file.Modality = "SM"
    file.Manufacturer = "a test"
    file.SamplesPerPixel, file.PhotometricInterpretation, file.PlanarConfiguration = 3, photometric, 0
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 8, 8, 7, 0
    file.Columns, file.Rows = tile
    file.TotalPixelMatrixColumns, file.TotalPixelMatrixRows = size
    file.NumberOfFrames = frames
    return file


def _place(x: int, y: int, more: Dataset) -> Dataset:
    """The functional groups of a frame whose top left is pixel (x, y)."""
    position = _items(ColumnPositionInTotalImagePixelMatrix=x + 1, RowPositionInTotalImagePixelMatrix=y + 1)
    if "ZOffsetInSlideCoordinateSystem" in more:
        position.ZOffsetInSlideCoordinateSystem = more.ZOffsetInSlideCoordinateSystem
    group = _items(PlanePositionSlideSequence=[position])
    if "OpticalPathIdentifier" in more:
        identifier = _items(OpticalPathIdentifier=more.OpticalPathIdentifier)
        group.OpticalPathIdentificationSequence = [identifier]
    return group


def _items(**elements: Any) -> Dataset:
    item = Dataset()
    for name, value in elements.items():
        setattr(item, name, value)
    return item


def optical_paths(*identifiers: str) -> list[Dataset]:
    """For OpticalPathSequence."""
    return [_items(OpticalPathIdentifier=each, ICCProfile=b"\0" * 128) for each in identifiers]


def undefined_lengths(file: Dataset) -> None:
    """Make every sequence and item of undefined length, as dcmtk may write them."""
    for element in file:
        if element.VR == "SQ":
            element.is_undefined_length = True
            for item in element.value:
                item.is_undefined_length_sequence_item = True
                undefined_lengths(item)


def set_all(**elements: Any) -> Change:
    """A change that sets these attributes, or deletes one that is given as None."""

    def change(file: Dataset) -> None:
        for name, value in elements.items():
            if value is None:
                delattr(file, name)
            else:
                setattr(file, name, value)

    return change


def in_turn(*changes: Change) -> Change:
    def change(file: Dataset) -> None:
        for each in changes:
            each(file)

    return change


def pydicom_frames(path: Path) -> Iterable[Rgb]:
    """The frames as pydicom decodes them, RGB."""
    return [np.asarray(frame) for frame in pydicom.pixels.iter_pixels(path)]
