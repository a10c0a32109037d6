"""Features of every patch, for other programs: encoding them, and the files that they are stored in.

The features that an encoder computes for every patch of a slide, stored in the format of CLAM, TRIDENT or STAMP.

:class:`FeatureExport` encodes and stores slides. :class:`FeaturesFolder` says where files are, by which settings
they were made, and lets only one process at a time write. :func:`save_rows` writes a tensor as ``torch.save``
does, row by row, so that the whole of it is never in memory: such a file is a ZIP archive whose parts are not
compressed; PyTorch lays it out with a hole where the numbers belong (``torch.serialization.skip_data``), and
they are filled in together with the checksum of the part.

The encoder whose features are stored: a checkpoint's or a named one, its tiling, and what identifies it.

Shape suffixes: N patches of a slide, n of a chunk, C width of a feature.
"""

import errno
import json
import logging
import os
import re
import shutil
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal
from zipfile import ZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsi_ips.config import EncoderConfig, TilingConfig, TransformConfig, UpsamplingConfig
from wsi_ips.datasets.feature_files import MADE_BY_ENCODER, name_of_features
from wsi_ips.errors import ConfigError, CoordsError, NotFinite
from wsi_ips.inference.made_from import MadeFrom
from wsi_ips.inference.results import MOST_NAMED
from wsi_ips.models.checkpoint import Unfilled, checkpoint_sha256, load_checkpoint
from wsi_ips.models.encoders.fitting import fitting_tiling
from wsi_ips.models.encoders.identity import EncoderIdentity
from wsi_ips.models.encoders.registry import code_file, code_sha256, entry_of
from wsi_ips.models.encoders.timm_encoder import TimmEncoder
from wsi_ips.models.encoders.weights import fingerprint_of_weights, weights_file
from wsi_ips.models.origins import as_stored, origin_here
from wsi_ips.progress import Progress, silent
from wsi_ips.slides.base import SlideInfo
from wsi_ips.storage.files import whole_file
from wsi_ips.storage.hdf5 import fixed_text, opened_hdf5, stated_text, streamed_hdf5
from wsi_ips.storage.held_folder import describe, difference, held
from wsi_ips.storage.location import Location
from wsi_ips.streaming.stream import PatchStream
from wsi_ips.tiling.coords import put_coords, read_coords, write_coords
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.tiling.patches import note_of_patches
from wsi_ips.tiling.stamp_files import FEATS, put_stamp
from wsi_ips.timeline import span, staged


@dataclass(frozen=True, slots=True)
class StoringEncoder:
    """An encoder with the tiling that it is given, and what tells it from others."""

    module: nn.Module
    width: int
    name: str
    tiling: TilingConfig
    settings: dict[str, Any]
    config_name: str
    """Its name in the configuration, by which it may be listed."""
    stored_px: bool = False
    """Patches that somebody laid out keep their own pixels, and the encoder resizes them."""

    @property
    def identity(self) -> EncoderIdentity:
        """What the files of its features say of it."""
        return EncoderIdentity.of_settings(self.name, self.settings)


def encoder_of_checkpoint(path: Path, *, allow_upsampling: bool) -> StoringEncoder:
    """The encoder of a model of ours, on patches as it was trained on. Raises :class:`ConfigError` for a model of
    stored features, :class:`CheckpointError` for a file that is none."""
    net, pipeline = load_checkpoint(path, advance_rng=False)
    if not isinstance(net.encoder, TimmEncoder):
        raise ConfigError(f"{path}: reads stored features, it has no encoder of its own")
    sha256 = checkpoint_sha256(path)
    tiling = UpsamplingConfig(allow_upsampling=allow_upsampling).added_to(pipeline.tiling)
    code = code_sha256(pipeline.model.encoder.name)
    return StoringEncoder(
        net.encoder,
        net.encoder.dim,
        f"wsi_ips_{sha256[:12]}",
        tiling,
        {"checkpoint": sha256, **({CODE: code} if code else {})},
        pipeline.model.encoder.name,
    )


