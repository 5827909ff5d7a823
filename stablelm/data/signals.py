"""All groups of rules over a batch of documents: numbers first, decisions from numbers, and changes of text.

`measure` makes one pass a group over the bytes; the four heuristic groups share theirs. The numbers do not
depend on thresholds (`measured_by` says what they do depend on), so another threshold decides anew without
reading text."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stablelm.config.filter_set import FilterSet
from stablelm.data import (
    code_signals,
    heuristics,
    language,
    line_corrections,
    pii,
    url_blocklist,
    word_blocklist,
)
from stablelm.data.edits import Edits, merge
from stablelm.data.texts import Texts

Columns = dict[str, NDArray[Any]]
_REPLACED = ("", "\n")  # what the codes of `heuristics.edits` stand for


def measured_by(filters: FilterSet) -> dict[str, Any]:
    """What the numbers and the changes of text depend on, JSON-able."""
    found: dict[str, Any] = {}
    if (rules := filters.heuristics()) is not None:
        found["heuristics"] = {**heuristics.measured_by(rules), "edits": rules.c4 is not None}
    for name, group in _single(filters):
        found[name] = group.measured_by(getattr(filters, name))
    return found


def measure(texts: Texts, urls: Sequence[str], filters: FilterSet) -> tuple[Columns, Edits]:
    """The numbers of every document by name, [n] each, and the changes of text of all groups together."""
    columns: Columns = {}
    changes: list[Edits] = []
    if (rules := filters.heuristics()) is not None:
        columns |= heuristics.measure(texts, rules)
        if rules.c4 is not None:
            rows, starts, ends, codes = (array.tolist() for array in heuristics.edits(texts, rules))
            replaced = [_REPLACED[code] for code in codes]
            changes.append(Edits.of(zip(rows, starts, ends, replaced, strict=True)))
    for name, group in _single(filters):
        settings = getattr(filters, name)
        if name == "url_blocklist":
            columns |= group.measure(texts, settings, urls)
        elif hasattr(group, "scan"):
            numbers, found = group.scan(texts, settings)
            columns |= numbers
            changes.append(found)
        else:
            columns |= group.measure(texts, settings)
    return columns, merge(*changes)


def decide(columns: Mapping[str, NDArray[Any]], filters: FilterSet, count: int) -> NDArray[Any]:
    """Why each of `count` documents is dropped, "" keeps it, object [count]: the first group's reason."""
    reasons = np.full(count, "", object)
    for judge in _judges(filters):
        open_ = reasons == ""
        reasons[open_] = judge(columns)[open_]
    return reasons


def _single(filters: FilterSet) -> list[tuple[str, Any]]:
    groups = {
        "url_blocklist": url_blocklist, "language": language, "line_corrections": line_corrections,
        "code": code_signals, "word_blocklist": word_blocklist, "pii": pii,
    }  # fmt: skip
    return [(name, group) for name, group in groups.items() if getattr(filters, name) is not None]


def _judges(filters: FilterSet) -> list[Callable[[Mapping[str, NDArray[Any]]], NDArray[Any]]]:
    """The decisions in the order of `FilterSet`."""
    single = dict(_single(filters))
    made: list[Callable[[Mapping[str, NDArray[Any]]], NDArray[Any]]] = []
    for name in type(filters).model_fields:
        settings = getattr(filters, name)
        if settings is None:
            continue
        decide_group = single[name].decide if name in single else getattr(heuristics, name)
        made.append(lambda columns, judge=decide_group, given=settings: judge(columns, given))  # type: ignore[misc]
    return made
