"""Damage to stored numbers by one who knows their files: HDF5 and safetensors."""

import io
import struct
from collections.abc import Callable
from random import Random
from typing import Any

import h5py
import numpy as np

from tests.fuzz.odd_values import TEXTS, any_number, get, put
from tests.fuzz.text_mutators import json_value

HDF5_TYPES = ("i1", "i4", "i8", "u8", "f2", "f4", "f8", "S1", "S300", "?", "c8")


def hdf5_attribute(chance: Random, data: bytes) -> bytes:
    """One attribute becomes a number, text or array that it should not be; or goes, or a new one comes."""

    def change(file: Any) -> None:
        holders = [file, *(file[name] for name in file)]
        holder = chance.choice([each for each in holders if len(each.attrs)] or holders)
        name = chance.choice([*holder.attrs, "patch_size"])
        if chance.random() < 0.15:
            holder.attrs.pop(name, None)
            return
        kind = chance.choice(HDF5_TYPES)
        value = chance.choice((0, 1, -1, 3, 2.5, 1e308, 2**31, 2**62, float("nan"), float("inf")))
        shape = chance.choice(((), (), (1,), (2,), (3,), (2, 2), (0,), (3000,)))
        if chance.random() < 0.2:
            holder.attrs[name] = chance.choice([*TEXTS[:3], "abc", "5", ""])
            return
        holder.attrs[name] = _values(value, kind, shape)

    return _with_hdf5(data, change)


def hdf5_dataset(chance: Random, data: bytes) -> bytes:
    """One dataset gets another type, shape or content; or becomes a group, a link or nothing."""

    def change(file: Any) -> None:
        names = list(file)
        if not names:
            return
        name = chance.choice(names)
        held = file[name]
        attributes = dict(held.attrs)
        shape = getattr(held, "shape", ())
        what = chance.choice(("type", "shape", "values", "gone", "group", "soft", "claims", "text"))
        del file[name]
        if what == "group":
            file.create_group(name)
        elif what == "soft":
            file[name] = h5py.SoftLink(
                chance.choice(("/", f"/{name}", "/nothing", "/" + chance.choice(names)))
            )
        elif what == "claims":
            many = (chance.choice((10**6, 10**8, 2**40)), *shape[1:])
            file.create_dataset(name, many, "i8", chunks=(16, *shape[1:]) if shape else None)
        elif what == "text":
            file[name] = np.bytes_(
                chance.choice([b"{}", b"[]", b"[" * 3000, b"{", b'{"slide_id": NaN}', b"\xff"])
            )
        elif what != "gone":
            value = chance.choice((0, 1, -1, 2**31, 2**62, 1e300, float("nan"), float("-inf")))
            other = chance.choice(((), (0,), (1,), (5,), (5, 2), (5, 5), (0, 2), (2, 2, 2), (*shape, 1)))
            kind = chance.choice(HDF5_TYPES)
            file[name] = _values(value, kind, shape if what == "type" else other)
        if name in file and what in ("type", "shape", "claims", "values"):
            file[name].attrs.update(attributes)

    return _with_hdf5(data, change)


def _values(value: float, kind: str, shape: tuple[int, ...]) -> Any:
    with np.errstate(all="ignore"):
        if kind[0] == "S":
            return np.full(shape, str(value).encode(), kind)
        return np.full(shape, value, np.float64).astype(kind)


def _with_hdf5(data: bytes, change: Callable[[Any], None]) -> bytes:
    held = io.BytesIO(data)
    try:
        with h5py.File(held, "r+") as file:
            change(file)
    except Exception:  # an input that was damaged before, or what HDF5 does not take
        return data
    return held.getvalue()


def safetensors_header(chance: Random, data: bytes) -> bytes:
    """The JSON in front, or the eight bytes that say how long it is."""
    length = get(data, 0, "<Q")
    if chance.random() < 0.2 or length > len(data):
        return put(data, 0, "<Q", any_number(chance, "<Q"))
    header = json_value(chance, data[8 : 8 + length])
    return struct.pack("<Q", len(header)) + header + data[8 + length :]
