"""A text beyond the model's context: the first tokens and the latest ones are kept, the others dropped.

Each new token attends to the first `sinks` tokens of the text, where softmax puts the weight that no other
token wants, and to the `window` latest, itself among them; positions are counted inside the cache
(StreamingLLM, Xiao et al., 2023). What was dropped is forgotten: a text goes on for ever, its memory does not
grow. While nothing was dropped, logits are those of plain generation.

A key is rotated by the slot in which it lies, and rotation is relative: so slots may go on counting. The
sinks, which must stay just before the window, are rotated anew for each token (`sinks` keys, not the whole
window), in the slots of tokens that nobody sees any more. At the end of the buffer, a quarter of the window
longer than what is seen, the window moves to its front and is rotated back, in float32; a key lives through
at most five such moves. Rejected: keys kept without rotation, as the paper's code does (the whole window
rotated in every layer for every token: 42 million pairs a token of the 3B model)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stablelm.config import InputError, ModelConfig
from stablelm.inference.runner import CHUNK, kv_bytes, require_memory
from stablelm.model import Mask, StableLM
from stablelm.model.backends import AttentionFunction
from stablelm.model.bfloat16_products import widens
from stablelm.model.rotary import Rotary

SINKS = 4
"""Enough by the paper's measurements."""
PIECE = 128
"""Tokens of a prompt read at once beyond the window: their scores with all that is seen are in memory."""


