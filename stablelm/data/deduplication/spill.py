"""Files of numbers that wait for their bucket: what one shard has to say to all others.

    16 bytes  "stablelm spill 1"
    u64       columns c
    u64       buckets b
    b × u64   records up to the end of each bucket
    b × u32   CRC-32 of each bucket's records
    u32       CRC-32 of all before
    records, c × u64 each, little-endian, by bucket, sorted within it

One file a shard, not one a shard and bucket: it is whole or absent, and a thousand shards with a thousand
buckets are a thousand files. A bucket is told by the leading bits of a record's first column, a hash, so the
records of bucket 0, 1, … are in ascending order. Costs one sort of the shard's records. Read bytes are
checked against their CRC; a file that is cut or changed is an `InputError`."""

import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stablelm.config import InputError
from stablelm.storage import atomic_file

MAGIC = b"stablelm spill 1"
_HEAD = struct.Struct("<16sQQ")
_AGAIN = "Remove it and run again; only this shard's step is repeated."
MOST_BUCKETS = 1 << 20
UInt64 = NDArray[np.uint64]


def bucket_count(records: int, columns: int = 2, memory: int = 256 << 20) -> int:
    """How many buckets keep one of `records` records, sorted in memory, below `memory` bytes."""
    return min(MOST_BUCKETS, max(1, -(-records * columns * 8 * 4 // memory)))  # 4: copies while sorting


def sort_records(records: UInt64) -> UInt64:
    """Records [n, c] in ascending order, by the first column first."""
    return records[np.lexsort(records.T[::-1])]


def write_spill(path: str | Path, records: UInt64, buckets: int) -> None:
    """Writes records [n, c] to `path`, split by the leading bits of their first column."""
    assert records.ndim == 2 and 1 <= buckets <= MOST_BUCKETS
    records = sort_records(np.ascontiguousarray(records, "<u8"))
    # Bucket i begins at the first hash whose leading 32 bits × buckets / 2³² is at least i.
    starts = np.array([-(-(i << 32) // buckets) << 32 for i in range(buckets)], np.uint64)
    cuts = [*np.searchsorted(records[:, 0], starts[1:]), len(records)]
    parts = np.split(records, cuts[:-1])
    head = _HEAD.pack(MAGIC, records.shape[1], buckets) + np.array(cuts, "<u8").tobytes()
    head += np.array([zlib.crc32(part.tobytes()) for part in parts], "<u4").tobytes()
    with atomic_file(path) as file:
        file.write(head + struct.pack("<I", zlib.crc32(head)))
        file.write(records.data)


def read_bucket(path: str | Path, bucket: int, columns: int, buckets: int | None = None) -> UInt64:
    """The records [n, columns] of one bucket of one file, checked; `buckets` is how many it should have."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD.size)
            if head[:16] != MAGIC[: len(head)]:
                raise InputError(f"{path}: not a spill file. {_AGAIN}")
            if len(head) < _HEAD.size:
                raise InputError(f"{path}: truncated within its header. {_AGAIN}")
            _, width, count = _HEAD.unpack(head)
            if not 1 <= count <= MOST_BUCKETS:
                raise InputError(f"{path}: corrupt: it claims {count:,} buckets. {_AGAIN}")
            rest = file.read(12 * count + 4)
            if len(rest) < 12 * count + 4:
                raise InputError(f"{path}: truncated within its header. {_AGAIN}")
            if zlib.crc32(head + rest[:-4]) != int.from_bytes(rest[-4:], "little"):
                raise InputError(f"{path}: corrupt: its header does not have its checksum. {_AGAIN}")
            if width != columns or buckets not in (None, count):
                raise InputError(
                    f"{path}: holds {count} buckets of {width} columns, not {buckets or count} of {columns}: "
                    "it is from another run or other settings. Remove it and run again."
                )
            ends = np.frombuffer(rest, "<u8", count)
            promised = len(head) + len(rest) + int(ends[-1]) * width * 8
            actual = path.stat().st_size
            if actual != promised:
                word = "truncated" if actual < promised else "longer than its header says"
                raise InputError(f"{path}: {word}: {promised:,} bytes promised, {actual:,} there. {_AGAIN}")
            first = int(ends[bucket - 1]) if bucket else 0
            file.seek(first * width * 8, 1)
            data = file.read((int(ends[bucket]) - first) * width * 8)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from None
    if zlib.crc32(data) != int(np.frombuffer(rest, "<u4", count, 8 * count)[bucket]):
        raise InputError(f"{path}: corrupt: bucket {bucket} does not have its checksum. {_AGAIN}")
    return np.frombuffer(data, "<u8").reshape(-1, width)


def read_spill(path: str | Path, columns: int) -> Iterator[UInt64]:
    """All records of a file, bucket by bucket."""
    for bucket in range(count_buckets(path)):
        yield read_bucket(path, bucket, columns)


def count_buckets(path: str | Path) -> int:
    """How many buckets a spill file says it has; `read_bucket` checks it."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD.size)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from None
    if len(head) < _HEAD.size or head[:16] != MAGIC:
        raise InputError(f"{path}: truncated or not a spill file. {_AGAIN}")
    count: int = _HEAD.unpack(head)[2]
    return count


Folders = str | Path | Sequence[str | Path]
"""A folder with the files of many shards, or several."""


def files_in(folders: Folders, suffix: str) -> list[Path]:
    """The files with a suffix, sorted by path."""
    listed = [folders] if isinstance(folders, str | Path) else folders
    return sorted(path for folder in listed for path in Path(folder).glob(f"*{suffix}"))


def gather_bucket(folders: Folders, suffix: str, bucket: int, columns: int) -> UInt64:
    """One bucket's records of all shards in the folders, sorted: the same whatever the shards were."""
    paths = files_in(folders, suffix)
    if not paths:
        raise InputError(f"{folders}: no *{suffix} files. Run the step that writes them first.")
    buckets = count_buckets(paths[0])
    if not 0 <= bucket < buckets:
        raise InputError(f"{paths[0]}: has no bucket {bucket}, only 0 to {buckets - 1}.")
    return sort_records(np.concatenate([read_bucket(path, bucket, columns, buckets) for path in paths]))
