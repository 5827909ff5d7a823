"""GPT-NeoX's order of samples, bit for bit, for those who must go on with a run that it began.

Per source: `doc_idx`, all epochs' documents shuffled in one go; `sample_idx`, where each sample of L + 1
tokens begins, neighbours sharing one; `shuffle_idx`, a permutation of the samples; the first and the last
from one numpy RandomState(seed), in that order. Between sources: the greedy blending by weights, with 0.5 %
more samples planned for each than its share. `train_data_paths` read every document; a single data_path
with `split` reads the first part of the documents, without blending or the 0.5 %. Packed samples only.
(Source: GPT-NeoX's gpt2_dataset.py, helpers.cpp, blendable_dataset.py, data_utils.py.)

The indices are made once, into a folder beside the run whose name holds the data's fingerprint, and mapped:
4 bytes a document and epoch, 12 a sample. Of the blending only the counts at every 65,536th step are kept
(8 bytes a source), and the steps between made again when read. For new runs take the order of `mixture.py`:
here epochs are mixed (a document may come twice before another comes once) and the order changes with the
number of steps planned.

Where we differ: GPT-NeoX's data sets count one sample fewer than they hold, so that a run may miss its last
sample or two and begin again; ours ends there."""

import bisect
import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stablelm.config import InputError
from stablelm.config.mixture import DataConfig, NeoxConfig
from stablelm.config.optimization import BatchConfig
from stablelm.config.schema import suggest
from stablelm.config.steps import Steps
from stablelm.data.mixture import BLOCK
from stablelm.data.neox_files import NeoxFiles
from stablelm.data.samples import Samples, Sighting
from stablelm.data.token_files import TokenFile
from stablelm.storage import atomic_directory, atomic_file, fingerprint, require_space

Int64 = NDArray[np.int64]
_INT32 = 2**31 - 1


