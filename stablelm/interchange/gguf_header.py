"""The front of a GGUF file, read and checked before a byte of it is believed.

    magic  version  tensor count  entry count  |  metadata entries  |  tensor entries  |  aligned tensor data

Every length, count, type and offset is compared with the file's size when it is met, so nothing is allocated
on a number's word; strings and arrays stay where they are until asked for. A vocabulary of 50,277 tokens and
its merges is walked in 0.1 s. Rejected: `gguf.GGUFReader`, which believes the counts, makes arrays for each
token (6 s for that vocabulary), and raises whatever numpy does."""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stablelm.config import InputError

MAGIC = b"GGUF"
REMEDY = "Download or copy the file again."
_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_MOST_ENTRIES = 1 << 16
"""Metadata entries, and tensors; real files have dozens and hundreds."""
_DEEPEST = 4


def package() -> Any:
    """The `gguf` package, or the error that says how to install it."""
    try:
        import gguf
    except ImportError:
        raise InputError('GGUF files need the gguf package: pip install "stablelm[gguf]"') from None
    return gguf


def is_gguf(path: str | Path) -> bool:
    """Whether a file starts as a GGUF file does; its name does not matter."""
    path = Path(path)
    try:
        if not path.is_file():
            return False
        with open(path, "rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


@dataclass(frozen=True)
class GGUFTensor:
    """Where one tensor is, and what it is; `shape` has the rows first, as PyTorch's."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class _Text:
    at: int
    length: int


@dataclass(frozen=True)
class _Array:
    kind: int
    at: int
    count: int


class Header:
    """Metadata and tensor table of one file, which stays memory-mapped (privately: writing never reaches
    it)."""

    def __init__(self, path: str | Path) -> None:
        """`InputError` names what is wrong and where."""
        self.path = Path(path)
        self._types = package().constants
        try:
            if not self.path.is_file():
                raise InputError(f"{self.path}: no such file, or not a file.")
            size = self.path.stat().st_size
            if size < 24:
                raise InputError(f"{self.path}: {size} bytes are too few for a GGUF file. {REMEDY}")
            self.data: NDArray[np.uint8] = np.memmap(self.path, np.uint8, "c")
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror}).") from None
        self.size, self._at = self.data.size, 0
        self._bytes: Any = memoryview(self.data)  # type: ignore[arg-type]
        self.version, tensors, entries = self._start()
        self.values: dict[str, Any] = {}
        for number in range(entries):
            key = self._decode(self._span(f"metadata key {number}"), f"metadata key {number}")
            if key in self.values:
                raise self.broken(f"the metadata key {key!r} occurs twice")
            self.values[key] = self._value(self._unpack("I", key), key)
        self.alignment = self.integer("general.alignment", 32)
        if self.alignment % 8 or self.alignment & (self.alignment - 1) or not self.alignment:
            raise self.broken(f"general.alignment is {self.alignment}, a power of two from 8 on is wanted")
        self.tensors = self._tensor_table(tensors)

    def broken(self, what: str) -> InputError:
        """An error about this file's bytes."""
        return InputError(f"{self.path}: {what}. {REMEDY}")

    def _start(self) -> tuple[int, int, int]:
        if bytes(self._bytes[:4]) != MAGIC:
            raise InputError(f"{self.path}: not a GGUF file; one starts with the letters GGUF.")
        self._at = 4
        version = self._unpack("I", "version")
        if version and version % (1 << 16) == 0:
            raise InputError(
                f"{self.path}: a GGUF file for big-endian machines; convert it with gguf-convert-endian."
            )
        if version not in (2, 3):
            raise InputError(f"{self.path}: GGUF version {version}; versions 2 and 3 are read.")
        counts = self._unpack("Q", "tensor count"), self._unpack("Q", "metadata count")
        for count, what in zip(counts, ("tensors", "metadata entries"), strict=True):
            if count > _MOST_ENTRIES:
                raise self.broken(f"it promises {count:,} {what}; no model has more than {_MOST_ENTRIES:,}")
        return version, *counts

    def _take(self, count: int, what: str) -> int:
        if count > self.size - self._at:
            raise self.broken(
                f"truncated or damaged: {what} wants {count:,} bytes from byte {self._at:,} on, "
                f"the file has {self.size:,}"
            )
        at, self._at = self._at, self._at + count
        return at

    def _unpack(self, code: str, what: str) -> Any:
        at = self._take(struct.calcsize(f"<{code}"), what)
        if code == "?" and self._bytes[at] > 1:
            raise self.broken(f"{what!r} is neither true nor false")
        return struct.unpack_from(f"<{code}", self._bytes, at)[0]

    def _span(self, what: str) -> _Text:
        length = self._unpack("Q", what)
        return _Text(self._take(length, what), length)

    def _decode(self, span: _Text, what: str) -> str:
        try:
            return str(self._bytes[span.at : span.at + span.length], "utf-8")
        except UnicodeDecodeError:
            raise self.broken(f"{what} at byte {span.at:,} is not UTF-8") from None

    def _value(self, kind: int, key: str) -> Any:
        if kind in _SCALARS:
            return self._unpack(_SCALARS[kind], key)
        if kind == _STRING:
            return self._span(key)
        if kind != _ARRAY:
            raise self.broken(f"the value of {key!r} has the unknown type {kind}")
        inner, count = self._unpack("I", key), self._unpack("Q", key)
        array = _Array(inner, self._at, count)
        if inner in _SCALARS:
            self._take(count * struct.calcsize(f"<{_SCALARS[inner]}"), key)
        elif inner == _STRING:
            if count * 8 > self.size - self._at:
                self._take(count * 8, key)
            for _ in range(count):
                self._span(key)
        else:
            raise self.broken(f"the array {key!r} holds values of the unreadable type {inner}")
        return array

    def _tensor_table(self, count: int) -> dict[str, GGUFTensor]:
        found: dict[str, GGUFTensor] = {}
        for number in range(count):
            name = self._decode(self._span(f"tensor name {number}"), f"tensor name {number}")
            what = f"tensor {name!r}"
            if name in found:
                raise self.broken(f"{what} occurs twice")
            dimensions = self._unpack("I", what)
            if not 1 <= dimensions <= _DEEPEST:
                raise self.broken(f"{what} has {dimensions} dimensions; 1 to {_DEEPEST} are possible")
            shape = tuple(self._unpack("Q", what) for _ in range(dimensions))
            kind, offset = self._unpack("I", what), self._unpack("Q", what)
            try:
                kind = self._types.GGMLQuantizationType(kind)
            except ValueError:
                raise self.broken(f"{what} has the unknown type {kind}") from None
            block, nbytes = self._types.GGML_QUANT_SIZES[kind]
            if 0 in shape or shape[0] % block:
                raise self.broken(f"{what} of shape {list(shape)} cannot be {kind.name}")
            if offset % self.alignment:
                raise self.broken(f"{what} starts at {offset:,}, not a multiple of {self.alignment}")
            held = math.prod(shape) // block * nbytes
            found[name] = GGUFTensor(name, kind.name, shape[::-1], offset, held)
        start = -(-self._at // self.alignment) * self.alignment
        end, last = start, ""
        for tensor in sorted(found.values(), key=lambda tensor: tensor.offset):
            first = start + tensor.offset
            if first < end:
                raise self.broken(f"tensors {last!r} and {tensor.name!r} overlap")
            end, last = first + tensor.nbytes, tensor.name
            if end > self.size:
                raise self.broken(
                    f"truncated: tensor {last!r} ends at byte {end:,}, the file has {self.size:,}"
                )
            found[last] = GGUFTensor(last, tensor.type, tensor.shape, first, tensor.nbytes)
        return found

    def _get(self, key: str, default: Any, wanted: str, *kinds: type) -> Any:
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise self.broken(f"the metadata key {key!r} is missing")
            return default
        if type(value) not in kinds:
            raise self.broken(f"the metadata key {key!r} is not {wanted}")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number; with `default` None the key must be there. A list of equal numbers counts as one
        (a value for each layer)."""
        value = self._get(key, default, "a whole number", int, _Array)
        if isinstance(value, _Array):
            numbers = self.numbers(key)
            if numbers.size == 0 or numbers.dtype.kind not in "iu" or (numbers != numbers[0]).any():
                raise InputError(
                    f"{self.path}: {key!r} differs from layer to layer, which this network's cannot."
                )
            value = numbers[0]
        return int(value)

    def number(self, key: str, default: float | None = None) -> float:
        """A finite float, as the shortest decimal that gives the stored float32 (1e-05, not 9.99…e-06)."""
        value = self._get(key, default, "a number", float, int)
        if not math.isfinite(value):
            raise self.broken(f"the metadata key {key!r} is {value}")
        stored = isinstance(value, float) and float(np.float32(value)) == value
        return float(str(np.float32(value))) if stored else float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """A truth value."""
        return bool(self._get(key, default, "true or false", bool))

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._get(key, default, "a text", _Text, str)
        return self._decode(value, key) if isinstance(value, _Text) else str(value)

    def numbers(self, key: str) -> NDArray[Any]:
        """An array of numbers, as stored."""
        value = self._get(key, None, "a list of numbers", _Array)
        if value.kind == _STRING:
            raise self.broken(f"the metadata key {key!r} is not a list of numbers")
        dtype = np.dtype(f"<{_SCALARS[value.kind]}")
        return np.frombuffer(self._bytes, dtype, value.count, value.at)

    def texts(self, key: str) -> list[str]:
        """An array of strings."""
        value = self._get(key, None, "a list of texts", _Array)
        if value.kind != _STRING:
            raise self.broken(f"the metadata key {key!r} is not a list of texts")
        found, at = [], value.at
        for number in range(value.count):
            length = struct.unpack_from("<Q", self._bytes, at)[0]
            found.append(self._decode(_Text(at + 8, length), f"{key} {number}"))
            at += 8 + length
        return found
