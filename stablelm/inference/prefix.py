"""Keys and values of a text's beginning, kept so that the next text that begins alike need not read it again.

What two texts have in common is found by their ids, token by token, so nothing has to be declared: a prompt
that goes on differently uses the part that is the same. The last token of a prompt is always read, for its
logits. The text is the one without a cache: the numbers are bit-equal to reading the prompt in the same two
pieces, and differ from reading it at once by the rounding of the pieces' products.

A file holds what was computed (327,680 bytes a token of the 3B model in bf16), the ids, and fingerprints of
the model and of its own content; names, precisions and shapes are compared before anything is allocated.
Rejected: a cache keyed by hashes of blocks, as servers have it (nothing here outlives two prompts); a prefix
that is put before the prompt (the tokens at the joint would not be those of the text)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stablelm.config import InputError
from stablelm.inference.cpu_runner import runner_for, token_bytes
from stablelm.inference.runner import Runner, require_memory
from stablelm.model import StableLM
from stablelm.model.fingerprint import digest, weights_hash
from stablelm.storage import atomic_file, fingerprint, refuse_existing

FORMAT = "stablelm prefix 2"


class Resumable(Runner, Protocol):
    """A `Runner` whose state can be taken and given."""

    def extend(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """More tokens of each row, ids and mask [B, S] as in `prefill` → logits of the last [B, V]."""
        ...

    def read(self, ids: Tensor) -> Tensor:
        """Several more tokens of each row, ids [B, S] → the logits after each [B, S, V], float32."""
        ...

    def state(self, length: int) -> dict[str, Tensor]:
        """What was computed of the first `length` tokens of row 0, by name; views."""
        ...

    def layout(self, length: int) -> dict[str, Tensor]:
        """`state` on the meta device: names, shapes, precisions."""
        ...

    def resume(self, state: Mapping[str, Tensor], length: int, capacity: int) -> None:
        """Starts one row from the `state` of another runner of the same model."""
        ...


class PrefixCache:
    """The beginning of one text as a model has read it; empty at first.

    Given to `generate` or `stream`, a prompt that begins alike starts from it, and after a single prompt it
    holds prompt and answer, ready for the next turn of a conversation. Several prompts share it and leave it
    as it is."""

    def __init__(self, model: StableLM, kind: str | None = None) -> None:
        """`kind`: the precision of keys and values, as `runner_for` takes it."""
        self.model, self.kind = model, kind
        self.ids: list[int] = []
        self.follows = True
        """Whether it moves on with each single prompt; False leaves it as it is."""
        self._state: Callable[[int], Mapping[str, Tensor]] = lambda length: {}

    def make(self) -> Resumable:
        """A runner that reads this."""
        return runner_for(self.model, self.kind)

    def read(self, ids: Sequence[int]) -> None:
        """Computes and holds these ids (at least one)."""
        runner = PrefixRunner(self)
        with torch.inference_mode():
            runner.prefill(torch.tensor([list(ids)], device=self.model.device), None, len(ids))
        self.hold(list(ids), runner.inner.state)

    def shared(self, rows: Iterable[Sequence[int]]) -> int:
        """How many tokens all `rows` begin with as this text does; the last of a row does not count."""
        return min((_alike(self.ids, row[:-1]) for row in rows), default=0)

    def state(self) -> Mapping[str, Tensor]:
        """Of all `ids`, one row."""
        return self._state(len(self.ids))

    def hold(self, ids: list[int], state: Callable[[int], Mapping[str, Tensor]]) -> None:
        """Replaces what is held."""
        self.ids, self._state = ids, state

    def save(self, path: str | Path) -> None:
        """Writes a new safetensors file."""
        from safetensors.torch import save_file

        refuse_existing(Path(path))
        tensors = {name: value.contiguous().cpu() for name, value in self.state().items()}
        tensors["ids"] = torch.tensor(self.ids)
        notes = {"format": FORMAT, "model": identity(self.model), "content": digest(tensors)}
        with atomic_file(path) as file:
            save_file(tensors, file.name, notes)

    @classmethod
    def load(cls, path: str | Path, model: StableLM, kind: str | None = None) -> "PrefixCache":
        """From a file; `InputError` for another model's, another precision's, and a damaged one."""
        remedy = "Make it again with --save-prefix."
        cache = cls(model, kind)
        try:
            open(path, "rb").close()  # whose error says why
            with safe_open(str(path), framework="pt") as file:
                notes, names = file.metadata() or {}, set(file.keys())
                if notes.get("format") != FORMAT:
                    raise InputError(f"{path}: not a prefix saved by this version of stablelm. {remedy}")
                if notes.get("model") != identity(model):
                    raise InputError(
                        f"{path}: computed by another model (other weights, or another number of bits). "
                        f"Give it to the model that made it, or make it again with --save-prefix."
                    )
                length = _length(file, names)
                if not 0 < length <= model.config.max_position_embeddings:
                    raise InputError(f"{path}: its ids are damaged. {remedy}")
                wanted = cache.make().layout(length)
                if names - {"ids"} != set(wanted):
                    raise InputError(f"{path}: holds other tensors than this model's cache. {remedy}")
                for name, tensor in wanted.items():
                    part = file.get_slice(name)
                    found, stored = tuple(part.get_shape()), str(part.get_dtype())
                    if found != tuple(tensor.shape) or stored != _NAMES.get(tensor.dtype):
                        raise InputError(
                            f"{path}: {name} is {stored} {list(found)}, the model computes "
                            f"{_NAMES.get(tensor.dtype)} {list(tensor.shape)}. {remedy}"
                        )
                require_memory(model, 1, length, token_bytes(model, kind))
                tensors = {name: file.get_tensor(name) for name in (*wanted, "ids")}
        except (SafetensorError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise InputError(f"{path}: cannot be read as safetensors ({reason}). {remedy}") from None
        ids = tensors.pop("ids")
        damaged = digest({**tensors, "ids": ids}) != notes.get("content")
        if damaged or not 0 <= int(ids.min()) <= int(ids.max()) < model.config.vocab_size:
            raise InputError(f"{path}: damaged: its content is not what was written. {remedy}")
        cache.hold(ids.tolist(), lambda length: tensors)
        return cache


_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int8: "I8", torch.uint8: "U8",
}  # fmt: skip


def _length(file: Any, names: set[str]) -> int:
    if "ids" not in names:
        return 0
    part = file.get_slice("ids")
    shape = part.get_shape()
    return shape[0] if len(shape) == 1 and part.get_dtype() == "I64" else 0


class PrefixRunner:
    """A `Runner` whose prefill starts from what a `PrefixCache` holds of the prompts."""

    def __init__(self, cache: PrefixCache) -> None:
        self.cache = cache
        self.inner = cache.make()
        self.skipped = 0
        """Tokens of each prompt that were not read."""
        self._follows = False

    def prefill(self, ids: Tensor, mask: Tensor | None, capacity: int) -> Tensor:
        """See `Runner`."""
        rows = [row.tolist() for row in ids]
        gaps = [0] * len(rows) if mask is None else (~mask).sum(1).tolist()
        cache, inner = self.cache, self.inner
        self.skipped = shared = cache.shared([row[gap:] for row, gap in zip(rows, gaps, strict=True)])
        if not shared:
            logits = inner.prefill(ids, mask, capacity)
        else:
            require_memory(cache.model, len(rows), capacity, token_bytes(cache.model, cache.kind))
            inner.resume(cache.state(), len(cache.ids), max(capacity, len(cache.ids)))
            inner.trim(shared)
            if len(rows) > 1:
                inner.reorder([0] * len(rows))
            # What is left of each row keeps its gap, now behind the common beginning.
            rest = [row[:gap] + row[gap + shared :] for row, gap in zip(rows, gaps, strict=True)]
            more = None if mask is None else mask[:, : ids.shape[1] - shared]
            logits = inner.extend(torch.tensor(rest, dtype=ids.dtype, device=ids.device), more)
        self._follows = cache.follows and len(rows) == 1
        if self._follows:
            cache.hold(rows[0], inner.state)
        return logits

    def step(self, ids: Tensor) -> Tensor:
        """See `Runner`."""
        logits = self.inner.step(ids)
        if self._follows:
            self.cache.ids.append(int(ids))
        return logits

    def read(self, ids: Tensor) -> Tensor:
        """Several more tokens of each row, ids [B, S] → the logits after each [B, S, V], float32."""
        logits = self.inner.read(ids)
        if self._follows:
            self.cache.ids.extend(ids[0].tolist())
        return logits

    def trim(self, length: int) -> None:
        """See `Runner`."""
        self.inner.trim(length)
        if self._follows:
            del self.cache.ids[length:]

    def reorder(self, rows: Sequence[int]) -> None:
        """See `Runner`. Beams and samples of a prompt have the prompt in common, and that is held."""
        self.inner.reorder(rows)
        self._follows = self._follows and list(rows) == [0]


def common_beginning(rows: Sequence[Sequence[int]]) -> list[int]:
    """The longest beginning that all rows have, without the last token of any."""
    first = list(rows[0][:-1]) if rows else []
    return first[: min((_alike(first, row[:-1]) for row in rows), default=0)]


def _alike(a: Sequence[int], b: Sequence[int]) -> int:
    count = min(len(a), len(b))
    return next((at for at in range(count) if a[at] != b[at]), count)


def identity(model: StableLM) -> str:
    """A fingerprint of configuration, weights and precision; reads every weight once (5.6 GB: two seconds).

    Any single changed number changes it."""
    precision = str(model.compute_dtype or model.dtype)
    return fingerprint([model.config.model_dump(mode="json"), precision, weights_hash(model)])
