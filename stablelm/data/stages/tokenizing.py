"""`tokenize` encodes the documents that are kept, a task a document shard; `order` draws each one's place in
the shuffle and whether it is held out.

A document is held out when the hash of (seed, origin) falls below the share, so all pieces of a file share a
side, also across sources. Its place is the hash of (seed, source, id): neither depends on the order of
reading, on the other documents or on how they are cut into shards. The two stages are two because another
seed or share need not encode again, except where documents are rearranged for filling in
(`tokenizer/infilling.py`): that is drawn by the same seed, and held-out documents are left as they are, so
that their loss stays comparable."""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stablelm.config.adaptation import InfillingConfig
from stablelm.config.recipe import DataRecipe
from stablelm.data.accounts import EXAMPLES
from stablelm.data.arrays import read_arrays, write_arrays
from stablelm.data.edits import merge
from stablelm.data.execution import Stage, Task, Work
from stablelm.data.manifest import SIDES
from stablelm.data.report_data import examples
from stablelm.data.shards import Shard, batches
from stablelm.data.stages.reading import Read, file_names, shards_of
from stablelm.data.stages.verdicts import changed_by, read_edits, read_verdict, standing
from stablelm.data.token_files import token_dtype
from stablelm.data.tokenization import BATCH_BYTES, BATCH_DOCUMENTS, encode
from stablelm.storage import atomic_directory, keyed_uint64, write_json
from stablelm.tokenizer import Tokenizer
from stablelm.tokenizer.infilling import Infilling, Marks, with_infilling

NO_TOKENS, EXAMPLES_FILE = "no tokens", "examples.json"


def tokenizer_of(recipe: DataRecipe) -> Tokenizer:
    """The recipe's tokenizer, with the tokens of filling in where a source wants them."""
    found = Tokenizer.from_file(recipe.tokenizer)
    return with_infilling(found) if any(source.fim is not None for source in recipe.sources) else found


def keep_tokenizer(tokenizer: Tokenizer, work: Path) -> str:
    """Copies the tokenizer to where workers find it, below the work directory; returns that place."""
    place = f"tokenizers/{tokenizer.sha256[:16]}"
    if not (work / place).is_dir():  # whole or absent; others may be reading it
        with atomic_directory(work / place) as aside:
            tokenizer.save(aside)
    return place


@functools.lru_cache(maxsize=1)
def _loaded(path: str) -> Tokenizer:
    return Tokenizer.from_file(path)


@dataclass(frozen=True)
class Tokenize:
    """Document shards → ids."""

    recipe: DataRecipe
    read: Read
    tokenizer: str
    """The directory below the work directory that `keep_tokenizer` made."""
    eod_id: int
    judges: tuple[Stage, ...]
    """The stages whose verdicts count, the last one last."""
    editors: tuple[Stage, ...]
    """Those that change texts."""
    name: str = "tokenize"
    version: int = 3
    by_content: bool = False

    def tasks(self, work: Work) -> list[Task]:
        """A task a document shard."""
        verdicts, edits, made = standing(work, self.judges), changed_by(work, self.editors), []
        settings = {source.name: source for source in self.recipe.sources}
        for shard in shards_of(self.read, work):
            about, output = verdicts.get(shard.name, ({}, ""))
            changes = edits.get(shard.name, [])
            arguments = {
                "shard": shard.path, "tokenizer": self.tokenizer, **about,
                "ending": [self.eod_id] if self.recipe.append_eod else [],
                "changes": [place for place, _ in changes],
            }  # fmt: skip
            if (fim := settings[shard.source].fim) is not None:
                arguments["fim"] = {
                    **fim.model_dump(), "seed": self.recipe.seed, "held_out": self.recipe.held_out,
                    "source": shard.source,
                }  # fmt: skip
            inputs = (shard.read.output, output, *(mark.output for _, mark in changes))
            made.append(Task(shard.name, arguments, inputs, shard.text_bytes))
        return made

    def run(self, work: Path, task: Task, out: Path) -> dict[str, Any]:
        """Encodes a shard: ids back to back, and for each document its row in the shard, the hash of its ids
        and the bytes of its text."""
        shard = Shard.open(work / task.arguments["shard"])
        tokenizer = _loaded(str(work / task.arguments["tokenizer"]))
        dtype, ending = token_dtype(tokenizer.size), task.arguments["ending"]
        rearranging = Rearranging(task.arguments.get("fim"), tokenizer)
        parts: list[NDArray[Any]] = []
        rows: list[int] = []
        contents: list[int] = []
        reasons = read_verdict(work, task.arguments, len(shard)).tolist()
        edits = merge(*(read_edits(work, place) for place in task.arguments["changes"]))
        texts = edits.apply_all(shard.texts) if len(edits) else shard.texts
        for batch in batches(shard, BATCH_DOCUMENTS, BATCH_BYTES):
            kept = [row for row in batch if not reasons[row]]
            cut = [rearranging.parts(shard, row, texts[row]) for row in kept]
            encoded = iter(encode(tokenizer, [part for parts in cut for part in parts], dtype))
            for row, parts_of in zip(kept, cut, strict=True):
                ids = rearranging.arranged(shard, row, [next(encoded) for _ in parts_of])
                if not len(ids):
                    reasons[row] = NO_TOKENS
                    continue
                ids = np.append(ids, np.array(ending, dtype=dtype))
                parts.append(ids)
                rows.append(row)
                contents.append(
                    int.from_bytes(hashlib.blake2b(ids.tobytes(), digest_size=8).digest(), "little")
                )
        sizes = np.array([len(part) for part in parts], np.int64)
        before, after = (np.diff(each.ends, prepend=0)[rows] for each in (shard.texts, texts))
        text_bytes = after
        write_arrays(out / "tokens.arrays", {
            "tokens": np.concatenate([np.zeros(0, dtype), *parts]), "ends": np.cumsum(sizes),
            "rows": np.array(rows, np.int64), "contents": np.array(contents, np.uint64),
            "text_bytes": text_bytes,
        })  # fmt: skip
        chosen = examples(shard, texts, reasons, file_names(work, task.arguments["shard"]))
        (out / EXAMPLES_FILE).write_text(json.dumps(chosen), encoding="utf-8")
        written = np.bincount(edits.codes[np.isin(edits.rows, rows)], minlength=len(edits.replacements))
        changed = int((before != after).sum())
        return {
            **fates(shard, reasons),
            "changed": {"documents": changed, "before": int(before.sum()), "after": int(after.sum())},
            "replaced": dict(zip(edits.replacements, written.tolist(), strict=True)),
            "rearranged": rearranging.count,
        }


