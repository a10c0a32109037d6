"""A disk that is full while a file is written: the message names the file, whatever library wrote it."""

import errno
import multiprocessing
import multiprocessing.connection
import os
import resource
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from PIL import Image
from safetensors.torch import save_file
from tifffile import TiffWriter

from tests.small_disk import PREFIX, remove_abandoned, small_disk
from wsi_ips.images.traffic_signs import make_signs
from wsi_ips.inference.feature_export import save_rows
from wsi_ips.storage.files import whole_file, whole_folder, whole_table
from wsi_ips.storage.hdf5 import streamed_hdf5, whole_hdf5
from wsi_ips.training.run_state import save_state

WRITERS = {
    "hdf5": "with whole_hdf5(path) as file: file['x'] = noise",
    "streamed hdf5": "with streamed_hdf5(path) as file: file['x'] = noise",
    "streamed hdf5 in chunks": "with streamed_hdf5(path) as file:\n"
    "      rows = file.create_dataset('x', shape=(64, 4000), chunks=(1, 4000), dtype='f8')\n"
    "      for row in range(64): rows[row] = noise[row]",
    "table": "with whole_table(path) as table: table.writerows(noise.tolist())",
    "png": "with whole_file(path) as partial: Image.fromarray(pixels).save(partial, format='PNG')",
    "jpegs": "make_signs(path, train=1, test=0, width_px=800, height_px=600)",
    "tiff": "with whole_file(path) as partial, TiffWriter(partial) as tiff: tiff.write(noise)",
    "tiff in tiles": "with whole_file(path) as partial, TiffWriter(partial, ome=True) as tiff: "
    "tiff.write(noise, tile=(16, 16), compression='zlib')",
    "npz": "with whole_file(path) as partial, partial.open('wb') as file: np.savez(file, noise)",
    "npy": "with whole_file(path) as partial, partial.open('wb') as file: np.save(file, noise)",
    "checkpoint": "with whole_file(path) as partial: save_file({'a': torch.from_numpy(noise)}, partial)",
    "training state": "save_state(path, net, torch.optim.SGD(net.parameters()), run='', state={})",
    "tensor": "save_rows(path, iter([noise]), shape=noise.shape, dtype=torch.float64)",
    "lines": "with whole_file(path) as partial: partial.write_text(str(noise.tolist()))",
    "zarr": "with whole_folder(path) as partial: "
    "zarr.open_group(partial, mode='w').create_array('0', data=noise, chunks=noise.shape, compressors=None)",
    "pictures": "with whole_folder(path) as partial: Image.fromarray(pixels).save(partial / '0.png')",
}
TOOLS = {
    "np": np, "torch": torch, "zarr": zarr, "Image": Image, "TiffWriter": TiffWriter, "save_file": save_file,
    "whole_file": whole_file, "whole_folder": whole_folder, "whole_table": whole_table, "whole_hdf5": whole_hdf5,
    "streamed_hdf5": streamed_hdf5, "make_signs": make_signs, "save_rows": save_rows, "save_state": save_state,
}  # fmt: skip
"""What the code of the writers uses."""


def write_all(folder: Path, limit: int) -> dict[str, str]:
    """What was said of each writer in this process, whose files may not exceed this many bytes from now on."""
    noise = np.random.default_rng(0).random((64, 4000))
    pixels = (noise.reshape(-1)[:240_000].reshape(400, 200, 3) * 255).astype(np.uint8)
    names = {**TOOLS, "noise": noise, "pixels": pixels, "net": torch.nn.Linear(300, 300)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    told = {}
    for name, code in WRITERS.items():
        try:
            exec(code, {**names, "path": folder / name})
            told[name] = "was written"
        except OSError as error:
            told[name] = f"{error.filename}|{error.strerror}"
        except BaseException as error:
            told[name] = f"{type(error).__name__}|{error}"
    return told


def _answer(folder: Path, limit: int, answers: "multiprocessing.connection.Connection") -> None:
    answers.send(write_all(folder, limit))


def written(folder: Path, *, limit: int) -> dict[str, str]:
    """What :func:`write_all` gives, in a process of its own: the limit cannot be lifted again."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(folder, limit, theirs))
    process.start()
    theirs.close()
    with ours:
        told: dict[str, str] = ours.recv()
    process.join()
    assert process.exitcode == 0
    return told


def check(told: dict[str, str], folder: Path, why: str) -> None:
    assert list(told) == list(WRITERS)
    for writer, said in told.items():
        # Pillow cuts a JPEG off without a word; these are files in a folder.
        name = f"{folder / writer}/Set1/0000000000.jpg" if writer == "jpegs" else str(folder / writer)
        assert said == f"{name}|{why}"
    assert not [path for path in folder.rglob("*") if path.is_file()], "nothing half written stays"


def test_what_may_grow_no_further_is_named(tmp_path: Path) -> None:
    check(written(tmp_path, limit=20_000), tmp_path, "File too large")


def test_a_full_disk_names_the_file() -> None:
    with small_disk(kilobytes=64) as disk:
        check(written(disk, limit=2**30), disk, "No space left on device")


def test_the_disk_of_a_killed_test_run_is_unmounted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with subprocess.Popen(["true"]) as ended:
        pass
    abandoned, held = (tmp_path / f"{PREFIX}{pid}_x" for pid in (ended.pid, os.getpid()))
    for folder in (abandoned, held):
        folder.mkdir()
    remove_abandoned()
    assert not abandoned.exists()
    assert held.exists()


def test_what_fails_where_there_is_room_is_told_as_it_is(tmp_path: Path) -> None:
    for writing in (whole_file, whole_folder):
        for error in (RuntimeError("as told"), OSError("as told"), OSError(errno.EIO, "as told")):
            with pytest.raises(type(error), match="as told"), writing(tmp_path / "a"):
                raise error
    assert not list(tmp_path.iterdir())


def test_a_quota_is_named(tmp_path: Path) -> None:
    for writing in (whole_file, whole_folder):
        with (
            pytest.raises(OSError, match=os.strerror(errno.EDQUOT)) as caught,
            writing(tmp_path / "a") as partial,
        ):
            raise OSError(errno.EDQUOT, "x", str(partial / "deep"))
        assert caught.value.filename == str(tmp_path / "a")
