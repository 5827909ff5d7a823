"""`plan` cuts the input files into pieces, a task a source; `read` turns each piece into document shards.

A piece is known by the names, sizes and stamps of its files, so a changed file is read again and the others
are not. What reading does not go by (licence, filters, …) is no argument: changing it reads nothing."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stablelm.config.recipe import DataRecipe, SourceConfig
from stablelm.data.accounts import SourceAccount
from stablelm.data.discovery import find_files
from stablelm.data.execution import Mark, Task, Work
from stablelm.data.inputs import InputFile
from stablelm.data.pieces import Piece, pieces, read_piece
from stablelm.data.shards import SHARD_BYTES, Shard, ShardWriter
from stablelm.storage import read_json, write_json

PIECE_BYTES = 64 << 20
ACCOUNT = "account.json"
_SIZES = ((64 << 20, 1 << 20), (1 << 30, 4 << 20), (16 << 30, 16 << 20))
_READING = {
    "name", "format", "subset", "split", "revision", "text_key", "id_key", "url_key", "label_key",
    "label_from_folder", "exclude",
}  # fmt: skip


def shard_bytes(size: int) -> int:
    """Text of a shard of a source of `size` bytes on the disk: small sources make enough shards for all
    workers, large ones not too many files. In few steps, so that a file more seldom cuts all anew."""
    return min(SHARD_BYTES, next((step for limit, step in _SIZES if size < limit), SHARD_BYTES))


@dataclass(frozen=True)
class Plan:
    """Which files there are, and the pieces in which they are read."""

    recipe: DataRecipe
    name: str = "plan"
    version: int = 1
    by_content: bool = False

    def tasks(self, work: Work) -> list[Task]:
        """A task a source; looks for the files."""
        made = []
        for source in self.recipe.sources:
            ignored: Counter[str] = Counter()
            files = find_files(source, ".", ignored)
            size = sum(file.size for file in files)
            arguments = {
                "files": [file.as_dict() for file in files], "ignored": dict(ignored),
                "target": min(PIECE_BYTES, 8 * shard_bytes(size)),
            }  # fmt: skip
            made.append(Task(source.name, arguments, size=size))
        return made

    def run(self, work: Path, task: Task, out: Path) -> dict[str, Any]:
        """Cuts; writes pieces.json."""
        files = [InputFile.from_dict(file) for file in task.arguments["files"]]
        made = [piece.as_dict() for piece in pieces(files, task.arguments["target"])]
        write_json(out / "pieces.json", made)
        return {"pieces": len(made)}


@dataclass(frozen=True)
class Read:
    """Pieces → document shards and accounts."""

    recipe: DataRecipe
    plan: Plan
    name: str = "read"
    version: int = 1
    by_content: bool = False

    def tasks(self, work: Work) -> list[Task]:
        """A task a piece."""
        made = []
        for source, (plan, _) in zip(self.recipe.sources, work.marks(self.plan), strict=True):
            settings = source.model_dump(mode="json", include=_READING)
            found = read_json(work.path / self.plan.name / plan.name / "pieces.json")
            for number, values in enumerate(found):
                arguments = {
                    "source": settings, "piece": values, "on_error": self.recipe.on_error,
                    "shard_bytes": shard_bytes(plan.size),
                }  # fmt: skip
                size = Piece.from_dict(values).size
                made.append(Task(f"{source.name}-{number:05d}", arguments, size=size))
        return made

    def run(self, work: Path, task: Task, out: Path) -> dict[str, Any]:
        """Reads a piece; writes its shards, and the account of its files."""
        source = SourceConfig(**task.arguments["source"], paths=["-"])
        account = SourceAccount()
        writer = ShardWriter(out, task.arguments["shard_bytes"])
        documents = read_piece(
            Piece.from_dict(task.arguments["piece"]), source, task.arguments["on_error"], account
        )
        for document in documents:
            writer.add(document, len(account.files) - 1)
        writer.close()
        (out / ACCOUNT).write_text(json.dumps(account.as_dict()), encoding="utf-8")
        return {"shards": writer.shards}


@dataclass(frozen=True)
class ShardTask:
    """A document shard, as later stages name it."""

    name: str
    source: str
    piece: str
    """Of the task that read it."""
    path: str
    """Of the file, below the work directory."""
    read: Mark
    documents: int
    text_bytes: int

    def open(self, work: Path) -> Shard:
        """Maps it."""
        return Shard.open(work / self.path)


def shards_of(read: Read, work: Work) -> Iterator[ShardTask]:
    """The document shards in the order of reading."""
    for task, mark in work.marks(read):
        for number, about in enumerate(mark.result["shards"]):
            yield ShardTask(
                name=f"{task.name}-{number:03d}",
                source=task.arguments["source"]["name"],
                piece=task.name,
                path=f"{read.name}/{task.name}/{number:04d}.docs",
                read=mark,
                **about,
            )


def file_names(work: Path, shard: str) -> tuple[str, ...]:
    """The input files of a document shard (its path below the work directory), as the user named them; a
    document's `files` counts in them."""
    return tuple(file["path"] for file in read_json((work / shard).parent / ACCOUNT)["inputs"])


def accounts_of(read: Read, work: Work) -> Iterator[tuple[str, str, SourceAccount]]:
    """Of each piece: its task's name, its source, and the account of its files."""
    for task, _ in work.marks(read):
        values = read_json(work.path / read.name / task.name / ACCOUNT)
        yield task.name, task.arguments["source"]["name"], SourceAccount.from_dict(values)
