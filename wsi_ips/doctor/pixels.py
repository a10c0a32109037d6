"""Whether slides are read rightly here: small ones are drawn, stored in every container and codec, and read back.

:func:`pixel_checks` lists the checks. A codec whose library is missing is a warning that names its package.
"""

import importlib
import tempfile
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from wsi_ips.doctor.findings import Check, Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wsi_ips.slides.base import RgbImage

TIFF_MODULES = ("tifffile", "imagecodecs", "simplejpeg")
"""What reading a TIFF needs."""

SIZE = (700, 520)
"""Width and height of the drawn slide: its last column and row of tiles are ragged."""

TILE_PX = 256
"""Side of a stored tile."""

MPP = 0.5
"""µm per pixel of the drawn slide."""

REGIONS = ((0, 0, 700, 520), (200, 180, 130, 150), (620, 470, 80, 50))
"""What is read, (x, y, width, height): all of it, across four tiles, and the far corner."""

MOST_OFF = 4.0
"""Grey levels by which a lossy codec may differ from the drawing on average."""

DECODERS_OFF = 3
"""Grey levels by which two decoders of the same JPEG may differ at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """How a codec is tried.

    ``compression`` and ``options`` are tifffile's; ``library`` is the class of imagecodecs that says whether it is
    there; ``exact`` says that the pixels come back unchanged.
    """

    compression: str | int | None
    library: str | None = None
    exact: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)


CODECS: Mapping[str, Codec] = MappingProxyType(
    {
        "no compression": Codec(compression=None),
        "JPEG": Codec(
            compression="jpeg", exact=False, options={"photometric": "ycbcr", "subsampling": (2, 2)}
        ),
        "JPEG 2000": Codec(compression=34712, library="JPEG2K"),
        "JPEG 2000 (Aperio)": Codec(compression=33005, library="JPEG2K"),
        "LZW": Codec(compression="lzw", library="LZW", options={"predictor": True}),
        "Deflate": Codec(compression="zlib", library="ZLIB", options={"predictor": True}),
        "PackBits": Codec(compression="packbits", library="PACKBITS"),
        "LZMA": Codec(compression="lzma", library="LZMA"),
        "Zstandard": Codec(compression="zstd", library="ZSTD"),
        "WebP": Codec(compression="webp", library="WEBP"),
        "JPEG XL": Codec(compression="jpegxl", library="JPEGXL"),
    }
)
"""The codecs of stored tiles."""


def pixel_checks() -> list[Check]:
    """The checks of this module, in the order in which they are shown."""
    return [
        Check("pixels", openslide_and_ours),
        *(Check(f"codec {name}", codec_decodes, {"name": name}) for name in CODECS),
        *(Check(f"container {name}", container_reads, {"name": name}) for name in CONTAINERS),
    ]


def drawn() -> "RgbImage":
    """A picture that tells rows from columns and red from blue, (520, 700, 3) uint8; smooth, as tissue is."""
    import numpy as np

    width, height = SIZE
    y, x = np.mgrid[:height, :width]
    waves = 40 * np.sin(x / 17) * np.cos(y / 23)
    picture = np.stack([x * 200 / width + 20, y * 200 / height + 30, 128 + waves], axis=2)
    pixels: RgbImage = np.rint(picture).clip(0, 255).astype(np.uint8)
    return pixels


@contextmanager
def _slide_folder() -> "Iterator[Path]":
    with tempfile.TemporaryDirectory(prefix="wsi-ips-doctor-") as folder:
        yield Path(folder)


def openslide_and_ours() -> Finding:
    """OpenSlide and the reader of stored tiles both give the pixels that were drawn, and the same of a JPEG."""
    import numpy as np

    picture = drawn()
    with _slide_folder() as folder:
        exact, lossy = folder / "exact.tif", folder / "lossy.tif"
        write_tiff(exact, picture, CODECS["no compression"])
        write_tiff(lossy, picture, CODECS["JPEG"])
        for x, y, width, height in REGIONS:
            region = picture[y : y + height, x : x + width]
            for reader in ("openslide", "tiff"):
                pixels = _read(exact, (x, y, width, height), reader=reader)
                if not np.array_equal(pixels, region):
                    return _misread(reader, (x, y, width, height), int(_apart(pixels, region).max()))
                pixels = _read(lossy, (x, y, width, height), reader=reader)
                if _apart(pixels, region).mean() > MOST_OFF:
                    return _misread(reader, (x, y, width, height), int(_apart(pixels, region).max()))
        both = [_read(lossy, REGIONS[0], reader=reader) for reader in ("openslide", "tiff")]
        apart = int(_apart(*both).max())
    if apart > DECODERS_OFF:
        return Finding(
            "pixels",
            "warning",
            f"two decoders of the same JPEG differ by {apart} grey levels",
            "pip install --force-reinstall openslide-bin simplejpeg; do not mix results of two installations",
        )
    same = "the same" if not apart else f"the same up to {apart} grey levels"
    return Finding("pixels", "ok", f"OpenSlide and our own reader give what was drawn, and {same} of a JPEG")


def _misread(reader: str, region: tuple[int, int, int, int], off: int) -> Finding:
    x, y, width, height = region
    package = "openslide-bin" if reader == "openslide" else "imagecodecs simplejpeg tifffile"
    return Finding(
        "pixels",
        "fault",
        f"reader {reader} is off by up to {off} grey levels in {width}x{height} px at ({x}, {y})",
        f"pip install --force-reinstall {package}; believe no result of this installation",
    )


def _apart(one: "RgbImage", other: "RgbImage") -> Any:
    """Absolute differences, (height, width, 3) int."""
    import numpy as np

    return np.abs(one.astype(np.int16) - other.astype(np.int16))


def write_tiff(path: Path, picture: "RgbImage", codec: Codec, **more: Any) -> None:
    """Write a tiled TIFF of one level."""
    import tifffile

    settings: dict[str, Any] = {"photometric": "rgb", "metadata": None, **codec.options, **more}
    jpeg = codec.compression == "jpeg"  # tifffile would not turn RGB into YCbCr
    with tifffile.TiffWriter(path, ome=False) as writer:
        writer.write(
            _jpegs(picture) if jpeg else picture,
            shape=picture.shape,
            dtype=picture.dtype,
            tile=(TILE_PX, TILE_PX),
            compression=codec.compression,
            resolution=(1e4 / MPP, 1e4 / MPP),
            resolutionunit="CENTIMETER",
            **settings,
        )


def _jpegs(picture: "RgbImage") -> "Iterator[bytes]":
    """The tiles as JPEGs, row by row, filled up with the last pixels at the ragged edges."""
    import numpy as np
    import simplejpeg

    height, width = picture.shape[:2]
    beyond = (0, -height % TILE_PX), (0, -width % TILE_PX), (0, 0)
    padded = np.pad(picture, beyond, mode="edge")
    for y in range(0, height, TILE_PX):
        for x in range(0, width, TILE_PX):
            tile = np.ascontiguousarray(padded[y : y + TILE_PX, x : x + TILE_PX])
            yield simplejpeg.encode_jpeg(tile, 90, "RGB", "420")


def _read(path: Path, region: tuple[int, int, int, int], *, reader: str | None = None) -> "RgbImage":
    from wsi_ips.slides.registry import open_slide

    x, y, width, height = region
    with open_slide(path, reader=reader) as slide:
        return slide.read((x, y), level=0, size_px=(width, height))


def codec_decodes(name: str) -> Finding:
    """A slide that was stored by this codec comes back as it was drawn."""
    check, codec = f"codec {name}", CODECS[name]
    for module in TIFF_MODULES:
        if (missing := _missing(check, module)) is not None:
            return missing
    library = getattr(importlib.import_module("imagecodecs"), codec.library or "NONE", None)
    if codec.library and not getattr(library, "available", False):
        return _without(check, "imagecodecs", f"this imagecodecs has no {codec.library}")
    picture = drawn()
    with _slide_folder() as folder:
        path = folder / "tried.tif"
        write_tiff(path, picture, codec)
        return _compared(check, path, picture, exact=codec.exact, reader="tiff")


def _compared(check: str, path: Path, picture: "RgbImage", *, exact: bool, reader: str) -> Finding:
    """Read every region, and compare it with what was drawn."""
    for x, y, width, height in REGIONS:
        apart = _apart(
            _read(path, (x, y, width, height), reader=reader), picture[y : y + height, x : x + width]
        )
        if (exact and apart.any()) or apart.mean() > MOST_OFF:
            said = f"decodes wrongly: off by up to {apart.max()} grey levels at ({x}, {y})"
            fix = (
                "pip install --force-reinstall imagecodecs simplejpeg; believe no result of this installation"
            )
            return Finding(check, "fault", said, fix)
    return Finding(
        check, "ok", "decodes exactly" if exact else f"decodes, {apart.mean():.1f} grey levels off"
    )


def _missing(check: str, module: str, package: str | None = None) -> Finding | None:
    """A warning if a module cannot be imported, which names its package."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        return _without(check, package or module, f"{module} cannot be imported ({error})")
    return None


