"""What the model writes, while it is tuned, to a few prompts: the likeliest token each time.

The network's own forward pass is asked, as it lies over the processes: with a cache of keys and values, or
under tensor parallelism, whose caches hold a part of the heads, with the whole row anew for each token. The
head sees the last places alone. Every process writes all texts, so none waits for another's; nothing is
drawn, so a resumed run writes what an undisturbed one would."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stablelm.config import InputError, ModelConfig
from stablelm.config.tuning_evaluation import TuningEvaluationConfig
from stablelm.finetuning.data import TuningData
from stablelm.finetuning.examples import Example
from stablelm.finetuning.pairs import Pair
from stablelm.inference import KVCache
from stablelm.model import StableLM
from stablelm.tokenizer.chat import render

TEXT_PROMPT = 32
"""Tokens of a held-out text that are given, at most half of it."""


@dataclass(frozen=True)
class Prompt:
    """Something to be answered."""

    text: str
    """For a reader."""
    ids: list[int]
    wanted: str | None = None
    """The held-out answer; None for a prompt of the user's."""


def prompts_of(settings: TuningEvaluationConfig, data: TuningData, model: ModelConfig) -> list[Prompt]:
    """The user's prompts, then those of the first held-out examples; `InputError` for one that leaves no room
    for an answer."""
    context, tokenizer = model.max_position_embeddings, data.tokenizer
    found = []
    for number, text in enumerate(settings.prompts):
        asked = text
        if data.chats:
            eos, bos = (tokenizer.id_to_token(i) or "" for i in (tokenizer.eos_id, model.bos_token_id))
            said = [{"role": "user", "content": text}]
            asked = render(tokenizer.chat_template or "", said, eos_token=eos, bos_token=bos)
        ids = tokenizer.encode(asked)
        if len(ids) >= context:
            raise InputError(
                f"evaluation.prompts[{number}] has {len(ids):,} tokens, the model's context {context:,}; "
                "nothing could follow. Shorten it."
            )
        found.append(Prompt(text, ids))
    for one in data.held[: settings.samples]:
        example = one.first if isinstance(one, Pair) else one
        ids, wanted = _asked(example)
        if len(ids) < context:
            found.append(Prompt(tokenizer.decode(ids), ids, tokenizer.decode(wanted)))
    return found


def _asked(example: Example) -> tuple[list[int], list[int]]:
    """The ids before an example's first answer, and the answer's; of a text, its beginning and the rest."""
    trained = example.ids >= 0
    ids = np.where(trained, example.ids, ~example.ids).tolist()
    first = int(np.argmax(trained))
    after = np.flatnonzero(~trained[first:])
    last = first + int(after[0]) if len(after) else len(ids)
    if first == 1:
        first = max(1, min(TEXT_PROMPT, len(ids) // 2))
    return ids[:first], ids[first:last]


@torch.no_grad()
def write(
    model: StableLM,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    *,
    eos: int,
    real_ids: int,
    multiple: int = 1,
    ongoing: Callable[[bool], bool] = bool,
) -> list[list[int]]:
    """Ids that follow each prompt: at most `new_tokens`, within the model's context, the last one `eos` where
    a text ends. Ids from `real_ids` on, which the tokenizer does not have, are never taken.

    `multiple` above 1 is the size of a tensor group. `ongoing` tells whether any process still writes."""
    context = model.config.max_position_embeddings
    rooms = [min(new_tokens, context - len(prompt)) for prompt in prompts]
    found: list[list[int]] = [[] for _ in prompts]
    for room in dict.fromkeys(rooms):  # one, unless the context is nearly full
        members = [number for number, other in enumerate(rooms) if other == room]
        rows = [list(prompts[number]) for number in members]
        for number, ids in zip(
            members, _written(model, rows, room, eos, real_ids, multiple, ongoing), strict=True
        ):
            found[number] = ids
    return found


def _written(
    model: StableLM,
    rows: list[list[int]],
    room: int,
    eos: int,
    real_ids: int,
    multiple: int,
    ongoing: Callable[[bool], bool],
) -> list[list[int]]:
    """`write` where every row has the same room; `rows` grow."""
    begins = [len(row) for row in rows]
    cache = _cache(model, rows, room) if multiple == 1 else None
    ended = [False] * len(rows)
    for step in range(room):
        logits = _whole(model, rows, multiple) if cache is None else _next(model, rows, cache, step == 0)
        for row, number in enumerate(logits[:, :real_ids].argmax(dim=-1).tolist()):
            rows[row].append(eos if ended[row] else number)
            ended[row] |= number == eos
        if not ongoing(not all(ended)):
            break
    new = [row[begin:] for row, begin in zip(rows, begins, strict=True)]
    return [ids[: ids.index(eos) + 1] if eos in ids else ids for ids in new]


def _cache(model: StableLM, rows: list[list[int]], room: int) -> KVCache:
    dtype, capacity = model.compute_dtype or model.dtype, max(map(len, rows)) + room
    return KVCache(model.config, len(rows), capacity, dtype, model.device, model.attention.function)


def _next(model: StableLM, rows: list[list[int]], cache: KVCache, begin: bool) -> Tensor:
    """Logits [B, V] after what the cache holds and the tokens of `rows` that it does not hold yet."""
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    real = torch.zeros(len(rows), width, dtype=torch.int64)
    for line, row in enumerate(rows):  # padding on the left
        ids[line, width - len(row) :] = torch.tensor(row)
        real[line, width - len(row) :] = 1
    new = ids if begin else ids[:, -1:]
    mask = None if bool(real.all()) else real.to(model.device)
    last = torch.arange(1, len(rows) + 1) * new.shape[1] - 1
    with _only(model, last.to(model.device)):
        logits: Tensor = model(new.to(model.device), mask, cache)
    return logits


def _whole(model: StableLM, rows: list[list[int]], multiple: int) -> Tensor:
    """Logits [B, V] after the last token of each row, all of it read again; padding on the right."""
    width = -(-max(map(len, rows)) // multiple) * multiple
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    for line, row in enumerate(rows):
        ids[line, : len(row)] = torch.tensor(row)
    last = torch.tensor([line * width + len(row) - 1 for line, row in enumerate(rows)])
    with _only(model, last.to(model.device)):
        logits: Tensor = model(ids.to(model.device))
    return logits


@contextlib.contextmanager
def _only(model: StableLM, places: Tensor) -> Iterator[None]:
    """The head gets these rows of the flattened hidden states, not all."""

    def narrowed(module: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (given[0].flatten(0, -2)[places], *given[1:])

    handle = model.lm_head.register_forward_pre_hook(narrowed)
    try:
        yield
    finally:
        handle.remove()
