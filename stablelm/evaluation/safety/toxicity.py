"""How toxic texts are, by a scorer: a list of words, always, and a classifier on this machine when given.

A scorer is a name and a function from texts to numbers from 0 to 1; 0.5 and more counts as toxic. The list
finds words, whatever is meant by them. The classifier is any Hugging Face directory for the classification
of texts whose labels name what they find (`toxic`, `hate` …), opened by `transformers` if that is installed:
safetensors only, none of the directory's own code."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from stablelm.config import InputError
from stablelm.config.cleaning import WordBlocklist
from stablelm.data import word_blocklist
from stablelm.data.texts import Texts
from stablelm.storage import read_json

TOXIC = 0.5
NAMES = ("toxic", "hate", "offens", "abus")
_NEGATIONS = ("non", "not", "no_", "no-", "no ")
BATCH = 16


class Scorer(Protocol):
    """What tells how toxic a text is."""

    name: str
    """In tables."""
    degrees: bool
    """Whether there is anything between 0 and 1."""

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """From 0 to 1 for each text."""
        ...


class Lexicon:
    """1 for a text that holds a listed word or phrase, else 0."""

    name, degrees = "lexicon", False

    def __init__(self, path: str | Path) -> None:
        """`path` as in a recipe's word blocklist: an entry a line; `InputError` for a file that is none."""
        self._settings = WordBlocklist(words=[str(path)])
        self([])

    def __call__(self, texts: Sequence[str]) -> list[float]:
        found = word_blocklist.measure(Texts.of(texts), self._settings)["words.found"]
        return [float(count > 0) for count in found.tolist()]


class Classifier:
    """The probability of the toxic labels, the largest where there are several."""

    name, degrees = "classifier", True

    def __init__(self, folder: str | Path) -> None:
        """`InputError` without transformers, and for a directory that is no classifier with such labels."""
        config = Path(folder) / "config.json"
        if not config.is_file():
            raise InputError(f"{folder}: no classifier: it has no config.json (a Hugging Face directory).")
        labels = read_json(config).get("id2label") or {}
        self._columns = [int(number) for number, name in labels.items() if _is_toxic(str(name))]
        if not self._columns:
            raise InputError(
                f"{config}: none of its labels ({', '.join(map(str, labels.values())) or 'it names none'}) "
                f"says what is toxic: one must hold {', '.join(NAMES)}. Name them under id2label."
            )
        try:
            from transformers import AutoModelForSequenceClassification, AutoTokenizer
        except ImportError:
            raise InputError("--classifier needs transformers: pip install transformers") from None
        local = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), **local)
            self._model: Any = AutoModelForSequenceClassification.from_pretrained(
                str(folder), use_safetensors=True, **local
            ).eval()
        except (OSError, ValueError, ImportError, KeyError) as error:
            problem = str(error).strip().splitlines() or [repr(error)]
            raise InputError(f"{folder}: cannot be opened as a classifier: {problem[0]}") from None
        kind = self._model.config.problem_type
        self._apart = self._model.config.num_labels == 1 or kind == "multi_label_classification"

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> list[float]:
        found: list[float] = []
        for first in range(0, len(texts), BATCH):
            batch = list(texts[first : first + BATCH])
            given = self._tokenizer(batch, padding=True, truncation=True, return_tensors="pt")
            logits = self._model(**given).logits.float()
            shares = logits.sigmoid() if self._apart else logits.softmax(-1)
            found += shares[:, self._columns].amax(-1).tolist()
        return found


def _is_toxic(label: str) -> bool:
    name = label.lower()
    return any(part in name for part in NAMES) and not name.startswith(_NEGATIONS)
