"""Scores of continuations that are known already (`item_cache.py`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stablelm.evaluation.item_cache import ItemCache, key_of
from stablelm.evaluation.scoring import Score

Pair = tuple[tuple[int, ...], tuple[int, ...]]


class ScoreCache:
    """Scores by request; on the disk too when it has a path."""

    def __init__(self, path: str | Path | None = None, model: str = "") -> None:
        """`model` is what `weights_hash` says; a file of another model is refused."""
        self._scores: ItemCache[Score] = ItemCache(path, model, read=_read, write=_write, kind="scores")

    def __contains__(self, pair: Pair) -> bool:
        return key_of(pair) in self._scores

    def __getitem__(self, pair: Pair) -> Score:
        return self._scores[key_of(pair)]

    def __len__(self) -> int:
        return len(self._scores)

    def add(self, scores: Mapping[Pair, Score]) -> None:
        """Keeps scores, on the disk before this returns."""
        self._scores.add({key_of(pair): result for pair, result in scores.items()})


def _read(values: list[Any]) -> Score:
    value, greedy = values
    return Score(float(value), bool(greedy))


def _write(result: Score) -> list[Any]:
    return [result.loglikelihood, result.greedy]
