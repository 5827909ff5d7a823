"""What stands between the loop and the network: a `Runner` reads prompts and answers with logits.

The loop in generation.py knows no cache, mask or kernel, so another way to compute (quantised kernels, a CUDA
graph, a server's paged cache) is another runner, and the loop with its sampling stays the same. The head is
computed for the last position alone. A long prompt is read in chunks: the same logits, and the activations of
`chunk` tokens at a time in memory instead of the whole prompt's. What the cache will need is computed first,
and refused before any work when the machine does not have it."""

import os
from collections.abc import Mapping, Sequence
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
        self._start(ids.shape[0], capacity)
        return self.extend(ids, mask)

    def step(self, ids: Tensor) -> Tensor:
        """See `Runner`."""
        return self.extend(ids[:, None], None)

    def extend(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """More tokens of each row, ids [B, S], as `prefill` reads its first → logits of the last [B, V].

        What `mask` [B, S] calls no token is never looked at and takes no position."""
        self._note(ids, mask)
        for start in range(0, ids.shape[1], self.chunk):
            hidden = self._hidden(ids[:, start : start + self.chunk], self._mask)
        logits: Tensor = self.model.lm_head(hidden[:, -1])
        return logits.float()

    def read(self, ids: Tensor) -> Tensor:
        """Several more tokens of each row, ids [B, S] → the logits after each [B, S, V], float32."""
        self._note(ids, None)
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

    def state(self, length: int) -> dict[str, Tensor]:
        """What was computed of the first `length` tokens of row 0, which has no padding: views, by name."""
        assert self._cache is not None
        return self._cache.tensors(length)

    def layout(self, length: int) -> dict[str, Tensor]:
        """`state` of `length` tokens, on the meta device: names, shapes and precision, no numbers."""
        return self._empty(1, length, "meta").tensors(length)

    def resume(self, state: Mapping[str, Tensor], length: int, capacity: int) -> None:
        """Starts one row from the `state` of another runner of this model instead of from a prompt."""
        self._start(1, capacity)
        assert self._cache is not None
        self._cache.fill(state, length)

    def _start(self, batch: int, capacity: int) -> None:
        require_memory(self.model, batch, capacity, kv_bytes(self.model))
        self._cache, self._mask = self._empty(batch, capacity, self.model.device), None

    def _empty(self, batch: int, capacity: int, device: torch.device | str) -> KVCache:
        model = self.model
        dtype = model.compute_dtype or model.dtype
        return KVCache(model.config, batch, capacity, dtype, device, model.attention.function)

    def _note(self, ids: Tensor, mask: Tensor | None) -> None:
        """Adds what is about to be read to the mask; there is none while nothing is padded."""
        if mask is None and self._mask is None:
            return
        assert self._cache is not None
        real = torch.ones(len(ids), self._cache.length + ids.shape[1], dtype=torch.bool, device=ids.device)
        if self._mask is not None:
            real[:, : self._cache.length] = self._mask
        if mask is not None:
            real[:, self._cache.length :] = mask
        self._mask = real

    def _hidden(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        assert self._cache is not None
        read = None if mask is None else mask[:, : self._cache.length + ids.shape[1]]
        return self.model.hidden_states(ids, read, self._cache)


def kv_bytes(model: StableLM) -> int:
    """Bytes of one token's keys and values in the precision of the arithmetic."""
    return model.config.kv_bytes_per_token((model.compute_dtype or model.dtype).itemsize)


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
