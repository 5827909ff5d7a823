"""Arrays in a file, memory-mapped back: what the stages hand to each other.

The layout is safetensors' (8 bytes: length of the header; the header, JSON: name → dtype, shape, offsets; the
arrays), so other programs can look. Arrays begin at multiples of 8 bytes, the widest first. Opening checks
every length against the size of the file and costs microseconds; nothing is read before it is used. Rejected:
`.npz` (is not mapped), Parquet (an extra, which the plain way from text to tokens does without)."""

import json
import mmap
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stablelm.config import InputError
from stablelm.data.texts import Texts

_DTYPES = {"U8": "|u1", "BOOL": "|b1", "I16": "<i2", "U16": "<u2", "I32": "<i4", "F32": "<f4", "I64": "<i8",
           "U64": "<u8", "F64": "<f8"}  # fmt: skip
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_REMEDY = "Remove the work directory that holds it, and run again."


def write_arrays(path: str | Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Writes arrays by name; not atomic: for files inside a directory that is."""
    ordered = sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize)
    header: dict[str, Any] = {}
    at = 0
    for name, array in ordered:
        end = at + array.nbytes
        header[name] = {
            "dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [at, end],
        }  # fmt: skip
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, array in ordered:
            file.write(np.ascontiguousarray(array).data)


def read_arrays(path: str | Path) -> dict[str, NDArray[Any]]:
    """The arrays of a file, read-only views of the mapped file; `InputError` when it is cut or damaged."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file. {_REMEDY}") from None
    except ValueError:
        raise InputError(f"{path}: truncated: it is empty. {_REMEDY}") from None
    try:
        (length,) = struct.unpack_from("<Q", data)
        header = json.loads(data[8 : 8 + length])
        found, last = {}, 0
        for name, about in header.items():
            dtype, (start, end) = np.dtype(_DTYPES[about["dtype"]]), about["data_offsets"]
            count = int(np.prod(about["shape"], dtype=np.int64))
            if start != last or end - start != count * dtype.itemsize:
                raise ValueError(f"offsets of {name}")
            found[name] = np.frombuffer(data, dtype, count, 8 + length + start).reshape(about["shape"])
            last = end
        if 8 + length + last != len(data):
            raise ValueError(f"{8 + length + last:,} bytes promised, {len(data):,} there")
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise InputError(f"{path}: truncated or damaged ({error}). {_REMEDY}") from None
    return found


def texts_arrays(name: str, texts: Texts) -> dict[str, NDArray[Any]]:
    """Texts as two arrays, `NAME.data` and `NAME.ends`."""
    return {f"{name}.data": texts.data, f"{name}.ends": texts.ends}


def texts_from(arrays: Mapping[str, NDArray[Any]], name: str, path: str | Path) -> Texts:
    """The texts that `texts_arrays` named; `InputError` when their ends do not fit their bytes."""
    try:
        data, ends = arrays[f"{name}.data"], arrays[f"{name}.ends"]
    except KeyError as error:
        raise InputError(f"{path}: has no array {error}. {_REMEDY}") from None
    last = int(ends[-1]) if len(ends) else 0
    if last != len(data) or (len(ends) and (int(ends[0]) < 0 or (np.diff(ends) < 0).any())):
        raise InputError(f"{path}: damaged: the ends of {name!r} do not fit its bytes. {_REMEDY}")
    return Texts(data, ends)


def take(texts: Texts, rows: Sequence[int] | NDArray[np.int64]) -> Texts:
    """Some of the texts, in the order of `rows`."""
    parts = [texts.raw(int(row)) for row in rows]
    ends = np.cumsum([len(part) for part in parts], dtype=np.int64) if parts else np.zeros(0, np.int64)
    return Texts(np.frombuffer(b"".join(parts), np.uint8), ends)