def encoder_of_config(
    config: EncoderConfig, tiling: TilingConfig | None, *, laid_out: bool
) -> StoringEncoder:
    """An encoder by its config, and how slides are tiled for it.

    tiling: as it was asked for; None: the default. laid_out: whether somebody has laid the patches out; where no
    size is asked for either, they keep their own pixels if the encoder takes patches of any size.
    """
    # Parameters that a file gives need no random values first.
    from_file = Path(config.weights).is_file() and config.lora is None
    with torch.random.fork_rng(devices=[]), Unfilled(parameters=True) if from_file else nullcontext():
        # Random weights (``weights: none``) are the same whenever the command is started.
        torch.manual_seed(0)
        encoder = TimmEncoder(config)
    code = code_file(config.name)
    shown = config.name if code is None else f"{code.stem}_{config.name.rpartition(':')[2]}"
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", shown.removeprefix("hf-hub:"))
    weights = weights_file(config)
    # Another file under the same name is another encoder.
    sha256 = fingerprint_of_weights(weights) if weights else None
    settings = {"encoder": config.model_dump(mode="json"), "weights_sha256": sha256}
    if code is None and (origin := origin_here("encoder", config.name)) is not None:
        settings[PACKAGE] = as_stored(origin)  # and so is another version of its code
    if entry := entry_of(config.name):
        # What a name stands for may be corrected in a later version: then these are other features.
        settings["listed"] = {
            "transform": entry.transform.model_dump(mode="json"),
            "output": entry.output,
            "mean": list(entry.mean),
            "std": list(entry.std),
        }
    if code is not None:
        settings[CODE] = code_sha256(config.name)
    given = tiling or TilingConfig()
    stored_px = _resizes(config) and laid_out and not _sizes_set(given)
    if stored_px:
        return StoringEncoder(
            encoder,
            encoder.dim,
            name,
            given,
            {**settings, "patches": "as stored"},
            config.name,
            stored_px=True,
        )
    return StoringEncoder(encoder, encoder.dim, name, fitting_tiling(given, config), settings, config.name)


def _resizes(encoder: EncoderConfig) -> bool:
    """Whether the encoder takes patches of any size, as its authors' transform does."""
    own = encoder.transform == "own" and entry_of(encoder.name) is not None
    return own or isinstance(encoder.transform, TransformConfig)


def _sizes_set(tiling: TilingConfig) -> bool:
    return bool(tiling.model_fields_set & {"patch_px", "patch_mpp"})


logger = logging.getLogger(__name__)

CODE = "code_sha256"
"""The setting that says which content the file of an encoder ``FILE.py:FUNCTION`` has."""

PACKAGE = "package"
"""The setting that says which package offers an encoder of another package, and in which version."""

FeatureLayout = Literal["clam", "trident", "stamp"]
"""Whose HDF5 layout a file of features has."""

CHUNK_ROWS = 32
"""Rows of an HDF5 chunk, as in CLAM's files. HDF5 holds one chunk in memory."""
BLOCK_ROWS = 4096
"""Rows that are copied at a time."""
COORDS_BYTES, SPARE_BYTES = 32, 2**20
"""Bytes of the coordinates of a patch, and bytes that a disk needs to spare, for the check of room."""
READ_FROM = "wsi_ips_read_from"
"""The attribute, JSON, that says what the features were made from."""
_LOCAL_HEADER_BYTES, _CENTRAL_HEADER_BYTES = 30, 46
_DESCRIPTOR, _CENTRAL = b"PK\x07\x08", b"PK\x01\x02"


