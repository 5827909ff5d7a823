"""Where personal data and keys may begin: one pass over bytes, so that text without them costs next to
nothing.

Only necessary conditions are checked here, each with a bounded or a once-per-run look ahead, so a text costs
time in proportion to its length whatever is in it; `stablelm.data.pii_rules` decides. Costs 1–2 ns a byte.
Rejected: one regular expression per kind (each reads the text again, at 5–20 ns a byte)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stablelm.kernels.text.compilation import compiled, inlined

NOTHING, EMAIL, IPV4, IPV6, INTERNATIONAL, AMERICAN, PREFIXED, ASSIGNED = range(8)
# What a key begins with; a byte before it that could belong to the key rules it out.
PREFIXES = (
    *(
        b"AKIA",
        b"ASIA",
        b"ABIA",
        b"ACCA",
        b"AIza",
        b"ghp_",
        b"gho_",
        b"ghu_",
        b"ghs_",
        b"ghr_",
        b"github_pat_",
    ),
    *(
        b"glpat-",
        b"hf_",
        b"sk-",
        b"sk_live_",
        b"rk_live_",
        b"sk_test_",
        b"xox",
        b"npm_",
        b"pypi-",
        b"eyJ",
        b"SG.",
    ),
    b"-----BEGIN ",
)
WORD, DIGIT, HEX, TOKEN, FIRST, NAME_END, BEYOND = 1, 2, 4, 8, 16, 32, 64
LONGEST = 512


def _classes() -> NDArray[np.uint8]:
    table = np.zeros(256, np.uint8)
    for byte in range(256):
        char = chr(byte)
        if byte >= 128:  # part of a character beyond ASCII, of whatever kind
            table[byte] |= BEYOND
        elif char.isalnum() or char == "_":
            table[byte] |= WORD
        if byte < 128 and char.isdigit():
            table[byte] |= DIGIT
        if char in "0123456789abcdefABCDEF":
            table[byte] |= HEX
        if byte < 128 and (char.isalnum() or char in "_-+/.~"):
            table[byte] |= TOKEN
        if char in "yYtTnNdDlL":  # how key, secret, token, password and credential end
            table[byte] |= NAME_END
    for prefix in PREFIXES:
        table[prefix[0]] |= FIRST
    return table


def _packed() -> NDArray[np.uint8]:
    table = np.zeros((len(PREFIXES), 12), np.uint8)
    for row, prefix in enumerate(PREFIXES):
        table[row, 0] = len(prefix)
        table[row, 1 : 1 + len(prefix)] = list(prefix)
    return table


CLASSES, PACKED = _classes(), _packed()


def find_triggers(data: Any, ends: Any) -> NDArray[np.int64]:
    """(document, offset in `data`, kind) of each place worth a look, [n, 3], in order."""
    room = 1024 + len(data) // 256
    while True:
        found = np.empty((room, 3), np.int64)
        count = _find(data, ends, CLASSES, PACKED, found)
        if count <= room:
            return found[:count]
        room = count


@compiled
def _find(data: Any, ends: Any, classes: Any, prefixes: Any, found: Any) -> int:
    count, start = 0, 0
    for document in range(len(ends)):
        end = ends[document]
        for place in range(start, end):
            byte = data[place]
            before = classes[data[place - 1]] if place > start else np.uint8(0)
            last = data[place - 1] if place > start else np.uint8(32)
            kind = NOTHING
            if byte == 64:  # @
                if (before & (WORD | BEYOND)) and _domain(data, place + 1, end, classes):
                    kind = EMAIL
            elif byte == 43:  # +
                if not (before & WORD) and place + 8 < end and _opens_number(data, place + 1, classes):
                    kind = INTERNATIONAL
            elif byte == 40:  # (
                if place + 12 < end and _digits(data, place + 1, end, classes) == 3 and data[place + 4] == 41:
                    kind = AMERICAN
            elif byte == 61 or byte == 58:  # = :
                value = _value(data, place, start, end, classes)
                if value >= 0:
                    count = _keep(found, count, document, value, ASSIGNED)
            elif not (before & WORD):
                if classes[byte] & DIGIT and last != 46:
                    kind = _number(data, place, end, classes)
                if kind == NOTHING and classes[byte] & FIRST and last != 45:
                    kind = _prefixed(data, place, end, prefixes)
            if kind != NOTHING:
                count = _keep(found, count, document, place, kind)
        start = end
    return count


@inlined
def _keep(found: Any, count: int, document: int, place: int, kind: int) -> int:
    if count < len(found):
        found[count, 0], found[count, 1], found[count, 2] = document, place, kind
    return count + 1


@compiled
def _digits(data: Any, place: int, end: int, classes: Any) -> int:
    """How many digits stand at `place`, at most 5."""
    count = 0
    while count < 5 and place + count < end and classes[data[place + count]] & DIGIT:
        count += 1
    return count


@compiled
def _opens_number(data: Any, place: int, classes: Any) -> bool:
    at = place + 1 if data[place] == 40 else place
    return bool(classes[data[at]] & DIGIT)


@compiled
def _domain(data: Any, place: int, end: int, classes: Any) -> bool:
    """A dot between characters of words, soon."""
    stop = min(end, place + 255)
    first = place
    while place < stop and (classes[data[place]] & (WORD | BEYOND) or data[place] == 45 or data[place] == 46):
        if data[place] == 46 and place > first and place + 1 < end:
            after = classes[data[place + 1]]
            if (after & (WORD | BEYOND)) and data[place - 1] != 46:
                return True
        place += 1
    return False


@compiled
def _number(data: Any, place: int, end: int, classes: Any) -> int:
    """Four numbers with dots, groups of hexadecimal digits with colons, or 3-3-4 digits."""
    digits = _digits(data, place, end, classes)
    after = place + digits
    if digits == 0 or after >= end:
        return NOTHING
    if 1 <= digits <= 3 and data[after] == 46:
        at, groups = place, 0
        while groups < 4:
            size = _digits(data, at, end, classes)
            if size < 1 or size > 3:
                break
            groups += 1
            at += size
            if groups < 4:
                if at >= end or data[at] != 46:
                    break
                at += 1
        if groups == 4:
            return IPV4
    if digits == 3 and place + 12 <= end and (data[after] == 45 or data[after] == 46):
        between = data[place + 7]
        if (
            _digits(data, place + 4, end, classes) == 3
            and (between == 45 or between == 46)
            and _digits(data, place + 8, end, classes) == 4
        ):
            return AMERICAN
    if data[place] == 50 or data[place] == 51:  # a public IPv6 address begins with 2 or 3
        hexadecimal = 0
        while hexadecimal < 5 and place + hexadecimal < end and classes[data[place + hexadecimal]] & HEX:
            hexadecimal += 1
        if hexadecimal == 4 and place + 6 < end and data[place + 4] == 58:
            return IPV6
    return NOTHING


@compiled
def _prefixed(data: Any, place: int, end: int, prefixes: Any) -> int:
    for row in range(len(prefixes)):
        size = prefixes[row, 0]
        if place + size > end or prefixes[row, 1] != data[place]:
            continue
        same = True
        for at in range(size):
            if data[place + at] != prefixes[row, 1 + at]:
                same = False
                break
        if same:
            return PREFIXED
    return NOTHING


@compiled
def _value(data: Any, place: int, start: int, end: int, classes: Any) -> int:
    """Where the value of an assignment at `place` begins, if it could be a key; −1 else."""
    at = place - 1
    while at >= start and place - at <= 6 and (data[at] in (32, 34, 39, 58, 93, 96)):  # blank " ' : ] `
        at -= 1
    if at < start or not classes[data[at]] & NAME_END:
        return -1
    at = place + 1
    if at < end and data[at] == 61:  # == compares
        return -1
    if at < end and data[at] == 62:  # =>
        at += 1
    blanks = 0
    while at < end and blanks < 4 and (data[at] == 32 or data[at] == 9):
        at += 1
        blanks += 1
    if at < end and (data[at] == 34 or data[at] == 39 or data[at] == 96):
        at += 1
    first, digits = at, 0
    while at < end and at - first <= LONGEST and classes[data[at]] & TOKEN:
        digits += (classes[data[at]] & DIGIT) != 0
        at += 1
    return first if 16 <= at - first <= LONGEST and digits >= 2 else -1
