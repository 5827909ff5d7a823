"""Personal data and keys: true and false finds of each kind, fixed placeholders, linear time."""

import random
import string
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablelm.config.cleaning import Pii
from stablelm.data.edits import merge
from stablelm.data.pii import KINDS, decide, edits, measure, measured_by, scan
from stablelm.data.pii_rules import entropy
from stablelm.data.texts import Texts

SETTINGS = Pii()
DRAW = random.Random(7)


def drawn(size: int, alphabet: str = string.ascii_letters + string.digits) -> str:
    """A key-like string that no file of this repository holds."""
    return "".join(DRAW.choice(alphabet) for _ in range(size))


BASE32 = string.ascii_uppercase + "234567"
HEX = "0123456789abcdef"
TAGS = Pii(email="<E>", ipv4="<4>", ipv6="<6>", phone="<P>", secret="<S>")


def masked(text: str, settings: Pii = TAGS) -> str:
    texts = Texts.of(["other", text, "other"])
    changed = edits(texts, settings).apply_all(texts)
    assert (changed[0], changed[2]) == ("other", "other")
    return changed[1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mail jane.doe+x@mail.example.co.uk.", "Mail <E>."),
        ("<foo@bar.org>, 'o@x.de'", "<<E>>, '<E>'"),
        ("jörg@müller.de und", "<E> und"),
        ("联系foo@bar.com谢谢", "联系<E>谢谢"),
        ("邮箱：a.b@c.cn，", "邮箱：<E>，"),
        ("用户@例子.公司。", "<E>。"),
        ("почта иван@почта.рф!", "почта <E>!"),
        ("see...foo@x.com...", "see...<E>..."),
        ("email=foo@x.com&b=1", "email=<E>&b=1"),
        ("mailto:foo@x.io?subject=a", "mailto:<E>?subject=a"),
        ("o'brien@x.com", "<E>"),
        ("ROOT@EXAMPLE.COM", "<E>"),
        ("foo@xn--mller-kva.xn--p1ai ok", "<E> ok"),
        ("foo@bar.com-foo", "<E>-foo"),
        ("a@b.com,c@d.org;e@f.net", "<E>,<E>;<E>"),
        ("a@b.com\r\nc@d.org", "<E>\r\n<E>"),
        ("😀foo@x.com😀", "😀<E>😀"),
        ("git@github.com:org/repo.git", None),
        ("git@github.com and others", "<E> and others"),
        ("icon@2x.png lodash@4.17.21 a@1.2.3-beta.foo", None),
        ("sprite@small.svg", None),
        ("result = a@b.dot(c)", None),
        ("user@host @decorator foo@ @bar a @ b.c", None),
        ("a@b.museum2", None),
        ("foo@.com foo@bar..com foo@-bar", None),
        ("a@b.c", None),
        ("@media (min-width:1.5em)", None),
        ("https://medium.com/@jane.doe", None),
    ],
)
def test_email(text, expected):
    assert masked(text) == (text if expected is None else expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from 81.2.69.142, to", "from <4>, to"),
        ("81.2.69.142.", "<4>."),
        ("81.2.69.142:8080", "<4>:8080"),
        ("http://81.2.69.142/x", "http://<4>/x"),
        ("81.2.69.142/24", "<4>/24"),
        ("81.2.69.142-81.2.69.150", "<4>-<4>"),
        ("(81.2.69.142)", "(<4>)"),
        ("255.255.255.255 0.0.0.0 224.0.0.1", None),
        ("192.168.1.10 10.0.0.1 172.16.5.5 127.0.0.1 169.254.1.1 100.64.1.1", None),
        ("192.0.2.55 198.51.100.7 203.0.113.9", None),  # documentation
        ("172.32.5.5", "<4>"),  # beyond 172.16.0.0/12
        ("1.2.3.4 and 8.8.8.8", None),  # four single digits: a version
        ("version 10.2.33.4", None),
        ("\\cite[IV Proposition 12.1.1.5]{EGA}", None),
        ("Linux (kernel 2.6.18.6)", None),
        ("Version: 10.2.33.4", None),
        ("v10.2.33.4", None),
        ("v. 10.2.33.4", None),
        ("Chrome/83.0.41.116", None),
        ("openssl-10.2.33.4.tar.gz", None),
        ("10.20.30.40.50", None),
        ("1.3.6.1.4.1.311", None),  # an OID
        ("81.2.69.142.in-addr.arpa", None),
        ("300.1.2.3 81.2.69.256", None),
        ("01.02.20.24", None),  # a date
        ("24.12.2024 12.30", None),
        ("81.2.69.142a x81.2.69.142", None),
        ("2001:4860:4860::8888", "<6>"),
        ("2001:4860:4860::8888: yes", "<6>: yes"),
        ("[2a00:1450:4001:81b::200e]:443", "[<6>]:443"),
        ("2a00:1450:4001:81b:0:0:0:200e, next", "<6>, next"),
        ("fe80::1 ::1 fd00::1 2001:db8::1 ff02::1", None),
        ("at 12:30:45 on 2024:12:01", None),
        ("std::abc dead::beef 2001::x", None),
        ("2001:1:1:1:1:1:1:1:1", None),  # nine groups
        ("In November 2006::\n\n    code", None),
        ("MAC 2a:00:14:50:40:01", None),
    ],
)
def test_ip(text, expected):
    assert masked(text) == (text if expected is None else expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Tel. +49 30 901820", "Tel. <P>"),
        ("+1 (202) 456-1111", "<P>"),
        ("+12024561111", "<P>"),
        ("+44 20 7946 0958.", "<P>."),
        ("+33 (0)1 23 45 67 89", "<P>"),
        ("tel:+33123456789", "tel:<P>"),
        ("call 202-456-1111 now", "call <P> now"),
        ("(202) 456-1111", "<P>"),
        ("(202)456-1111", "<P>"),
        ("202.456.1111", "<P>"),
        ("1-800-456-1111", "<P>"),
        ("日本+81 3 1234 5678まで", "日本<P>まで"),
        ("ü+81 3 1234 5678", None),  # + after a letter
        ("+81 3 1234 5678é", None),
        ("電話：+81 3 1234 5678。", "電話：<P>。"),
        ("+1-202-555-0100 and (202) 555-0199", None),  # nobody's
        ("555-123-4567 123-456-7890", None),  # no such exchange, no such area
        ("202-911-1111", None),
        ("202-456.1111", None),
        ("202 456 1111", None),  # as any three numbers
        ("2024-01-15 2024-11-15T10:30", None),
        ("978-0-306-40615-7", None),  # an ISBN
        ("ISBN 978-030-640-6157", None),
        ("123-45-6789", None),
        ("202-456-11112 1202-456-1111", None),
        ("012-202-456-1111", None),
        ("+0123456789 +999 123 456 78", None),
        ("x+1234567890 a +1 b C++11 UTC+0100", None),
        ("+35236450.6", None),
        ("+12345678", None),  # eight digits, not grouped
        ("3.14159265358979 1234567890 12345678901", None),
        ("+1 2 3 4 5 6 7 8 9 0", None),
    ],
)
def test_phone(text, expected):
    assert masked(text) == (text if expected is None else expected)