@dataclass(frozen=True, slots=True)
class FeaturesFolder:
    """Where the features of slides are stored.

    For CLAM these are ``h5_files/`` and ``pt_files/``, for TRIDENT ``features_<encoder>/`` beside ``patches/``,
    for STAMP ``<encoder>/``. ``run.json``, ``features.csv`` and the lock are kept with the features, so that
    several encoders can share a TRIDENT folder.

    Attributes:
        out: The folder that the user named.
        layout: ``clam``, ``trident`` or ``stamp``.
        encoder: Name of the encoder.
    """

    out: Path
    layout: FeatureLayout
    encoder: str

    @property
    def root(self) -> Path:
        """The folder with the features of this encoder."""
        below = {"clam": "", "trident": f"features_{self.encoder}", "stamp": self.encoder}
        return self.out / below[self.layout]

    @property
    def table(self) -> Path:
        """The table of what became of each slide."""
        return self.root / "features.csv"

    @property
    def description(self) -> Path:
        """The file that says by which settings the folder is filled."""
        return self.root / "run.json"

    @property
    def _files(self) -> Path:
        return self.root / "h5_files" if self.layout == "clam" else self.root

    @property
    def _tensors(self) -> Path:
        return self.root / "pt_files"

    def features(self, slide_id: str) -> Path:
        """The HDF5 file with the features of a slide."""
        return self._files / f"{slide_id}.h5"

    def tensor(self, slide_id: str) -> Path | None:
        """CLAM's ``.pt`` file of a slide. None for the others."""
        return self._tensors / f"{slide_id}.pt" if self.layout == "clam" else None

    def patches(self, slide_id: str) -> Path:
        """TRIDENT's file with the coordinates of the patches of a slide."""
        return self.out / "patches" / f"{slide_id}_patches.h5"

    def forget(self, slide_id: str) -> None:
        """Remove the features of a slide that an earlier start left."""
        for path in (self.features(slide_id), self.tensor(slide_id)):
            if path is not None:
                path.unlink(missing_ok=True)

    @contextmanager
    def claimed(self, settings: Mapping[str, Any], *, numerics: Mapping[str, bool]) -> Iterator[None]:
        """Hold the folder within the ``with`` block. ``run.json`` says by which settings it is filled.

        Args:
            settings: The settings that decide what is written, as JSON.
            numerics: How the device calculates (:func:`wsi_ips.streaming.device.numerics`).

        Raises:
            ConfigError: The folder was filled with other settings.
            ResultsError: Another process holds the folder. A process that died holds nothing.
        """
        below = {self._files, self._tensors, self.root} - {self.root}
        results = str(self._files.relative_to(self.root) / "*.h5")
        with held(self.root, below=below, undo=(self.table, self.description), results=results):
            told = partial(_told_settings, ours=settings)
            if different := difference(self.description, settings, theirs=told):
                raise ConfigError(
                    f"{self.root} holds features made with other settings ({different}); write to another folder, "
                    "or remove this one"
                )
            describe(self.description, "features", settings=dict(settings), numerics=dict(numerics))
            yield