@dataclass(frozen=True)
class Window:
    """How many of the latest and of the first tokens are attended to."""

    latest: int
    sinks: int = SINKS

    def __post_init__(self) -> None:
        for name, value, least in (("window", self.latest, 1), ("sinks", self.sinks, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"{name} must be a whole number of at least {least}, not {value!r}.")

    @property
    def seen(self) -> int:
        """Tokens attended to at most."""
        return self.latest + self.sinks

    @property
    def slack(self) -> int:
        """Tokens that are written beyond, before the window moves to the front."""
        return max(self.latest // 4, 1)

    def slots(self, length: int) -> int:
        """Tokens for which memory is taken when the whole text has `length`."""
        return min(length, self.seen + self.slack)

    def fits(self, config: ModelConfig) -> None:
        """`InputError` when a distance would be larger than the model has learnt."""
        context = config.max_position_embeddings
        if self.seen > context:
            raise InputError(
                f"a window of {self.latest:,} tokens and {self.sinks:,} sinks are {self.seen:,}; the model's "
                f"context is {context:,}. Ask for a window of at most {max(context - self.sinks, 0):,}."
            )


class WindowCache:
    """Keys and values of `batch` texts of equal length, of what the window still sees."""

    def __init__(
        self,
        config: ModelConfig,
        window: Window,
        batch: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device | str,
        attention: AttentionFunction,
    ) -> None:
        """`capacity` is the length of the whole text; memory is taken for `window.slots(capacity)`."""
        self.window, self.config, self.attention = window, config, attention
        self.capacity = window.slots(capacity)
        self.length = 0
        """Slots in use: where the next token goes."""
        self._turns: dict[int, Rotary] = {}
        shape = (2, batch, config.num_key_value_heads, self.capacity, config.head_dim)
        self.layers: Sequence[_Layer] = [
            _Layer(self, torch.empty(shape, dtype=dtype, device=device))
            for _ in range(config.num_hidden_layers)
        ]

    def advance(self, count: int) -> None:
        """Counts tokens that every layer has appended."""
        self.length += count

    def make_room(self, count: int) -> None:
        """Moves the window to the front when `count` more tokens do not fit behind it."""
        if self.length + count > self.capacity:
            shift = self.length - self.window.seen
            for layer in self.layers:
                layer.move(shift)
            self.length = self.window.seen

    def reorder(self, rows: Sequence[int]) -> None:
        """Row i becomes a copy of row rows[i]."""
        for layer in self.layers:
            layer.select(rows)

    def turn(self, x: Tensor, by: int | Tensor) -> Tensor:
        """Keys or queries [B, H, S, D] moved by so many positions (one number, or [S]); in float32."""
        if isinstance(by, Tensor):
            turns = Rotary(by, self.config.rotary_dim, self.config.rope_theta)
        else:  # all layers of a pass ask for the same
            if by not in self._turns:
                one = torch.tensor([by], device=x.device)
                self._turns = {by: Rotary(one, self.config.rotary_dim, self.config.rope_theta)}
            turns = self._turns[by]
        return turns(x.to(torch.promote_types(x.dtype, torch.float32))).to(x.dtype)


class _Layer:
    def __init__(self, owner: WindowCache, buffer: Tensor) -> None:
        self._owner, self._buffer = owner, buffer
        self._first: Tensor | None = None
        """The sinks [2, B, K, sinks, D] as they were read, at positions 0, 1, …; from the first drop on."""

    def select(self, rows: Sequence[int]) -> None:
        """Keeps copies of these rows."""
        self._buffer = self._buffer[:, list(rows)]
        self._first = None if self._first is None else self._first[:, list(rows)]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        """Appends k, v [B, K, S, D], rotated by their slots; nothing is padded.

        Either nothing has to be dropped for any of the S queries, or all of them lie beyond."""
        owner, new = self._owner, q.shape[2]
        start, seen, sinks = owner.length, owner.window.seen, owner.window.sinks
        end = start + new
        assert mask is None and end <= owner.capacity and (end <= seen or start >= seen)
        self._buffer[0, :, :, start:end], self._buffer[1, :, :, start:end] = k, v
        if end <= seen:
            keys, values = (k, v) if start == 0 else self._buffer[:, :, :, :end]
            return owner.attention(q, keys, values, None)
        first = self._sinks()
        if new > 1:
            return self._several(q, start, end)
        begin = end - seen  # the slots before the window, of tokens that are dropped
        self._buffer[0, :, :, begin : begin + sinks] = owner.turn(first[0], begin)
        self._buffer[1, :, :, begin : begin + sinks] = first[1]
        keys, values = self._buffer[:, :, :, begin:end]
        return owner.attention(q, keys, values, None)

    def move(self, shift: int) -> None:
        """The window goes `shift` slots to the front, the sinks before it."""
        window = self._owner.window
        first = self._sinks()
        kept = self._buffer[:, :, :, shift + window.sinks : shift + window.seen].clone()
        self._buffer[0, :, :, window.sinks : window.seen] = self._owner.turn(kept[0], -shift)
        self._buffer[1, :, :, window.sinks : window.seen] = kept[1]
        self._buffer[:, :, :, : window.sinks] = first

    def _sinks(self) -> Tensor:
        if self._first is None:
            self._first = self._buffer[:, :, :, : self._owner.window.sinks].clone()
        return self._first

    def _several(self, q: Tensor, start: int, end: int) -> Tensor:
        """Each query with its own window; for the sinks the queries are turned, not the keys.

        Matrix products and a softmax in float32: the scores exist, [B, H, S, seen + S]."""
        window, slots = self._owner.window, torch.arange(end, device=q.device)
        exact, kept = torch.promote_types(q.dtype, torch.float32), q.dtype
        wide = exact if widens(q) else kept
        q, first = q.to(wide), self._sinks()
        lowest = start - window.latest + 1
        shared = q.shape[1] // self._buffer.shape[2]
        keys, values, old_keys, old_values = (
            held.to(wide).repeat_interleave(shared, dim=1)
            for held in (*self._buffer[:, :, :, lowest:end], *first)
        )
        queries = slots[start:, None]
        allowed = (slots[lowest:] <= queries) & (slots[lowest:] > queries - window.latest)  # [S, T]
        scores = (q @ keys.transpose(2, 3)).masked_fill(~allowed, -torch.inf)
        turned = self._owner.turn(q, window.seen - 1 - slots[start:])
        scores = torch.cat((turned @ old_keys.transpose(2, 3), scores), dim=-1) * q.shape[-1] ** -0.5
        weights = scores.softmax(-1, dtype=exact).to(wide)
        out: Tensor = weights @ torch.cat((old_values, values), dim=2)
        return out.to(kept)


class WindowRunner:
    """A `Runner` for texts of equal length (one, or the beams and samples of one)."""

    def __init__(self, model: StableLM, window: Window, chunk: int = CHUNK) -> None:
        window.fits(model.config)
        self.model, self.window, self.chunk = model, window, chunk
        self._cache: WindowCache | None = None

    def prefill(self, ids: Tensor, mask: Tensor | None, capacity: int) -> Tensor:
        """See `Runner`; without padding. A prompt longer than the window is read through it."""
        assert mask is None
        model, batch = self.model, ids.shape[0]
        dtype = model.compute_dtype or model.dtype
        require_memory(model, batch, self.window.slots(capacity), kv_bytes(model))
        self._cache = WindowCache(
            model.config, self.window, batch, capacity, dtype, model.device, model.attention.function
        )
        done = 0
        while done < ids.shape[1]:
            if done < self.window.seen:
                size = min(self.chunk, self.window.seen - done)
            else:
                size = min(self.window.slack, self.chunk, PIECE)
            hidden = self._hidden(ids[:, done : done + size])
            done += size
        return self._logits(hidden)

    def step(self, ids: Tensor) -> Tensor:
        """See `Runner`."""
        return self._logits(self._hidden(ids[:, None]))

    def read(self, ids: Tensor) -> Tensor:
        """Several more tokens of each row, ids [B, S] → the logits after each [B, S, V], float32."""
        return torch.stack([self.step(column) for column in ids.unbind(1)], dim=1)

    def trim(self, length: int) -> None:
        """See `Runner`; only while nothing was dropped, which does not come back."""
        assert self._cache is not None and length <= self._cache.length <= self.window.seen
        self._cache.length = length

    def reorder(self, rows: Sequence[int]) -> None:
        """See `Runner`."""
        assert self._cache is not None
        self._cache.reorder(rows)

    def _hidden(self, ids: Tensor) -> Tensor:
        assert self._cache is not None
        self._cache.make_room(ids.shape[1])
        return self.model.hidden_states(ids, None, self._cache)

    def _logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.model.lm_head(hidden[:, -1])
        return logits.float()
