"""How much of a held-out text the training text contains word for word: the share of 13-grams found in both.

A word is a run of letters, digits and underscores (Unicode) of the NFKC-normalised, lower-cased text;
punctuation and white space only separate. A 13-gram is 13 consecutive words of one document (Brown et al.,
2020, appendix C, use the same length); shorter documents have none. Every occurrence in the held-out text
counts, repeats too. Words become 64-bit hashes, and 13-grams 64-bit polynomials of them, kept as one sorted
array: 8 bytes per training 13-gram, and a false match once in 2⁶⁴ divided by the number of those. About 1 MB
of text a second. Rejected: a set of strings (100 times the memory), a Bloom filter (its errors need
explaining)."""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stablelm.storage import keyed_uint64

LENGTH = 13
_WORD = re.compile(r"\w+")
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that every word keeps its weight modulo 2⁶⁴


@dataclass(frozen=True)
class Overlap:
    """The counts behind a share."""

    ngrams: int
    """13-grams in the held-out documents."""
    overlapping: int
    """Those that also occur in a training document."""
    documents: int
    """Held-out documents."""
    documents_touched: int
    """Those with at least one such 13-gram."""

    @property
    def share(self) -> float:
        """overlapping / ngrams; 0 when there are none."""
        return self.overlapping / self.ngrams if self.ngrams else 0.0


def thirteen_gram_overlap(held_out: Iterable[str], train: Iterable[str]) -> Overlap:
    """Share and counts of the held-out 13-grams that the training documents also have."""
    words: dict[str, int] = {}
    known = np.unique(np.concatenate([np.zeros(0, np.uint64), *(_ngrams(text, words) for text in train)]))
    ngrams = overlapping = documents = touched = 0
    for text in held_out:
        grams = _ngrams(text, words)
        places = np.searchsorted(known, grams).clip(max=max(0, len(known) - 1))
        found = int((known[places] == grams).sum()) if len(known) else 0
        documents, touched = documents + 1, touched + (found > 0)
        ngrams, overlapping = ngrams + len(grams), overlapping + found
    return Overlap(ngrams, overlapping, documents, touched)


def _ngrams(text: str, words: dict[str, int]) -> npt.NDArray[np.uint64]:
    """The hash of every 13-gram of a document, in order; `words` remembers the hash of each word."""
    hashes = []
    for word in _WORD.findall(unicodedata.normalize("NFKC", text).lower()):
        if word not in words:
            words[word] = keyed_uint64("word", word)
        hashes.append(words[word])
    values = np.array(hashes, dtype=np.uint64)
    total = np.zeros(max(0, len(values) - LENGTH + 1), dtype=np.uint64)
    for offset in range(LENGTH if total.size else 0):
        total = total * _BASE + values[offset : offset + len(total)]  # wraps modulo 2⁶⁴
    return total
