"""A GPT-NeoX YAML as it lies on the disk: keys by name, values of the right kind, what decides otherwise.

`-` and `_` are one; sections are flattened (`optimizer.params.lr`). A fault is kept beside its key, so that
all of them can be told at once."""

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stablelm.config.errors import InputError
from stablelm.config.neox_keys import KEYS, LIST, NUMBER, SECTIONS, SWITCH, TEXT, WHOLE
from stablelm.config.schema import parse_yaml

ARCADE_100K, GPT2 = 100_257, 50_256
# Files that are not at hand: part of the name, ids of the tokenizer, id of the document separator.
_KNOWN_TOKENIZERS = (
    ("arcade100k", 100_289, ARCADE_100K), ("neox-tokenizer", 50_277, 0), ("20B_tokenizer", 50_277, 0),
    ("gpt2-vocab", 50_257, GPT2),
)  # fmt: skip
WORLD = "batch.reference_world"


class NeoxFile:
    """The file's keys, and what `--set` or its section `stablelm` decides instead."""

    def __init__(self, values: Mapping[str, Any], overrides: Sequence[str]) -> None:
        self.given: dict[str, tuple[str, Any]] = {}
        """Name → as it is spelt, value."""
        self.unknown: dict[str, tuple[Any, str]] = {}
        """Key that is none → value, what may be meant."""
        self.broken: dict[str, str] = {}
        """Name → what is wrong with its value."""
        self._flatten(values, "", "")
        self.section: Mapping[str, Any] = self._section()
        """Our keys in the file."""
        self.fixed = dict.fromkeys(_dotted(self.section), "stablelm")
        """Our key → who decides it: the section or `--set`."""
        for override in overrides:
            self._override(override)

    def _flatten(self, values: Mapping[Any, Any], spelt: str, above: str) -> None:
        for name, value in values.items():
            key, label = above + str(name).replace("-", "_"), f"{spelt}{name}"
            if key in self.given:
                if self.given[key][1] != value:
                    self.broken[key] = "it is given twice, with - and with _; keep one of them"
            elif key in SECTIONS and isinstance(value, Mapping):
                self.given[key] = (label, None)
                self._flatten(value, f"{label}.", f"{key}.")
            elif key in KEYS or key in SECTIONS:
                self.given[key] = (label, value)
                if key in SECTIONS and value is not None:
                    self.broken[key] = "a mapping is wanted"
            else:
                self.unknown[label] = (value, f"unknown key{_near(key, above)}")

    def _section(self) -> Mapping[str, Any]:
        section = self.given.get("stablelm", ("", None))[1]
        if section is not None and not isinstance(section, Mapping):
            self.broken["stablelm"] = "a mapping of our keys is wanted"
        return section if isinstance(section, Mapping) else {}

    def _override(self, override: str) -> None:
        """Takes `batch.reference_world` for the file's key; every other one is ours."""
        name, _, text = override.partition("=")
        name = name.strip()
        theirs = name.replace("-", "_")
        if theirs in (WORLD, "reference_world"):
            label = self.given.get("reference_world", (WORLD, None))[0]
            self.given["reference_world"] = (label, parse_yaml(text, f"--set {override}"))
        elif theirs in KEYS and theirs not in ("seed", "precision"):
            what = f"it sets {KEYS[theirs].ours}" if KEYS[theirs].ours else "change it in the file"
            raise InputError(f"--set {override}: --set takes our keys, {name} is GPT-NeoX's: {what}.")
        else:
            self.fixed[name] = f"--set {name}"

    def value(self, name: str) -> Any:
        """What a key means: its value, or GPT-NeoX's default; None where its value is of a wrong kind."""
        if name in self.broken:
            return None
        given = self.given.get(name, ("", None))[1]
        if given is None:
            return KEYS[name].default
        found, wanted = _as(KEYS[name].kind, given)
        if wanted:
            self.broken[name] = f"{wanted} is wanted"
        return found


def _near(key: str, above: str) -> str:
    beside = [n.removeprefix(above) for n in sorted({*KEYS, *SECTIONS}) if n.startswith(above)]
    near = difflib.get_close_matches(key.removeprefix(above), [n for n in beside if "." not in n], 3, 0.6)
    meant = " or ".join(map(repr, near))
    return f"; did you mean {meant}?" if near else "; none of GPT-NeoX's that are known is like it"


def _as(kind: str, value: Any) -> tuple[Any, str]:
    """`value` as that kind; else what is wanted."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    fits = {
        "": True, WHOLE: number and value == int(value), NUMBER: number, SWITCH: isinstance(value, bool),
        TEXT: isinstance(value, str), LIST: isinstance(value, list),
    }[kind]  # fmt: skip
    return (None, kind) if not fits else (int(value) if kind == WHOLE else value, "")


def _dotted(section: Mapping[str, Any], above: str = "") -> list[str]:
    """Dotted names of every key below a mapping, and of the mappings in it."""
    names = []
    for name, value in section.items():
        names.append(f"{above}{name}")
        if isinstance(value, Mapping):
            names += _dotted(value, f"{above}{name}.")
    return names


def tokenizer_ids(file: str, kind: str | None) -> tuple[int, int] | None:
    """Ids of a tokenizer.json and the id of its document separator, or what is known of one by its name."""
    path = Path(file) / "tokenizer.json" if Path(file).is_dir() else Path(file)
    if path.suffix == ".json" and path.is_file():
        try:
            content = json.loads(path.read_text("utf-8"))
            words, added = content["model"]["vocab"], content.get("added_tokens") or []
            ids = {*words.values(), *(token["id"] for token in added)}
            named = words | {token["content"]: token["id"] for token in added}
            return max(ids) + 1, named.get("<|endoftext|>", 0)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{path}: not a tokenizer.json; vocab_file names it.") from None
    if kind == "GPT2BPETokenizer":
        return 50_257, GPT2
    return next(((ids, end) for name, ids, end in _KNOWN_TOKENIZERS if name in file), None)
