"""What stands between the loop and the network: a `Runner` reads prompts and answers with logits.

The loop in generation.py knows no cache, mask or kernel, so another way to compute (quantised kernels, a CUDA
graph, a server's paged cache) is another runner, and the loop with its sampling stays the same. The head is
computed for the last position alone. A long prompt is read in chunks: the same logits, and the activations of
`chunk` tokens at a time in memory instead of the whole prompt's. What the cache will need is computed first,
and refused before any work when the machine does not have it."""

import os
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from stablelm.config import InputError
from stablelm.inference.cache import KVCache
from stablelm.model import StableLM

CHUNK = 1024
"""Tokens of a prompt that are read in one pass."""


class Runner(Protocol):
    """One batch of texts, from its prompts to its last token."""

    def prefill(self, ids: Tensor, mask: Tensor | None, capacity: int) -> Tensor:
        """Starts with prompts ids [B, S]; mask [B, S] is True for real tokens, padding on the left.

        Room is made for `capacity` ≥ S tokens. → logits of the last position [B, V], float32."""
        ...

    def step(self, ids: Tensor) -> Tensor:
        """One more token for each row, ids [B] → logits [B, V], float32."""
        ...

    def read(self, ids: Tensor) -> Tensor:
        """Several more tokens of each row, ids [B, S] → the logits after each [B, S, V], float32."""
        ...

    def trim(self, length: int) -> None:
        """Forgets what was read after the first `length` positions."""
        ...

    def reorder(self, rows: Sequence[int]) -> None:
        """Row i continues what row rows[i] was; rows may repeat, and the batch may shrink or grow."""
        ...


class ModelRunner:
    """The plain network with a `KVCache`."""

    def __init__(self, model: StableLM, chunk: int = CHUNK) -> None:
        assert chunk >= 1
        self.model, self.chunk = model, chunk
        self._cache: KVCache | None = None
        self._mask: Tensor | None = None

    def prefill(self, ids: Tensor, mask: Tensor | None, capacity: int) -> Tensor:
        """See `Runner`."""
        model = self.model
        dtype = model.compute_dtype or model.dtype
        require_memory(model, ids.shape[0], capacity, model.config.kv_bytes_per_token(dtype.itemsize))
        self._cache = KVCache(
            model.config, ids.shape[0], capacity, dtype, model.device, model.attention.function
        )
        self._mask = mask
        for end in range(self.chunk, ids.shape[1], self.chunk):
            self._hidden(ids[:, end - self.chunk : end], mask)
        return self._logits(ids[:, (ids.shape[1] - 1) // self.chunk * self.chunk :])

    def step(self, ids: Tensor) -> Tensor:
        """See `Runner`."""
        if self._mask is not None:
            self._mask = torch.cat((self._mask, torch.ones_like(ids, dtype=torch.bool)[:, None]), dim=1)
        return self._logits(ids[:, None])

    def read(self, ids: Tensor) -> Tensor:
        """See `Runner`."""
        if self._mask is not None:
            self._mask = torch.cat((self._mask, torch.ones_like(ids, dtype=torch.bool)), dim=1)
        logits: Tensor = self.model.lm_head(self._hidden(ids, self._mask))
        return logits.float()

    def trim(self, length: int) -> None:
        """See `Runner`."""
        assert self._cache is not None
        self._cache.trim(length)
        self._mask = None if self._mask is None else self._mask[:, :length]

    def reorder(self, rows: Sequence[int]) -> None:
        """See `Runner`."""
        assert self._cache is not None
        self._cache.reorder(rows)
        self._mask = None if self._mask is None else self._mask[list(rows)]

    def _hidden(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        assert self._cache is not None
        read = None if mask is None else mask[:, : self._cache.length + ids.shape[1]]
        return self.model.hidden_states(ids, read, self._cache)

    def _logits(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.model.lm_head(self._hidden(ids, self._mask)[:, -1])
        return logits.float()


def require_memory(model: StableLM, batch: int, capacity: int, token: int) -> None:
    """`InputError` when the cache of `batch` texts of `capacity` tokens, of `token` bytes each, exceeds the
    free memory."""
    needed = batch * capacity * token
    free = free_memory(model.device)
    if free is not None and needed > free:
        raise InputError(
            f"the key-value cache for {batch:,} x {capacity:,} tokens needs {needed / 1e9:,.1f} GB; "
            f"{free / 1e9:,.1f} GB of memory are free on {model.device}. Ask for fewer new tokens, shorten "
            "the prompts, or give fewer of them at once."
        )


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be taken on a device; None where the system does not tell."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + held)
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            found = next((line for line in file if line.startswith("MemAvailable:")), None)
        return int(found.split()[1]) * 1024 if found else None
    except (OSError, ValueError):
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError, AttributeError):
            return None