SECRETS = [
    "AKIA" + drawn(16, BASE32),
    "ghp_" + drawn(36),
    "ghs_" + drawn(36),
    "github_pat_" + drawn(22) + "_" + drawn(59),
    "glpat-" + drawn(20),
    "hf_" + drawn(34),
    "sk-" + drawn(48),
    "sk-proj-" + drawn(64),
    "sk-ant-api03-" + drawn(90),
    "xoxb-" + drawn(12, string.digits) + "-" + drawn(12, string.digits) + "-" + drawn(24),
    "AIza" + drawn(35),
    "sk_live_" + drawn(24),
    "npm_" + drawn(36),
    "SG." + drawn(22) + "." + drawn(43),
    "eyJ" + drawn(30) + ".eyJ" + drawn(60) + "." + drawn(43),
]


@pytest.mark.parametrize("key", SECRETS, ids=lambda key: key[:6])
def test_issued_keys(key):
    for before, after in (
        ("", ""),
        ("key: '", "'"),
        ("=", "&x=1"),
        ("https://u:", "@x/"),
        ("\n", "\r\n"),
        ("（", "）"),
    ):
        assert masked(f"{before}{key}{after}") == f"{before}<S>{after}"
    assert masked("x" + key) == "x" + key
    assert masked(key[:12]) == key[:12]


