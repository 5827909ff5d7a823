"""Is what stands here an address, a number, a key? One rule a kind, each sure rather than complete.

A rule gets the bytes of a document and a place that the kernel found worth a look, and gives the span to
mask, or None. Spans begin and end on characters. Every pattern is tried at one place, over a bounded window
or a run of characters that no other place shares, so the time is in proportion to the text.

E-mail: Unicode letters count, an address in text without spaces (Han, kana, …) is cut out of it, a dot at the
end is the sentence's. Not one: `git@host:`, `icon@2x.png`, `package@1.2.3`, `a@b.dot(`.
IP: public addresses alone. Not one: private, local, documentation and multicast ranges; version numbers,
which follow v, version, Theorem, a product's name with slash or hyphen, have a number outside 0–255, or are
four single digits (so the resolvers 1.1.1.1 and 8.8.8.8 stay); parts of longer dotted numbers; zeros in
front (dates).
Phone: + and a country's code of E.164, 8–15 digits; or 3-3-4 digits as North America writes them, with
areas and exchanges that exist. Other national forms look like any number and stay. 555-01xx is nobody's.
Secret: keys with their issuer's prefix (AWS, GitHub, GitLab, Hugging Face, OpenAI, Anthropic, Slack, Google,
Stripe, npm, PyPI, SendGrid), JSON web tokens, private key blocks, and values of key-like names that have
enough entropy and are not made of words. Not one: what says that it is an example.
Rejected: a model (StarPII wants a GPU); a list of top-level domains (grows old)."""

import ipaddress
import math
import re
from collections import Counter

Span = tuple[int, int]

NO_SPACES = "\u2e80"  # from here on scripts write without spaces (CJK radicals, kana, Han, Hangul, …)
DOMAIN = re.compile(
    r"(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.)+"
    r"(?:xn--[a-zA-Z0-9-]{1,59}|[a-zA-Z]{2,24}(?![a-zA-Z0-9_])|[^\W\d_a-zA-Z][^\W\d_]{1,23})"
)
NO_DOMAINS = frozenset(
    [
        *("png", "jpg", "jpeg", "gif", "svg", "webp", "ico", "js", "mjs", "jsx", "css", "scss"),
        *("json", "html", "xml", "yml", "yaml", "txt", "tgz"),
    ]
)
VERSIONED = re.compile(r"\d+x\.|\d+\.\d", re.ASCII)

QUAD = re.compile(rb"(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})(?!\w|\.\w)")
BEFORE_VERSION = re.compile(
    rb"(?:(?<![a-z])(?:v|vers?|version|rev|revision|release|build|firmware|kernel|section|chapter|clause|article"
    rb"|theorem|lemma|proposition|corollary|definition|remark|exercise|example|table|fig|figure|eq|equation)s?"
    rb"\.?[ :=#~\"']{0,3}|[a-z0-9_]/|[a-z_]-)$",
    re.IGNORECASE,
)
SPECIAL_V4 = [
    ipaddress.ip_network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15"),
        *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3"),
    )
]
GLOBAL_V6 = ipaddress.ip_network("2000::/3")
SPECIAL_V6 = [ipaddress.ip_network(network) for network in ("2001::/23", "2001:db8::/32", "3fff::/20")]
COLONS = re.compile(rb"[0-9A-Fa-f:]{6,39}")

INTERNATIONAL = re.compile(
    rb"\+(?=[1-9(])(\(?\d{1,4}\)?(?:[ .\-/]?(?:\(\d{1,5}\)|\d{1,12})){0,7})(?!\w|\.\d)"
)
COUNTRY = re.compile(
    "1|7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]|(?:2[1-69]|3[578]|42|5[09]|6[7-9]|8[0578]|9[67])[0-9]|99[0-8]"
)
AMERICAN = re.compile(rb"(?:\(([2-9]\d\d)\) ?|([2-9]\d\d)([-.]))([2-9]\d\d)([-. ])(\d{4})(?!\w|-\d)")

