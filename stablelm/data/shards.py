"""Document shards: what was read, in the form in which the loops over text want it.

A shard is one file of arrays (arrays.py): the texts, UTF-8 back to back, and for each document its id, the
length of its origin (a prefix of the id), its address, label, input file, line and size in the input. It is
mapped, so a document costs nothing until it is used. Shards are cut at about `SHARD_BYTES` of text; a longer
document is a shard of its own size."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stablelm.config import InputError
from stablelm.data.arrays import read_arrays, texts_arrays, texts_from, write_arrays
from stablelm.data.documents import Document
from stablelm.data.texts import Texts

SHARD_BYTES = 32 << 20
_STRINGS = ("texts", "ids", "urls", "labels")
_NUMBERS = {"origins": np.int32, "files": np.int32, "numbers": np.int64, "sizes": np.int64}


@dataclass(frozen=True)
class Shard:
    """n documents."""

    texts: Texts
    ids: Texts
    urls: Texts
    labels: Texts
    origins: NDArray[np.int32]
    """Bytes of the id that are its origin, by which documents are held out together, [n]."""
    files: NDArray[np.int32]
    """Which file of the piece that was read, [n]."""
    numbers: NDArray[np.int64]
    """Line, row or record in the file, from 1, [n]."""
    sizes: NDArray[np.int64]
    """Bytes in the unpacked input, as accounts count them, [n]."""

    @classmethod
    def open(cls, path: str | Path) -> "Shard":
        """Maps a shard; `InputError` when it is cut or damaged."""
        arrays = read_arrays(path)
        columns: dict[str, Any] = {name: texts_from(arrays, name, path) for name in _STRINGS}
        columns |= {name: arrays.get(name, ()) for name in _NUMBERS}
        if len({len(column) for column in columns.values()}) != 1:
            raise InputError(f"{path}: damaged: its arrays differ in length. Remove the work directory.")
        return cls(**columns)

    def __len__(self) -> int:
        return len(self.ids)

    def origin(self, number: int) -> str:
        """What a document is split by."""
        return self.ids.raw(number)[: int(self.origins[number])].decode()


class ShardWriter:
    """Writes documents to FOLDER/0000.docs, 0001.docs, …"""

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder, self.shard_bytes = folder, shard_bytes
        self.shards: list[dict[str, int]] = []
        """Documents and bytes of text of each shard."""
        self._clear()

    def _clear(self) -> None:
        self._strings: dict[str, list[bytes]] = {name: [] for name in _STRINGS}
        self._numbers: dict[str, list[int]] = {name: [] for name in _NUMBERS}
        self._bytes = 0

    def add(self, document: Document, file: int) -> None:
        """Appends a document of file number `file`."""
        text, name = document.text.encode(), document.id.encode()
        if self._bytes and self._bytes + len(text) > self.shard_bytes:
            self.close()
        for key, part in zip(
            _STRINGS, (text, name, document.url.encode(), document.label.encode()), strict=True
        ):
            self._strings[key].append(part)
        origin = document.origin.encode()
        assert name.startswith(origin), "an origin is a prefix of the id"
        for key, number in zip(_NUMBERS, (len(origin), file, document.number, document.size), strict=True):
            self._numbers[key].append(number)
        self._bytes += len(text)

    def close(self) -> None:
        """Writes what was added since the last shard."""
        if not self._numbers["files"]:
            return
        arrays: dict[str, NDArray[Any]] = {}
        for name, parts in self._strings.items():
            ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
            arrays |= texts_arrays(name, Texts(np.frombuffer(b"".join(parts), np.uint8), ends))
        arrays |= {name: np.array(self._numbers[name], dtype) for name, dtype in _NUMBERS.items()}
        write_arrays(self.folder / f"{len(self.shards):04d}.docs", arrays)
        self.shards.append({"documents": len(arrays["files"]), "text_bytes": self._bytes})
        self._clear()


def batches(shard: Shard, documents: int, size: int) -> Iterator[range]:
    """Runs of documents of about `size` bytes of text, at most `documents` each, in order."""
    first = 0
    while first < len(shard):
        limit = shard.texts.start(first) + size
        last = int(np.searchsorted(shard.texts.ends, limit, side="right"))
        last = min(max(last, first + 1), first + documents, len(shard))
        yield range(first, last)
        first = last
