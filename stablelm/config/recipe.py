"""What `stablelm data prepare` reads: which files become which source, and how they are split and encoded.

Relative paths start at the directory the command runs in, as everywhere else. How often a source is read is
decided by the run (`data.epochs`), so one prepared directory serves many mixtures; `epochs` here is noted."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from stablelm.config.adaptation import InfillingConfig
from stablelm.config.deduplication import Decontamination, Deduplication
from stablelm.config.filter_set import FilterSet
from stablelm.config.mixture import as_fraction
from stablelm.config.schema import Schema, apply_overrides, commented_yaml, read_yaml, validate
from stablelm.config.slurm import SlurmConfig

OnError = Literal["stop", "skip"]
RESERVED = {
    "manifest.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "report.json",
    "report.html", "decontamination.json", "clusters-exact.jsonl", "clusters-near.jsonl",
}  # fmt: skip
Format = Literal["auto", "text", "code", "jsonl", "parquet", "arrow", "datasets", "warc", "html"]


class SourceConfig(Schema):
    """One kind of text, mixed as a whole."""

    name: str
    """Name in mixtures and reports, and of its folder below `out`: letters, digits, - _ and dots inside."""
    paths: list[str] = Field(min_length=1)
    """Files, folders (searched for .txt .md .py .jsonl .ndjson .html .htm .warc, all also as .gz or .zst, and
    .parquet .arrow .feather) and glob patterns (** goes any number of folders deep); also addresses such as
    s3://, gs://, hf:// or https://. With format datasets: names of datasets on the Hub, or folders."""
    format: Format = "auto"
    """text, code, html: a file is a document; jsonl: a line is; parquet, arrow, datasets: a row is; warc: a
    page is. auto goes by the suffix; text and the others also read files of other suffixes, in folders all
    that are not hidden; code takes the suffixes of programming languages."""
    suffixes: list[str] = Field([])
    """If any: only files with these suffixes are taken from folders and patterns, for example [.c, .h]."""
    subset: str = ""
    """Subset (configuration) of a dataset. Only for format datasets."""
    split: str = "train"
    """Split of a dataset. Only for format datasets."""
    revision: str = ""
    """Commit, tag or branch of a dataset on the Hub; its main branch if empty. Only for format datasets."""
    text_key: str = Field("text", min_length=1)
    """Key (jsonl) or column (tables) of the text. A dotted path leads into objects: meta.body."""
    id_key: str = Field("id", min_length=1)
    """Key, column or dotted path of the document's id, if there is one. What follows a # at its end numbers
    the pieces of one file, which stay together in the split."""
    url_key: str = Field("url", min_length=1)
    """Key, column or dotted path of the document's address, if there is one."""
    label_key: list[str] = Field([])
    """Keys, columns or dotted paths of the name of the part that a document belongs to, for `exclude` and
    reports; the first that is there counts as its label. One may be given without the brackets."""
    label_from_folder: bool = False
    """A document without a label gets the name of its file's folder, the first one below the path that was
    named."""
    exclude: list[str] = Field([])
    """Labels that are left out, and counted. Case, spaces, - and _ do not matter; the whole label must
    match."""
    filters: FilterSet = Field(default_factory=FilterSet)
    """Which documents are kept and what is changed in them: web, code or none, or group → true, or its
    settings. Groups:
    url_blocklist, language, gopher_repetition, gopher_quality, c4, fineweb, line_corrections, code,
    word_blocklist, pii."""
    fim: InfillingConfig | None = None
    """Teach filling in on these documents, code as a rule; {} takes the defaults, null leaves them as they
    are. Held-out documents stay as they are. The tokenizer gets the tokens if it lacks them."""
    epochs: float | str = 1
    """How often a run is meant to read it: a number, or a fraction as "7/3". Noted in the manifest; what a
    run does is said by its `data.epochs`."""
    licence: str = ""
    """Licence of the texts, for the manifest and the model card."""
    url: str = ""
    """Where the texts come from, for the manifest and the model card."""

    @field_validator("name")
    @classmethod
    def _folder_name(cls, name: str) -> str:
        if len(name) > 100 or not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", name):
            raise ValueError("use up to 100 letters, digits, - and _, with single dots inside")
        if name.casefold() in RESERVED:
            raise ValueError("is the name of a file of ours beside the sources' folders; choose another")
        return name

    @field_validator("epochs")
    @classmethod
    def _above_zero(cls, epochs: float | str) -> float | str:
        if as_fraction(epochs) <= 0:
            raise ValueError("epochs must be above 0; leave the source out instead")
        return epochs

    @field_validator("paths")
    @classmethod
    def _not_blank(cls, paths: list[str]) -> list[str]:
        if not all(path.strip() and "\0" not in path for path in paths):
            raise ValueError("a path is empty; name a file, a folder or a pattern")
        return paths

    @field_validator("label_key", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("suffixes")
    @classmethod
    def _with_dots(cls, suffixes: list[str]) -> list[str]:
        if not all(re.fullmatch(r"\.[^./\s]+", suffix) for suffix in suffixes):
            raise ValueError("write a suffix with its dot, for example .c")
        return [suffix.lower() for suffix in suffixes]

    @model_validator(mode="after")
    def _consistent(self) -> "SourceConfig":
        if self.exclude and not (self.label_key or self.label_from_folder):
            raise ValueError("`exclude` needs `label_key` or `label_from_folder`, to know a document's label")
        if not all(folded(label) for label in self.exclude):
            raise ValueError("`exclude`: a label needs a letter or a digit")
        if self.format != "datasets" and (self.subset or self.revision or self.split != "train"):
            raise ValueError("`subset`, `split` and `revision` are only for `format: datasets`")
        return self


def folded(label: str) -> str:
    """A label without what does not matter: Books3, books_3 and BOOKS-3 are one."""
    return "".join(character for character in label.casefold() if character.isalnum())


class DataRecipe(Schema):
    """Raw text to token files."""

    out: str = Field(min_length=1)
    """Directory to write."""
    work: str = ""
    """Directory of what the stages made, OUT.work if empty. Kept, so that a change repeats only what it
    concerns; may be removed when OUT is there."""
    workers: int = Field(0, ge=0)
    """Processes; 0: one a core. The result does not depend on it."""
    tokenizer: str = Field(min_length=1)
    """A tokenizer.json, or a directory that holds one."""
    sources: list[SourceConfig] = Field(min_length=1)
    """What is read, each source mixed by its own number of epochs later."""
    deduplication: Deduplication | None = None
    """What is repeated is kept once; null leaves all. {} takes the defaults: equal and nearly equal
    documents, across all sources."""
    decontamination: Decontamination | None = None
    """Evaluation sets whose words are looked for in the documents; null looks for none."""
    held_out: float = Field(0.01, ge=0, lt=1)
    """Share of the origins (files) kept out of training, chosen by hash, so it does not depend on the order
    of reading."""
    on_error: OnError = "stop"
    """At a broken document: stop and name it, or skip it and count it by reason in the manifest."""
    max_error_rate: float = Field(0.001, ge=0, le=1)
    """With on_error skip: nothing is written when more than this share of a source's documents is broken."""
    append_eod: bool = True
    """End every document with <|endoftext|>."""
    seed: int = Field(1234, ge=0)
    """Fixes the held-out documents and the order of the documents on disk."""
    shard_tokens: int = Field(1 << 28, ge=1)
    """Tokens of a .bin file, about; writing one takes so much memory, at 2 or 4 bytes a token."""
    slurm: SlurmConfig = Field(default_factory=SlurmConfig)
    """For `stablelm data prepare --executor slurm`."""

    @model_validator(mode="after")
    def _check(self) -> "DataRecipe":
        seen: dict[str, str] = {}
        for name in (source.name for source in self.sources):
            if name.casefold() in seen:  # folded, since some file systems do not tell Web from web
                raise ValueError(
                    f"sources {seen[name.casefold()]!r} and {name!r} have one name (case does not count)"
                )
            seen[name.casefold()] = name
        if self.deduplication is not None:
            self.deduplication.order([source.name for source in self.sources])
        return self


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> DataRecipe:
    """The recipe in a YAML file, with `key=value` overrides; raises `InputError` naming file and key."""
    return validate(DataRecipe, apply_overrides(read_yaml(path), overrides), str(path))


RECIPE_HEADING = """
A recipe for `stablelm data prepare`: every key, with its default.
Generated by `make docs` from the field docstrings in stablelm/config/recipe.py; do not edit.
"""


def recipe_yaml() -> str:
    """The commented example recipe (configs/data/example.yml)."""
    web = {
        "name": "web",
        "paths": ["corpus/web.jsonl.zst"],
        "licence": "CC0-1.0",
        "url": "https://github.com/GSA/digitalgov.gov",
    }
    code = {"name": "code", "paths": ["corpus/code", "extra/**/*.py"], "licence": "PSF-2.0"}
    example = {"out": "data/prepared", "tokenizer": "tokenizer.json", "sources": [web, code]}
    return commented_yaml(DataRecipe, RECIPE_HEADING, example)
