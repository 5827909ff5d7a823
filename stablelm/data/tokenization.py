"""From a recipe to a prepared directory: read, split, encode, shuffle, write, account for everything.

    OUT/<source>/train.bin .idx .ids    token files, and the id of every document, one JSON string a line
    OUT/<source>/held_out.bin .idx .ids the same for held-out documents, if there are any
    OUT/tokenizer.json …                what the ids mean
    OUT/manifest.json                   what went in, what was dropped and why, sizes and hashes; written last

A document is held out when the hash of (seed, origin) falls below the share, so all pieces of a file share a
side, also across sources. Special tokens are off when encoding: `<|endoftext|>` in a text never becomes a
separator; the one that ends a document is appended as an id. Documents are shuffled once, here, by hash of
(seed, source, id): the result depends neither on the order of reading nor on the size of batches or buckets,
and training may then cut the stream into plain slices.

The shuffle takes two passes: tokens go to buckets by the leading bits of their key (temporary files in the
directory being written), then each bucket is sorted. Memory is a batch of texts and the keys of one bucket.
OUT appears whole or not at all. Rejected: shuffling sample indices only (a training window would then hold
neighbours of one web site or book)."""

import hashlib
import json
import mmap
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from stablelm.config.recipe import DataRecipe, SourceConfig
from stablelm.data.accounts import SourceAccount
from stablelm.data.discovery import InputFile, find_files
from stablelm.data.manifest import FORMAT, SIDES, seal
from stablelm.data.sources import Document, read_files
from stablelm.data.token_files import TokenFileWriter, token_dtype
from stablelm.storage import (
    atomic_directory,
    fingerprint,
    keyed_uint64,
    refuse_existing,
    require_space,
    write_manifest,
)
from stablelm.tokenizer import Tokenizer

Progress = Callable[[str], None]
_BATCH_DOCUMENTS, _BATCH_CHARACTERS = 256, 1 << 22
_BUCKET_BYTES, _MOST_BUCKETS = 64 << 20, 64  # two sets are open at once; some systems allow 256 files
_UNPACKED = {".gz": 4, ".zst": 5, ".parquet": 4}  # bytes of text in a byte of file, roughly
_RECORD = struct.Struct("<QQII")  # key, hash of the tokens, number of tokens, bytes of the id
_SECONDS_BETWEEN_REPORTS = 2.0


def prepare(recipe: DataRecipe, *, progress: Progress | None = None) -> Path:
    """Prepares what the recipe says; returns the directory. `progress` gets a line of text now and then.

    `InputError` when OUT exists, for sources or a tokenizer that cannot be read, and (on_error: stop) for the
    first broken document; `DiskFullError` when the disk cannot hold the result, before anything is read if
    that can be foreseen."""
    out, say = Path(recipe.out), progress or (lambda line: None)
    refuse_existing(out)
    tokenizer = Tokenizer.from_file(recipe.tokenizer)
    eod = tokenizer.eos_id
    accounts = {source.name: SourceAccount() for source in recipe.sources}
    files = {source.name: find_files(source, ".", accounts[source.name].ignored) for source in recipe.sources}
    text = sum(_unpacked_size(file) for group in files.values() for file in group)
    require_space(out, int(text * 0.4 * token_dtype(tokenizer.size).itemsize), "preparing this recipe")
    with atomic_directory(out) as directory:
        tokenizer.save(directory)
        sources = {}
        for source in recipe.sources:
            name, account = source.name, accounts[source.name]
            counts = _encode(recipe, source, files[name], tokenizer, directory / name, account, say)
            about = {"paths": source.paths, "licence": source.licence, "url": source.url}
            sources[name] = {**about, **counts, **account.as_dict()}
        manifest = {
            "format": FORMAT,
            "version": 1,
            "tokenizer": {"sha256": tokenizer.sha256, "size": tokenizer.size, "eod_id": eod},
            "dtype": token_dtype(tokenizer.size).name,
            "append_eod": recipe.append_eod,
            "held_out": recipe.held_out,
            "on_error": recipe.on_error,
            "seed": recipe.seed,
            "recipe_sha256": fingerprint(recipe.model_dump(mode="json", exclude={"out"})),
            "sources": sources,
        }
        write_manifest(directory, seal(manifest))
    return out


