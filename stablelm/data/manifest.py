"""A prepared directory, opened and checked.

Opening costs milliseconds: every file must be there in the promised size, and the tokenizer, small and
decisive, must have its hash. `verify` reads every byte. The fingerprint is that of the token files and the
tokenizer, so the same data prepared in another place is the same dataset, and a checkpoint can tell whether
it resumes on what it was trained on."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stablelm.config import InputError
from stablelm.config.schema import suggest
from stablelm.data.token_files import TokenFile, TokenShards, shard_name
from stablelm.storage import MANIFEST, fingerprint, read_manifest, sha256_file
from stablelm.tokenizer import Tokenizer

FORMAT = "stablelm token files"
SIDES, _FIRST = ("train", "held_out"), 3
_REMEDY = "Make the directory again with `stablelm data prepare`, or restore the file."


def seal(about: dict[str, Any]) -> dict[str, Any]:
    """The manifest's own part with its hash, by which `verify` notices an edit."""
    return {**about, "sealed": fingerprint(about)}


class Dataset:
    """Sources of token files, their tokenizer, and the account of how they were made."""

    def __init__(self, path: str | Path) -> None:
        """`InputError` when `path` is not a prepared directory, or a file is missing, cut or exchanged."""
        self.path = Path(path)
        if not (self.path / MANIFEST).is_file():
            raise InputError(
                f"{self.path}: not a prepared dataset: it has no {MANIFEST}. Make one with `stablelm data "
                "prepare`."
            )
        manifest = read_manifest(self.path, hashes=False, remedy=_REMEDY)
        if manifest.get("format") != FORMAT or manifest.get("version") != 1:
            raise InputError(
                f"{self.path / MANIFEST}: not a prepared dataset's (format {manifest.get('format')!r}, "
                f"version {manifest.get('version')!r}). Make one with `stablelm data prepare`."
            )
        self.manifest: dict[str, Any] = manifest
        """The manifest as it is on the disk."""
        self.tokenizer_path = self.path / "tokenizer.json"
        try:
            self._check()
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{self.path / MANIFEST}: incomplete ({error!r}). {_REMEDY}") from None
        self._opened: dict[tuple[str, str], TokenFile] = {}

    def _check(self) -> None:
        files, tokenizer = self.manifest["files"], self.manifest["tokenizer"]
        if not files["tokenizer.json"]["sha256"] == tokenizer["sha256"] == sha256_file(self.tokenizer_path):
            raise InputError(
                f"{self.tokenizer_path}: not the tokenizer that made these token files: its sha256 is "
                f"another. {_REMEDY}"
            )
        self.tokenizer_size = int(tokenizer["size"])
        """Ids of the tokenizer; every token is below."""
        self.sources: tuple[str, ...] = tuple(self.manifest["sources"])
        """Names, in the recipe's order."""
        hashes = {"tokenizer.json": tokenizer["sha256"]}
        for name, about in self.manifest["sources"].items():
            for side in SIDES:
                if not all(isinstance(about[side][unit], int) for unit in ("documents", "tokens", "bytes")):
                    raise TypeError(f"counts of {name}, {side}")
                for prefix in _prefixes(side, about[side]):
                    for suffix in ("bin", "idx"):
                        hashes[f"{name}/{prefix}.{suffix}"] = files[f"{name}/{prefix}.{suffix}"]["sha256"]
        self.fingerprint = fingerprint(hashes)
        """Of every token and the tokenizer; independent of where the directory lies."""

    def info(self, source: str) -> dict[str, Any]:
        """What the manifest says of a source: paths, licence, url; documents, tokens and (UTF-8) bytes of
        text under `train` and `held_out`; read, kept, dropped and errors, in all and under `inputs` for each
        file."""
        if source not in self.sources:
            raise InputError(f"{self.path}: no source {source!r}{suggest(source, self.sources)}")
        about: dict[str, Any] = self.manifest["sources"][source]
        return about

    def train(self, source: str) -> TokenFile:
        """The training documents of a source; may have none."""
        return self._open(source, "train")

    def held_out(self, source: str) -> TokenFile | None:
        """The held-out documents of a source, or None when there are none."""
        return self._open(source, "held_out") if self.info(source)["held_out"]["documents"] else None

    def text_bytes(self, source: str, side: str = "train") -> int:
        """UTF-8 bytes of the text of `train` or `held_out`: what bits per byte divides by."""
        return int(self.info(source)[side]["bytes"])

    def _open(self, source: str, side: str) -> TokenFile:
        promised = self.info(source)[side]
        if (source, side) not in self._opened:
            prefixes = _prefixes(side, promised)
            path = self.path / source / side
            file = TokenFile(path) if len(prefixes) == 1 else TokenShards(path, len(prefixes))
            if (file.num_tokens, file.num_documents) != (promised["tokens"], promised["documents"]):
                raise InputError(
                    f"{file.prefix}.idx: {file.num_documents:,} documents, {file.num_tokens:,} tokens; the "
                    f"manifest promises {promised['documents']:,} and {promised['tokens']:,}. {_REMEDY}"
                )
            self._opened[source, side] = file
        return self._opened[source, side]

    def document_ids(self, source: str, numbers: Iterable[int], side: str = "train") -> dict[int, str]:
        """The ids of some documents of a token file, read from the list beside it."""
        wanted, found, first = set(numbers), {}, 0
        for prefix in _prefixes(side, self.info(source)[side]) if wanted else ():
            with open(self.path / source / f"{prefix}.ids", encoding="utf-8") as lines:
                for number, line in enumerate(lines, first):
                    first = number + 1
                    if number in wanted:
                        found[number] = json.loads(line)
        return found

    def verify(self) -> list[str]:
        """Reads every byte; returns the files' names. `InputError` names the one that is not as written."""
        manifest = read_manifest(self.path, hashes=True, remedy=_REMEDY)
        sealed = manifest.pop("sealed", None)
        if fingerprint({name: value for name, value in manifest.items() if name != "files"}) != sealed:
            raise InputError(
                f"{self.path / MANIFEST}: edited or damaged: it does not match its own hash. {_REMEDY}"
            )
        for source in self.sources:
            self.train(source)
            self.held_out(source)
        return [MANIFEST, *manifest["files"]]

    def open_tokenizer(self) -> Tokenizer:
        """Text to the ids of the token files."""
        return Tokenizer.from_file(self.tokenizer_path)

    def tokenizer_files(self) -> dict[str, bytes]:
        """What a checkpoint keeps of the tokenizer."""
        return {"tokenizer.json": self.tokenizer_path.read_bytes()}

    def summary(self) -> dict[str, Any]:
        """What a checkpoint and a model card carry of the dataset."""
        kept = ("licence", "url", "train", "held_out", "read", "kept", "dropped", "errors")
        return {
            "fingerprint": self.fingerprint,
            "tokenizer": self.manifest["tokenizer"],
            "append_eod": self.manifest["append_eod"],
            "sources": {name: {key: self.info(name)[key] for key in kept} for name in self.sources},
        }

    def summary_json(self) -> str:
        """`summary` as JSON text."""
        return json.dumps(self.summary(), indent=2, ensure_ascii=False) + "\n"

    def describe(self) -> list[str]:
        """The dataset for a reader, a line each."""
        lines = [
            f"{self.path}: fingerprint {self.fingerprint[:16]}, tokenizer of {self.tokenizer_size:,} ids"
        ]
        for name in self.sources:
            about = self.info(name)
            train, held_out = about["train"], about["held_out"]
            lines.append(
                f"{name}: {train['documents']:,} documents, {train['tokens']:,} tokens, {train['bytes']:,} "
                f"bytes of text; held out {held_out['documents']:,} documents, {held_out['tokens']:,} tokens"
            )
            lost = [
                f"{reason} {n:,}"
                for kind in ("dropped", "errors")
                for reason, n in sorted(about[kind].items(), key=lambda pair: (-pair[1], pair[0]))
            ]
            if lost:
                lines.append(f"  read {about['read']:,}, kept {about['kept']:,}; left out: {', '.join(lost)}")
            if fim := about.get("fim"):
                lines.append(f"  rearranged for filling in: {fim['psm']:,} as PSM, {fim['spm']:,} as SPM")
            if empty := about["empty_files"]:
                first = ", ".join(empty[:_FIRST])
                many = f"{len(empty):,} empty files, the first: " if len(empty) > _FIRST else "empty: "
                lines.append(f"  {many}{first}")
        return lines


def _prefixes(side: str, about: dict[str, Any]) -> list[str]:
    """The names of a side's token files; a side without documents has none, except for training."""
    count = about.get("files", 1 if side == "train" or about["documents"] else 0)
    return [shard_name(side, number, count) for number in range(count)]