def _without(check: str, package: str, why: str) -> Finding:
    return Finding(check, "warning", f"cannot be read: {why}", f"pip install --upgrade '{package}'")


def container_reads(name: str) -> Finding:
    """A slide in this container is taken by the reader that is meant for it, and comes back as it was drawn."""
    container = CONTAINERS[name]
    check = f"container {name}"
    for module in container.modules:
        if (missing := _missing(check, module, container.package)) is not None:
            return missing
    picture = drawn()
    with _slide_folder() as folder:
        path = container.write(folder, picture)
        from wsi_ips.slides.registry import open_slide

        with open_slide(path) as slide:
            info = slide.info
        if (info.reader, info.vendor) != (container.reader, container.vendor):
            said = f"is taken for {info.vendor} by reader {info.reader}"
            return Finding(
                check, "fault", said, "remove packages that add readers of their own, and see again"
            )
        if container.states_mpp and (info.mpp is None or abs(info.mpp / MPP - 1) > 0.001):
            return Finding(check, "fault", f"its {MPP} µm per pixel are read as {info.mpp}", "report this")
        return _compared(check, path, picture, exact=container.exact, reader=container.reader)


def _write_aperio(folder: Path, picture: "RgbImage") -> Path:
    about = f"Aperio Image Library\n{SIZE[0]}x{SIZE[1]}|AppMag = 20|MPP = {MPP}"
    write_tiff(folder / "tried.svs", picture, CODECS["JPEG"], description=about)
    return folder / "tried.svs"


