"""Whether a word is a web or mail address, and so stays whole: what spaCy's rules for English take for one.

[scheme://] [user@] (IPv4 address | host.name.tld) [:port] [/, ? or # and anything]. The parts follow one
another without a choice, but for where the host begins (at the start, after the scheme, after any @), and a
host holds no @; so the time is linear in the word. Rejected: a regular expression (spaCy's backtracks, and
costs 1 µs a word)."""

from typing import Any

from stablelm.kernels.text.classes import DECIMAL, LETTER, LOWER
from stablelm.kernels.text.compilation import compiled

DOT, COLON, SLASH, AT = ord("."), ord(":"), ord("/"), ord("@")


@compiled
def is_address(codes: Any, kinds: Any, begin: int, end: int) -> bool:
    """Whether codes[begin:end], without white space in it, is an address."""
    dotted = False
    for place in range(begin + 1, end - 1):
        if codes[place] == DOT:
            dotted = True
            break
    if not dotted:
        return False
    if _host(codes, kinds, begin, end):
        return True
    place = begin
    while place < end and _scheme(codes[place], kinds[place]):
        place += 1
    if (
        place - begin >= 2
        and place + 3 < end
        and codes[place] == COLON
        and codes[place + 1] == SLASH
        and codes[place + 2] == SLASH
        and _host(codes, kinds, place + 3, end)
    ):
        return True
    found = False
    for place in range(begin + 1, end):
        found = found or (codes[place] == AT and _host(codes, kinds, place + 1, end))
    return found


@compiled
def _scheme(code: int, kind: int) -> bool:
    return kind & (LETTER | DECIMAL) != 0 or code == 43 or code == 45 or code == 46 or code == 95  # + - . _


@compiled
def _named(code: int) -> bool:
    """Whether a part of a host's name may begin and end with it."""
    return 97 <= code <= 122 or 48 <= code <= 57 or 65 <= code <= 90 or 0xA1 <= code <= 0xFFFF


@compiled
def _host(codes: Any, kinds: Any, begin: int, end: int) -> bool:
    """Whether an address without scheme and user stands here."""
    part, parts = begin, 0
    while True:
        place = part
        if parts > 0:
            while place < end and kinds[place] & LOWER:
                place += 1
            if 2 <= place - part <= 63 and _rest(codes, kinds, place, end):
                return True
            place = part
        while place < end and (_named(codes[place]) or codes[place] == 45 or codes[place] == 95):
            place += 1
        if place == end or codes[place] != DOT or not 1 <= place - part <= 64:
            break
        if not _named(codes[part]) or not _named(codes[place - 1]):
            break
        part, parts = place + 1, parts + 1
    return _ipv4(codes, kinds, begin, end)


@compiled
def _rest(codes: Any, kinds: Any, place: int, end: int) -> bool:
    """Whether nothing, or a port, then nothing or a path follows."""
    if place < end and codes[place] == COLON:
        digits = place + 1
        while digits < end and kinds[digits] & DECIMAL:
            digits += 1
        if not 3 <= digits - place <= 6:
            return False
        place = digits
    return place == end or codes[place] == SLASH or codes[place] == 63 or codes[place] == 35  # ? #


@compiled
def _ipv4(codes: Any, kinds: Any, begin: int, end: int) -> bool:
    """Four numbers; not of a private network, nor 0… or 224 and above, nor ending in .0 or .255."""
    place, first, second, fine = begin, 0, 0, True
    for number in range(4):
        value, start = 0, place
        while place < end and 48 <= codes[place] <= 57 and place - start < 3:
            value = value * 10 + codes[place] - 48
            place += 1
        if place == start:
            return False
        padded = codes[start] == 48
        if number == 0:
            first, fine = value, not padded and 1 <= value <= 223
        elif number < 3:
            second = value if number == 1 else second
            # 1?\d{1,2}, 2[0-4]\d or 25[0-5]: two digits may be padded, three may not
            fine = fine and value <= 255 and not (padded and place - start == 3)
        else:
            fine = fine and not padded and 1 <= value <= 254
        if not fine:
            return False
        if number < 3:
            if place == end or codes[place] != DOT:
                return False
            place += 1
    local = (
        first == 10
        or first == 127
        or (first == 169 and second == 254)
        or (first == 192 and second == 168)
        or (first == 172 and 16 <= second <= 31)
    )
    return not local and _rest(codes, kinds, place, end)
