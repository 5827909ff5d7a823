"""Training documents that hold an evaluation set's words: found, counted by benchmark, dropped.

Rules (Brown et al., 2020, appendix C, with their numbers as defaults)
* A word is a case-folded run of letters and digits; punctuation and white space only separate, so quotation
  marks, dashes and line breaks make no difference (`kernels/text/ngrams.py`).
* A document leaks an item when it has 13 words in a row that the item's query, or its query with the right
  answer, has. A text of 8 to 12 words counts as a whole; of fewer, it is not looked for, and counted.
* What is found drops the document (GPT-3 cuts it out, with 200 characters on both sides: `action: cut`).

The index is one sorted array of 64-bit numbers, mapped from the disk: 16 bytes for each run of words and
item. A bit array in memory, 2 to 4 bytes a number, turns away the runs that are in no item. A false match has
a probability of (runs indexed) / 2⁶⁴ a run read: once in 10¹² words for the nine sets of the model card.
Costs about 30 ns a byte. Rejected: a Bloom filter alone (cannot say which item), a set of strings (100 times
the memory), GPT-3's exception for runs found in more than 10 documents (a test that leaked often is a
leak)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stablelm.config import InputError
from stablelm.config.deduplication import Decontamination
from stablelm.data.deduplication.lines import Removals, left_over
from stablelm.data.evaluation_items import item_texts
from stablelm.data.texts import Texts
from stablelm.storage import atomic_directory, fingerprint, read_manifest, sha256_file, write_manifest

FORMAT = "stablelm decontamination index"
_AGAIN = "Remove the directory and build the index again."
_EXAMPLES, _CONTEXT = 3, 80
_COLUMNS = {"grams": np.uint64, "sets": np.int32, "items": np.int32}


@dataclass(frozen=True)
class Matches:
    """k runs of words of n texts that are in the index."""

    rows: NDArray[np.int64]
    """Text of each, ascending, [k]."""
    starts: NDArray[np.int64]
    """First byte of its first word within the text, [k]."""
    ends: NDArray[np.int64]
    """One past the last byte of its last word, [k]."""
    grams: NDArray[np.int64]
    """Where in the index it stands first, [k]."""

    @property
    def documents(self) -> NDArray[np.int64]:
        """The texts with a match, ascending: what `action: drop` drops."""
        return np.unique(self.rows)


class Index:
    """The runs of words of evaluation sets."""

    def __init__(
        self,
        about: dict[str, Any],
        grams: NDArray[np.uint64],
        sets: NDArray[np.int32],
        items: NDArray[np.int32],
    ) -> None:
        """grams ascending, sets and items (line in the set's file), [g] each; use `build` or `load`."""
        self.about = about
        """n, lengths of the runs, and for each set: path, sha256, items, grams, too_short (items)."""
        self.grams, self.sets, self.items = grams, sets, items
        bits = max(10, int(16 * len(grams)).bit_length())
        marks = np.zeros(1 << bits, bool)
        marks[grams >> np.uint64(64 - bits)] = True
        self._sieve, self._shift = np.packbits(marks, bitorder="little"), 64 - bits

    @classmethod
    def build(cls, settings: Decontamination) -> "Index":
        """From the files of the settings; `InputError` names the file and line at fault."""
        from stablelm.kernels.text.ngrams import ngrams

        parts: list[tuple[NDArray[np.uint64], int, int]] = []
        about: dict[str, Any] = {"n": settings.n, "min_words": settings.min_words, "sets": {}}
        lengths = set()
        for number, (name, chosen) in enumerate(settings.sets.items()):
            items = short = 0
            first = len(parts)
            for line, texts in item_texts(chosen.path, chosen.fields):
                items, before = items + 1, len(parts)
                for words, _, _ in _words(Texts.of(texts)):
                    if len(words) >= settings.min_words:
                        length = min(settings.n, len(words))
                        out = np.empty(len(words) - length + 1, np.uint64)
                        ngrams(words, length, out)
                        parts.append((out, number, line))
                        lengths.add(length)
                short += len(parts) == before
            if not items:
                raise InputError(
                    f"{chosen.path}: no evaluation item in it. Correct the path of the set {name!r}."
                )
            own = [np.empty(0, np.uint64), *(part for part, _, _ in parts[first:])]
            about["sets"][name] = {
                "path": chosen.path, "sha256": sha256_file(chosen.path), "fields": chosen.fields,
                "items": items, "grams": len(np.unique(np.concatenate(own))), "too_short": short,
            }  # fmt: skip
        about["lengths"] = sorted(lengths)
        sizes = [len(part) for part, _, _ in parts]
        table = np.empty((sum(sizes), 3), np.uint64)
        table[:, 0] = np.concatenate([np.empty(0, np.uint64), *(part for part, _, _ in parts)])
        table[:, 1] = np.repeat(np.array([number for _, number, _ in parts], np.uint64), sizes)
        table[:, 2] = np.repeat(np.array([line for _, _, line in parts], np.uint64), sizes)
        table = np.unique(table, axis=0)
        return cls(about, *(table[:, i].astype(kind) for i, kind in enumerate(_COLUMNS.values())))

    @property
    def fingerprint(self) -> str:
        """What the matches depend on: rules and content of the sets, not where the files lie."""
        sets = {name: {**about, "path": ""} for name, about in self.about["sets"].items()}
        return fingerprint({**self.about, "sets": sets})

    def save(self, path: str | Path) -> None:
        """Writes a directory, whole or not at all."""
        with atomic_directory(path) as folder:
            for name in _COLUMNS:
                np.save(folder / f"{name}.npy", getattr(self, name))
            write_manifest(folder, {"format": FORMAT, "version": 1, "index": self.about})

    @classmethod
    def load(cls, path: str | Path) -> "Index":
        """A saved index, mapped; `InputError` for a file that is missing, cut or of another kind."""
        if not Path(path).is_dir():
            raise InputError(f"{path}: no such directory; a decontamination index is wanted.")
        manifest = read_manifest(path, hashes=False, remedy=_AGAIN)
        about = manifest.get("index")
        if manifest.get("format") != FORMAT or manifest.get("version") != 1 or not isinstance(about, dict):
            raise InputError(f"{path}: not a decontamination index of this version. {_AGAIN}")
        try:
            columns = [np.load(Path(path) / f"{name}.npy", mmap_mode="r") for name in _COLUMNS]
        except (ValueError, OSError) as error:
            raise InputError(f"{path}: cannot be read ({error}). {_AGAIN}") from None
        kinds = [column.dtype for column in columns]
        if kinds != list(_COLUMNS.values()) or len({column.shape for column in columns}) != 1:
            raise InputError(f"{path}: its arrays do not belong together. {_AGAIN}")
        return cls(about, *columns)

    def matches(self, texts: Texts) -> Matches:
        """Every run of words of the texts that is in the index."""
        from stablelm.kernels.text.ngrams import look_up

        lengths = np.array(self.about["lengths"], np.int64)
        rows, starts, ends, grams = ([np.empty(0, np.int64)] for _ in range(4))
        out = np.empty((1024, 3), np.int64)
        for row, (words, begins, stops) in enumerate(_words(texts)):
            found = look_up(words, lengths, self.grams, self._sieve, self._shift, out)
            if found > len(out):
                out = np.empty((2 * found, 3), np.int64)
                found = look_up(words, lengths, self.grams, self._sieve, self._shift, out)
            if found:
                first, size, place = out[:found].T
                rows.append(np.full(found, row))
                starts.append(begins[first])
                ends.append(stops[first + size - 1])
                grams.append(place.copy())
        return Matches(*map(np.concatenate, (rows, starts, ends, grams)))

    def owners(self, gram: int) -> list[tuple[str, int]]:
        """(set, line of the item) of every item with the run of words that stands first at `gram`."""
        last = int(np.searchsorted(self.grams, self.grams[gram], side="right"))
        names = list(self.about["sets"])
        pairs = zip(self.sets[gram:last].tolist(), self.items[gram:last].tolist(), strict=True)
        return [(names[number], line) for number, line in pairs]


def report(index: Index, texts: Texts, numbers: NDArray[np.uint64], matches: Matches) -> dict[str, Any]:
    """What was found in one shard whose texts are the documents `numbers` [n]; JSON. `merge_reports` adds
    them up.

    documents: with any match; sets: name → what the index says of it, documents, items_hit (lines), examples
    (document, item, found, context) of the documents with the lowest numbers."""
    sets = {
        name: {**about, "documents": 0, "items_hit": [], "examples": []}
        for name, about in index.about["sets"].items()
    }
    owners = {gram: index.owners(gram) for gram in np.unique(matches.grams).tolist()}
    cuts = np.flatnonzero(np.diff(matches.rows)) + 1
    for group in np.split(np.arange(len(matches.rows)), cuts) if len(matches.rows) else []:
        row = int(matches.rows[group[0]])
        hit: dict[str, dict[int, int]] = {}
        for place in group.tolist():
            for name, line in owners[int(matches.grams[place])]:
                hit.setdefault(name, {}).setdefault(line, place)
        for name, lines in hit.items():
            about = sets[name]
            about["documents"] += 1
            about["items_hit"] = sorted({*about["items_hit"], *lines})
            if len(about["examples"]) < _EXAMPLES:
                line, place = next(iter(lines.items()))
                about["examples"].append(
                    {"document": int(numbers[row]), "item": line, **_excerpt(texts.raw(row), matches, place)}
                )
    return {"documents": len(matches.documents), "sets": sets}


def merge_reports(reports: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """One report of several shards by one index, whatever their order; `InputError` when there is none."""
    merged: dict[str, Any] = {}
    for part in reports:
        if not merged:
            merged = {"documents": 0, "sets": {}}
        merged["documents"] += part["documents"]
        for name, about in part["sets"].items():
            before = merged["sets"].get(name, {"documents": 0, "items_hit": [], "examples": []})
            examples = sorted(before["examples"] + about["examples"], key=lambda one: one["document"])
            merged["sets"][name] = {
                **about,
                "documents": before["documents"] + about["documents"],
                "items_hit": sorted({*before["items_hit"], *about["items_hit"]}),
                "examples": examples[:_EXAMPLES],
            }
    if not merged:
        raise InputError("decontamination: no report of any shard; run the step first.")
    return merged


def cuts(texts: Texts, matches: Matches, margin: int) -> Removals:
    """For `action: cut`: the matches with `margin` bytes on both sides, joined where they touch; a text of
    which nothing but white space is left is dropped."""
    rows: list[int] = []
    starts: list[int] = []
    ends: list[int] = []
    for row in matches.documents.tolist():
        text = texts.raw(row)
        its = slice(*np.searchsorted(matches.rows, [row, row + 1]))
        last = -1
        spans = np.column_stack([matches.starts[its], matches.ends[its]])
        for first, stop in sorted(spans.tolist()):
            start = _boundary(text, max(0, first - margin))
            end = _boundary(text, min(len(text), stop + margin))
            if start <= last:
                ends[-1] = last = max(last, end)
                continue
            rows.append(row)
            starts.append(start)
            ends.append(end)
            last = end
    cut = tuple(np.array(values, np.int64) for values in (rows, starts, ends))
    dropped = np.zeros(len(texts), bool)
    for row in matches.documents.tolist():
        dropped[row] = not left_over(texts, row, *cut).strip()
    return Removals(cut[0], cut[1], cut[2], dropped)


def _boundary(text: bytes, place: int) -> int:
    """The last start of a character at or before `place`."""
    while place < len(text) and text[place] & 0xC0 == 0x80:
        place -= 1
    return place


def _excerpt(text: bytes, matches: Matches, place: int) -> dict[str, str]:
    start, end = int(matches.starts[place]), int(matches.ends[place])
    around = text[max(0, start - _CONTEXT) : end + _CONTEXT]
    return {"found": text[start:end].decode(), "context": around.decode(errors="ignore")}


def _words(texts: Texts) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]]:
    """(numbers, starts, stops) of the words of each text; views that hold until the next one."""
    from stablelm.kernels.text.folding import folding
    from stablelm.kernels.text.ngrams import MARGIN, next_words

    tables, state = folding(), np.zeros(4, np.uint64)
    numbers, starts, stops = np.empty(4096, np.uint64), np.empty(4096, np.int64), np.empty(4096, np.int64)
    begin = 0
    for end in texts.ends.tolist():
        data, place, held = texts.data[begin:end], 0, 0
        state[:] = 0
        while place < len(data):
            if len(numbers) - held <= MARGIN:
                numbers, starts, stops = (np.concatenate([old, old]) for old in (numbers, starts, stops))
            buffers = numbers[held:], starts[held:], stops[held:]
            count, place = next_words(data, place, len(data), *tables, state, *buffers)
            held += count
        yield numbers[:held], starts[:held], stops[:held]
        begin = end