def _write_ome(folder: Path, picture: "RgbImage") -> Path:
    import tifffile

    path, unit = folder / "tried.ome.tif", "µm"
    about = {"axes": "YXS", "PhysicalSizeX": MPP, "PhysicalSizeY": MPP, "PhysicalSizeXUnit": unit,
             "PhysicalSizeYUnit": unit}  # fmt: skip
    with tifffile.TiffWriter(path, ome=True, bigtiff=True) as writer:
        writer.write(picture, tile=(TILE_PX, TILE_PX), photometric="rgb", compression="zlib", metadata=about)
    return path


def _write_zarr(folder: Path, picture: "RgbImage") -> Path:
    """OME-Zarr 0.5 of one level: https://ngff.openmicroscopy.org/0.5."""
    import zarr

    path = folder / "tried.ome.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=3)
    level = group.create_array("0", shape=(3, SIZE[1], SIZE[0]), chunks=(3, TILE_PX, TILE_PX), dtype="uint8")
    level[:] = picture.transpose(2, 0, 1)
    space = {"type": "space", "unit": "micrometer"}
    axes: Any = [{"name": "c", "type": "channel"}, {"name": "y", **space}, {"name": "x", **space}]
    scaled = [{"type": "scale", "scale": [1.0, MPP, MPP]}]
    dataset: Any = {"path": "0", "coordinateTransformations": scaled}
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [{"name": "tried", "axes": axes, "datasets": [dataset]}],
    }
    return path


def _write_dicom(folder: Path, picture: "RgbImage") -> Path:
    """A whole-slide image of uncompressed frames: DICOM PS3.3, A.32.8."""
    import numpy as np
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

    (width, height), side = SIZE, TILE_PX
    cols, rows = -(-width // side), -(-height // side)
    padded = np.pad(picture, ((0, rows * side - height), (0, cols * side - width), (0, 0)), mode="edge")
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.77.1.6")
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path = folder / "dicom" / "tried.dcm"
    path.parent.mkdir()
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.SeriesInstanceUID, file.Modality = generate_uid(), "SM"
    file.ImageType = "ORIGINAL\\PRIMARY\\VOLUME\\NONE"
    file.SamplesPerPixel, file.PhotometricInterpretation, file.PlanarConfiguration = 3, "RGB", 0
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 8, 8, 7, 0
    file.Columns, file.Rows, file.NumberOfFrames = side, side, cols * rows
    file.TotalPixelMatrixColumns, file.TotalPixelMatrixRows = width, height
    file.DimensionOrganizationType = "TILED_FULL"
    measures, shared = Dataset(), Dataset()
    measures.PixelSpacing = [MPP / 1000, MPP / 1000]
    shared.PixelMeasuresSequence = [measures]
    file.SharedFunctionalGroupsSequence = [shared]
    frames = padded.reshape(rows, side, cols, side, 3).swapaxes(1, 2)
    file.PixelData = np.ascontiguousarray(frames).tobytes()
    file["PixelData"].VR = "OB"
    file.save_as(path, enforce_file_format=True)
    return path


def _write_picture(folder: Path, picture: "RgbImage") -> Path:
    from PIL import Image

    Image.fromarray(picture).save(folder / "tried.png")
    return folder / "tried.png"


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """How a container is tried: what writes it, who has to read it, and which package it needs."""

    write: Callable[[Path, "RgbImage"], Path]
    reader: str
    vendor: str
    modules: tuple[str, ...]
    package: str | None = None
    exact: bool = True
    states_mpp: bool = True


CONTAINERS: Mapping[str, Container] = MappingProxyType(
    {
        "Aperio SVS": Container(
            write=_write_aperio, reader="tiff", vendor="aperio", modules=TIFF_MODULES, exact=False
        ),
        "OME-TIFF": Container(write=_write_ome, reader="tiff", vendor="ome-tiff", modules=TIFF_MODULES),
        "DICOM": Container(write=_write_dicom, reader="dicom", vendor="dicom", modules=("pydicom",)),
        "OME-Zarr": Container(
            write=_write_zarr,
            reader="ome-zarr",
            vendor="ome-zarr",
            modules=("zarr", "fsspec"),
            package="wsi_ips[zarr]",
        ),
        "PNG": Container(
            write=_write_picture,
            reader="image",
            vendor="png",
            modules=("PIL",),
            package="pillow",
            states_mpp=False,
        ),
    }
)
"""The containers that can be written here. NDPI, Ventana's, MIRAX and others only their scanners write."""
