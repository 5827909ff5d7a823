"""What skipped ranges cost, document by document: for the accounts of a run, and to name bad samples."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from stablelm.data.mixture import BLOCK
from stablelm.data.samples import Samples

LISTED = 200_000
"""Samples whose documents are named; a longer list of ranges is cut off there."""


def documents_of(samples: Samples, ranges: Iterable[tuple[int, int]]) -> dict[str, list[dict[str, Any]]]:
    """Per source, the documents of which the samples in [first, last] ranges predict tokens: number in the
    token file, id, tokens; of the first 200,000 samples."""
    counts: dict[str, Counter[int]] = {}
    left = LISTED
    for first, last in ranges:
        last = min(last, first + left - 1)
        left -= last - first + 1
        for begin in range(first, last + 1, BLOCK):
            for source, document, tokens in samples.predicted(np.arange(begin, min(begin + BLOCK, last + 1))):
                counts.setdefault(source, Counter())[document] += tokens
    return {
        source: [
            {"document": document, "id": names.get(document), "tokens": tokens}
            for document, tokens in sorted(found.items())
        ]
        for source, found in sorted(counts.items())
        for names in [samples.document_names(source, set(found))]
    }


def accounting(samples: Samples) -> dict[str, dict[str, Any]]:
    """RUN/accounting.json: what the order does not use, with the documents in skipped ranges
    (`skipped_documents`: what each loses in all epochs)."""
    unread = documents_of(samples, samples.skips.ranges)
    return {
        name: {**about, **({"skipped_documents": unread[name]} if name in unread else {})}
        for name, about in samples.accounting().items()
    }


def told(samples: Samples, ranges: list[tuple[int, int]], most: int = 3) -> str:
    """The documents in ranges of samples, the first few by name, for a line."""
    found = documents_of(samples, ranges)
    parts = []
    for source, documents in found.items():
        names = [f"{each['document']:,}" + (f" ({each['id']})" if each["id"] else "") for each in documents]
        more = f" and {len(names) - most:,} more" if len(names) > most else ""
        parts.append(f"{source}: {', '.join(names[:most])}{more}")
    return "; ".join(parts) or "none that are known"
