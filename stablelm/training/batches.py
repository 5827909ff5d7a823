"""What a process reads for a step, read ahead on a thread while the step before it is computed.

A step is a range of sample numbers; each data-parallel part takes a contiguous share of it, so the mesh
changes who reads a sample, never which samples a step has. Where the phase's context is shorter than a
window, each is cut into rows of that length: the same tokens and targets, attended to piece by piece."""

import dataclasses
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stablelm.config.steps import Span
from stablelm.data.samples import Samples
from stablelm.training.parallel.mesh import Layout


@dataclasses.dataclass(frozen=True)
class Batch:
    """This process's rows of a step of `count` samples in all."""

    samples: Tensor
    """int64 [rows, L + 1] in host memory, L the context of the step. An entry v < 0 is the id ~v, read but
    not predicted."""
    documents: Tensor | None
    """[rows, L], or None where nothing keeps documents apart."""
    count: int
    first_sample: int
    last_sample: int
    pieces: int = 1
    """Rows of one sample."""
    fault: str | None = None
    """What is wrong with the data here; such a step must not be learned from."""
    sources: Tensor | None = None
    """int64 [rows]: the number of each row's source."""


class Batches:
    """The batches of a run, by step."""

    def __init__(self, loader: Samples, layout: Layout, vocabulary: int) -> None:
        """`vocabulary`: rows of the embedding; an id beyond is a fault of the data."""
        self.loader, self.layout, self.vocabulary = loader, layout, vocabulary
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ahead: dict[Span, Future[Batch]] = {}

    def get(self, span: Span, following: Span | None) -> Batch:
        """The batch of a step; begins to read the one after it."""
        waiting = self._ahead.pop(span, None)
        self._ahead.clear()
        batch = self._read(span) if waiting is None else waiting.result()
        if following is not None:
            self._ahead[following] = self._thread.submit(self._read, following)
        return batch

    def _read(self, span: Span) -> Batch:
        first, count, pieces = span
        numbers: NDArray[np.int64] = self.loader.numbers(first, count)
        begin, end = self.layout.share(count)
        mine = numbers[begin:end]
        # A part that a short last step leaves nothing for reads the first row, whose targets nobody counts.
        rows = mine if len(mine) else numbers[:1]
        samples, documents = torch.from_numpy(self.loader.read(rows)), self.loader.documents(rows)
        if not len(mine):
            samples[:, 1:] = -1
            samples[:, 0] = 0
        fault = self._fault(samples, rows)
        ids = None if documents is None else torch.from_numpy(documents)
        if pieces > 1:
            length = (samples.shape[1] - 1) // pieces
            samples = samples.unfold(1, length + 1, length).flatten(0, 1)
            ids = None if ids is None else ids.reshape(len(samples), -1)
        sources = torch.from_numpy(self.loader.source(rows)).repeat_interleave(pieces)
        return Batch(samples, ids, count, int(numbers[0]), int(numbers[-1]), pieces, fault, sources)

    def _fault(self, samples: Tensor, numbers: NDArray[np.int64]) -> str | None:
        """Names the first id that no word has, and makes all such ids 0, which can be computed with: on a GPU
        a look-up beyond the embedding ends the process."""
        wrong = torch.where(samples < 0, ~samples, samples) >= self.vocabulary
        if not bool(wrong.any()):
            return None
        row, place = wrong.nonzero()[0].tolist()
        found = int(samples[row, place])
        samples[wrong] = 0
        return (
            f"sample {numbers[row]:,}, token {place:,}: id {found if found >= 0 else ~found:,} is beyond the "
            f"vocabulary of {self.vocabulary:,}; the token file is damaged"
        )
