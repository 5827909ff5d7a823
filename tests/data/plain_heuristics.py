"""The numbers of the heuristics, by regular expressions and sets: what the loops must give, text by text.

Written from the rules (datatrove 0.10's filters, spaCy's English tokenisation), not from the loops; slow, a
string for each word. Only the tables of characters and of special words are shared with them."""

import re
from collections import Counter
from itertools import pairwise

import numpy as np

from stablelm.kernels.text import classes
from stablelm.kernels.text.special_words import special_words

KINDS = classes.character_classes()
SPECIAL = special_words()
_UNITS = """
km km² km³ m m² m³ dm dm² dm³ cm cm² cm³ mm mm² mm³ ha µm nm yd in ft kg g mg µg t lb oz m/s km/h kmh
mph hPa Pa mbar mb MB kb KB gb GB tb TB T G M K % км км² км³ м м² м³ дм дм² дм³ см см² см³ мм мм² мм³ нм
кг г мг м/с км/ч кПа Па мбар Кб КБ кб Мб МБ мб Гб ГБ гб Тб ТБ тбكم كم² كم³ م م² م³ سم سم² سم³ مم مم² مم³
كم غرام جرام جم كغ ملغ كوب اكواب"""
UNITS = _UNITS.split()


def one_of(flag: int, more: str = "") -> str:
    """A regular expression for the characters with a flag."""
    codes = np.flatnonzero(KINDS & flag)
    first = np.flatnonzero(np.diff(codes, prepend=-2) != 1)
    last = np.append(first[1:], len(codes)) - 1
    ranges = "".join(f"\\U{codes[a]:08X}-\\U{codes[b]:08X}" for a, b in zip(first, last, strict=True))
    return f"[{ranges}{more}]"


ALPHA = one_of(classes.ALPHA)[1:-1]
LOWER = one_of(classes.LOWER | classes.QUOTE)
UPPER = one_of(classes.UPPER | classes.QUOTE)
PREFIX = re.compile(rf"\.\.+|US\$|[CA]\$|\+(?![0-9])|{one_of(classes.PREFIX)}")
SUFFIX = re.compile(
    rf"(?:\.\.+|……|['’][sS]|{one_of(classes.SUFFIX)}|(?<=[0-9])\+|(?<=°[FfCcKk])\.|(?<=[0-9])(?:US|C|A)?\$"
    rf"|(?<=[0-9]){one_of(classes.CURRENCY)}|(?<=[0-9])(?:{'|'.join(map(re.escape, UNITS))})"
    rf"|(?<={one_of(classes.BEFORE_DOT)})\.|(?<={one_of(classes.UPPER)}{{2}})\.)\Z"
)
INFIX = re.compile(
    rf"\.\.+|{one_of(classes.INFIX)}|(?<=[0-9])[+\-*^](?=[0-9-])|(?<={LOWER})\.(?={UPPER})"
    rf"|(?<=[{ALPHA}]),(?=[{ALPHA}])|(?<=[{ALPHA}0-9])(?:---|--|-|–|——|—|~)(?=[{ALPHA}])"
    rf"|(?<=[{ALPHA}0-9])[:<>=/](?=[{ALPHA}])"
)
NAMED = "A-Za-z0-9\u00a1-\uffff"
HOST = re.compile(
    r"(?:(?!(?:10|127)(?:\.\d{1,3}){3})(?!(?:169\.254|192\.168)(?:\.\d{1,3}){2})"
    r"(?!172\.(?:1[6-9]|2\d|3[01])(?:\.\d{1,3}){2})(?:[1-9]\d?|1\d\d|2[01]\d|22[0-3])"
    r"(?:\.(?:1?\d{1,2}|2[0-4]\d|25[0-5])){2}\.(?:[1-9]\d?|1\d\d|2[0-4]\d|25[0-4])"
    rf"|(?:(?:[{NAMED}][{NAMED}_-]{{0,62}})?[{NAMED}]\.)+{one_of(classes.LOWER)}{{2,63}})"
    r"(?::\d{2,5})?(?:[/?#]\S*)?\Z"
)


def is_address(word: str) -> bool:
    """Whether a word is a URL or a mail address."""
    scheme = re.match(r"[\w+\-.]{2,}://", word)
    hosts = [word, *([word[scheme.end() :]] if scheme else [])]
    hosts += [word[at.end() :] for at in re.finditer("@", word) if at.start() > 0]
    return any(HOST.match(host) for host in hosts)


