"""`decontaminate-index` gathers the words of the evaluation sets, `decontaminate` looks for them in each
shard.

An evaluation file counts by its content: a changed one is indexed and looked for again."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stablelm.config import InputError
from stablelm.config.deduplication import Decontamination
from stablelm.config.recipe import DataRecipe
from stablelm.data import decontamination
from stablelm.data.arrays import take
from stablelm.data.decontamination import Index
from stablelm.data.edits import Edits
from stablelm.data.execution import Stage, Task, Work
from stablelm.data.report_data import shown
from stablelm.data.shards import Shard
from stablelm.data.stages.deduplicating import as_edits
from stablelm.data.stages.reading import Read, file_names, shards_of
from stablelm.data.stages.verdicts import read_verdict, standing, write_edits, write_verdict
from stablelm.storage import read_json, sha256_file


def set_hashes(recipe: DataRecipe) -> dict[str, str]:
    """sha256 of each evaluation file; `InputError` for one that cannot be read."""
    found = {}
    for name, chosen in (recipe.decontamination.sets if recipe.decontamination else {}).items():
        try:
            found[name] = sha256_file(chosen.path)
        except OSError as error:
            raise InputError(
                f"decontamination.sets.{name}: {chosen.path}: cannot be read ({error.strerror}). Correct the "
                "path."
            ) from None
    return found


@dataclass(frozen=True)
class IndexSets:
    """Evaluation files → index."""

    recipe: DataRecipe
    name: str = "decontaminate-index"
    version: int = 1
    by_content: bool = True

    def tasks(self, work: Work) -> list[Task]:
        """One task."""
        settings = self.recipe.decontamination
        assert settings is not None
        hashes = set_hashes(self.recipe)
        built = settings.model_dump(mode="json", exclude={"action", "margin"})
        return [Task("all", {"settings": built, "sha256": hashes})]

    def run(self, work: Path, task: Task, out: Path) -> dict[str, Any]:
        """Builds the index."""
        index = Index.build(Decontamination.model_validate(task.arguments["settings"]))
        if {name: about["sha256"] for name, about in index.about["sets"].items()} != task.arguments["sha256"]:
            raise InputError("decontamination: an evaluation file changed while it was read. Begin again.")
        index.save(out / "index")
        return {}


@functools.lru_cache(maxsize=1)
def _loaded(path: str) -> Index:
    return Index.load(path)


@dataclass(frozen=True)
class Decontaminate:
    """Shards → the verdict on each, changes of text, and a report."""

    recipe: DataRecipe
    read: Read
    index: IndexSets
    before: tuple[Stage, ...]
    name: str = "decontaminate"
    version: int = 2
    by_content: bool = True

    def tasks(self, work: Work) -> list[Task]:
        """A task a document shard."""
        settings = self.recipe.decontamination
        assert settings is not None
        [(index, mark)] = work.marks(self.index)
        verdicts, made, first = standing(work, self.before), [], 0
        for shard in shards_of(self.read, work):
            about, output = verdicts.get(shard.name, ({}, ""))
            arguments = {
                "shard": shard.path, "first": first, "index": f"{self.index.name}/{index.name}/index",
                "action": settings.action, "margin": settings.margin, "source": shard.source, **about,
            }  # fmt: skip
            made.append(
                Task(shard.name, arguments, (shard.read.output, output, mark.output), shard.text_bytes)
            )
            first += shard.documents
        return made

    def run(self, work: Path, task: Task, out: Path) -> dict[str, Any]:
        """Looks for the sets' words in the documents that are kept."""
        about = task.arguments
        shard, index = Shard.open(work / about["shard"]), _loaded(str(work / about["index"]))
        reasons = read_verdict(work, about, len(shard))
        rows = np.flatnonzero(reasons == "")
        texts = take(shard.texts, rows)
        matches = index.matches(texts)
        numbers = rows.astype(np.uint64) + np.uint64(about["first"])
        found = decontamination.report(index, texts, numbers, matches)
        for each in found["sets"].values():
            for example in each["examples"]:
                row = int(example["document"]) - about["first"]
                where = shown(shard, row, file_names(work, about["shard"]), length=0)
                example |= {"source": about["source"], "id": where["id"], "place": where["place"]}
        edits = Edits.none()
        if about["action"] == "drop":
            gone = matches.documents
        elif about["action"] == "cut":
            cuts = decontamination.cuts(texts, matches, about["margin"])
            gone, edits = np.flatnonzero(cuts.dropped), as_edits(cuts, rows)
        else:
            gone = rows[:0]
        owners = {int(row): gram for row, gram in zip(matches.rows[::-1], matches.grams[::-1], strict=True)}
        for row in gone.tolist():
            name = min(name for name, _ in index.owners(int(owners[row])))
            reasons[rows[row]] = f"decontamination: {name}"
        write_edits(out, edits)
        (out / "report.json").write_text(json.dumps(found), encoding="utf-8")
        return {"reasons": write_verdict(out, reasons), "edits": len(edits)}

    def report(self, work: Work) -> dict[str, Any]:
        """What was found, by evaluation set."""
        parts = (work.path / self.name / task.name / "report.json" for task in work.tasks(self))
        merged = decontamination.merge_reports(map(read_json, parts))
        return {"action": self.recipe.decontamination.action, **merged} if self.recipe.decontamination else {}
