"""Documents to leave out by their URL (RefinedWeb, Penedo et al., 2023, appendix G.1; FineWeb's URL filter).

A host is blocked with all below it. The words of a URL are its runs of letters and digits, in small letters;
soft words block only together. Substrings are looked for in those runs written together, so an entry xy is
found in x-y and x.y too. Documents without a URL are kept. Costs 20 µs a URL. Rejected: one regular
expression of all entries (it tries thousands of branches at each character), an Aho-Corasick extension (a
dependency for what a table of beginnings does)."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from stablelm.config.cleaning import UrlBlocklist
from stablelm.data.blocklists import list_entries, list_hashes
from stablelm.data.texts import Texts

RUNS = re.compile(r"[^\W_]+")


def measured_by(settings: UrlBlocklist) -> dict[str, Any]:
    """The hashes of the lists."""
    names = ("domains", "urls", "words", "soft_words", "substrings")
    return {name: list_hashes(getattr(settings, name), f"urls.{name}") for name in names}


def measure(texts: Texts, settings: UrlBlocklist, urls: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Per document, [n]: bool `urls.domain`, `urls.url`, `urls.substring`; int64 `urls.words`,
    `urls.soft_words`, how many different entries. `urls` has the URL of each text, "" where there is none."""
    assert len(urls) == len(texts), "a URL, or an empty string, per text"
    domains = list_entries(settings.domains, "urls.domains", _domain)
    whole = list_entries(settings.urls, "urls.urls", str)
    words, soft = (list_entries(getattr(settings, n), f"urls.{n}", _run) for n in ("words", "soft_words"))
    substrings = _beginnings(list_entries(settings.substrings, "urls.substrings", _run))
    found = {name: np.zeros(len(urls), bool) for name in ("domain", "url", "substring")}
    counts = {name: np.zeros(len(urls), np.int64) for name in ("words", "soft_words")}
    for number, url in enumerate(urls):
        if not url:
            continue
        runs = RUNS.findall(url.lower())
        different = set(runs)
        found["url"][number] = url in whole
        found["domain"][number] = bool(domains) and not domains.isdisjoint(_hosts(url))
        found["substring"][number] = _holds("".join(runs), substrings)
        counts["words"][number] = len(different & words)
        counts["soft_words"][number] = len(different & soft)
    return {f"urls.{name}": values for name, values in (found | counts).items()}


def decide(columns: Mapping[str, NDArray[Any]], settings: UrlBlocklist) -> NDArray[Any]:
    """Why each document is dropped, "" keeps it; [n]. In the order of FineWeb's filter."""
    rules = {
        "urls: listed domain": columns["urls.domain"],
        "urls: listed URL": columns["urls.url"],
        "urls: listed word": columns["urls.words"] > 0,
        "urls: soft words": columns["urls.soft_words"] >= settings.soft_threshold,
        "urls: listed substring": columns["urls.substring"],
    }
    return np.select(list(rules.values()), [np.array(reason, object) for reason in rules], "").astype(object)


def _domain(entry: str) -> str:
    if re.search(r"[\s/:@*]", entry) or not entry.strip("."):
        raise ValueError("a domain alone is wanted, like example.org")
    return _spelled(entry.strip("."))


def _run(entry: str) -> str:
    runs = "".join(RUNS.findall(entry.lower()))
    if not runs:
        raise ValueError("an entry needs a letter or a digit")
    return runs


def _spelled(host: str) -> str:
    """In small letters, in ASCII where it can be."""
    host = host.lower()
    try:
        return host if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        return host


def _hosts(url: str) -> list[str]:
    """The host of a URL and all domains above it."""
    try:
        host = urlsplit(url if "//" in url else f"//{url}").hostname or ""
    except ValueError:  # a bracket without its pair
        return []
    parts = _spelled(host).strip(".").split(".")
    return [".".join(parts[first:]) for first in range(len(parts))]


def _beginnings(entries: frozenset[str]) -> dict[str, tuple[str, ...]]:
    """Entries by how they begin: three characters, or what the shortest has."""
    size = min((len(entry) for entry in entries), default=1)
    table: dict[str, list[str]] = defaultdict(list)
    for entry in sorted(entries):
        table[entry[: min(3, size)]].append(entry)
    return {beginning: tuple(listed) for beginning, listed in table.items()}


def _holds(text: str, table: dict[str, tuple[str, ...]]) -> bool:
    if not table:
        return False
    size = len(next(iter(table)))
    for place in range(len(text) - size + 1):
        listed = table.get(text[place : place + size])
        if listed and text.startswith(listed, place):
            return True
    return False
