"""Text from a model: one loop for one prompt or many, whole or as a stream.

The prompt is read in one pass, then one token a pass; only the last position's logits are computed. Rows of a
batch are padded on the left; a row's text is the one it would have alone. Nothing is ever cut: a prompt and
`max_new_tokens` that do not fit the context together are refused. An empty prompt starts from the document
separator."""

import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import overload

import torch
from torch import Tensor
from torch.nn import functional

from stablelm.config import InputError
from stablelm.inference.beams import Stops, best_ids, never
from stablelm.inference.cpu_runner import runner_for
from stablelm.inference.decoding import PLAIN, Decoding, OnToken, each_alone, nothing
from stablelm.inference.prefix import PrefixCache
from stablelm.inference.runner import Runner
from stablelm.inference.sampling import Sampling, choose
from stablelm.inference.speculation import LookupRunner
from stablelm.inference.stopping import StopMatcher
from stablelm.inference.window import SINKS, Window
from stablelm.model import StableLM
from stablelm.tokenizer import StreamDecoder, Tokenizer


@overload
def generate(  # type: ignore[overload-overlap]  # a str is a Sequence[str], too
    model: StableLM, tokenizer: Tokenizer, prompt: str, *, max_new_tokens: int = ...,
    temperature: float = ..., top_k: int = ..., top_p: float = ..., min_p: float = ...,
    repetition_penalty: float = ..., seed: int | None = ..., stop: str | Sequence[str] = ...,
    sampling: Sampling | None = ..., lookup: bool = ..., cache: str | None = ..., beams: int = ...,
    length_penalty: float = ..., best_of: int = ..., window: int | None = ..., sinks: int = ...,
    prefix: PrefixCache | None = ...,
) -> str: ...  # fmt: skip
@overload
def generate(
    model: StableLM, tokenizer: Tokenizer, prompt: Sequence[str], *, max_new_tokens: int = ...,
    temperature: float = ..., top_k: int = ..., top_p: float = ..., min_p: float = ...,
    repetition_penalty: float = ..., seed: int | None = ..., stop: str | Sequence[str] = ...,
    sampling: Sampling | None = ..., lookup: bool = ..., cache: str | None = ..., beams: int = ...,
    length_penalty: float = ..., best_of: int = ..., window: int | None = ..., sinks: int = ...,
    prefix: PrefixCache | None = ...,
) -> list[str]: ...  # fmt: skip
def generate(
    model: StableLM,
    tokenizer: Tokenizer,
    prompt: str | Sequence[str],
    *,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    stop: str | Sequence[str] = (),
    sampling: Sampling | None = None,
    lookup: bool = False,
    cache: str | None = None,
    beams: int = 1,
    length_penalty: float = 1.0,
    best_of: int = 1,
    window: int | None = None,
    sinks: int = SINKS,
    prefix: PrefixCache | None = None,
) -> str | list[str]:
    """The text that follows a prompt (str → str), or each of several (list → list); the prompt is not
    repeated.

    It ends before the first `stop` string, at the end-of-text token, or after `max_new_tokens`. temperature 0
    is greedy; prompt i of a list draws with seed + i, so it gets the text that it would get alone with that
    seed. `sampling` gives every setting there is at once, instead of those named here. `lookup` (one prompt
    alone) is faster where the text repeats what it holds already, see speculation.py. `cache` is the
    precision of keys and values in the CPU kernels: "int8", "bf16", "fp32", or None, that of cpu_runner.py.

    `beams` above 1 searches for a likely text instead of drawing one, see beams.py. `best_of` draws so many,
    with seed, seed + 1, …, and returns the one whose tokens have the highest mean log-probability (the
    model's own, before temperature and filters). `window` goes on beyond the context: a token sees the first
    `sinks` and the latest `window` tokens, see window.py. `prefix` holds what was read before, see prefix.py.
    `InputError` for values out of range, for what does not go together, and for a prompt too long for the
    context."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    sampling = _one(sampling, Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed))
    size = None if window is None else Window(window, sinks)
    way = Decoding(lookup, beams, length_penalty, best_of, size, prefix, cache)

    def begin(
        rows: Sequence[str], own: Sampling, on_token: OnToken, nats: list[Tensor] | None
    ) -> Iterator[tuple[int, str]]:
        return _pieces(model, tokenizer, rows, max_new_tokens, own, stop, way, on_token, nats)

    texts = [""] * len(prompts)
    if way.alone:
        texts = each_alone(begin, prompts, sampling, way.best_of)
    else:
        for row, piece in begin(prompts, sampling, nothing, None):
            texts[row] += piece
    return texts[0] if isinstance(prompt, str) else texts


def stream(
    model: StableLM,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    stop: str | Sequence[str] = (),
    sampling: Sampling | None = None,
    lookup: bool = False,
    cache: str | None = None,
    window: int | None = None,
    sinks: int = SINKS,
    prefix: PrefixCache | None = None,
    on_token: Callable[[int], object] = lambda token: None,
) -> Iterator[str]:
    """`generate` for one prompt, piece by piece: each token's text as soon as its characters are whole.

    The pieces joined are what `generate` returns. Mistakes are refused by this call, not at the first
    piece. `on_token` is called with every id that is drawn, also those that show no text."""
    if not isinstance(prompt, str):
        raise InputError("stream writes one text; give it one string, or several to generate.")
    sampling = _one(sampling, Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed))
    size = None if window is None else Window(window, sinks)
    way = Decoding(lookup, window=size, prefix=prefix, cache=cache)
    pieces = _pieces(
        model, tokenizer, [prompt], max_new_tokens, sampling, stop, way, lambda row, token: on_token(token)
    )
    return (piece for _, piece in pieces)


def generate_ids(
    model: StableLM,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int = 64,
    sampling: Sampling | None = None,
    eos_ids: Sequence[int] | None = None,
    pad_id: int | None = None,
    real_ids: int | None = None,
    cache: str | None = None,
    way: Decoding | None = None,
) -> Tensor:
    """input_ids [B, S] → [B, S + N]: the prompt and N ≤ max_new_tokens new ids, on the model's device.

    `attention_mask` [B, S] is 1 for real tokens; padding may be on either side. A row that has ended
    (`eos_ids`, default the config's) is filled with `pad_id` (default the first of them). Ids ≥ `real_ids`
    are never chosen. No `sampling` is greedy, `way` says how else a text is made."""
    ids = input_ids.to(model.device)
    mask = torch.ones_like(ids) if attention_mask is None else attention_mask.to(model.device)
    if ids.dim() != 2 or ids.shape != mask.shape or ids.dtype not in (torch.int64, torch.int32):
        raise InputError(
            f"input_ids must be whole numbers [batch, tokens] with an attention_mask of the same shape, "
            f"not {ids.dtype} {list(ids.shape)} with {list(mask.shape)}."
        )
    rows = [row[keep].tolist() for row, keep in zip(ids, mask.bool(), strict=True)]
    ends = [model.config.eos_token_id] if eos_ids is None else list(eos_ids)
    pad = pad_id if pad_id is not None else ends[0] if ends else model.config.eos_token_id
    sampling, way = sampling or Sampling(temperature=0.0), way or Decoding(cache=cache)
    if way.best_of > 1:
        raise InputError("best_of returns one text of several; call generate.")
    parts: list[Tensor] = []
    for number, group in enumerate([[row] for row in rows] if way.alone and rows else [rows]):
        own = sampling.shifted(number)
        steps = _new_ids(model, group, max_new_tokens, own, real_ids or model.config.vocab_size, ends, way)
        parts.append(_columns(steps, len(group), ends, pad))
    longest = max(part.shape[1] for part in parts)
    new = [functional.pad(part, (0, longest - part.shape[1]), value=pad) for part in parts]
    return torch.cat([ids, torch.cat(new).to(ids.device)], dim=1)


def _columns(steps: Iterator[Tensor], rows: int, ends: Sequence[int], pad: int) -> Tensor:
    """[rows, N] until every row has ended; what follows an end is `pad`."""
    new: list[Tensor] = []
    ended = torch.zeros(rows, dtype=torch.bool)
    for chosen in steps:
        column = torch.where(ended, pad, chosen.cpu())
        new.append(column)
        ended |= torch.isin(column, torch.tensor(list(ends), dtype=column.dtype))
        if bool(ended.all()):
            break
    return torch.stack(new, dim=1) if new else torch.zeros(rows, 0, dtype=torch.int64)


def _one(sampling: Sampling | None, named: Sampling) -> Sampling:
    if sampling is not None and named != Sampling():
        raise InputError("settings were given both in `sampling` and by name; put all into `sampling`.")
    return sampling or named


def _pieces(
    model: StableLM,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int,
    sampling: Sampling,
    stop: str | Sequence[str],
    way: Decoding,
    on_token: OnToken,
    nats: list[Tensor] | None = None,
) -> Iterator[tuple[int, str]]:
    """(row, text) as it comes. Everything is checked before the iterator is returned.

    `nats` receives the log-probabilities [B] of every step's ids."""
    if tokenizer.size > model.config.vocab_size:
        raise InputError(
            f"{tokenizer.source}: {tokenizer.size:,} ids, but the model has {model.config.vocab_size:,}; "
            "they do not belong together. Use the tokenizer that was saved with the model."
        )
    matchers = [StopMatcher(stop) for _ in prompts]
    decoders = [StreamDecoder(tokenizer, skip_special_tokens=True) for _ in prompts]
    rows = [tokenizer.encode(prompt) or [tokenizer.eos_id] for prompt in prompts]
    ends = {tokenizer.eos_id, model.config.eos_token_id}

    def stopped(new: Sequence[int]) -> bool:
        return matchers[0].found_in(tokenizer.decode(list(new), skip_special_tokens=True))

    steps = _new_ids(
        model, rows, max_new_tokens, sampling, tokenizer.size, sorted(ends), way, nats,
        stopped if stop else never,
    )  # fmt: skip

    def pieces() -> Iterator[tuple[int, str]]:
        writing = list(range(len(rows)))
        for chosen in steps:
            ids = chosen.tolist()
            for row in tuple(writing):
                on_token(row, ids[row])
                if ids[row] in ends:
                    writing.remove(row)
                    yield from last(row)
                    continue
                text, stopped = matchers[row].push(decoders[row].push(ids[row]))
                if stopped:
                    writing.remove(row)
                if text:
                    yield row, text
            if not writing:
                return
        for row in writing:
            yield from last(row)

    def last(row: int) -> Iterator[tuple[int, str]]:
        text, stopped = matchers[row].push(decoders[row].flush())
        text += "" if stopped else matchers[row].flush()
        if text:
            yield row, text

    return pieces()


def _new_ids(
    model: StableLM,
    rows: Sequence[Sequence[int]],
    count: int,
    sampling: Sampling,
    real_ids: int,
    ends: Sequence[int],
    way: Decoding = PLAIN,
    nats: list[Tensor] | None = None,
    stopped: Stops = never,
) -> Iterator[Tensor]:
    """`count` times the next id of every row [B]. The caller stops asking when all its rows have ended."""
    context, size = model.config.max_position_embeddings, model.config.vocab_size
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InputError(f"max_new_tokens must be a whole number of at least 1, not {count!r}.")
    for number, row in enumerate(rows):
        name = "the prompt" if len(rows) == 1 else f"prompt {number}"
        if not row:
            raise InputError(
                f"{name} holds no token; start it from the separator {model.config.bos_token_id}."
            )
        if len(row) + count > context and way.window is None:
            raise InputError(
                f"{name} has {len(row):,} tokens; with max_new_tokens {count:,} that makes "
                f"{len(row) + count:,}, and the model's context is {context:,}. Shorten the prompt"
                + (f", or ask for at most {context - len(row):,} new tokens." if len(row) < context else ".")
            )
        if not 0 <= min(row) <= max(row) < size:
            raise InputError(f"{name} holds an id outside the model's vocabulary of {size:,}.")
    if way.lookup and len(rows) > 1:
        raise InputError(f"lookup reads ahead for one text, not for {len(rows)}; give them one by one.")
    way.check(sampling)
    bias = sampling.bias(size, real_ids, model.device)
    if not rows:
        return iter(())
    way.reserve(model, max(map(len, rows)) + count - 1)
    plain = LookupRunner if way.lookup else runner_for
    runner = way.runner(model) or plain(model, way.cache)
    if way.beams > 1:
        settings = (way.beams, way.length_penalty, sampling, bias, ends, stopped, model.device)
        return best_ids(runner, rows[0], count, *settings)
    return _loop(model, runner, rows, count, sampling, bias, ends, nats, way.best_of > 1)


@torch.inference_mode()
def _loop(
    model: StableLM,
    runner: Runner,
    rows: Sequence[Sequence[int]],
    count: int,
    sampling: Sampling,
    bias: Tensor | None,
    ends: Sequence[int],
    nats: list[Tensor] | None,
    once: bool,
) -> Iterator[Tensor]:
    width, device = max(map(len, rows)), model.device
    gaps = [width - len(row) for row in rows]
    ids = torch.tensor([[0] * gap + list(row) for gap, row in zip(gaps, rows, strict=True)], device=device)
    mask = torch.arange(width, device=device) >= torch.tensor(gaps, device=device)[:, None]  # [B, S]
    seen = counts = None
    if sampling.counts_tokens:
        seen = torch.zeros(len(rows), model.config.vocab_size, dtype=torch.bool, device=device)
        counts = torch.zeros(seen.shape, device=device)
        for marks, row in zip(seen, rows, strict=True):
            marks[list(row)] = True
    first = secrets.randbits(48) if sampling.seed is None else sampling.seed
    seeds = [first + row for row in range(len(rows))]
    capacity = width + count - 1  # the last id is not read again
    chosen = ids
    for position in range(count):
        if position == 0 and once:  # samples of one prompt read it together
            logits = runner.prefill(ids[:1], None, capacity).expand(len(rows), -1)
            runner.reorder([0] * len(rows))
        elif position == 0:
            logits = runner.prefill(ids, mask if any(gaps) else None, capacity)
        else:
            logits = runner.step(chosen)
        chosen = choose(logits, seen, sampling, seeds, position, counts, bias, ends)
        if nats is not None:
            nats.append(logits.gather(1, chosen[:, None])[:, 0] - logits.logsumexp(-1))
        yield chosen
        if seen is not None and counts is not None:
            seen.scatter_(1, chosen[:, None], True)
            counts.scatter_add_(1, chosen[:, None], torch.ones(len(rows), 1, device=device))
