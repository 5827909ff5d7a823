"""The clusters of a deduplication step for people: all of them as JSON lines, some with their texts.

Which ones are shown, the largest and those of the smallest hashes, depends on the documents alone, not on
how they are cut into shards."""

import functools
import heapq
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from stablelm.data.arrays import read_arrays
from stablelm.data.deduplication.components import write_clusters
from stablelm.data.execution import Work
from stablelm.data.report_data import histogram, shown
from stablelm.data.shards import Shard
from stablelm.data.stages.deduplicating import HEAD, Clusters, numbered
from stablelm.data.stages.reading import file_names
from stablelm.storage import keyed_uint64

_LARGEST, _OTHERS, _MEMBERS = 3, 5, 6  # clusters that are shown, and members of each


def export_clusters(found: Clusters, work: Work, path: Path) -> tuple[dict[str, int], dict[str, Any]]:
    """Writes the clusters of a step as JSON lines, with each document's source and id; returns counts, and
    what a report shows: counts by source, sizes, the largest clusters and some by hash, with real texts."""
    spill = found.find.listed.spill
    table = list(numbered(spill.recipe, spill.read, work))
    firsts = np.array([first for _, first in table], np.uint64)
    table_at = functools.partial(np.searchsorted, firsts, side="right")  # −1: past shards without documents

    @functools.lru_cache(maxsize=64)
    def opened(place: int) -> Shard:
        return table[place][0].open(work.path)

    def describe(number: int) -> dict[str, Any]:
        place = int(table_at(np.uint64(number))) - 1
        return {"source": table[place][0].source, "id": opened(place).ids[number - table[place][1]]}

    def show(number: int) -> dict[str, Any]:
        place = int(table_at(np.uint64(number))) - 1
        task, first = table[place]
        about = shown(opened(place), number - first, file_names(work.path, task.path), length=HEAD)
        return {"source": task.source, **about}

    [(task, mark)] = work.marks(found)
    stored = read_arrays(work.path / found.name / task.name / "clusters.arrays")
    members, chosen = stored["members"], stored["representatives"]
    write_clusters(path, members, chosen, describe)
    counts = {key: int(value) for key, value in mark.result.items()}
    names = np.array([shard.source for shard, _ in table], object)
    gone = members != chosen
    pairs = Counter(zip(names[table_at(chosen[gone]) - 1], names[table_at(members[gone]) - 1], strict=True))
    between = [{"kept": kept, "dropped": lost, "documents": n} for (kept, lost), n in sorted(pairs.items())]
    clusters, sizes = np.unique(chosen, return_counts=True)
    largest = np.lexsort((clusters, -sizes))[:_LARGEST].tolist()
    rest = (at for at in range(len(clusters)) if at not in largest)
    others = heapq.nsmallest(_OTHERS, rest, key=lambda at: keyed_uint64("cluster", int(clusters[at])))
    examples = [
        {
            "documents": int(sizes[at]),
            "members": [show(int(n)) for n in members[chosen == clusters[at]][:_MEMBERS]],
        }
        for at in [*largest, *others]
    ]
    return counts, {**counts, "between": between, "sizes": histogram(sizes), "examples": examples}