def _encode(
    recipe: DataRecipe,
    source: SourceConfig,
    files: list[InputFile],
    tokenizer: Tokenizer,
    folder: Path,
    account: SourceAccount,
    say: Progress,
) -> dict[str, dict[str, int]]:
    """Writes the token files of one source; returns documents, tokens and bytes of text of each side."""
    dtype, ending = token_dtype(tokenizer.size), [tokenizer.eos_id] if recipe.append_eod else []
    share, text = int(recipe.held_out * 2**64), sum(map(_unpacked_size, files))
    counts = {side: {"documents": 0, "tokens": 0, "bytes": 0} for side in SIDES}
    spools = {side: _Spool(folder / f"spool-{side}", dtype, text) for side in SIDES}
    folder.mkdir()
    spoken, total = time.monotonic(), max(1, sum(file.path.stat().st_size for file in files))
    for batch in _batches(read_files(files, source, recipe.on_error, account)):
        encoded = tokenizer.encode_documents([document.text for document in batch])
        for document, ids in zip(batch, encoded, strict=True):
            if not ids:
                document.file.kept -= 1
                account.drop(document.file, document.number, "no tokens")
                continue
            side = SIDES[keyed_uint64("held-out", recipe.seed, document.origin) < share]
            key = keyed_uint64("order", recipe.seed, source.name, document.id)
            spools[side].add(key, np.array(ids + ending, dtype=dtype), document.id)
            counts[side]["documents"] += 1
            counts[side]["tokens"] += len(ids) + len(ending)
            counts[side]["bytes"] += len(document.text.encode())
        if time.monotonic() - spoken > _SECONDS_BETWEEN_REPORTS:
            spoken, done = time.monotonic(), sum(file.position for file in account.files)
            say(f"{source.name}: {_sum(counts)}, {done / total:.0%} of the input")
    for side, spool in spools.items():
        if counts[side]["documents"] or side == "train":
            spool.write(folder / side, tokenizer.size)
    say(f"{source.name}: {_sum(counts)}, done")
    return counts


def _sum(counts: dict[str, dict[str, int]]) -> str:
    documents, tokens = (sum(side[unit] for side in counts.values()) for unit in ("documents", "tokens"))
    return f"{documents:,} documents, {tokens:,} tokens"


class _Spool:
    """Documents on their way through the shuffle, in one file a bucket."""

    def __init__(self, prefix: Path, dtype: np.dtype[Any], text_bytes: int) -> None:
        self.prefix, self.dtype = prefix, dtype
        wanted = min(_MOST_BUCKETS, max(1, text_bytes * dtype.itemsize // 3 // _BUCKET_BYTES))
        self.bits = (wanted - 1).bit_length()
        self.buckets: dict[int, IO[bytes]] = {}

    def add(self, key: int, ids: NDArray[Any], name: str) -> None:
        """Puts a document, whose place in the shuffle is `key`, into its bucket."""
        bucket = key >> (64 - self.bits)
        if bucket not in self.buckets:
            self.buckets[bucket] = open(f"{self.prefix}-{bucket}", "wb")  # noqa: SIM115 (closed by write)
        tokens, label = ids.tobytes(), name.encode()
        content = int.from_bytes(hashlib.blake2b(tokens, digest_size=8).digest(), "little")
        self.buckets[bucket].write(_RECORD.pack(key, content, len(ids), len(label)) + tokens + label)

    def write(self, prefix: Path, vocab_size: int) -> None:
        """Writes the token file and the list of ids in the order of the keys, and removes the buckets.

        Documents of one key go by content, so not even doubled ids let the order depend on the reading."""
        with (
            TokenFileWriter(prefix, vocab_size=vocab_size) as writer,
            open(f"{prefix}.ids", "w", encoding="ascii") as names,
        ):
            for _, file in sorted(self.buckets.items()):
                file.close()
                with (
                    open(file.name, "rb") as bucket,
                    mmap.mmap(bucket.fileno(), 0, access=mmap.ACCESS_READ) as data,
                ):
                    for _, _, start, count, label in sorted(_records(data, self.dtype.itemsize)):
                        end = start + count * self.dtype.itemsize
                        writer.add(np.frombuffer(data[start:end], self.dtype))
                        names.write(json.dumps(data[end : end + label].decode()) + "\n")
                Path(file.name).unlink()


def _records(data: mmap.mmap, itemsize: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Of each record: key, hash of the content, start and number of the tokens, length of the id."""
    at = 0
    while at < len(data):
        key, content, count, label = _RECORD.unpack_from(data, at)
        yield key, content, at + _RECORD.size, count, label
        at += _RECORD.size + count * itemsize + label


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _unpacked_size(file: InputFile) -> int:
    return file.path.stat().st_size * _UNPACKED.get(file.path.suffix.lower(), 1)
