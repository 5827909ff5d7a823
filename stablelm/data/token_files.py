"""Token files as GPT-NeoX and Megatron-LM read them: PREFIX.bin holds ids, PREFIX.idx where documents lie.

    .bin   token ids back to back, little-endian, no header
    .idx   0   9 bytes  "MMIDIDX\\0\\0"
           9   u64      version = 1
           17  u8       dtype code: 1 u8, 2 i8, 3 i16, 4 i32, 5 i64, 8 u16
           18  u64      N, sequences
           26  u64      D, length of the document index
           34  N × i32  tokens of each sequence
               N × i64  byte offset of each sequence in .bin
               D × i64  document index: first sequence of each document, then N
               N × i8   modes; only in Megatron's multimodal files, ignored

We write one sequence per document, so here a document is a sequence. Codes 6 and 7 are floats (and swapped
between NeoX and Megatron): refused. The index says neither which tokenizer made the ids nor whether documents
end in EOD; the manifest does. Both files are memory-mapped. Opening checks every length and offset against
the sizes of the files before anything is allocated; it reads 12 bytes a document, about 0.1 s for 10
million."""

import bisect
import mmap
import os
import struct
import warnings
from array import array
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stablelm.config import InputError
from stablelm.storage import atomic_file

MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")  # 34 bytes: magic, version, dtype code, N, D
_DTYPES = {1: "|u1", 2: "|i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_CHUNK = 1 << 20
_REBUILD = "Rebuild it with `stablelm data prepare`, or restore the .bin and .idx that belong together."


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """GPT-NeoX's rule: uint16 below 65,500 ids, else int32."""
    return np.dtype("<u2" if vocab_size < 65_500 else "<i4")


class TokenFileWriter:
    """Writes PREFIX.bin document by document, and PREFIX.idx on `close`; without its .idx a .bin is not a
    token file.

    As a context manager, an error inside leaves no .idx and removes the .bin."""

    def __init__(self, prefix: str | Path, *, vocab_size: int | None = None, dtype: Any = None) -> None:
        assert (vocab_size is None) != (dtype is None), "give the vocabulary's size or the dtype"
        self.prefix = Path(prefix)
        self.dtype = token_dtype(vocab_size) if vocab_size is not None else np.dtype(dtype).newbyteorder("<")
        codes = [code for code, name in _DTYPES.items() if np.dtype(name) == self.dtype]
        if not codes:
            raise InputError(f"{prefix}: a token file cannot hold {self.dtype}; use uint16 or int32.")
        self._code = codes[0]
        self._top = int(np.iinfo(self.dtype).max) if vocab_size is None else vocab_size - 1
        self._sizes = array("i")
        self.num_tokens = 0
        Path(f"{prefix}.idx").unlink(missing_ok=True)  # it would describe another .bin
        self._file = open(f"{prefix}.bin", "wb")  # noqa: SIM115 (closed by close or __exit__)

    def add(self, ids: ArrayLike) -> None:
        """Appends one document, ids [n]; `InputError` for an id that vocabulary or dtype do not hold."""
        values = np.asarray(ids)
        if values.size:
            assert values.dtype.kind in "iu", "ids are integers"
            low, high = int(values.min()), int(values.max())
            if low < 0 or high > self._top:
                raise InputError(
                    f"{self.prefix}: document {len(self._sizes)} has the id {low if low < 0 else high}; ids "
                    f"go from 0 to {self._top:,}. Was it encoded with another tokenizer?"
                )
        if values.size >= 1 << 31:
            raise InputError(
                f"{self.prefix}: a document of {values.size:,} tokens; the format holds 2³¹ − 1. Split it."
            )
        self._file.write(values.astype(self.dtype, casting="unsafe").tobytes())
        self._sizes.append(values.size)
        self.num_tokens += int(values.size)

    def close(self) -> None:
        """Flushes .bin to the disk, then writes .idx."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        sizes = np.frombuffer(self._sizes, dtype=np.int32) if self._sizes else np.zeros(0, np.int32)
        ends = np.cumsum(sizes, dtype=np.int64) * self.dtype.itemsize
        with atomic_file(f"{self.prefix}.idx") as file:
            file.write(_HEADER.pack(MAGIC, 1, self._code, len(sizes), len(sizes) + 1))
            file.write(sizes.astype("<i4").tobytes())
            file.write((ends - sizes.astype(np.int64) * self.dtype.itemsize).astype("<i8").tobytes())
            file.write(np.arange(len(sizes) + 1, dtype="<i8").tobytes())

    def __enter__(self) -> "TokenFileWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()
            Path(f"{self.prefix}.bin").unlink(missing_ok=True)


class TokenFile:
    """A checked, memory-mapped pair PREFIX.bin / PREFIX.idx, read as one stream of tokens or by document."""

    def __init__(self, prefix: str | Path) -> None:
        """`prefix`: the common name, or that of either file. `InputError` names the file and its fault."""
        text = str(prefix)
        self.prefix = text[:-4] if text.endswith((".bin", ".idx")) else text
        index, data = Path(f"{self.prefix}.idx"), Path(f"{self.prefix}.bin")
        for path, other in ((index, data), (data, index)):
            if not path.is_file():
                raise InputError(
                    f"{path}: no such file. A token file is a pair, {data.name} and {index.name}. {_REBUILD}"
                )
            if not os.access(path, os.R_OK):
                raise InputError(f"{path}: may not be read, unlike {other.name}. Change its permissions.")
        size = index.stat().st_size
        sequences, documents = self._read_header(index, size)
        self.num_documents: int = sequences
        """Documents, one sequence each."""
        raw = _mapped(index)
        self.sizes: NDArray[np.int32] = np.frombuffer(raw, "<i4", sequences, 34)
        """Tokens of each document, [documents]."""
        self._offsets: NDArray[np.int64] = np.frombuffer(raw, "<i8", sequences, 34 + 4 * sequences)
        self._check_layout(index, data)
        self._check_document_index(index, np.frombuffer(raw, "<i8", documents, 34 + 12 * sequences))
        self._ids: NDArray[Any] = np.frombuffer(_mapped(data), self.dtype)

    def _read_header(self, index: Path, size: int) -> tuple[int, int]:
        with open(index, "rb") as file:
            header = file.read(_HEADER.size)
        if header[:8] == b"TNTIDX\x00\x00":
            raise InputError(
                f"{index}: GPT-NeoX's old 'cached' format. Make it again with `--dataset-impl mmap`."
            )
        if header[:9] != MAGIC[: len(header)]:
            raise InputError(f"{index}: not a token index: it does not begin with MMIDIDX. {_REBUILD}")
        if len(header) < _HEADER.size:
            raise InputError(
                f"{index}: truncated: the header takes {_HEADER.size} bytes, the file has {size}. {_REBUILD}"
            )
        _, version, code, sequences, documents = _HEADER.unpack(header)
        if version != 1:
            raise InputError(f"{index}: format version {version}; only version 1 is known.")
        if code in (6, 7):
            raise InputError(
                f"{index}: dtype code {code} is a floating-point type; tokens are integers. {_REBUILD}"
            )
        if code not in _DTYPES:
            raise InputError(f"{index}: unknown dtype code {code}; known: {sorted(_DTYPES)}. {_REBUILD}")
        self.dtype: np.dtype[Any] = np.dtype(_DTYPES[code])
        promised = _HEADER.size + 12 * sequences + 8 * documents
        if size < promised:
            raise InputError(
                f"{index}: truncated: the header ({sequences:,} sequences, {documents:,} entries in the "
                f"document index) promises {promised:,} bytes, the file has {size:,}. {_REBUILD}"
            )
        if size not in (promised, promised + sequences):  # the latter with Megatron's modes
            raise InputError(
                f"{index}: its header promises {promised:,} bytes, the file has {size:,}. {_REBUILD}"
            )
        return sequences, documents

    def _check_layout(self, index: Path, data: Path) -> None:
        item, end = self.dtype.itemsize, 0
        for first in range(0, self.num_documents, _CHUNK):
            sizes = self.sizes[first : first + _CHUNK].astype(np.int64)
            if sizes.min() < 0:
                wrong = int(np.argmax(sizes < 0))
                raise InputError(
                    f"{index}: document {first + wrong} has the length {sizes[wrong]}. {_REBUILD}"
                )
            offsets = end + (np.cumsum(sizes) - sizes) * item
            differs = offsets != self._offsets[first : first + _CHUNK]
            if differs.any():
                wrong = int(np.argmax(differs))
                raise InputError(
                    f"{index}: document {first + wrong} is to begin at byte "
                    f"{self._offsets[first + wrong]:,}; by the lengths before it, it begins at "
                    f"{offsets[wrong]:,}. {_REBUILD}"
                )
            end += int(sizes.sum()) * item
        self.num_tokens: int = end // item
        """Tokens of all documents together."""
        actual = data.stat().st_size
        if actual != end:
            word = "truncated" if actual < end else "longer than its index"
            raise InputError(
                f"{data}: {word}: the index promises {end:,} bytes, the file has {actual:,}. {_REBUILD}"
            )

    def _check_document_index(self, index: Path, starts: NDArray[np.int64]) -> None:
        last = 0
        for first in range(0, len(starts), _CHUNK):
            chunk = starts[first : first + _CHUNK].astype(np.int64)
            if (first == 0 and chunk[0] != 0) or chunk[0] < last or (np.diff(chunk) < 0).any():
                raise InputError(f"{index}: the document index does not rise from 0. {_REBUILD}")
            last = int(chunk[-1])
        if not len(starts) or last > self.num_documents:
            raise InputError(
                f"{index}: the document index ends at {last:,}, there are {self.num_documents:,} sequences. "
                f"{_REBUILD}"
            )
        if last < self.num_documents:
            warnings.warn(
                f"{index}: the document index covers {last:,} of {self.num_documents:,} sequences, as in "
                "files merged by GPT-NeoX; each sequence is taken as a document",
                stacklevel=3,
            )

    def tokens(self, start: int, count: int) -> NDArray[Any]:
        """`count` tokens of the documents end to end, from position `start`: a read-only view, [count]."""
        if start < 0 or count < 0 or start + count > self.num_tokens:
            raise IndexError(f"{self.prefix}.bin: tokens {start} to {start + count} of {self.num_tokens:,}")
        return self._ids[start : start + count]

    def document(self, number: int) -> NDArray[Any]:
        """The tokens of one document, EOD included if it was written: a read-only view, [tokens]."""
        return self.tokens(self.document_start(number), int(self.sizes[number]))

    def document_start(self, number: int) -> int:
        """Position of a document's first token in the stream."""
        if not 0 <= number < self.num_documents:
            raise IndexError(f"{self.prefix}.idx: document {number} of {self.num_documents:,}")
        return int(self._offsets[number]) // self.dtype.itemsize

    def within(self, number: int) -> tuple[str, int]:
        """The .bin file that holds a document, and its number there."""
        return f"{self.prefix}.bin", number

    def document_at(self, position: int) -> int:
        """The document that holds the token at `position`, by binary search; never by looking for EOD."""
        if not 0 <= position < self.num_tokens:
            raise IndexError(f"{self.prefix}.bin: token {position} of {self.num_tokens:,}")
        # `bisect` reads some 30 entries; `np.searchsorted` would first copy the whole unaligned array.
        return bisect.bisect_right(self._offsets, position * self.dtype.itemsize) - 1


def _mapped(path: Path) -> mmap.mmap | bytes:
    if path.stat().st_size == 0:  # which cannot be mapped
        return b""
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def shard_name(side: str, number: int, count: int) -> str:
    """The prefix of one of `count` token files of a side: `train`, or train-00000 and so on."""
    return side if count == 1 else f"{side}-{number:05d}"


class TokenShards(TokenFile):
    """Several pairs, PREFIX-00000.bin and so on, as one stream: what a `TokenFile` has, across them.

    Tokens that lie in one shard are a view, others a copy."""

    def __init__(self, prefix: str | Path, count: int) -> None:
        """Opens PREFIX-00000 … of `count` shards; `InputError` as for a `TokenFile`."""
        self.prefix = str(prefix)
        path = Path(prefix)
        self.shards = [TokenFile(path.with_name(shard_name(path.name, n, count))) for n in range(count)]
        self.dtype = self.shards[0].dtype
        other = next((shard for shard in self.shards if shard.dtype != self.dtype), None)
        if other:
            raise InputError(
                f"{other.prefix}.idx: holds {other.dtype}, the shards before it {self.dtype}. {_REBUILD}"
            )
        self.num_tokens = sum(shard.num_tokens for shard in self.shards)
        self.num_documents = sum(shard.num_documents for shard in self.shards)
        self.sizes = np.concatenate([shard.sizes for shard in self.shards])
        self._tokens: list[int] = [0, *np.cumsum([shard.num_tokens for shard in self.shards]).tolist()]
        self._documents: list[int] = [0, *np.cumsum([shard.num_documents for shard in self.shards]).tolist()]

    def tokens(self, start: int, count: int) -> NDArray[Any]:
        """`count` tokens of the documents end to end, from position `start`, [count]."""
        if start < 0 or count < 0 or start + count > self.num_tokens:
            raise IndexError(f"{self.prefix}: tokens {start} to {start + count} of {self.num_tokens:,}")
        parts = []
        number = min(bisect.bisect_right(self._tokens, start), len(self.shards)) - 1
        while True:
            first = start - self._tokens[number]
            here = min(count, self.shards[number].num_tokens - first)
            parts.append(self.shards[number].tokens(first, here))
            start, count, number = start + here, count - here, number + 1
            if not count:
                return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def document_start(self, number: int) -> int:
        """Position of a document's first token in the stream."""
        if not 0 <= number < self.num_documents:
            raise IndexError(f"{self.prefix}: document {number} of {self.num_documents:,}")
        shard = bisect.bisect_right(self._documents, number) - 1
        return self._tokens[shard] + self.shards[shard].document_start(number - self._documents[shard])

    def within(self, number: int) -> tuple[str, int]:
        """As for a `TokenFile`."""
        shard = bisect.bisect_right(self._documents, number) - 1
        return self.shards[shard].within(number - self._documents[shard])

    def document_at(self, position: int) -> int:
        """The document that holds the token at `position`."""
        if not 0 <= position < self.num_tokens:
            raise IndexError(f"{self.prefix}: token {position} of {self.num_tokens:,}")
        shard = bisect.bisect_right(self._tokens, position) - 1
        return self._documents[shard] + self.shards[shard].document_at(position - self._tokens[shard])