@pytest.mark.parametrize(
    "value", [drawn(32), drawn(40) + "=", drawn(32, HEX), "p@ss"[:1] + drawn(20) + "_9-1"]
)
def test_assigned_keys(value):
    for name in (
        "api_key",
        "API-KEY",
        "apikey",
        "client_secret",
        "auth_token",
        "password",
        "aws_secret_access_key",
    ):
        for form in ('{} = "{}"', "{}: '{}',", '"{}": "{}"', "{}={}", "'{}' => '{}'", "{} := `{}`"):
            assert masked(form.format(name, value)) == form.format(name, "<S>"), form


@pytest.mark.parametrize(
    "text",
    [
        "AKIAIOSFODNN7EXAMPLE",
        "sk-container-id-1-wrapper-box-2",
        "sk-learn-contrib-and-many-more-words",
        'password = "hunter2"',
        'api_key = "your-api-key-here-1234"',
        "api_key = '" + "a" * 40 + "'",
        "api_key = '" + "a1" * 20 + "'",  # one bit a character
        'token = "text-embedding-ada-002-large"',
        "token = self.get_token_from_v2_api(10)",
        "token=config.api_v2_token_1234",
        'password: "/usr/local/lib/python3.11/x"',
        f"password == '{drawn(20)}'",
        f'sha256 = "{drawn(64, HEX)}"',
        f"commit {drawn(40, HEX)}",
        f"tokenizer = '{drawn(24)}'",
        f"key = '{drawn(24)}'",
        f'token = "{drawn(8)}"',
        f'token = "{drawn(600)}"',
        f"-----BEGIN PUBLIC KEY-----\n{drawn(64)}\n-----END PUBLIC KEY-----",
        "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----",
        "password: one-two-three-2024",
    ],
)
def test_what_is_no_key(text):
    assert masked(text) == text


@pytest.mark.parametrize("kind", ["", "RSA ", "EC ", "OPENSSH ", "ENCRYPTED "])
@pytest.mark.parametrize("line", ["\n", "\r\n"])
def test_private_keys(kind, line):
    begin, end = f"-----BEGIN {kind}PRIVATE KEY-----", f"-----END {kind}PRIVATE KEY-----"
    body = line.join([drawn(64), drawn(64), drawn(30) + "=="])
    assert masked(f"a {begin}{line}{body}{line}{end} b") == f"a {begin}{line}<S>{line}{end} b"
    assert masked(f"{begin}{line}{body}") == f"{begin}{line}<S>"  # cut off
    two = f"{begin}{line}{body}{line}{begin}{line}{body}{line}{end}"
    assert masked(two) == f"{begin}{line}<S>{line}{begin}{line}<S>{line}{end}"


def test_counts_and_kinds():
    text = f"a@b.com c@d.org 81.2.69.142 (202) 456-1111 ghp_{drawn(36)}"
    columns = measure(Texts.of(["", text, "none"]), SETTINGS)
    assert {kind: columns[f"pii.{kind}"].tolist() for kind in KINDS} == {
        "email": [0, 2, 0],
        "ip": [0, 1, 0],
        "phone": [0, 1, 0],
        "secret": [0, 1, 0],
    }
    assert decide(columns, SETTINGS).tolist() == ["", "", ""]
    some = measure(Texts.of([text]), Pii(kinds=["ip"]))
    assert [int(some[f"pii.{kind}"][0]) for kind in KINDS] == [0, 1, 0, 0]
    assert masked(text, Pii(kinds=[])) == text