def cut(chunk: str, special: dict = SPECIAL) -> list[str]:
    """The words of a chunk without white space."""
    before, after, size = [], [], None
    while chunk and len(chunk) != size and chunk not in special:
        size = len(chunk)
        prefix = PREFIX.match(chunk)
        start = prefix.end() if prefix else 0
        if start and chunk[start:] in special:
            before.append(chunk[:start])
            chunk = chunk[start:]
            break
        suffix = SUFFIX.search(chunk[start:])
        taken = suffix.end() - suffix.start() if suffix else 0
        if taken:
            after.append(chunk[-taken:])
            if chunk[:-taken] in special:
                chunk = chunk[:-taken]
                break
        if start:
            before.append(chunk[:start])
        chunk = chunk[start : len(chunk) - taken]
    if chunk in special:
        core = list(special[chunk])
    elif not chunk or is_address(chunk):
        core = [chunk]
    else:
        marks = [m.span() for m in INFIX.finditer(chunk) if m.start() > 0]
        edges = [0, *(edge for span in marks for edge in span), len(chunk)]
        core = [chunk[a:b] for a, b in pairwise(edges)]
    return [word for word in (*before, *core, *reversed(after)) if word]


RUNS = {
    tuple(cut(word, {})): word
    for word in SPECIAL
    if PREFIX.match(word) or SUFFIX.search(word) or INFIX.search(word)
}
LONGEST = max(map(len, RUNS))


def tokens(text: str) -> list[tuple[int, str]]:
    """(place, word), white space of more than a single space among them."""
    found: list[tuple[int, str]] = []
    for match in re.finditer(r"\s+|\S+", text):
        place, piece = match.start(), match.group()
        if piece.isspace():
            piece = piece[1:] if piece[0] == " " and place > 0 else piece
            found += [(match.end() - len(piece), piece)] if piece else []
        else:
            for word in cut(piece):
                found.append((place, word))
                place += len(word)
    matches = [
        (-size, first, RUNS[run])
        for first in range(len(found))
        for size in range(1, LONGEST + 1)
        if first + size <= len(found)
        and (run := tuple(word for _, word in found[first : first + size])) in RUNS
    ]
    taken: set[int] = set()
    joined = {}
    for size, first, word in sorted(matches):
        last = first - size - 1
        if first not in taken and last not in taken and text.startswith(word, found[first][0]):
            joined[first] = (last, word)
        taken |= set(range(first, last + 1))
    result, number = [], 0
    while number < len(found):
        last, word = joined.get(number, (number, None))
        place = found[number][0]
        for part in SPECIAL[word] if word else [found[number][1]]:
            result.append((place, part))
            place += len(part)
        number = last + 1
    return result


def words(text: str) -> list[str]:
    """Words without white space."""
    return [word for _, word in tokens(text) if not word.isspace()]


def flagged(word: str, flag: int) -> list[bool]:
    """Which characters have a flag."""
    return [ord(char) < classes.BEYOND and bool(KINDS[ord(char)] & flag) for char in word]


def sentences(line: str) -> int:
    """Sentences of a line, at least 1."""
    count, ended = 1, False
    for _, word in tokens(line):
        if len(word) == 1 and flagged(word, classes.SENTENCE)[0]:
            ended = True
        elif ended and not all(flagged(word, classes.PUNCTUATION)):
            count, ended = count + 1, False
    return count


def repeated(pieces: list[str]) -> tuple[int, int]:
    """Pieces that were there before, and their characters."""
    again = [piece for number, piece in enumerate(pieces) if piece in set(pieces[:number])]
    return len(again), sum(map(len, again))


def top(found: list[str], n: int) -> int:
    """Characters of the most frequent n words, times its count."""
    grams = Counter(" ".join(found[i : i + n]) for i in range(len(found) - n + 1))
    return len((best := grams.most_common(1)[0])[0]) * best[1] if grams else 0


def duplicate(found: list[str], n: int) -> int:
    """Characters in n words that were there before."""
    seen, place, total = set(), 0, 0
    while place + n <= len(found):
        gram = "".join(found[place : place + n])
        total += len(gram) * (gram in seen)
        place += n if gram in seen else 1
        seen.add(gram)
    return total