class Rearranging:
    """The documents of a shard that are rearranged for filling in."""

    def __init__(self, about: Mapping[str, Any] | None, tokenizer: Tokenizer) -> None:
        """`about`: the task's settings; None rearranges nothing."""
        self.count = {"psm": 0, "spm": 0}
        """Documents, by form."""
        self._about = about
        if about is not None:
            settings = InfillingConfig(rate=about["rate"], spm_rate=about["spm_rate"])
            self._infilling = Infilling(settings, about["seed"], Marks.of(tokenizer))

    def parts(self, shard: Shard, row: int, text: str) -> list[str]:
        """The pieces of a document that are encoded each for itself."""
        if self._about is None or is_held_out(
            self._about["held_out"], self._about["seed"], shard.origin(row)
        ):
            return [text]
        return self._infilling.parts(text, self._about["source"], shard.ids[row])

    def arranged(self, shard: Shard, row: int, parts: list[NDArray[Any]]) -> NDArray[Any]:
        """The ids of a document from those of its pieces."""
        if self._about is None or len(parts) == 1 or not any(map(len, parts)):
            return parts[0]
        key = self._about["source"], shard.ids[row]
        self.count["spm" if self._infilling.is_spm(*key) else "psm"] += 1
        return self._infilling.arranged(parts, *key)


def is_held_out(share: float, seed: int, origin: str) -> bool:
    """Whether the documents of an origin are kept out of training."""
    return keyed_uint64("held-out", seed, origin) < int(share * 2**64)


def fates(shard: Shard, reasons: Sequence[str]) -> dict[str, Any]:
    """What became of a shard's documents: for each reason (""  is kept) a list of [file of the piece, how
    many, their bytes in the input], and for the reasons the first places, [file, line]."""
    table: dict[str, dict[int, list[int]]] = {}
    places: dict[str, list[list[int]]] = {}
    for row, reason in enumerate(reasons):
        file = int(shard.files[row])
        entry = table.setdefault(reason, {}).setdefault(file, [0, 0])
        entry[0] += 1
        entry[1] += int(shard.sizes[row])
        if reason and len(places.setdefault(reason, [])) < EXAMPLES:
            places[reason].append([file, int(shard.numbers[row])])
    return {
        "fates": {reason: [[file, *sums] for file, sums in files.items()] for reason, files in table.items()},
        "places": places,
    }


@dataclass(frozen=True)
class Order:
    """Where each encoded document goes."""

    recipe: DataRecipe
    tokenize: Tokenize
    name: str = "order"
    version: int = 1
    by_content: bool = False

    def tasks(self, work: Work) -> list[Task]:
        """A task a document shard."""
        made = []
        marks = work.marks(self.tokenize)
        for shard, (_, mark) in zip(shards_of(self.tokenize.read, work), marks, strict=True):
            arguments = {
                "shard": shard.path, "tokens": f"{self.tokenize.name}/{shard.name}/tokens.arrays",
                "source": shard.source, "seed": self.recipe.seed, "held_out": self.recipe.held_out,
            }  # fmt: skip
            made.append(Task(shard.name, arguments, (shard.read.output, mark.output), shard.text_bytes // 50))
        return made

    def run(self, work: Path, task: Task, out: Path) -> dict[str, Any]:
        """Writes each document's key and side, and as sides.json documents, tokens and bytes of each side."""
        about = task.arguments
        shard, tokens = Shard.open(work / about["shard"]), read_arrays(work / about["tokens"])
        keys, sides = np.zeros(len(tokens["rows"]), np.uint64), np.zeros(len(tokens["rows"]), np.uint8)
        for number, row in enumerate(tokens["rows"].tolist()):
            keys[number] = keyed_uint64("order", about["seed"], about["source"], shard.ids[row])
            sides[number] = is_held_out(about["held_out"], about["seed"], shard.origin(row))
        write_arrays(out / "order.arrays", {"keys": keys, "sides": sides})
        sizes = np.diff(tokens["ends"], prepend=0)
        counts = {}
        for number, side in enumerate(SIDES):
            here = sides == number
            counts[side] = {
                "documents": int(here.sum()), "tokens": int(sizes[here].sum()),
                "bytes": int(tokens["text_bytes"][here].sum()),
            }  # fmt: skip
        write_json(out / "sides.json", counts)
        return {}
