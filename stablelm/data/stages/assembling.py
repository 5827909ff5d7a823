"""`assemble` writes the token files of each source: all documents of a side in the order of their keys.

`layout` gathers, a task a source, where its encoded documents lie and how many there are. A token file then
holds the documents whose keys lie in one of K equal ranges, so files are written apart from each other, are
of about one size, and end to end are the same stream for any K. Documents of one key go by content, so not
even doubled ids let the order depend on the reading. Memory is one file's tokens.

Rejected: shuffling sample indices only (a training window would then hold neighbours of one web site or
book), a shuffle buffer."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stablelm.config.recipe import DataRecipe
from stablelm.data.arrays import read_arrays
from stablelm.data.execution import Task, Work
from stablelm.data.manifest import SIDES
from stablelm.data.shards import Shard
from stablelm.data.stages.reading import shards_of
from stablelm.data.stages.tokenizing import Order
from stablelm.data.token_files import TokenFileWriter, shard_name, token_dtype
from stablelm.storage import read_json, write_json

UNITS = ("documents", "tokens", "bytes")


@dataclass(frozen=True)
class Layout:
    """Where the encoded documents of each source lie."""

    recipe: DataRecipe
    order: Order
    name: str = "layout"
    version: int = 1
    by_content: bool = False

    def tasks(self, work: Work) -> list[Task]:
        """A task a source."""
        tokenize = self.order.tokenize
        shards: dict[str, list[dict[str, str]]] = {source.name: [] for source in self.recipe.sources}
        inputs: dict[str, list[str]] = {source.name: [] for source in self.recipe.sources}
        marks = zip(work.marks(tokenize), work.marks(self.order), strict=True)
        for shard, ((_, tokens), (_, order)) in zip(shards_of(tokenize.read, work), marks, strict=True):
            shards[shard.source].append({
                "docs": shard.path, "tokens": f"{tokenize.name}/{shard.name}/tokens.arrays",
                "order": f"{self.order.name}/{shard.name}",
            })  # fmt: skip
            inputs[shard.source] += [tokens.output, order.output]
        return [Task(name, {"shards": shards[name]}, tuple(inputs[name])) for name in shards]

    def run(self, work: Path, task: Task, out: Path) -> dict[str, Any]:
        """Writes the list; returns documents, tokens and bytes of text of each side."""
        totals = {side: dict.fromkeys(UNITS, 0) for side in SIDES}
        for shard in task.arguments["shards"]:
            for side, counts in read_json(work / shard["order"] / "sides.json").items():
                for unit in UNITS:
                    totals[side][unit] += counts[unit]
        write_json(out / "layout.json", task.arguments["shards"])
        return totals


@dataclass(frozen=True)
class Assemble:
    """Encoded documents → .bin, .idx and .ids."""

    recipe: DataRecipe
    layout: Layout
    vocab_size: int
    name: str = "assemble"
    version: int = 1
    by_content: bool = False

    def tasks(self, work: Work) -> list[Task]:
        """A task a token file; a side without documents has none, but there is always one for training."""
        made = []
        for layout, mark in work.marks(self.layout):
            for side, counts in mark.result.items():
                count = -(-counts["tokens"] // self.recipe.shard_tokens)
                count = max(count, 1) if counts["documents"] or side == "train" else 0
                for number in range(count):
                    arguments = {
                        "source": layout.name, "side": side, "part": number, "parts": count,
                        "layout": f"{self.layout.name}/{layout.name}/layout.json",
                        "vocab_size": self.vocab_size,
                    }  # fmt: skip
                    name = f"{layout.name}-{shard_name(side, number, count)}"
                    made.append(Task(name, arguments, (mark.output,), counts["tokens"] * 2 // count))
        return made

    def run(self, work: Path, task: Task, out: Path) -> dict[str, Any]:
        """Writes a token file and the list of ids beside it."""
        about = task.arguments
        shards = read_json(work / about["layout"])
        chosen = _choose(work, shards, about)
        starts = np.concatenate([[0], np.cumsum(chosen["sizes"])])
        dtype = token_dtype(about["vocab_size"])
        tokens, names = np.zeros(int(starts[-1]), dtype), [b""] * len(chosen["sizes"])
        for number, paths in enumerate(shards):
            places = np.flatnonzero(chosen["shards"] == number)
            if not len(places):
                continue
            stored, shard = read_arrays(work / paths["tokens"]), Shard.open(work / paths["docs"])
            ends = stored["ends"]
            for place, document in zip(places.tolist(), chosen["documents"][places].tolist(), strict=True):
                first = int(ends[document - 1]) if document else 0
                tokens[starts[place] : starts[place + 1]] = stored["tokens"][first : int(ends[document])]
                names[place] = shard.ids.raw(int(stored["rows"][document]))
        prefix = out / shard_name(about["side"], about["part"], about["parts"])
        with (
            TokenFileWriter(prefix, vocab_size=about["vocab_size"]) as writer,
            open(f"{prefix}.ids", "w", encoding="ascii") as lines,
        ):
            for place, name in enumerate(names):
                writer.add(tokens[starts[place] : starts[place + 1]])
                lines.write(json.dumps(name.decode()) + "\n")
        return {"documents": len(names), "tokens": writer.num_tokens}


def _choose(
    work: Path, shards: list[dict[str, str]], about: Mapping[str, Any]
) -> dict[str, NDArray[np.int64]]:
    """The documents of a token file in their order: `shards`, the number of each one's shard, `documents`,
    its number there, and `sizes`, its tokens, [n]."""
    side, part, parts = SIDES.index(about["side"]), about["part"], about["parts"]
    low, high = np.uint64(-(-(part << 64) // parts)), np.uint64(-(-((part + 1) << 64) // parts) - 1)
    none: NDArray[Any] = np.zeros(0, np.int64)
    keys, contents = [none.astype(np.uint64)], [none.astype(np.uint64)]
    found: dict[str, list[NDArray[np.int64]]] = {"shards": [none], "documents": [none], "sizes": [none]}
    for number, paths in enumerate(shards):
        order, stored = (
            read_arrays(work / paths["order"] / "order.arrays"),
            read_arrays(work / paths["tokens"]),
        )
        here = np.flatnonzero(
            (order["sides"] == side) & (order["keys"] >= low) & (order["keys"] <= high)
        ).astype(np.int64)
        keys.append(order["keys"][here])
        contents.append(stored["contents"][here])
        found["shards"].append(np.full(len(here), number, np.int64))
        found["documents"].append(here)
        found["sizes"].append(np.diff(stored["ends"], prepend=0)[here])
    sorting = np.lexsort((np.concatenate(contents), np.concatenate(keys)))
    return {name: np.concatenate(arrays)[sorting] for name, arrays in found.items()}
