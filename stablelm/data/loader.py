"""Sample numbers to token windows: the bridge between a prepared dataset and a training step.

A window is L + 1 tokens, the last being only a target, so neighbouring windows overlap by one token and no
target is lost. In epoch e the stream of source s (t tokens, its end joined to its beginning) is cut from o(s,
e) = hash mod L on: window i is tokens o + i·L … o + i·L + L, for i < N = ⌊t / L⌋. In every epoch each token
is thus the target of exactly one prediction, except t − N·L < L tokens, which lie elsewhere in each epoch;
`accounting` names their documents. `data.windows` limits a source to its first W windows: the stream is then
its first W·L tokens, and nothing is left over.

Everything is a pure function of (dataset, mixture, L, seed, sample number): the state of the loader is one
integer."""

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stablelm.config import InputError
from stablelm.config.run import DataConfig, as_fraction
from stablelm.data.manifest import Dataset
from stablelm.data.mixture import Mixture
from stablelm.data.permutation import GOLDEN, mix64
from stablelm.data.token_files import TokenFile
from stablelm.storage import fingerprint, keyed_uint64


class Loader:
    """The training samples of a run, by number."""

    def __init__(self, dataset: Dataset, data: DataConfig, sequence_length: int, seed: int) -> None:
        """`InputError` for a source that is not there, or shorter than a window or than `data.windows`."""
        self.dataset, self.sequence_length = dataset, sequence_length
        self._files: list[TokenFile] = []
        self._lengths: list[int] = []  # tokens of each source's stream
        windows: dict[str, int] = {}
        names = sorted(data.epochs)  # the order in which a configuration lists them does not matter
        for name in names:
            dataset.info(name)
            file = dataset.train(name)
            available = file.num_tokens // sequence_length
            if available < 1:
                raise InputError(
                    f"source {name!r}: {file.num_tokens:,} training tokens are fewer than one window of "
                    f"{sequence_length:,}. Shorten batch.sequence_length, add text, or leave the source out."
                )
            windows[name] = data.windows.get(name, available)
            if not 1 <= windows[name] <= available:
                raise InputError(
                    f"data.windows: {windows[name]:,} windows of {name!r} are asked for; its "
                    f"{file.num_tokens:,} tokens make 1 to {available:,} of {sequence_length:,}."
                )
            self._files.append(file)
            self._lengths.append(windows[name] * sequence_length if name in data.windows else file.num_tokens)
        self.mixture = Mixture(windows, {name: as_fraction(data.epochs[name]) for name in names}, seed)
        self.num_samples = self.mixture.num_samples
        """Windows in the whole mixture."""
        self._turns = np.array([keyed_uint64(seed, "rotation", name) for name in names], dtype=np.uint64)
        self.fingerprint = fingerprint({
            "dataset": dataset.fingerprint, "epochs": {n: str(e) for n, e in self.mixture.epochs.items()},
            "windows": windows, "lengths": self._lengths, "seed": seed, "sequence_length": sequence_length,
        })  # fmt: skip
        """Of everything that decides what sample g is; equal fingerprints, equal samples."""

    def samples(self, first: int, count: int) -> NDArray[np.int64]:
        """Ids of `count` samples from `first` on, int64 [count, L + 1]: inputs [:, :-1], targets [:, 1:]."""
        if first < 0 or count < 0 or first + count > self.num_samples:
            raise IndexError(f"samples {first:,} to {first + count:,} of {self.num_samples:,}")
        source, epoch, window = self.mixture.address(np.arange(first, first + count))
        start = self._rotation(source, epoch) + window * self.sequence_length
        batch = np.empty((count, self.sequence_length + 1), dtype=np.int64)
        for row, number, at in zip(batch, source.tolist(), start.tolist(), strict=True):
            file, length = self._files[number], self._lengths[number]
            if at + len(row) <= length:
                row[:] = file.tokens(at, len(row))
            else:  # the windows that cross the end of the stream go on at its beginning
                row[:] = file.tokens(0, length)[np.arange(at, at + len(row)) % length]
        return batch

    def _rotation(self, source: NDArray[np.int64], epoch: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the first window of an epoch begins, in [0, L)."""
        with np.errstate(over="ignore"):
            turns = mix64(self._turns[source] + epoch.astype(np.uint64) * GOLDEN)
        return (turns % np.uint64(self.sequence_length)).astype(np.int64)

    def seen(self, num_samples: int) -> dict[str, dict[str, Any]]:
        """Per source, what the first `num_samples` samples hold: samples, epochs (a float) and tokens."""
        drawn = self.mixture.seen(min(num_samples, self.num_samples))
        return {
            name: {
                "samples": count,
                "epochs": count / self.mixture.windows[name],
                "tokens": count * self.sequence_length,
            }
            for name, count in drawn.items()
        }

    def table(self) -> dict[str, dict[str, Any]]:
        """Per source: epochs asked for (as written: 4, 1.15, 7/3), windows in an epoch, samples in all."""
        return {
            name: {
                "epochs": _written(self.mixture.epochs[name]),
                "windows": count,
                "samples": self.mixture.totals[name],
            }
            for name, count in self.mixture.windows.items()
        }

    def accounting(self) -> dict[str, dict[str, Any]]:
        """Per source, every token that the mixture does not use, epoch by epoch.

        `tokens` = `stream` + `beyond_windows` (cut off by data.windows, from document `from_document` on).
        Each entry of `epochs` reads `windows` of all; `unread_windows` are left out because the epoch is a
        fraction; `remainder` tokens are too few for a window, and `documents` lists them: number and id in
        the token file, tokens."""
        return {name: self._account(number, name) for number, name in enumerate(self.mixture.sources)}

    def _account(self, number: int, name: str) -> dict[str, Any]:
        file, length, windows = self._files[number], self._lengths[number], self.mixture.windows[name]
        entries: list[dict[str, Any]] = []
        left = self.mixture.totals[name]
        for epoch in range(-(-left // windows)):
            read = min(left, windows)
            left -= read
            turn = int(self._rotation(np.array([number]), np.array([epoch]))[0])
            used = windows * self.sequence_length
            unused = _documents(file, turn + used + 1, turn + length + 1, length)
            entries.append({
                "epoch": epoch, "windows": read, "unread_windows": windows - read, "remainder": length - used,
                "documents": [{"document": document, "tokens": tokens} for document, tokens in unused],
            })  # fmt: skip
        ids = self.dataset.document_ids(name, {d["document"] for e in entries for d in e["documents"]})
        for entry in entries:
            entry["documents"] = [{**about, "id": ids[about["document"]]} for about in entry["documents"]]
        beyond = file.num_tokens - length
        return {
            "tokens": file.num_tokens, "stream": length, "beyond_windows": beyond,
            "from_document": file.document_at(length) if beyond else None, "epochs": entries,
        }  # fmt: skip


def _documents(file: TokenFile, start: int, stop: int, length: int) -> Iterator[tuple[int, int]]:
    """Documents at positions start to stop − 1 of a stream joined at `length`, and their tokens there."""
    while start < stop:
        at = start % length
        document = file.document_at(at)
        tokens = min(file.document_start(document) + int(file.sizes[document]), length) - at
        tokens = min(tokens, stop - start)
        yield document, tokens
        start += tokens


def _written(epochs: Fraction) -> str:
    return f"{float(epochs):.12g}" if as_fraction(f"{float(epochs):.12g}") == epochs else str(epochs)
