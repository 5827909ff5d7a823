"""Documents to leave out by the words in them (C4, Raffel et al., 2020: a page with a listed word goes).

Text and entries are compared in small letters. An entry, word or phrase, counts between characters that are
no part of words; one in a script without spaces anywhere. The words of a text are looked up among those of
the entries, and only the entries that could be there are searched for. Costs 40 ns a byte. Rejected: one
regular expression of all entries (it tries hundreds of branches at each character), C4's lottery that keeps
some of the pages (this is a filter, and drawing is the mixture's business)."""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stablelm.config.cleaning import WordBlocklist
from stablelm.data.blocklists import list_entries, list_hashes
from stablelm.data.texts import Texts

WORDS = re.compile(r"\w+")
# Han, kana, bopomofo, Thai, Lao, Khmer, Myanmar, Tibetan: written without spaces between words
NO_SPACES = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u312f\u31a0-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U000323af]"
)


def measured_by(settings: WordBlocklist) -> dict[str, Any]:
    """The hashes of the lists."""
    return {"words": list_hashes(settings.words, "words.words")}


def measure(texts: Texts, settings: WordBlocklist) -> dict[str, NDArray[Any]]:
    """`words.found`: how many different entries each document holds, int64 [n]."""
    entries = list_entries(settings.words, "words.words", str.lower)
    dense = [entry for entry in entries if NO_SPACES.search(entry)]
    bare: list[re.Pattern[str]] = []  # without a word in them: emoji
    by_word: dict[str, list[re.Pattern[str]]] = defaultdict(list)
    for entry in entries.difference(dense):
        pattern = re.compile(rf"(?<!\w){re.escape(entry)}(?!\w)")
        words = WORDS.findall(entry)
        (by_word[max(words, key=len)] if words else bare).append(pattern)
    found = np.zeros(len(texts), np.int64)
    for number, text in enumerate(texts):
        lower = text.lower()
        patterns = [p for word in by_word.keys() & set(WORDS.findall(lower)) for p in by_word[word]] + bare
        found[number] = sum(pattern.search(lower) is not None for pattern in patterns)
        if not lower.isascii():
            found[number] += sum(entry in lower for entry in dense)
    return {"words.found": found}


def decide(columns: Mapping[str, NDArray[Any]], settings: WordBlocklist) -> NDArray[Any]:
    """Why each document is dropped, "" keeps it; [n]."""
    return np.where(columns["words.found"] > settings.max_found, "words: listed word", "").astype(object)
