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
from stablelm.model import StableLM

ROW_TOKENS = 2048
"""A row grows by branches up to this many tokens (or to twice its longest request)."""
BATCH_TOKENS = 4096
"""Padded tokens of one forward pass."""
LOGIT_ROWS = 256
"""Predictions whose logits are alive at once."""

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
) -> list[Score]:
    """Scores in the order of the requests. What is longer than `context` tokens (the model's by default)
    loses its beginning; `on_batch` receives each batch's scores by request number as soon as they are known.

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
    scores: dict[int, Score] = {}
    for batch in _batches(_rows(sequences), batch_tokens):
        found = _score_batch(model, batch, sequences, starts, targets)
        scores |= found
        if on_batch is not None:
            on_batch(found)
    return [scores[number] for number in range(len(requests))]


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
def _score_batch(
    model: StableLM,
    rows: list[_Row],
    sequences: list[np.ndarray],
    starts: list[int],
    targets: list[np.ndarray],
) -> dict[int, Score]:
    width = max(1, rows[0].length)
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
    device = model.device
    alone = all(len(row.members) == 1 for row in rows)
    hidden = model.hidden_states(
        torch.from_numpy(ids).to(device),
        None if alone else _mask(torch.from_numpy(branch).to(device)),
        positions=None if alone else torch.from_numpy(positions).to(device),
    )  # padding is to the right, where a causal model does not look
    flat = hidden.flatten(0, 1)[torch.from_numpy(np.concatenate(places)).to(device)]
    values, right = _predictions(model, flat, np.concatenate([targets[number] for number in members]))
    found, at = {}, 0
    for number in members:
        part = slice(at, at + len(targets[number]))
        found[number] = Score(float(values[part].sum()), bool(right[part].all()))
        at = part.stop
    return found


def _mask(branch: Tensor) -> Tensor:
    """bool [B, 1, S, S]: causal, and only the beginning and one's own branch."""
    size = branch.shape[1]
    query, key = branch[:, :, None], branch[:, None, :]
    causal = torch.ones(size, size, dtype=torch.bool, device=branch.device).tril()
    return (causal & ((key == query) | (key == 0)))[:, None]


def _predictions(model: StableLM, hidden: Tensor, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ln p of each target (float64) and whether it is the arg-max; hidden [N, h]."""
    wanted = torch.from_numpy(targets).to(hidden.device)
    values, right = [], []
    for at in range(0, len(hidden), LOGIT_ROWS):
        logits = model.lm_head(hidden[at : at + LOGIT_ROWS])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        target = wanted[at : at + LOGIT_ROWS, None]
        chosen = logits.gather(1, target).squeeze(1)
        values.append((chosen - logits.logsumexp(-1)).double().cpu())
        right.append((logits.argmax(-1) == target.squeeze(1)).cpu())
    if not values:
        return np.zeros(0), np.zeros(0, bool)
    numbers = torch.cat(values)
    if not bool(torch.isfinite(numbers).all()):
        raise RunError("the model's log-probabilities are not finite; its weights or its precision are bad.")
    return numbers.numpy(), torch.cat(right).numpy()
