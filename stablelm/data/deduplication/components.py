"""From pairs to clusters: connected components, of which the lowest number stays.

Only documents that have a partner take memory: 16 bytes each, and 48 bytes for each pair of the largest file
of pairs. The pairs may come in any order and more than once; the result is the same."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from stablelm.data.deduplication.spill import UInt64, read_spill, write_spill
from stablelm.storage import atomic_file


def write_edges(path: str | Path, edges: UInt64) -> None:
    """Writes pairs [k, 2] of document numbers, whole or not at all."""
    write_spill(path, edges, 1)


def components(paths: Iterable[str | Path]) -> tuple[UInt64, UInt64]:
    """(members, representatives), both [m]: every document with a partner, ascending, and the lowest number
    of its cluster. A document is kept if it is its own representative."""
    from stablelm.kernels.text.minhash import find_roots, unite

    files = sorted(map(Path, paths))
    members = np.empty(0, np.uint64)
    for path in files:
        for edges in read_spill(path, 2):
            members = np.union1d(members, edges.reshape(-1))
    parents = np.arange(len(members))
    for path in files:
        for edges in read_spill(path, 2):
            unite(parents, np.searchsorted(members, edges))
    find_roots(parents)
    return members, members[parents]


def dropped(members: UInt64, representatives: UInt64) -> UInt64:
    """The numbers that go, ascending."""
    gone: UInt64 = members[members != representatives]
    return gone


def write_clusters(
    path: str | Path,
    members: UInt64,
    representatives: UInt64,
    describe: Callable[[int], dict[str, Any]] | None = None,
) -> int:
    """Writes clusters as JSON lines, one document a line: cluster (the lowest number in it), document, kept,
    and what `describe` says of a document (its source and id). Returns how many clusters there are."""
    order = np.lexsort((members, representatives))
    with atomic_file(path, "w") as file:
        for place in order.tolist():
            document, cluster = int(members[place]), int(representatives[place])
            line = {"cluster": cluster, "document": document, "kept": document == cluster}
            if describe is not None:
                line |= describe(document)
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return len(np.unique(representatives))
