"""What a report on a preparation shows, gathered by the stages and kept in OUT/report.json.

For each source: documents and bytes of every reason, some real documents of each (those of the smallest hash
of their ids, so that the choice does not depend on shards), and the distribution of every stored number.
Counts of two shards are added, so bins are the same for all: of a count, bin 0 is 0 and bin b begins at
2^((b − 1) / 4); of a ratio, bin b begins at b / 50 up to 1, beyond at 2^((b − 51) / 4) (`lower_edge`)."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stablelm.data.accounts import SourceAccount
from stablelm.data.shards import Shard
from stablelm.data.texts import Texts
from stablelm.storage import keyed_uint64

REPORT, REPORT_VERSION = "report.json", 2
EXAMPLES, SHOWN, _VALUES = 3, 1000, 50
Histogram = dict[str, Any]


def histogram(column: NDArray[Any]) -> Histogram:
    """`kind` (count, ratio, truth or value) and `counts`, by bin, `true`/`false` or the value; of counts also
    their `sum`. A number below 0 or that is none was not measured, and is left out."""
    if column.dtype == object:
        return {"kind": "value", "counts": dict(Counter(map(str, column)))}
    if column.dtype == bool:
        yes = int(column.sum())
        return {"kind": "truth", "counts": {"false": len(column) - yes, "true": yes}}
    values = column.astype(np.float64)
    measured = np.isfinite(values) & (values >= 0)
    values = values[measured]
    ratios = column.dtype.kind == "f"
    with np.errstate(divide="ignore"):
        octaves = np.floor(4 * np.log2(np.maximum(values, 1)))
    bins = (
        np.where(values <= 1, np.floor(50 * values), 51 + octaves) if ratios else (octaves + 1) * (values > 0)
    )
    found, counts = np.unique(bins.astype(np.int64), return_counts=True)
    pairs = zip(found.tolist(), counts.tolist(), strict=True)
    binned = {str(place): count for place, count in pairs}
    if ratios:
        return {"kind": "ratio", "counts": binned}
    return {"kind": "count", "counts": binned, "sum": int(column[measured].sum(dtype=np.int64))}


def lower_edge(kind: str, place: int) -> float:
    """The least value of a bin of a count or ratio."""
    if kind == "count":
        return 0.0 if place == 0 else float(2 ** ((place - 1) / 4))
    return place / 50 if place <= 50 else float(2 ** ((place - 51) / 4))


def add_histograms(parts: Iterable[Mapping[str, Histogram]]) -> dict[str, Histogram]:
    """The sums, by column; of values the most frequent."""
    sums: dict[str, Histogram] = {}
    for part in parts:
        for name, one in part.items():
            total = sums.setdefault(name, {"kind": one["kind"], "counts": Counter()})
            total["counts"].update(one["counts"])
            if "sum" in one:
                total["sum"] = total.get("sum", 0) + one["sum"]
    for total in sums.values():
        counts = total["counts"].items()
        if total["kind"] == "value":
            total["counts"] = dict(sorted(counts, key=lambda pair: (-pair[1], pair[0]))[:_VALUES])
        else:
            binned = total["kind"] in ("count", "ratio")
            total["counts"] = dict(sorted(counts, key=lambda pair: int(pair[0]) if binned else pair[0]))
    return sums


def examples(
    shard: Shard, texts: Texts, reasons: Sequence[str], files: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """By reason, "" for what is kept, the documents of the smallest hashes; `texts` are the changed ones, of
    which only those that are kept matter, `files` the names of the files that were read."""
    rows: dict[str, list[tuple[int, int]]] = {}
    for row, reason in enumerate(reasons):
        rows.setdefault(reason, []).append((keyed_uint64("example", shard.ids[row]), row))
    return {
        reason: [
            {"key": f"{key:016x}", **shown(shard, row, files, None if reason else texts)}
            for key, row in sorted(found)[:EXAMPLES]
        ]
        for reason, found in sorted(rows.items())
    }


def shown(
    shard: Shard, row: int, files: Sequence[str], texts: Texts | None = None, length: int = SHOWN
) -> dict[str, Any]:
    """A document for a reader: place (`file:line`), id, url, label, bytes and the first `length` characters;
    also of its changed text in `texts`, if it was changed."""
    before, after = shard.texts.raw(row), (texts or shard.texts).raw(row)
    about = {
        "place": f"{files[int(shard.files[row])]}:{int(shard.numbers[row])}", "id": shard.ids[row],
        "url": shard.urls[row], "label": shard.labels[row], "bytes": len(before),
        "text": head(before, length),
    }  # fmt: skip
    return (
        about if before == after else {**about, "changed_bytes": len(after), "changed": head(after, length)}
    )


def head(text: bytes, length: int) -> str:
    """The first `length` characters of UTF-8."""
    return text[: 4 * length].decode(errors="ignore")[:length]


def source_report(
    account: SourceAccount,
    chosen: Iterable[Mapping[str, list[dict[str, Any]]]],
    numbers: Iterable[Mapping[str, Histogram]],
    replaced: Iterable[Mapping[str, int]] = (),
) -> dict[str, Any]:
    """One source's part of report.json."""
    found: dict[str, list[dict[str, Any]]] = {}
    written: Counter[str] = Counter()
    for counts in replaced:
        written.update(counts)
    for part in chosen:
        for reason, more in part.items():
            merged = sorted([*found.get(reason, []), *more], key=lambda one: (one["key"], one["text"]))
            found[reason] = merged[:EXAMPLES]
    about = account.as_dict()
    reasons = [("kept", "", about["kept"], about["kept_bytes"])]
    for fate in ("dropped", "errors"):
        sizes = about["dropped_bytes" if fate == "dropped" else "error_bytes"]
        reasons += [(fate, reason, count, sizes[reason]) for reason, count in sorted(about[fate].items())]
    return {
        "read": about["read"], "read_bytes": about["read_bytes"],
        "reasons": [
            {"fate": fate, "reason": reason, "documents": count, "bytes": size,
             "places": account.examples.get(reason, []),
             "examples": [{k: v for k, v in one.items() if k != "key"} for one in found.get(reason, [])]}
            for fate, reason, count, size in reasons
        ],
        "histograms": add_histograms(numbers),
        "replaced": dict(sorted(written.items())),
    }  # fmt: skip
