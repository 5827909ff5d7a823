"""Is a file code that a person wrote? StarCoder's filters (Li et al., 2023; bigcode-dataset/preprocessing).

Lengths are in characters, lines are `str.splitlines`', letters and digits `str.isalpha` and `str.isalnum`, as
there; the shares are of all characters, line breaks included. The reasons are tried in the order of `decide`.
Visible text of HTML is what is left without tags, comments, scripts and styles, with entities read, found by
one pass over "<" and ">": no parser, so markup may be as broken as it likes. Costs 2 ns a byte, 20 ns with
`html`. Rejected: BeautifulSoup (BigCode's; 2 MB/s), go-enry's list of generated files (a thousand lines of
rules)."""

import html
import unicodedata
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stablelm.config.cleaning import CodeHeuristics
from stablelm.data.texts import Texts


def measured_by(settings: CodeHeuristics) -> dict[str, Any]:
    """What the numbers depend on."""
    measured = settings.model_dump(include={"html", "generated", "generated_lines"})
    return measured | {"unicode": unicodedata.unidata_version}


def measure(texts: Texts, settings: CodeHeuristics) -> dict[str, NDArray[Any]]:
    """Per file, [n]: int64 `code.characters`, `code.lines`, `code.max_line`, `code.visible` (−1 unless
    `html`); float32 `code.mean_line`, `code.alphanumeric`, `code.alphabetic`; bool `code.xml`,
    `code.generated`."""
    from stablelm.kernels.text.characters import character_kinds, measure_files

    files = np.zeros((len(texts), 6), np.int64)
    measure_files(texts.data, texts.ends, character_kinds(), files)
    lines, longest, within, alphanumeric, alphabetic, characters = files.T
    marks = [mark.encode().lower() for mark in settings.generated]
    raws = range(len(texts))
    return {
        "code.characters": characters.copy(),
        "code.lines": lines.copy(),
        "code.max_line": longest.copy(),
        "code.mean_line": (within / np.maximum(lines, 1)).astype(np.float32),
        "code.alphanumeric": (alphanumeric / np.maximum(characters, 1)).astype(np.float32),
        "code.alphabetic": (alphabetic / np.maximum(characters, 1)).astype(np.float32),
        "code.xml": np.array([_is_xml(texts, number) for number in raws], bool),
        "code.generated": np.array([_is_marked(texts, number, marks, settings) for number in raws], bool),
        "code.visible": np.array(
            [len(visible_text(texts[number])) if settings.html else -1 for number in raws], np.int64
        ),
    }


def decide(columns: Mapping[str, NDArray[Any]], settings: CodeHeuristics) -> NDArray[Any]:
    """Why each file is dropped, "" keeps it; [n]. The first rule of this order that applies is the reason."""
    characters = columns["code.characters"]
    never = np.zeros(len(characters), bool)
    visible = columns["code.visible"]
    longest, mean = settings.max_line, settings.max_mean_line
    rules = {
        "code: empty": characters == 0,
        "code: too short": characters < settings.min_characters,
        "code: too long": never if settings.max_characters is None else characters > settings.max_characters,
        "code: a line too long": never if longest is None else columns["code.max_line"] > longest,
        "code: lines too long": never if mean is None else columns["code.mean_line"] > np.float32(mean),
        "code: too few letters and digits": columns["code.alphanumeric"]
        < np.float32(settings.min_alphanumeric),
        "code: too few letters": columns["code.alphabetic"] < np.float32(settings.min_alphabetic),
        "code: XML": columns["code.xml"] & settings.xml,
        "code: generated": columns["code.generated"],
        "code: little visible text": settings.html
        & (
            (visible / np.maximum(characters, 1) < settings.min_visible)
            | (visible < settings.min_visible_characters)
        ),
    }
    return np.select(list(rules.values()), [np.array(reason, object) for reason in rules], "").astype(object)


def _is_xml(texts: Texts, number: int) -> bool:
    start = texts.start(number)
    end = min(int(texts.ends[number]), start + 400)  # 100 characters have at most 400 bytes
    return "<?xml version=" in texts.data[start:end].tobytes().decode(errors="ignore")[:100]


def _is_marked(texts: Texts, number: int, marks: list[bytes], settings: CodeHeuristics) -> bool:
    if not marks:
        return False
    raw, end = texts.raw(number), -1
    for _ in range(settings.generated_lines):
        end = raw.find(b"\n", end + 1)
        if end < 0:
            end = len(raw)
            break
    top = raw[:end].lower()
    return any(mark in top for mark in marks)


def visible_text(page: str) -> str:
    """The text of an HTML page that a reader would see, white space as it stands."""
    lower, pieces, place = page.lower(), [], 0
    if len(lower) != len(page):  # one of the few letters whose small form is two characters
        lower = "".join(char.lower() if len(char.lower()) == 1 else char for char in page)
    while (start := page.find("<", place)) >= 0:
        pieces.append(page[place:start])
        following = lower[start + 1 : start + 2]
        if lower.startswith("<!--", start):
            end = page.find("-->", start + 4)
            place = len(page) if end < 0 else end + 3
        elif (following.isascii() and following.isalpha()) or following in ("/", "!", "?"):
            end = page.find(">", start)
            place = len(page) if end < 0 else end + 1
            for name in ("script", "style"):
                after = lower[start + 1 + len(name) : start + 2 + len(name)]
                if lower.startswith(name, start + 1) and not after.isalnum():
                    end = lower.find("</" + name, place)
                    place = len(page) if end < 0 else end
        else:
            pieces.append("<")
            place = start + 1
    return html.unescape("".join([*pieces, page[place:]]))