PREFIXED = re.compile(
    rb"""(?:
    (?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16} | AIza[\w-]{35} | gh[pousr]_[A-Za-z0-9]{36,255}
    | github_pat_\w{60,255} | glpat-[\w-]{20,255} | hf_[A-Za-z0-9]{30,64} | sk-[\w-]{20,255}
    | [sr]k_(?:live|test)_[A-Za-z0-9]{16,255} | xox[abeoprs]-[A-Za-z0-9-]{20,255} | npm_[A-Za-z0-9]{36}
    | pypi-AgE[\w-]{40,512}
    | SG\.[\w-]{16,64}\.[\w-]{16,64} | eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{10,}
    )(?![\w-])""",
    re.VERBOSE | re.ASCII,
)
BLOCK = re.compile(rb"-----BEGIN (?:[A-Z0-9]{1,20} ){0,4}PRIVATE KEY(?: BLOCK)?-----")
CUT_OFF = re.compile(rb"[A-Za-z0-9+/=\s]*")
NAMED = re.compile(
    rb"(?:(?:api|access|secret|auth|private|encryption|signing|client|app|account|master|shared)[_-]?key"
    rb"|secret|token|passw(?:or)?d|pwd|credential)[\"'`\]]*\s{0,4}(?::=|=>|[:=])>?\s{0,4}([\"'`]?)$",
    re.IGNORECASE,
)
VALUE = re.compile(rb"[\w\-+/.~]{16,512}(?:={0,2})", re.ASCII)
AFTER_BARE = re.compile(rb"$|[\s,;&)}\]\"'#<\\]")
SAMPLE = re.compile(rb"example|sample|placeholder|your|xxxx|change.?me|redacted|dummy", re.I)
PART = re.compile(rb"[A-Za-z]*\d{0,4}|\d{1,8}")


def email(raw: bytes, at: int) -> Span | None:
    """The address around the @ at `at`."""
    before = raw[max(0, at - 256) : at].decode(errors="ignore")
    first = len(before)
    while (
        first and len(before) - first < 64 and (before[first - 1].isalnum() or before[first - 1] in "._+%-'")
    ):
        first -= 1
    local = before[first:].rpartition("..")[2]
    dense = [char >= NO_SPACES for char in local]
    if True in dense:  # Han and kana do not separate words: keep what is of the script before the @
        same = next((i for i in range(len(local), 0, -1) if dense[i - 1] != dense[-1]), 0)
        local = local[same:]
    local = local.lstrip(".+%-'")
    after = raw[at + 1 : at + 257].decode(errors="ignore")
    found = DOMAIN.match(after)
    if not local or not found:
        return None
    domain, following = found[0], after[found.end() : found.end() + 1]
    asset = domain.rpartition(".")[2].lower() in NO_DOMAINS
    if asset or VERSIONED.match(domain) or following == "(" or (local == "git" and following == ":"):
        return None
    return at - len(local.encode()), at + 1 + len(domain.encode())


def ipv4(raw: bytes, at: int) -> Span | None:
    """The public address that begins at `at`."""
    found = QUAD.match(raw, at)
    if not found:
        return None
    parts = found.groups()
    if any(int(part) > 255 or (len(part) > 1 and part[:1] == b"0") for part in parts):
        return None
    if all(len(part) == 1 for part in parts) or BEFORE_VERSION.search(raw[max(0, at - 24) : at]):
        return None
    address = ipaddress.IPv4Address(found[0].decode())
    return None if any(address in network for network in SPECIAL_V4) else _alone(raw, found.span())


def ipv6(raw: bytes, at: int) -> Span | None:
    """The public address that begins at `at`."""
    found = COLONS.match(raw, at)
    if not found:
        return None
    text = found[0]
    if text.endswith(b"::"):  # a year or a heading before reStructuredText's code, rather than a network
        return None
    text = text.rstrip(b":")  # the sentence's
    end = at + len(text)
    if raw[end : end + 1] == b":" and raw[end + 1 : end + 2].isalnum():
        return None
    try:
        address = ipaddress.IPv6Address(text.decode())
    except ValueError:
        return None
    special = address not in GLOBAL_V6 or any(address in network for network in SPECIAL_V6)
    return None if special else _alone(raw, (at, end))