def _told_settings(told: Mapping[str, Any], *, ours: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of a ``run.json``. Earlier versions did not say which package an encoder is of, nor which code
    the encoder of a checkpoint is: then it is taken for ours.
    """
    return {**{name: ours[name] for name in (PACKAGE, CODE) if name in ours}, **told["settings"]}


@dataclass(frozen=True, slots=True)
class StoredFeatures:
    """What is stored of a slide.

    Attributes:
        n_patches: Number of patches.
        bad_tiles: Names of tiles that were unreadable and are white.
        note: What else a reader of the features has to know.
    """

    n_patches: int
    bad_tiles: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureExport:
    """Encodes slides and stores their features.

    Attributes:
        encoder: Maps patches (n, 3, P, P) uint8 to features (n, ``width``). It is on its device already.
        width: C, the width of a feature.
        name: Name of the encoder, written into TRIDENT's files.
        identity: What tells the encoder from others, written into every file.
        folder: Where the features go.
        half: Store as float16. They are computed in float32 all the same.
    """

    encoder: nn.Module
    width: int
    name: str
    identity: EncoderIdentity
    folder: FeaturesFolder
    half: bool = False

    def done(self, slide_id: str, location: Location, now: MadeFrom) -> StoredFeatures | None:
        """What an earlier start stored of this slide, if it would be made from the same ``now``.

        None if it has to be made. If only CLAM's ``.pt`` file is missing, it is written.
        """
        try:
            with opened_hdf5(self.folder.features(slide_id)) as file:
                about = json.loads(stated_text(file.attrs, READ_FROM) or "")
                n_patches, width = file[name_of_features(file)].shape
            bad_tiles = tuple(str(name) for name in about["bad_tiles"])
            note = str(about.get("note", ""))
            same = about["slide_path"] == str(location)
            why = MadeFrom.from_json(about["made_from"]).difference(now, bad_tiles=bool(bad_tiles))
        except (OSError, RuntimeError, KeyError, AttributeError, TypeError, ValueError, OverflowError):
            return None  # not there, or not ours
        if not same or width != self.width:
            return None
        if why:
            logger.warning("features of slide %s are made again: %s", slide_id, why)
            return None
        self._write_missing_tensor(slide_id)
        return StoredFeatures(int(n_patches), bad_tiles, note)

    def write(
        self,
        stream: PatchStream,
        coords: PatchCoords,
        info: SlideInfo,
        *,
        made_from: MadeFrom,
        progress: Progress = silent,
    ) -> StoredFeatures:
        """Encode and store the patches of a slide chunk by chunk, in memory that does not grow with their
        number.

        Every file is complete or absent, and what was there before stays until everything that replaces it is
        complete.

        Args:
            stream: The patches.
            coords: Where they lie.
            info: The description of the slide.
            made_from: What is read, and how.
            progress: Shows how far it is.

        Raises:
            NotFinite: Features are NaN or infinite.
            CoordsError: TRIDENT's ``patches/`` holds other patches of this slide.
            SlideReadError: The slide cannot be read.
            OSError: The disk has not enough room.
        """
        if self.folder.layout == "trident":
            _share_coords(self.folder.patches(coords.slide_id), coords, info)
        path = self.folder.features(coords.slide_id)
        self._check_room(path.parent, len(coords))
        with self._with_tensor(coords.slide_id, path) as partial, streamed_hdf5(partial) as file:
            features = file.create_dataset(
                FEATS if self.folder.layout == "stamp" else "features",
                shape=(len(coords), self.width),
                maxshape=(None, self.width),
                chunks=(min(CHUNK_ROWS, len(coords)), self.width),
                dtype=np.float16 if self.half else np.float32,
            )
            self._put_coords(file, features, coords, info)
            with progress(coords.slide_id, total=len(stream)) as advance:
                first = 0
                for features_nC in self._encoded(stream):
                    with span("write results"):
                        features[first : first + len(features_nC)] = features_nC
                    first += len(features_nC)
                    advance()
            bad_tiles = tuple(stream.telemetry.bad_tiles)
            note = note_of_patches(coords)
            about = {
                "slide_path": str(info.path),
                "made_from": made_from.to_json(),
                "bad_tiles": bad_tiles[:MOST_NAMED],
                "note": note,
            }
            file.attrs[READ_FROM] = fixed_text(json.dumps(about))
            file.attrs[MADE_BY_ENCODER] = fixed_text(str(self.identity))
        return StoredFeatures(len(coords), bad_tiles, note)

    def _put_coords(self, file: Any, features: Any, coords: PatchCoords, info: SlideInfo) -> None:
        """Write where the patches lie, and what the layout says beside the features."""
        if self.folder.layout == "stamp":
            group = put_stamp(file, coords, encoder=self.name)
            put_coords(group, coords, layout="trident")
            return
        if self.folder.layout == "trident":
            features.attrs.update({"name": coords.slide_id, "savetodir": "features", "encoder": self.name})
        # CLAM stores the corners as 32-bit integers.
        dtype = np.int32 if self.folder.layout == "clam" else np.int64
        put_coords(file, coords, layout=self.folder.layout, info=info, dtype=dtype)

    def forget(self, slide_id: str) -> None:
        """Remove the features of a slide that are stored. Those that another program stored stay."""
        try:
            with opened_hdf5(self.folder.features(slide_id)) as file:
                ours = READ_FROM in file.attrs
        except (OSError, RuntimeError):  # absent, or unreadable for everybody
            ours = True
        if ours:
            self.folder.forget(slide_id)

    @contextmanager
    def _with_tensor(self, slide_id: str, path: Path) -> Iterator[Path]:
        """A temporary path for a new HDF5 file. Once it is closed, CLAM's ``.pt`` is made from it, and both
        replace the old files.

        An old ``.pt`` never lies beside a new HDF5 file, whenever the process dies, because a ``.pt`` that is
        missing is made again.
        """
        tensor = self.folder.tensor(slide_id)
        if tensor is None:
            with whole_file(path) as partial:
                yield partial
            return
        with whole_file(tensor) as partial_tensor, whole_file(path) as partial:
            yield partial
            self._save_tensor(partial, partial_tensor)
            tensor.unlink(missing_ok=True)

    def _check_room(self, folder: Path, n_patches: int) -> None:
        """Raise ``OSError`` if the disk has not enough room.

        HDF5 does not survive a disk that runs full under it, and these files are too large to be made in memory.
        """
        folder.mkdir(parents=True, exist_ok=True)
        bytes_each = self.width * (2 if self.half else 4) * (2 if self.folder.layout == "clam" else 1)
        if shutil.disk_usage(folder).free < n_patches * (bytes_each + COORDS_BYTES) + SPARE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))

    @torch.no_grad()
    def _encoded(self, stream: PatchStream) -> Iterator[NDArray[np.floating]]:
        for chunk in stream:
            with span("encode"):
                features_nC: Tensor = self.encoder(chunk.pixels_n3PP).float()
                if self.half:
                    features_nC = features_nC.half()
                if not torch.isfinite(features_nC).all():
                    raise NotFinite("features")
                stored_nC = features_nC.cpu().numpy()
            yield stored_nC

    def _write_missing_tensor(self, slide_id: str) -> None:
        path = self.folder.tensor(slide_id)
        if path is not None and not path.is_file():
            self._save_tensor(self.folder.features(slide_id), path)

    @staged("write results")
    def _save_tensor(self, features: Path, path: Path) -> None:
        """Write CLAM's ``.pt`` from the HDF5 file."""
        with opened_hdf5(features) as file:
            features_NC = file["features"]
            save_rows(
                path,
                (features_NC[first : first + BLOCK_ROWS] for first in range(0, len(features_NC), BLOCK_ROWS)),
                shape=features_NC.shape,
                dtype=torch.float16 if self.half else torch.float32,
            )


def _share_coords(path: Path, coords: PatchCoords, info: SlideInfo) -> None:
    """Write TRIDENT's coordinates, or check those that are there, since the features of several encoders share
    them.
    """
    if not path.exists():
        write_coords(path, coords, layout="trident", info=info)
        return
    there = read_coords(path)
    same: list[Any] = [np.array_equal(there.l0_xy_N2, coords.l0_xy_N2), there.l0_patch == coords.l0_patch]
    if not all(same):
        raise CoordsError(
            path,
            "holds other patches of this slide",
            "write to another folder, or read these patches with --from-coords",
        )


def save_rows(
    path: Path, blocks: Iterable[NDArray[np.floating]], *, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    """Write a tensor whose rows come in blocks, completely or not at all. ``torch.load`` reads it.

    Args:
        path: The file to write.
        blocks: The rows, in order.
        shape: (rows, width) of the tensor.
        dtype: Its type.

    Raises:
        ValueError: The rows are not of this shape and type.
    """
    rows, width = shape
    with whole_file(path) as partial:
        with partial.open("wb") as file, torch.serialization.skip_data():
            # The system gives no memory to an array that nobody writes to.
            torch.save(torch.empty(shape, dtype=dtype), file)
        with partial.open("r+b") as file:
            begin, size, central = _place_of_numbers(partial, file)
            file.seek(begin)
            checksum, left = 0, rows
            for block in blocks:
                if block.shape[1:] != (width,) or block.dtype != torch.empty(0, dtype=dtype).numpy().dtype:
                    raise ValueError(
                        f"rows are {block.dtype} of shape {block.shape[1:]}, not {dtype} of ({width},)"
                    )
                left -= len(block)
                data = np.ascontiguousarray(block).tobytes()
                if left < 0:
                    break
                file.write(data)
                checksum = zlib.crc32(data, checksum)
            if left:
                raise ValueError(f"there are {rows - left} rows, not {rows}")
            _write_checksum(file, begin + size, _DESCRIPTOR, 4, checksum)
            _write_checksum(file, central, _CENTRAL, 16, checksum)


def _place_of_numbers(path: Path, file: BinaryIO) -> tuple[int, int, int]:
    """Where the numbers begin, how many bytes they are, and where the index of the archive describes them."""
    with ZipFile(path) as archive:
        parts = archive.infolist()
        number = next(n for n, part in enumerate(parts) if part.filename.endswith("/data/0"))
        index = archive.start_dir
    part = parts[number]
    name, extra = _lengths(file, part.header_offset + 26, "<HH")
    begin = part.header_offset + _LOCAL_HEADER_BYTES + name + extra
    for _ in range(number):
        index += _CENTRAL_HEADER_BYTES + sum(_lengths(file, index + 28, "<HHH"))
    return begin, part.file_size, index


def _lengths(file: BinaryIO, place: int, layout: str) -> tuple[int, ...]:
    file.seek(place)
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


def _write_checksum(file: BinaryIO, record: int, signature: bytes, after: int, checksum: int) -> None:
    file.seek(record)
    if file.read(len(signature)) != signature:
        raise ValueError("this PyTorch lays its files out in another way")
    file.seek(record + after)
    file.write(struct.pack("<I", checksum))
