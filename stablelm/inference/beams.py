"""Beam search: the likely texts among very many, a few kept at a time.

Each step extends every kept text by every id and keeps the `beams` likeliest that go on. Ids that end the
text make a hypothesis, if they are among the `beams` likeliest steps; its score is log-probability / tokens
** length_penalty. The search stops when there are `beams` hypotheses and the likeliest text that goes on,
scored at its present length, is no better than the worst of them (where length_penalty is above 0, a text
whose tokens get likelier may so be missed); at the limit of tokens every text is a hypothesis. These are the
rules, and the ids, of `transformers` with early_stopping=False, its default. Bias, penalties and forbidden
ids change the log-probabilities, as there; they are not made to sum to one again.

Costs a pass over `beams` rows a token, and a copy of the cache where the rows change places."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stablelm.inference.runner import Runner
from stablelm.inference.sampling import Sampling, adjust, require_finite

Stops = Callable[[Sequence[int]], bool]
"""Whether a text ends with these new ids."""


def never(ids: Sequence[int]) -> bool:
    """No text ends but by an end-of-text id."""
    return False


@dataclass(frozen=True)
class Hypothesis:
    """One text that ended."""

    ids: tuple[int, ...]
    """The new ids, an end-of-text id included."""
    score: float
    """Σ log-probability (nats) / number of ids ** length_penalty."""


@torch.inference_mode()
def beam_search(
    runner: Runner,
    prompt: Sequence[int],
    count: int,
    beams: int,
    length_penalty: float = 1.0,
    sampling: Sampling | None = None,
    bias: Tensor | None = None,
    ends: Sequence[int] = (),
    stops: Stops = never,
    device: torch.device | str = "cpu",
) -> list[Hypothesis]:
    """At most `beams` hypotheses of at most `count` ≥ 1 new ids, the best first.

    A text ends with an id of `ends`, or where `stops` says so of its new ids. Of `sampling`, the penalties
    and `min_new_tokens` count; `bias` [V] is that of `Sampling.bias`. `InputError` when logits are not
    finite."""
    sampling = sampling or Sampling()
    candidates = max(2, 1 + len(ends)) * beams
    texts: list[tuple[int, ...]] = [()]
    scores = torch.zeros(1, device=device)
    done: list[Hypothesis] = []
    logits = runner.prefill(torch.tensor([list(prompt)], device=device), None, len(prompt) + count - 1)
    size = logits.shape[1]
    seen = counts = None
    if sampling.counts_tokens:
        seen = torch.zeros(1, size, dtype=torch.bool, device=device)
        seen[0, list(prompt)] = True
        counts = torch.zeros(1, size, device=device)
    for position in range(count):
        require_finite(logits, position)
        early = ends if position < sampling.min_new_tokens else ()
        nats = adjust(logits.log_softmax(-1), sampling, seen, counts, bias, early)  # [beams, V]
        likeliest = (scores[:, None] + nats).flatten().topk(min(candidates, nats.numel()))
        going: list[tuple[float, int, int]] = []  # score, row, id
        for rank, (score, place) in enumerate(
            zip(likeliest.values.tolist(), likeliest.indices.tolist(), strict=True)
        ):
            if score == -torch.inf:  # forbidden, and so is all that follows
                break
            row, token = divmod(place, size)
            text = (*texts[row], token)
            if position == count - 1 or token in ends or stops(text):
                if rank < beams:
                    done.append(Hypothesis(text, score / len(text) ** length_penalty))
            elif len(going) < beams:
                going.append((score, row, token))
        done = sorted(done, key=lambda one: -one.score)[:beams]
        if not going or (
            len(done) == beams and going[0][0] / (position + 1) ** length_penalty <= done[-1].score
        ):
            break
        values, rows, tokens = (list(column) for column in zip(*going, strict=True))
        texts = [(*texts[row], token) for row, token in zip(rows, tokens, strict=True)]
        scores = torch.tensor(values, device=device)
        chosen = torch.tensor(tokens, device=device)
        if rows != list(range(len(logits))):
            runner.reorder(rows)
        if seen is not None and counts is not None:
            seen = seen[rows].scatter(1, chosen[:, None], True)
            counts = counts[rows]
            counts.scatter_add_(1, chosen[:, None], torch.ones(len(rows), 1, device=device))
        logits = runner.step(chosen)
    return done


def best_ids(
    runner: Runner, prompt: Sequence[int], count: int, beams: int, length_penalty: float, sampling: Sampling,
    bias: Tensor | None, ends: Sequence[int], stops: Stops, device: torch.device,
) -> Iterator[Tensor]:  # fmt: skip
    """The ids of the best hypothesis one by one, each [1]; the search is made when the first is asked for."""
    found = beam_search(runner, prompt, count, beams, length_penalty, sampling, bias, ends, stops, device)
    yield from torch.tensor(found[0].ids, device=device)[:, None]
