"""The signatures of one shard on the disk, read where they are needed.

    40 bytes  "stablelm minhash", u64 hashes k, u64 documents n, u64 0
    n × u64   document numbers, ascending
    n × (k × u32, u32)   signature; CRC-32 of document number and signature

A row is found by binary search in the mapped numbers and read alone, about 3 µs; its CRC tells a changed row
as well as a wrong one. Nothing stays open or mapped between two reads, so neither the number of shards nor
their size shows in memory. Little-endian."""

import itertools
import mmap
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stablelm.config import InputError
from stablelm.data.deduplication.spill import Folders, UInt64, files_in
from stablelm.storage import atomic_file

SUFFIX = ".signatures"
_MAGIC = b"stablelm minhash"
_HEAD = struct.Struct("<16sQQQ")
_AGAIN = "Remove it and run again; only this shard's step is repeated."
_CHUNK = 4096


def write_signatures(path: str | Path, numbers: UInt64, signatures: NDArray[np.uint32]) -> None:
    """Writes signatures [n, k] of the documents `numbers` [n], ascending."""
    count, hashes = signatures.shape
    with atomic_file(path) as file:
        file.write(_HEAD.pack(_MAGIC, hashes, count, 0))
        file.write(numbers.astype("<u8").data)
        for first in range(0, count, _CHUNK):
            rows = np.zeros((min(_CHUNK, count - first), hashes + 1), "<u4")
            rows[:, :-1] = signatures[first : first + _CHUNK]
            for row, number in zip(rows, numbers[first : first + _CHUNK].tolist(), strict=True):
                row[-1] = zlib.crc32(row[:-1].data, _start(number))
            file.write(rows.data)


class SignatureFiles:
    """The signatures of all shards in some folders, by document number."""

    def __init__(self, folder: Folders, hashes: int) -> None:
        """`InputError` for a file that is cut or of other settings, and for two with the same documents."""
        self._folder, self._hashes = folder, hashes
        found = []
        for path in files_in(folder, SUFFIX):
            count = self._check(path)
            if count:
                with open(path, "rb") as file:
                    file.seek(_HEAD.size)
                    first = int.from_bytes(file.read(8), "little")
                    file.seek(_HEAD.size + 8 * (count - 1))
                    found.append((first, int.from_bytes(file.read(8), "little"), path, count))
        found.sort()
        for (_, last, before, _), (first, _, path, _) in itertools.pairwise(found):
            if last >= first:
                raise InputError(
                    f"{path}: its document {first} lies among those of {before.name}. Two shards have the "
                    "same documents, or one was renamed: remove the folder and run the step again."
                )
        self._files = found
        self._firsts = np.array([first for first, _, _, _ in found], np.uint64)

    def _check(self, path: Path) -> int:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(_HEAD.size)
        if head[:16] != _MAGIC[: len(head)]:
            raise InputError(f"{path}: not a signature file. {_AGAIN}")
        if len(head) < _HEAD.size:
            raise InputError(f"{path}: truncated within its header. {_AGAIN}")
        _, hashes, count, _ = _HEAD.unpack(head)
        if hashes != self._hashes:
            raise InputError(
                f"{path}: has {hashes} hashes a document, the settings say {self._hashes}. {_AGAIN}"
            )
        promised = _HEAD.size + count * (8 + 4 * (hashes + 1))
        if size != promised:
            word = "truncated" if size < promised else "longer than its header says"
            raise InputError(f"{path}: {word}: {promised:,} bytes promised, {size:,} there. {_AGAIN}")
        return int(count)

    def read(self, numbers: UInt64) -> NDArray[np.uint32]:
        """uint32 [n, hashes] of the documents `numbers` [n], in any order."""
        out = np.empty((len(numbers), self._hashes), np.uint32)
        which = np.searchsorted(self._firsts, numbers, side="right") - 1
        for place in np.unique(which).tolist():
            wanted = np.flatnonzero(which == place)
            if place < 0:
                raise self._lost(int(numbers[wanted[0]]))
            self._read(place, numbers, wanted, out)
        return out

    def _read(self, place: int, numbers: UInt64, wanted: NDArray[np.int64], out: NDArray[np.uint32]) -> None:
        _, _, path, count = self._files[place]
        size = 4 * (self._hashes + 1)
        with open(path, "rb", buffering=0) as file:
            with mmap.mmap(file.fileno(), _HEAD.size + 8 * count, access=mmap.ACCESS_READ) as mapped:
                known = np.frombuffer(mapped, "<u8", count, _HEAD.size)
                rows = np.searchsorted(known, numbers[wanted])
                there = rows < count
                there[there] = known[rows[there]] == numbers[wanted[there]]
                del known  # or the map could not be closed
            for at, row, found in zip(wanted.tolist(), rows.tolist(), there.tolist(), strict=True):
                number = int(numbers[at])
                if not found:
                    raise self._lost(number)
                file.seek(_HEAD.size + 8 * count + size * row)
                data = file.read(size)
                if zlib.crc32(data[:-4], _start(number)) != int.from_bytes(data[-4:], "little"):
                    raise InputError(
                        f"{path}: corrupt: the signature of document {number} does not have its checksum. "
                        f"{_AGAIN}"
                    )
                out[at] = np.frombuffer(data[:-4], "<u4")

    def _lost(self, number: int) -> InputError:
        return InputError(
            f"{self._folder}: no *{SUFFIX} file has document {number}, which a *.bands file beside them "
            "names. They are of two runs, or one is damaged: remove the folder and run the step again."
        )


def _start(number: int) -> int:
    """What a row's CRC begins with: its document."""
    return number % (1 << 32) ^ number >> 32
