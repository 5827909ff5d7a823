"""Equal documents, nearly equal ones and repeated lines, found across all shards in bounded memory.

For each step, `exact`, `near` and `lines`:
    STEP-spill     a shard     hashes of its documents (bands, lines), sorted into buckets on the disk
    STEP-list      one task    where the spilled files are
    STEP-find      a bucket    which documents (lines) meet there
    clusters-STEP  one task    exact, near: clusters, of which the document with the lowest number stays
    STEP           a shard     its verdict; for lines also the changes of text

Documents are numbered by their source's place in the order of precedence, then as they were read; what an
earlier step dropped takes no part. Everything is found in the texts as they were read. Memory is a shard or a
bucket; only documents that have a partner, and repeated lines, are held all together."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stablelm.config.recipe import DataRecipe
from stablelm.data.arrays import read_arrays, take, write_arrays
from stablelm.data.deduplication import exact, lines, near
from stablelm.data.deduplication.bands import bands_of
from stablelm.data.deduplication.components import components, dropped, write_edges
from stablelm.data.deduplication.spill import bucket_count
from stablelm.data.edits import Edits
from stablelm.data.execution import Stage, Task, Work
from stablelm.data.report_data import head, shown
from stablelm.data.shards import Shard
from stablelm.data.stages.reading import Read, ShardTask, file_names, shards_of
from stablelm.data.stages.verdicts import read_verdict, standing, write_edits, write_verdict
from stablelm.storage import read_json, write_json

Step = Literal["exact", "near", "lines"]
REASONS = {
    "exact": "exact duplicate", "near": "near duplicate", "lines": "repeated lines: too little left",
}  # fmt: skip
_LINE_BYTES = 64  # of text for each line or paragraph that is long enough, about
COMMON, HEAD = "common.json", 300  # the lines that a report shows, and their characters


def numbered(recipe: DataRecipe, read: Read, work: Work) -> Iterator[tuple[ShardTask, int]]:
    """The document shards in the order of precedence, each with the number of its first document."""
    assert recipe.deduplication is not None
    order = recipe.deduplication.order([source.name for source in recipe.sources])
    rank = {name: place for place, name in enumerate(order)}
    first = 0
    for shard in sorted(shards_of(read, work), key=lambda shard: rank[shard.source]):
        yield shard, first
        first += shard.documents


@dataclass(frozen=True)
class Spill:
    """Shards → hashes in buckets."""

    recipe: DataRecipe
    read: Read
    step: Step
    before: tuple[Stage, ...]
    """The judges before this step."""
    version: int = 1
    by_content: bool = False

    @property
    def name(self) -> str:
        """Of its directory."""
        return f"{self.step}-spill"

    @property
    def settings(self) -> Any:
        """Of the step."""
        return getattr(self.recipe.deduplication, self.step)

    def buckets(self, work: Work) -> int:
        """How many; from what was read, so that one bucket fits in memory."""
        shards = list(shards_of(self.read, work))
        documents, size = (sum(getattr(s, unit) for s in shards) for unit in ("documents", "text_bytes"))
        if self.step == "exact":
            return bucket_count(documents, 3)
        near_records = documents * bands_of(self.settings)[0] if self.step == "near" else 0
        return bucket_count(near_records or size // _LINE_BYTES)

    def tasks(self, work: Work) -> list[Task]:
        """A task a document shard."""
        assert self.recipe.deduplication is not None
        verdicts, buckets, made = standing(work, self.before), self.buckets(work), []
        for shard, first in numbered(self.recipe, self.read, work):
            about, output = verdicts.get(shard.name, ({}, ""))
            arguments = {
                "shard": shard.path, "first": first, "buckets": buckets, **about,
                "scope": shard.source if self.recipe.deduplication.scope == "within" else "",
                "settings": self.settings.model_dump(mode="json"),
            }  # fmt: skip
            made.append(Task(shard.name, arguments, (shard.read.output, output), shard.text_bytes))
        return made

    def run(self, work: Path, task: Task, out: Path) -> dict[str, Any]:
        """Writes the spill file of a shard."""
        about, settings = task.arguments, self.settings
        shard = Shard.open(work / about["shard"])
        rows = np.flatnonzero(read_verdict(work, about, len(shard)) == "")
        texts = shard.texts if len(rows) == len(shard) else take(shard.texts, rows)
        numbers = rows.astype(np.uint64) + np.uint64(about["first"])
        buckets, scope = about["buckets"], about["scope"]
        if self.step == "exact":
            exact.spill_keys(out, task.name, numbers, exact.exact_keys(texts, scope), buckets)
        elif self.step == "near":
            signed = near.signatures(texts, settings)
            near.spill_bands(out, task.name, numbers, signed, settings, buckets, scope)
        else:
            lines.spill_lines(out, task.name, numbers, lines.line_numbers(texts, settings, scope), buckets)
        return {"documents": len(rows)}


@dataclass(frozen=True)
class List:
    """Where the spilled files are, for every bucket to read."""

    spill: Spill
    version: int = 1
    by_content: bool = False

    @property
    def name(self) -> str:
        """Of its directory."""
        return f"{self.spill.step}-list"

    def tasks(self, work: Work) -> list[Task]:
        """One task."""
        marks = work.marks(self.spill)
        folders = sorted(f"{self.spill.name}/{task.name}" for task, _ in marks)
        return [Task("all", {"folders": folders}, tuple(mark.output for _, mark in marks))]

    def run(self, work: Path, task: Task, out: Path) -> dict[str, Any]:
        """Writes the list."""
        write_json(out / "folders.json", task.arguments["folders"])
        return {}


@dataclass(frozen=True)
class Find:
    """Buckets → pairs, or repeated lines."""

    listed: List
    version: int = 2
    by_content: bool = True

    @property
    def name(self) -> str:
        """Of its directory."""
        return f"{self.listed.spill.step}-find"

    def tasks(self, work: Work) -> list[Task]:
        """A task a bucket; none where nothing was read."""
        [(task, mark)] = work.marks(self.listed)
        spill, folders = self.listed.spill, task.arguments["folders"]
        size = sum(task.size for task in work.tasks(spill)) // 10
        buckets = spill.buckets(work) if folders else 0
        settings = spill.settings.model_dump(mode="json")
        about = {"list": f"{self.listed.name}/all/folders.json", "settings": settings}
        return [
            Task(f"{bucket:05d}", {**about, "bucket": bucket}, (mark.output,), size // buckets)
            for bucket in range(buckets)
        ]

    def run(self, work: Path, task: Task, out: Path) -> dict[str, Any]:
        """Writes what meets in a bucket."""
        bucket, spill = task.arguments["bucket"], self.listed.spill
        folders = [work / folder for folder in read_json(work / task.arguments["list"])]
        if spill.step == "exact":
            write_edges(out / "found", exact.bucket_duplicates(folders, bucket))
        elif spill.step == "near":
            write_edges(out / "found", near.bucket_edges(folders, bucket, spill.settings))
        else:
            repeated, documents = lines.bucket_lines(folders, bucket, spill.settings)
            lines.write_repeated(out / "found", repeated)
            write_json(out / COMMON, lines.most_common(repeated, documents))
        return {}


@dataclass(frozen=True)
class Clusters:
    """Pairs → clusters."""

    find: Find
    version: int = 1
    by_content: bool = True

    @property
    def name(self) -> str:
        """Of its directory."""
        return f"clusters-{self.find.listed.spill.step}"

    def tasks(self, work: Work) -> list[Task]:
        """One task."""
        marks = work.marks(self.find)
        paths = [f"{self.find.name}/{task.name}/found" for task, _ in marks]
        return [Task("all", {"found": paths}, tuple(mark.output for _, mark in marks))]

    def run(self, work: Path, task: Task, out: Path) -> dict[str, Any]:
        """Writes the members of clusters, what represents each, and what goes."""
        members, chosen = components([work / path for path in task.arguments["found"]])
        gone = dropped(members, chosen)
        stored = {"members": members, "representatives": chosen, "dropped": gone}
        write_arrays(out / "clusters.arrays", stored)
        return {"clusters": len(members) - len(gone), "documents": len(members), "dropped": len(gone)}


@dataclass(frozen=True)
class Drop:
    """Clusters → the verdict on each shard."""

    spill: Spill
    clusters: Clusters
    version: int = 1
    by_content: bool = True

    @property
    def name(self) -> str:
        """Of its directory."""
        return self.spill.step

    def tasks(self, work: Work) -> list[Task]:
        """A task a document shard."""
        [(_, mark)] = work.marks(self.clusters)
        verdicts, made = standing(work, self.spill.before), []
        for shard, first in numbered(self.spill.recipe, self.spill.read, work):
            about, output = verdicts.get(shard.name, ({}, ""))
            arguments = {
                "clusters": f"{self.clusters.name}/all/clusters.arrays", "first": first,
                "documents": shard.documents, **about,
            }  # fmt: skip
            made.append(Task(shard.name, arguments, (output, mark.output), shard.documents))
        return made

    def run(self, work: Path, task: Task, out: Path) -> dict[str, Any]:
        """Writes the verdict."""
        about = task.arguments
        reasons = read_verdict(work, about, about["documents"])
        gone = read_arrays(work / about["clusters"])["dropped"]
        bounds = np.array([about["first"], about["first"] + len(reasons)], np.uint64)
        low, high = np.searchsorted(gone, bounds)
        reasons[(gone[low:high] - np.uint64(about["first"])).astype(np.int64)] = REASONS[self.spill.step]
        return {"reasons": write_verdict(out, reasons)}


@dataclass(frozen=True)
class Cut:
    """Repeated lines → changes of text, and the verdict on each shard."""

    spill: Spill
    find: Find
    name: str = "lines"
    version: int = 2
    by_content: bool = True

    def tasks(self, work: Work) -> list[Task]:
        """A task a document shard."""
        marks = work.marks(self.find)
        found = [f"{self.find.name}/{task.name}/found" for task, _ in marks]
        outputs = tuple(mark.output for _, mark in marks)
        return [
            Task(task.name, {**task.arguments, "found": found}, (*task.inputs, *outputs), task.size)
            for task in work.tasks(self.spill)
        ]

    def run(self, work: Path, task: Task, out: Path) -> dict[str, Any]:
        """Writes the changes of text and the verdict."""
        about, settings = task.arguments, self.spill.settings
        shard = Shard.open(work / about["shard"])
        reasons = read_verdict(work, about, len(shard))
        rows = np.flatnonzero(reasons == "")
        texts = take(shard.texts, rows)
        numbers = rows.astype(np.uint64) + np.uint64(about["first"])
        repeated = lines.Repeated(work / path for path in about["found"])
        known = lines.line_numbers(texts, settings, about["scope"])
        cuts = lines.removals(texts, numbers, known, repeated, settings)
        reasons[rows[cuts.dropped]] = REASONS["lines"]
        edits = as_edits(cuts, rows)
        write_edits(out, edits)
        common = self.common(work, about["found"])
        seen: dict[str, dict[str, Any]] = {}
        files = file_names(work, about["shard"]) if common else ()
        wanted = np.array([line for _, line in common], np.uint64)
        for at in np.flatnonzero(np.isin(known.numbers, wanted)).tolist():
            row, line = int(known.rows[at]), f"{int(known.numbers[at]):016x}"
            if line not in seen:
                text = texts.raw(row)[int(known.starts[at]) : int(known.ends[at])]
                place = shown(shard, int(rows[row]), files, length=0)["place"]
                seen[line] = {"text": head(text, HEAD), "bytes": len(text), "place": place}
        write_json(out / COMMON, seen)
        gone = np.isin(cuts.rows, np.flatnonzero(~cuts.dropped))
        sizes = {"cuts": int(gone.sum()), "bytes": int((cuts.ends - cuts.starts)[gone].sum())}
        return {"reasons": write_verdict(out, reasons), "edits": len(edits), **sizes}

    def common(self, work: Path, found: list[str]) -> list[tuple[int, int]]:
        """(documents, line) of the lines that most documents have, of all buckets."""
        parts = (read_json(work / path.removesuffix("found") / COMMON) for path in found)
        return lines.merge_common(tuple(pair) for part in parts for pair in part)

    def report(self, work: Work) -> dict[str, Any]:
        """For each source what was cut (documents that are dropped apart), and the most common lines."""
        cut: dict[str, Counter[str]] = {}
        seen: dict[str, dict[str, Any]] = {}
        sources = {shard.name: shard.source for shard in shards_of(self.spill.read, work)}
        found: list[str] = []
        for task, mark in work.marks(self):
            found = task.arguments["found"]
            counts = {"cuts": mark.result["cuts"], "bytes": mark.result["bytes"]}
            cut.setdefault(sources[task.name], Counter()).update(counts)
            for line, about in read_json(work.path / self.name / task.name / COMMON).items():
                seen.setdefault(line, about)
        common = [{"documents": n, **seen[f"{line:016x}"]} for n, line in self.common(work.path, found)]
        return {"sources": {name: dict(counts) for name, counts in cut.items()}, "common": common}


def as_edits(cuts: lines.Removals, rows: NDArray[np.int64]) -> Edits:
    """Cuts in some texts as changes of all; `rows` says which texts they were."""
    spans = zip(rows[cuts.rows].tolist(), cuts.starts.tolist(), cuts.ends.tolist(), strict=True)
    return Edits.of((row, start, end, "") for row, start, end in spans)


@dataclass(frozen=True)
class Steps:
    """The stages of a recipe's deduplication."""

    stages: tuple[Stage, ...]
    """In the order in which they run."""
    judges: tuple[Stage, ...]
    """Those with verdicts, after the ones before."""
    editor: Cut | None
    clusters: tuple[Clusters, ...]


def steps(recipe: DataRecipe, read: Read, before: tuple[Stage, ...]) -> Steps:
    """What the recipe asks for; `before` are the judges before."""
    stages: list[Stage] = []
    clusters: list[Clusters] = []
    editor = None
    for step in ("exact", "near", "lines"):
        if recipe.deduplication is None or getattr(recipe.deduplication, step) is None:
            continue
        spill = Spill(recipe, read, step, before)
        find = Find(List(spill))
        stages += [spill, find.listed, find]
        if step == "lines":
            editor = Cut(spill, find)
            judge: Stage = editor
        else:
            clusters.append(Clusters(find))
            judge = Drop(spill, clusters[-1])
            stages.append(clusters[-1])
        stages.append(judge)
        before = (*before, judge)
    return Steps(tuple(stages), before, editor, tuple(clusters))