def international(raw: bytes, at: int) -> Span | None:
    """The number that begins with the + at `at`."""
    found = INTERNATIONAL.match(raw, at)
    if not found:
        return None
    groups = re.findall(rb"\d+", found[1])
    digits = b"".join(groups).decode()
    country = COUNTRY.match(digits)
    if not country or len(groups[-1]) < 2 or not (8 if len(groups) > 1 else 10) <= len(digits) <= 15:
        return None
    if country[0] == "1" and (len(digits) != 11 or not american_digits(digits[1:])):
        return None
    return _alone(raw, found.span())


def american(raw: bytes, at: int) -> Span | None:
    """The ten digits that begin at `at`, with the 1 before them."""
    found = AMERICAN.match(raw, at)
    if not found:
        return None
    area, exchange, line = (found[1] or found[2]), found[4], found[6]
    if (found[3] and found[3] != found[5]) or not american_digits((area + exchange + line).decode()):
        return None
    before = raw[max(0, at - 3) : at]
    lead = re.search(rb"(?<!\d)1[-. ]$", before)
    if not lead and re.search(rb"[\d.\-+]$", before):
        return None
    return _alone(raw, (at - (len(lead[0]) if lead else 0), found.end()))


def american_digits(digits: str) -> bool:
    """Ten digits that the North American plan could give to somebody."""
    area, exchange, line = digits[:3], digits[3:6], digits[6:]
    service = area[1:] == "11" or exchange[1:] == "11" or (exchange == "555" and line[:2] == "01")
    return area[0] in "23456789" and exchange[0] in "23456789" and not service


def prefixed(raw: bytes, at: int) -> Span | None:
    """The key or key block that begins at `at`."""
    if raw.startswith(b"-----BEGIN", at):
        return _block(raw, at)
    found = PREFIXED.match(raw, at)
    if not found or SAMPLE.search(found[0]):
        return None
    worded = found[0][:3] in (b"sk-", b"xox", b"glp") and _of_words(found[0])
    return None if worded else _alone(raw, found.span())


def _block(raw: bytes, at: int) -> Span | None:
    """What stands between the lines of a private key, which stay; to where base64 ends if the key is cut
    off."""
    found = BLOCK.match(raw, at)
    if not found:
        return None
    end = raw.find(b"-----", found.end())
    if end < 0 or not raw.startswith(b"-----END", end):
        cut = CUT_OFF.match(raw, found.end())
        end = cut.end() if cut else found.end()
    body = raw[found.end() : end]
    first, last = len(body) - len(body.lstrip()), len(body.rstrip())
    return (found.end() + first, found.end() + last) if last - first >= 32 else None


def assigned(raw: bytes, at: int, min_entropy: float) -> Span | None:
    """The value that begins at `at`, if its name and its characters are a key's."""
    name = NAMED.search(raw[max(0, at - 48) : at])
    found = VALUE.match(raw, at)
    if not name or not found:
        return None
    quote, value, end = name[1], found[0], found.end()
    if quote and raw[end : end + 1] != quote:
        return None
    digits, bits = sum(byte in b"0123456789" for byte in value), entropy(value)
    if not quote and (not AFTER_BARE.match(raw, end) or b"." in value or (digits < 4 and bits < 4.2)):
        return None  # a name of the program's, most likely
    if SAMPLE.search(value) or value[:1] in b"/." or (b"/" in value and b"." in value) or _of_words(value):
        return None
    letters = any(byte in b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" for byte in value)
    return found.span() if letters and bits >= min_entropy else None


def _alone(raw: bytes, span: Span) -> Span | None:
    """`span`, unless a letter stands directly beside it in a script that has spaces."""
    before = raw[max(0, span[0] - 4) : span[0]].decode(errors="ignore")[-1:]
    after = raw[span[1] : span[1] + 4].decode(errors="ignore")[:1]
    joined = any(char.isalnum() and char < NO_SPACES for char in (before, after))
    return None if joined else span


def _of_words(value: bytes) -> bool:
    """Words and short numbers with - _ . / + between them (`text-embedding-ada-002`), as no key is."""
    return all(PART.fullmatch(part) for part in re.split(rb"[-_./+~=]", value))


def entropy(value: bytes) -> float:
    """Shannon's, of the bytes of `value`: −Σ p·log2 p, in bits a byte."""
    size = len(value)
    return -sum(count / size * math.log2(count / size) for count in Counter(value).values())