class NeoxIndex:
    """One source's doc_idx, sample_idx and shuffle_idx."""

    def __init__(self, file: TokenFile, documents: int, wanted: int, length: int, seed: int, folder: Path):
        """The first `documents` of a file, for at least `wanted` samples of `length` + 1 tokens.

        `folder` is where the indices are, or will be. `InputError` for a file without tokens."""
        self.file, self.documents, self._length, self._seed, self.folder = (
            file,
            documents,
            length,
            seed,
            folder,
        )
        self.tokens = int(np.sum(file.sizes[:documents], dtype=np.int64))
        """Tokens in one epoch."""
        if self.tokens == 0:
            raise InputError(f"{file.prefix}: no tokens to train on. Leave it out of data.neox.paths.")
        self.epochs = max(1, -(-(wanted * length + 1) // self.tokens))
        """Copies of the documents that are shuffled together."""
        self.samples = (self.epochs * self.tokens - 1) // length
        """Samples in these copies."""

    @cached_property
    def _arrays(self) -> list[NDArray[Any]]:
        names = ("doc_idx", "sample_idx", "shuffle_idx")
        if not self.folder.is_dir():
            self._build()
        arrays = [_load(self.folder / f"{name}.npy", self.folder) for name in names]
        if [len(array) for array in arrays] != [self.epochs * self.documents, self.samples + 1, self.samples]:
            raise InputError(f"{self.folder}: not the index of this run. Remove it; it is made again.")
        return arrays

    @property
    def doc_idx(self) -> NDArray[Any]:
        """Documents in the order in which they are packed, int32 [epochs × documents]."""
        return self._arrays[0]

    @property
    def sample_idx(self) -> NDArray[Any]:
        """Begin of each sample, as (index into doc_idx, token), int32 or int64 [samples + 1, 2]."""
        return self._arrays[1]

    @property
    def shuffle_idx(self) -> NDArray[Any]:
        """Which row of sample_idx comes when, uint32 or int64 [samples]."""
        return self._arrays[2]

    def _build(self) -> None:
        from stablelm.kernels.order import pack

        # The type is chosen by the number of samples, with a float division, although the first column
        # counts documents; where that would overflow, GPT-NeoX's file is damaged and cannot be continued.
        small = 2 * ((self.epochs * self.tokens - 1) / self._length + 1) < _INT32
        if (small and self.epochs * self.documents > _INT32) or self.documents > _INT32:
            raise InputError(
                f"{self.file.prefix}: {self.epochs * self.documents:,} documents in all epochs overflow "
                "GPT-NeoX's 32-bit index; its order cannot be repeated."
            )
        dtype = np.dtype(np.int32 if small else np.int64)
        size = 4 * self.epochs * self.documents + (2 * dtype.itemsize + 8) * (self.samples + 1)
        require_space(self.folder, size, "the index of GPT-NeoX's order")
        state = np.random.RandomState(seed=self._seed)
        with atomic_directory(self.folder) as aside:
            order = np.tile(np.arange(self.documents, dtype=np.int32), self.epochs)
            state.shuffle(order)
            np.save(aside / "doc_idx.npy", order)
            rows = np.lib.format.open_memmap(
                aside / "sample_idx.npy", mode="w+", dtype=dtype, shape=(self.samples + 1, 2)
            )
            sizes = np.array(self.file.sizes[: self.documents], dtype=np.int32)
            pack(sizes, order, self._length, rows)
            rows.flush()
            large = self.samples >= np.iinfo(np.uint32).max - 1
            shuffled = np.arange(self.samples, dtype=np.int64 if large else np.uint32)
            state.shuffle(shuffled)
            np.save(aside / "shuffle_idx.npy", shuffled)

    def pieces(self, row: int) -> Iterator[tuple[int, int, int]]:
        """What a sample is made of, L + 1 tokens: (document, first token in it, tokens)."""
        (first, offset), (last, end) = self.sample_idx[row].tolist(), self.sample_idx[row + 1].tolist()
        for at in range(first, last + 1):
            document = int(self.doc_idx[at])
            start = offset if at == first else 0
            stop = end + 1 if at == last else int(self.file.sizes[document])
            if stop > start:
                yield document, start, stop - start

    def rows_of(self, document: int, low: int, high: int) -> Iterator[tuple[int, int, int]]:
        """Where tokens low to high − 1 of a document are predicted: (its occurrence, row, tokens)."""
        places = [
            at + first
            for first in range(0, len(self.doc_idx), 1 << 22)
            for at in np.flatnonzero(self.doc_idx[first : first + (1 << 22)] == document).tolist()
        ]
        begins, size = self.sample_idx[:, 0], int(self.file.sizes[document])
        for occurrence, place in enumerate(places):
            row = max(0, bisect.bisect_left(begins, place) - 1)
            while row < self.samples and begins[row] <= place:
                (first, offset), (last, end) = (
                    self.sample_idx[row].tolist(),
                    self.sample_idx[row + 1].tolist(),
                )
                start = offset + 1 if first == place else 0
                stop = end + 1 if last == place else size if last > place else 0
                if (count := min(stop, high) - max(start, low)) > 0:
                    yield occurrence, row, count
                row += 1

    def places_of(self, rows: Int64) -> Int64:
        """Where in shuffle_idx these rows stand."""
        wanted, found = np.sort(rows), np.empty(len(rows), dtype=np.int64)
        for first in range(0, self.samples, 1 << 22):
            chunk = self.shuffle_idx[first : first + (1 << 22)].astype(np.int64)
            at = np.flatnonzero(np.isin(chunk, wanted))
            found[np.searchsorted(wanted, chunk[at])] = first + at
        return found[np.searchsorted(wanted, rows)]


class NeoxLoader(Samples):
    """The training samples of a GPT-NeoX run, by position."""

    def __init__(
        self, files: NeoxFiles, data: DataConfig, sequence_length: int, seed: int, sequences: int, cache: Path
    ) -> None:
        """`sequences`: GPT-NeoX's train_batch_size; `cache`: the folder that holds the indices."""
        assert data.neox is not None
        self.files, self._bounded = files, data.document_boundaries
        wanted = data.neox.train_iters * sequences
        weights, shares = _shares(data.neox, wanted)
        counts = [
            file.num_documents if data.neox.split is None else _split(data.neox.split, file.num_documents)
            for file in files.files
        ]
        about = {
            "order": "neox", "files": files.fingerprints, "documents": counts, "seed": seed,
            "weights": weights, "samples": shares, "sequence_length": sequence_length, "wanted": wanted,
        }  # fmt: skip
        self._weights = np.array(weights, dtype=np.float64)
        self._weights /= np.sum(self._weights)  # a second time, as there
        names = [f"train_{number}-{fingerprint([about, number])[:16]}" for number in range(len(shares))]
        self.indices = [
            NeoxIndex(file, documents, share, sequence_length, seed, cache / name)
            for file, documents, share, name in zip(files.files, counts, shares, names, strict=True)
        ]
        total = min(wanted, sum(index.samples - 1 for index in self.indices))
        if total < 1:
            raise InputError(f"data.neox: the files hold no two samples of {sequence_length:,} tokens.")
        batch = BatchConfig(sequences=sequences, sequence_length=sequence_length)
        super().__init__(total, data.skip, sequence_length, Steps.of(data, batch))
        self.fingerprint = fingerprint(about | self.prefix(self.total))
        self._kept = cache / f"blending-{fingerprint(about)[:16]}.npy"
        self._last: tuple[int, NDArray[np.uint8], Int64] | None = None

    @cached_property
    def _taken(self) -> Int64:
        """Samples of each source before each block of the blending, [blocks + 1, sources]."""
        taken = np.zeros((-(-self.total // BLOCK) + 1, len(self.indices)), dtype=np.int64)
        if self._kept.is_file():
            kept = _load(self._kept, self._kept)
            if kept.shape == taken.shape and kept.dtype == taken.dtype and kept[-1].sum() == self.total:
                return np.array(kept)
        for block in range(len(taken) - 1):
            taken[block + 1] = taken[block]
            self._blend(block, taken[block + 1])
        with atomic_file(self._kept) as file:
            np.save(file, taken)
        return taken

    def _blend(self, block: int, taken: Int64) -> tuple[NDArray[np.uint8], Int64]:
        from stablelm.kernels.order import blend

        size = min(BLOCK, self.total - block * BLOCK)
        source, sample = np.empty(size, dtype=np.uint8), np.empty(size, dtype=np.int64)
        blend(self._weights, taken, block * BLOCK, source, sample)
        return source, sample

    def _block(self, block: int) -> tuple[NDArray[np.uint8], Int64]:
        last = self._last  # another thread may put its own there
        if last is None or last[0] != block:
            last = self._last = (block, *self._blend(block, self._taken[block].copy()))
        return last[1], last[2]

    def address(self, numbers: Int64) -> tuple[Int64, Int64]:
        """Source and row of its sample_idx of sample numbers, each [n]."""
        source, row = np.empty(len(numbers), dtype=np.int64), np.empty(len(numbers), dtype=np.int64)
        for block in np.unique(numbers // BLOCK).tolist():
            mine = np.flatnonzero(numbers // BLOCK == block)
            sources, samples = self._block(block)
            at = numbers[mine] - block * BLOCK
            source[mine], row[mine] = sources[at], samples[at]
        for number in np.unique(source).tolist():
            mine = source == number
            row[mine] = self.indices[number].shuffle_idx[row[mine]]
        return source, row

    def read(self, numbers: Int64) -> Int64:
        """Ids of the samples with these numbers, int64 [n, L + 1]."""
        batch = np.empty((len(numbers), self.sequence_length + 1), dtype=np.int64)
        for into, source, row in zip(batch, *(v.tolist() for v in self.address(numbers)), strict=True):
            file, at = self.indices[source].file, 0
            for document, start, count in self.indices[source].pieces(row):
                into[at : at + count] = file.tokens(file.document_start(document) + start, count)
                at += count
        return batch

    def documents(self, numbers: Int64) -> NDArray[np.int32] | None:
        """Document ids of the samples with these numbers, or None."""
        if not self._bounded:
            return None
        ids = np.empty((len(numbers), self.sequence_length + 1), dtype=np.int32)
        for into, source, row in zip(ids, *(v.tolist() for v in self.address(numbers)), strict=True):
            counts = [count for _, _, count in self.indices[source].pieces(row)]
            into[:] = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        return ids[:, :-1]

    def source(self, numbers: Int64) -> Int64:
        """Which source each sample is of, [n]."""
        return self.address(numbers)[0]

    def predicted(self, numbers: Int64) -> Iterator[tuple[str, int, int]]:
        """(Source, document, its tokens that are predicted), sample by sample."""
        for source, row in zip(*(v.tolist() for v in self.address(numbers)), strict=True):
            for place, (document, _, count) in enumerate(self.indices[source].pieces(row)):
                if tokens := count - (place == 0):  # a sample's first token is no target
                    yield self.files.names[source], document, tokens

    def drawn(self, number: int) -> dict[str, int]:
        """Samples of each source with numbers below `number`, skipped ones included."""
        block, rest = divmod(number, BLOCK)
        taken = self._taken[block].copy()
        if rest:
            taken += np.bincount(self._block(block)[0][:rest], minlength=len(taken))
        return dict(zip(self.files.names, taken.tolist(), strict=True))

    def prefix(self, end: int) -> dict[str, Any]:
        """All that decides the samples below `end`, for JSON, beside what no resumed run may change."""
        skip = [list(r) for r in self.skips.before(end)]
        return {"skip": skip, "document_boundaries": self._bounded}

    def seen(self, num_samples: int) -> dict[str, dict[str, Any]]:
        """Per source, what the first `num_samples` samples hold: samples, epochs' worth, and tokens."""
        drawn, length = self.consumed(num_samples), self.sequence_length
        return {
            name: {"samples": n, "epochs": n * length / index.tokens, "tokens": n * length}
            for (name, n), index in zip(drawn.items(), self.indices, strict=True)
        }

    def table(self) -> dict[str, dict[str, Any]]:
        """Per source: epochs' worth of tokens that are read, windows in an epoch, samples in all."""
        seen = self.seen(self.num_samples)
        return {
            name: {
                "epochs": f"{about['epochs']:.4g}",
                "windows": index.tokens // self.sequence_length,
                "samples": about["samples"],
            }
            for (name, about), index in zip(seen.items(), self.indices, strict=True)
        }

    def accounting(self) -> dict[str, dict[str, Any]]:
        """Per source, what is not read: documents outside of `split`, samples after the run's end, and
        tokens after the last sample. All `copies` of the documents are one entry: they are shuffled as
        one."""
        seen, skipped, length = self.seen(self.num_samples), self._skipped(), self.sequence_length
        result = {}
        for name, index in zip(self.files.names, self.indices, strict=True):
            read, passed = seen[name]["samples"], skipped.get(name, 0)
            beyond = index.file.num_tokens - index.tokens
            result[name] = {
                "tokens": index.file.num_tokens, "stream": index.tokens, "beyond_windows": beyond,
                "from_document": index.documents if beyond else None,
                "epochs": [{
                    "epoch": 0, "copies": index.epochs, "windows": read, "skipped_windows": passed,
                    "unread_windows": index.samples - read - passed,
                    "remainder": index.epochs * index.tokens - 1 - index.samples * length, "documents": [],
                }],
            }  # fmt: skip
        return result

    def when(
        self, source: str, document: int, epoch: int | None = None, tokens: tuple[int, int] | None = None
    ) -> list[Sighting]:
        """Every sample in which tokens of a document are predicted; `epoch` is its occurrence in doc_idx,
        since epochs are shuffled together. Reads doc_idx and shuffle_idx through: seconds for 1 billion."""
        if source not in self.files.names:
            raise InputError(f"no source {source!r} in this run{suggest(source, self.files.names)}")
        number = self.files.names.index(source)
        index = self.indices[number]
        if not 0 <= document < index.file.num_documents:
            raise InputError(f"{source}: no document {document}; it has {index.file.num_documents:,}.")
        low, high = tokens or (0, int(index.file.sizes[document]))
        found = [hit for hit in index.rows_of(document, low, high) if epoch is None or hit[0] == epoch]
        places = index.places_of(np.array([row for _, row, _ in found], dtype=np.int64))
        numbers = np.full(len(places), -1, dtype=np.int64)
        blocks = np.searchsorted(self._taken[:, number], places, side="right") - 1
        for block in np.unique(blocks[places < self._taken[-1, number]]).tolist():
            mine = np.flatnonzero((blocks == block) & (places < self._taken[-1, number]))
            at = np.flatnonzero(self._block(block)[0] == number)
            numbers[mine] = block * BLOCK + at[places[mine] - self._taken[block, number]]
        sightings = [
            Sighting(occurrence, row, sample, position, step, count)
            for (occurrence, row, count), sample, position, step in zip(
                found, numbers.tolist(), *(v.tolist() for v in self.locate(numbers)), strict=True
            )
            if position >= 0
        ]
        return sorted(sightings, key=lambda sighting: sighting.position)


def _load(path: Path, remove: Path) -> NDArray[Any]:
    """A mapped array; `InputError` for a damaged file says what to remove."""
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path}: damaged ({error}). Remove {remove}; it is made again.") from None
    return array


def _shares(config: NeoxConfig, wanted: int) -> tuple[list[float], list[int]]:
    """The weights, normalised, and the samples planned for each path."""
    if config.split is not None:
        return [1.0], [wanted]
    weights = config.weights or [1.0] * len(config.paths)
    whole = sum(weights)
    weights = [weight / whole for weight in weights]
    return weights, [math.ceil(wanted * weight * 1.005) for weight in weights]


def _split(text: str, documents: int) -> int:
    """How many documents the first part of a split has, in GPT-NeoX's rounding."""
    separator = "," if "," in text else "/"
    try:
        parts = ([float(part) for part in text.split(separator)] + [0.0, 0.0])[:3]
        shares = [part / sum(parts) for part in parts]
        ends = [0]
        for share in shares:
            ends.append(ends[-1] + round(share * float(documents)))
        first = ends[1] - (ends[-1] - documents)
    except (ValueError, ZeroDivisionError):
        raise InputError(f"data.neox.split: {text!r} is not a list of shares such as 969, 30, 1.") from None
    if not 0 < first <= documents:
        raise InputError(f"data.neox.split: {text!r} leaves no training documents of {documents:,}.")
    return first
