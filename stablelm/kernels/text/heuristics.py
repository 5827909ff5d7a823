"""All numbers of Gopher's, C4's and FineWeb's rules from one pass over each document.

The words are found once and serve every rule. Costs 60 ns a byte; memory is a hundred bytes for each byte
of the longest document at most, most of it never touched. Rejected: one pass for each rule (what is slow is
finding words)."""

from typing import Any

import numpy as np

from stablelm.kernels.text.classes import BREAK, LETTER, SPACE, SYMBOL
from stablelm.kernels.text.compilation import compiled
from stablelm.kernels.text.lines import (
    CURLY_BRACKET,
    KEPT,
    LOREM_IPSUM,
    ends_with_dots,
    judge,
    line_counts,
    next_break,
    sentences,
    stripped,
)
from stablelm.kernels.text.repetition import (
    duplicate_characters,
    paragraphs,
    prefix_sums,
    table_size,
    top_characters,
)
from stablelm.kernels.text.splitting import split
from stablelm.kernels.text.words import decode, hash_of, slot_of

COLUMNS = (
    *("text.characters", "text.words"),
    *(
        "gopher.words",
        "gopher.word_characters",
        "gopher.alphabetic_words",
        "gopher.hashes",
        "gopher.ellipses",
    ),
    *("gopher.lines", "gopher.bullet_lines", "gopher.ellipsis_lines", "gopher.stop_words"),
    *(
        "repetition.paragraphs",
        "repetition.duplicate_paragraphs",
        "repetition.duplicate_paragraph_characters",
    ),
    *("repetition.lines", "repetition.duplicate_lines", "repetition.duplicate_line_characters"),
    *(f"repetition.top_{n}gram_characters" for n in (2, 3, 4)),
    *(f"repetition.duplicate_{n}gram_characters" for n in (5, 6, 7, 8, 9, 10)),
    *("c4.kept_lines", "c4.long_word_lines", "c4.no_end_lines", "c4.few_word_lines", "c4.javascript_lines"),
    *("c4.policy_lines", "c4.lorem_ipsum_line", "c4.curly_bracket_line", "c4.sentences"),
    *("fineweb.lines", "fineweb.ended_lines", "fineweb.short_lines", "fineweb.duplicate_characters"),
    *("fineweb.line_feeds",),
    *("c4.characters", "c4.words"),
    *("fineweb_after_c4.lines", "fineweb_after_c4.ended_lines", "fineweb_after_c4.short_lines"),
    *("fineweb_after_c4.duplicate_characters", "fineweb_after_c4.line_feeds"),
)
GOPHER, LINES, PARAGRAPHS, PIECES, TOP, DUPLICATE, C4, FINEWEB, AFTER = 2, 7, 11, 14, 17, 20, 26, 35, 40