def kept_by_c4(text: str) -> tuple[list[str], dict[str, int]]:
    """The lines C4 keeps with its default rules, and its numbers."""
    names = ("kept", "long_word", "no_end", "few_word", "javascript", "policy")
    numbers = {f"c4.{name}_lines": 0 for name in names} | {
        "c4.lorem_ipsum_line": -1,
        "c4.curly_bracket_line": -1,
    }
    kept = []
    policies = (
        "terms of use",
        "privacy policy",
        "cookie policy",
        "uses cookies",
        "use of cookies",
        "use cookies",
    )
    for number, line in enumerate(text.splitlines()):
        line = line.strip()
        parts = line.split()
        if any(len(part) > 1000 for part in parts):
            why = "long_word"
        else:
            line = re.sub(r"\[\d*\]|\[edit\]|\[citation needed\]", "", line)
            if not line.endswith((".", "?", "!", '"', "'")) or line.endswith("..."):
                why = "no_end"
            elif len(parts) < 3:
                why = "few_word"
            else:
                if "lorem ipsum" in line.lower() and numbers["c4.lorem_ipsum_line"] < 0:
                    numbers["c4.lorem_ipsum_line"] = number
                why = "javascript" if "javascript" in line.lower() else "kept"
                if why == "kept":
                    if "{" in line and numbers["c4.curly_bracket_line"] < 0:
                        numbers["c4.curly_bracket_line"] = number
                    why = "policy" if any(phrase in line.lower() for phrase in policies) else "kept"
        numbers[f"c4.{why}_lines"] += 1
        kept += [line] if why == "kept" else []
    numbers["c4.sentences"] = sum(map(sentences, kept))
    return kept, numbers


def fineweb(text: str, group: str) -> dict[str, int]:
    """FineWeb's numbers."""
    lines = [line for line in text.split("\n") if line.strip()]
    return {
        f"{group}.lines": len(lines),
        f"{group}.ended_lines": sum(flagged(line[-1], classes.TERMINAL)[0] for line in lines),
        f"{group}.short_lines": sum(len(line) <= 30 for line in lines),
        f"{group}.duplicate_characters": repeated(lines)[1],
        f"{group}.line_feeds": text.count("\n"),
    }


def measure(text: str) -> dict[str, int]:
    """Every number of `stablelm.data.heuristics.measure` with its default settings."""
    found, lines = words(text), text.splitlines()
    solid = [word for word in found if not all(flagged(word, classes.SYMBOL))]
    stops = {"the", "be", "to", "of", "and", "that", "have", "with"}
    paragraphs = re.split(r"\n{2,}", text.strip())
    pieces = re.split(r"\n+", text)
    kept, c4 = kept_by_c4(text)
    left = "\n".join(kept).strip()
    of_paragraphs, of_pieces = repeated(paragraphs), repeated(pieces)
    return {
        "text.characters": len(text),
        "text.words": len(found),
        "gopher.words": len(solid),
        "gopher.word_characters": sum(map(len, solid)),
        "gopher.alphabetic_words": sum(any(flagged(word, classes.LETTER)) for word in found),
        "gopher.hashes": text.count("#"),
        "gopher.ellipses": text.count("...") + text.count("…"),
        "gopher.lines": len(lines),
        "gopher.bullet_lines": sum(line.lstrip().startswith(("•", "-")) for line in lines),
        "gopher.ellipsis_lines": sum(line.rstrip().endswith(("...", "…")) for line in lines),
        "gopher.stop_words": len(stops & set(found)),
        "repetition.paragraphs": len(paragraphs),
        "repetition.duplicate_paragraphs": of_paragraphs[0],
        "repetition.duplicate_paragraph_characters": of_paragraphs[1],
        "repetition.lines": len(pieces) if text else 1,
        "repetition.duplicate_lines": of_pieces[0],
        "repetition.duplicate_line_characters": of_pieces[1],
        **{f"repetition.top_{n}gram_characters": top(found, n) for n in (2, 3, 4)},
        **{f"repetition.duplicate_{n}gram_characters": duplicate(found, n) for n in range(5, 11)},
        **c4,
        **fineweb(text, "fineweb"),
        "c4.characters": len(left),
        "c4.words": sum(len(words(line)) for line in kept),
        **fineweb(left, "fineweb_after_c4"),
    }
