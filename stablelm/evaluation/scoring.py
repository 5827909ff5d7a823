"""Log-probabilities of continuations, as a harness asks for them, without computing anything twice.

Requests that begin alike (the answers to one question, questions after the same examples) share a row: their
common beginning once, then the branches behind one another, each seeing the beginning and itself, at the
positions it would have alone. Rows of similar length make a batch. Logits are made only where a
continuation is predicted, a slice at a time, so that memory never grows with tokens × vocabulary. The result
is that of one request at a time up to rounding.

Rejected: a cache of keys and values for the beginnings, copied for each branch (more memory traffic, and a
second forward pass of a few tokens, which is where a CPU is slowest)."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from stablelm.config import InputError
from stablelm.config.errors import RunError
from stablelm.evaluation.shares import ALONE, Share
from stablelm.model import StableLM

ROW_TOKENS = 2048
"""A row grows by branches up to this many tokens (or to twice its longest request)."""
BATCH_TOKENS = 4096
"""Padded tokens of one forward pass."""
Request = tuple[Sequence[int], Sequence[int]]
"""Ids of the context, not empty, and of the continuation."""


@dataclasses.dataclass(frozen=True)
class Score:
    """One continuation."""

    loglikelihood: float
    """Sum of ln p over its tokens; softmax over all columns of the head, also unused ones, as published
    runs have it."""
    greedy: bool
    """Whether each of its tokens is the most probable one."""


@dataclasses.dataclass
class _Row:
    """Requests with a common beginning of `shared` tokens."""

    members: list[int]
    shared: int
    length: int


def score(
    model: StableLM,
    requests: Sequence[Request],
    *,
    context: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    on_batch: Callable[[dict[int, Score]], None] | None = None,
    on_tokens: Callable[[Tensor, Sequence[int]], None] | None = None,
    share: Share = ALONE,
) -> list[Score]:
    """Scores in the order of the requests. What is longer than `context` tokens (the model's by default)
    loses its beginning; `on_batch` receives each batch's scores by request number as soon as they are known,
    `on_tokens` how each of its tokens was predicted [3, N], request by request, and the requests' numbers.
    With a `share`, processes score together: both hear of this one's batches alone, the result is whole on
    all.

    Raises `InputError` for an empty context, or for ids that the model does not have."""
    limit = context or model.config.max_position_embeddings
    sequences, starts = [], []
    for number, (before, after) in enumerate(requests):
        if not len(before):
            raise InputError(f"request {number}: an empty context; give at least one token.")
        whole = np.asarray([*before, *after], np.int64)[-(limit + 1) :]
        if len(whole) and not 0 <= whole.min() <= whole.max() < model.config.vocab_size:
            raise InputError(
                f"request {number}: ids from {whole.min()} to {whole.max()}, the model has "
                f"{model.config.vocab_size:,}. Tokenizer and model do not belong together."
            )
        sequences.append(whole[:-1])  # what is read; the last token is only predicted
        starts.append(max(0, len(whole) - len(after) - 1))  # place that predicts the first token
    targets = [np.asarray(after, np.int64)[-limit:] for _, after in requests]
    sums = torch.zeros(2, len(requests), dtype=torch.float64)
    for batch, counts in share.turns(_batches(_rows(sequences), batch_tokens)):
        told, members = _predictions(model, batch, sequences, starts, targets, share)
        if not counts:
            continue
        found, at = {}, 0
        for number in members:
            part = told[:, at : at + len(targets[number])]
            found[number] = Score(float(part[0].double().sum()), bool(part[2].all()))
            sums[0, number], sums[1, number] = found[number].loglikelihood, found[number].greedy
            at += len(targets[number])
        if on_batch is not None:
            on_batch(found)
        if on_tokens is not None:
            on_tokens(told, members)
    values, greedy = share.total(sums).tolist()
    return [Score(value, right > 0.5) for value, right in zip(values, greedy, strict=True)]


def _rows(sequences: list[np.ndarray]) -> list[_Row]:
    """Sequences in alphabetical order, joined with their neighbours where that saves tokens."""
    order = sorted(range(len(sequences)), key=lambda i: sequences[i].tolist())
    rows: list[_Row] = []
    for number in order:
        tokens = sequences[number]
        if rows:
            row = rows[-1]
            first = sequences[row.members[0]]
            shared = min(row.shared, _common(first, tokens))
            joined = shared + sum(len(sequences[i]) - shared for i in row.members) + len(tokens) - shared
            room = max(ROW_TOKENS, 2 * max(len(tokens), len(first)))
            if joined < row.length + len(tokens) - shared // 2 and joined <= room:
                row.members.append(number)
                row.shared, row.length = shared, joined
                continue
        rows.append(_Row([number], len(tokens), len(tokens)))
    return rows


def _common(a: np.ndarray, b: np.ndarray) -> int:
    size = min(len(a), len(b))
    different = np.flatnonzero(a[:size] != b[:size])
    return int(different[0]) if len(different) else size


def _batches(rows: list[_Row], batch_tokens: int) -> list[list[_Row]]:
    """Longest first: the most memory is asked for at the start, and the time left is never underestimated."""
    rows = sorted(rows, key=lambda row: -row.length)
    batches: list[list[_Row]] = []
    for row in rows:
        if batches and batches[-1][0].length * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


@torch.no_grad()
def _predictions(
    model: StableLM,
    rows: list[_Row],
    sequences: list[np.ndarray],
    starts: list[int],
    targets: list[np.ndarray],
    share: Share,
) -> tuple[Tensor, list[int]]:
    """How the targets of a batch are predicted [3, N], on the CPU, and whose they are: request by request."""
    width = share.padded(max(1, rows[0].length))
    ids = np.zeros((len(rows), width), np.int64)
    positions = np.zeros((len(rows), width), np.int64)
    branch = np.full((len(rows), width), -1, np.int64)  # 0 the beginning, then 1, 2, …; −1 padding
    places: list[np.ndarray] = []  # flat places in the batch that predict the tokens of each member
    members = [number for row in rows for number in row.members]
    for line, row in enumerate(rows):
        at = row.shared
        ids[line, :at] = sequences[row.members[0]][:at]
        positions[line, :at] = np.arange(at)
        branch[line, :at] = 0
        for which, number in enumerate(row.members, 1):
            rest = sequences[number][row.shared :]
            here = slice(at, at + len(rest))
            ids[line, here] = rest
            positions[line, here] = np.arange(row.shared, row.shared + len(rest))
            branch[line, here] = which
            predicting = np.arange(starts[number], starts[number] + len(targets[number]))
            moved = np.where(predicting < row.shared, predicting, predicting - row.shared + at)
            places.append(line * width + moved)
            at += len(rest)
    alone = all(len(row.members) == 1 for row in rows)
    wanted = np.concatenate([targets[number] for number in members])

    def put(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(model.device)

    told = model(
        put(ids),
        None if alone else _mask(put(branch)),
        positions=None if alone else put(positions),
        labels=put(wanted),
        places=put(np.concatenate(places)),
    ).cpu()  # padding is to the right, where a causal model does not look
    if not bool(torch.isfinite(told).all()):
        raise RunError("the model's log-probabilities are not finite; its weights or its precision are bad.")
    return told, members


def _mask(branch: Tensor) -> Tensor:
    """bool [B, 1, S, S]: causal, and only the beginning and one's own branch."""
    size = branch.shape[1]
    query, key = branch[:, :, None], branch[:, None, :]
    causal = torch.ones(size, size, dtype=torch.bool, device=branch.device).tril()
    return (causal & ((key == query) | (key == 0)))[:, None]