def test_spans_that_overlap_are_one():
    token = "eyJ" + drawn(30) + ".eyJ" + drawn(60) + "." + drawn(43)
    columns, made = scan(Texts.of([f'auth_token = "{token}"']), TAGS)
    assert len(made) == 1 and columns["pii.secret"].tolist() == [1]


def test_masking_again_changes_nothing():
    key = drawn(64)
    text = (
        f"a@b.com 81.2.69.142 2a00:1450:4001:81b::200e +49 30 901820 ghp_{drawn(36)} api_key='{drawn(32)}'\n"
        f"-----BEGIN PRIVATE KEY-----\n{key}\n-----END PRIVATE KEY-----"
    )
    once = masked(text, SETTINGS)
    assert "b.com" not in once and key not in once and once.count("your-secret-key") == 3
    assert masked(once, SETTINGS) == once
    assert not any(values.any() for values in measure(Texts.of([once]), SETTINGS).values())


def test_the_order_of_documents_does_not_count():
    documents = [f"a{i}@b.com and 81.2.69.{i + 10}" for i in range(9)]
    texts = Texts.of(documents)
    whole = [edits(texts, SETTINGS).apply_all(texts)[i] for i in range(9)]
    reverse = Texts.of(documents[::-1])
    assert [edits(reverse, SETTINGS).apply_all(reverse)[8 - i] for i in range(9)] == whole
    assert len(set(whole)) == 1


def test_what_the_numbers_depend_on():
    assert measured_by(Pii(kinds=["ip", "email"])) == measured_by(Pii(kinds=["email", "ip"]))
    assert measured_by(SETTINGS) != measured_by(Pii(min_entropy=3.5))


@given(st.lists(st.text(alphabet="a1é日@.+-:= '\"\n😀/_(", max_size=40), max_size=3))
def test_any_text_gives_edits_that_fit(documents):
    texts = Texts.of(documents)
    columns, made = scan(texts, SETTINGS)
    made.check(texts, "x")
    assert merge(made) == made
    assert sum(int(values.sum()) for values in columns.values()) == len(made)


@pytest.mark.parametrize(
    "text", ["a@b.co", "81.2.69.142", "+49 30 901820", "-----BEGIN PRIVATE KEY-----", "ghp_", "api_key="]
)
def test_cut_anywhere(text):
    for size in range(len(text) + 1):
        scan(Texts.of([text[:size], text[size:]]), SETTINGS)


UNITS = [
    "a@a.b",
    "a@",
    "a.a@",
    "a-a.",
    "+1 2",
    "(202)",
    "1.2.3.",
    "2001:",
    "-----BEGIN PRIVATE KEY-----\n",
    "eyJa.",
    "-eyJ-",
]
UNITS += [
    "key='",
    "token=a1b2",
    "eyJaaaaaaaaaaa.eyJaaaaaaaaaaaaaa.",
    "sk-",
    "é@",
    "=",
    "a@" + "b." * 9,
    "password:'a1",
]


@pytest.mark.parametrize("unit", UNITS)
def test_no_text_takes_quadratic_time(unit):
    """A megabyte of it: seconds at most in linear time, an hour in quadratic. The bound is for the latter."""
    texts = Texts.of([unit * (1_000_000 // len(unit.encode()))])
    start = time.process_time()
    scan(texts, SETTINGS)
    assert time.process_time() - start < 60


def test_entropy():
    assert entropy(b"aaaa") == 0 and entropy(b"ab" * 8) == 1 and entropy(bytes(range(256))) == 8
    assert np.isclose(entropy(b"aab"), -(2 / 3 * np.log2(2 / 3) + 1 / 3 * np.log2(1 / 3)))