@compiled
def measure_documents(data: Any, ends: Any, lexicon: Any, rules: Any, short: int, out: Any) -> None:
    """Fills `out` [documents, COLUMNS], int64, from documents as `Texts` holds them."""
    longest = 0
    for number in range(len(ends)):
        longest = max(longest, ends[number] - (ends[number - 1] if number else 0))
    codes, kinds = np.empty(longest + 1, np.int32), np.empty(longest + 1, np.uint32)
    kept, kept_kinds = np.empty(longest + 1, np.int32), np.empty(longest + 1, np.uint32)
    bounds, gaps = np.empty((longest + 1, 2), np.int32), np.empty(longest + 1, np.bool_)
    keys, firsts, times = np.empty(0, np.uint64), np.empty(0, np.int32), np.empty(0, np.int32)
    sums, inverses, lengths = np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.int64)
    stops = np.empty(len(lexicon.stop_values), np.bool_)
    for number in range(len(ends)):
        row = out[number]
        size = decode(data, ends[number - 1] if number else 0, ends[number], lexicon.kinds, codes, kinds)
        count = split(codes, kinds, 0, size, lexicon, bounds, gaps)
        row[0], row[1] = size, count
        if count >= len(sums):
            room = max(2 * len(sums), count + 1)
            sums, inverses = np.empty(room, np.uint64), np.empty(room, np.uint64)
            lengths = np.empty(room, np.int64)
        needed = table_size(max(count, size // 2 + 3))  # as many pieces as characters and line feeds can make
        if len(keys) < needed:
            keys, firsts, times = (
                np.empty(needed, np.uint64),
                np.empty(needed, np.int32),
                np.empty(needed, np.int32),
            )
        stops[:] = False
        row[10] = _measure_words(
            lexicon.stop_keys, lexicon.longest_stop, codes, kinds, bounds, count, stops, row[GOPHER:LINES]
        )
        feeds = _measure_marks(codes, size, row[GOPHER:LINES])
        _measure_runs(codes, bounds, count, sums, inverses, lengths, keys, firsts, times, row[TOP:C4])
        first, last = stripped(kinds, 0, size)
        few = keys[: table_size(feeds + 2)]
        few[:] = 0
        row[PARAGRAPHS], row[PARAGRAPHS + 1], row[PARAGRAPHS + 2] = paragraphs(codes, first, last, few)
        line_counts(codes, kinds, 0, size, short, few, row[FINEWEB:AFTER], row[PIECES:TOP])
        made, words = _measure_lines(
            lexicon,
            rules,
            codes,
            kinds,
            size,
            bounds,
            gaps,
            count,
            kept,
            kept_kinds,
            row[LINES:PARAGRAPHS],
            row[C4:FINEWEB],
        )
        first, last = stripped(kept_kinds, 0, made)
        row[AFTER], row[AFTER + 1] = last - first, words
        few = keys[: table_size(row[C4] + 2)]
        line_counts(
            kept, kept_kinds, first, last, short, few, row[AFTER + 2 : AFTER + 7], np.empty(3, np.int64)
        )


@compiled
def _measure_lines(
    lexicon: Any, rules: Any, codes: Any, kinds: Any, size: int, bounds: Any, gaps: Any, count: int,
    kept: Any, kept_kinds: Any, gopher: Any, c4: Any,
) -> tuple[int, int]:  # fmt: skip
    """gopher[:3]: lines, those that begin with a bullet, that end with an ellipsis; c4 [9] as in COLUMNS.

    Writes what C4 leaves to `kept`; returns its characters and words."""
    line, line_kinds = np.empty(0, np.int32), np.empty(0, np.uint32)
    line_bounds, line_gaps = np.empty((0, 2), np.int32), np.empty(0, np.bool_)
    made, words, word, place, lines, bullets, ellipses, found = 0, 0, 0, 0, 0, 0, 0, 0
    c4[:] = 0
    c4[6], c4[7] = -1, -1
    while place < size:
        stop, after = next_break(codes, kinds, place, size, BREAK)
        begin, end = stripped(kinds, place, stop)
        if begin < end:
            bullets += codes[begin] == 0x2022 or codes[begin] == 45  # • -
            ellipses += codes[end - 1] == 0x2026 or ends_with_dots(codes, begin, end)
        first_word = word
        while word < count and bounds[word, 0] < end:
            word += 1
        if end - begin > len(line):
            line, line_kinds = np.empty(2 * (end - begin), np.int32), np.empty(2 * (end - begin), np.uint32)
        verdict, length = judge(codes, kinds, begin, end, rules, line, line_kinds)
        if verdict & LOREM_IPSUM and c4[6] < 0:
            c4[6] = lines
        if verdict & CURLY_BRACKET and c4[7] < 0:
            c4[7] = lines
        c4[verdict & 7] += 1
        if verdict & 7 == KEPT:
            if made:
                kept[made], kept_kinds[made] = 10, SPACE | BREAK
                made += 1
            if length == end - begin:
                for offset in range(length):
                    kept[made + offset], kept_kinds[made + offset] = (
                        codes[begin + offset],
                        kinds[begin + offset],
                    )
                found += sentences(codes, kinds, bounds, gaps, first_word, word, end)
                words += word - first_word
            else:
                for offset in range(length):
                    kept[made + offset], kept_kinds[made + offset] = line[offset], line_kinds[offset]
                if len(line_gaps) < len(line):
                    line_bounds, line_gaps = np.empty((len(line), 2), np.int32), np.empty(len(line), np.bool_)
                line_words = split(line, line_kinds, 0, length, lexicon, line_bounds, line_gaps)
                found += sentences(line, line_kinds, line_bounds, line_gaps, 0, line_words, length)
                words += line_words
            made += length
        lines += 1
        place = after
    c4[8] = found
    gopher[0], gopher[1], gopher[2] = lines, bullets, ellipses
    return made, words


@compiled
def _measure_words(
    stop_keys: Any, longest_stop: int, codes: Any, kinds: Any, bounds: Any, count: int, stops: Any, out: Any
) -> int:
    """out[:3]: words that are more than symbols, their characters, words with a letter.

    Returns how many of the stop words are there; `stops` has a place for each of their keys, all False."""
    solid, characters, alphabetic, different = 0, 0, 0, 0
    for word in range(count):
        begin, end = bounds[word, 0], bounds[word, 1]
        place = begin
        while place < end and kinds[place] & SYMBOL:
            place += 1
        if place < end:
            solid, characters = solid + 1, characters + end - begin
        while place < end and not kinds[place] & LETTER:  # no symbol is a letter: those before need no look
            place += 1
        alphabetic += place < end
        if end - begin <= longest_stop:
            key = hash_of(codes, begin, end)
            slot = slot_of(stop_keys, key)
            if stop_keys[slot] == key and not stops[slot]:
                stops[slot] = True
                different += 1
    out[0], out[1], out[2] = solid, characters, alphabetic
    return different


@compiled
def _measure_marks(codes: Any, size: int, out: Any) -> int:
    """out[3:]: # and ellipses (… and three dots, which do not overlap); returns the line feeds."""
    hashes, ellipses, feeds, dots = 0, 0, 0, 0
    for place in range(size):
        code = codes[place]
        hashes += code == 35
        feeds += code == 10
        dots = dots + 1 if code == 46 else 0
        if dots == 3 or code == 0x2026:
            ellipses, dots = ellipses + 1, 0
    out[3], out[4] = hashes, ellipses
    return feeds


@compiled
def _measure_runs(
    codes: Any, bounds: Any, count: int, sums: Any, inverses: Any, lengths: Any, keys: Any, firsts: Any,
    times: Any, out: Any,
) -> None:  # fmt: skip
    """out [9]: characters of the top 2-, 3-, 4-gram, then in duplicate 5- to 10-grams."""
    table = keys[: table_size(count)]
    lengths[0] = 0
    for word in range(count):
        lengths[word + 1] = lengths[word] + bounds[word, 1] - bounds[word, 0]
    prefix_sums(codes, bounds, count, True, sums, inverses)
    for n in range(2, 5):
        out[n - 2] = top_characters(sums, inverses, lengths, count, n, table, firsts, times)
    prefix_sums(codes, bounds, count, False, sums, inverses)
    for n in range(5, 11):
        out[n - 2] = duplicate_characters(sums, inverses, lengths, count, n, table)
