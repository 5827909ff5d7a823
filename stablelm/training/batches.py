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


class Batches:
    """The batches of a run, by step."""

    def __init__(self, loader: Samples, layout: Layout) -> None:
        self.loader, self.layout = loader, layout
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
        ids = None if documents is None else torch.from_numpy(documents)
        if pieces > 1:
            length = (samples.shape[1] - 1) // pieces
            samples = samples.unfold(1, length + 1, length).flatten(0, 1)
            ids = None if ids is None else ids.reshape(len(samples), -1)
        return Batch(samples, ids, count, int(numbers[0]), int(numbers[-1]), pieces)
