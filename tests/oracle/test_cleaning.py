"""E-mail, IP and word rules beside datatrove's, where the two mean the same."""

import re
from types import SimpleNamespace

import pytest

from stablelm.config.cleaning import Pii, WordBlocklist
from stablelm.data import pii, word_blocklist
from stablelm.data.texts import Texts

pytestmark = pytest.mark.oracle

TEXTS = [
    "Write to jane.doe@example.org or +x@mail.example.co.uk.",
    "from 81.2.69.142 and 192.168.1.1, 127.0.0.1, then 172.32.5.5:80",
    "nothing at all, a@b, user@host, 300.1.2.3",
    "two: a@b.com,c@d.org",
    "(foo_bar@x-y.net)",
]


@pytest.mark.parametrize("text", TEXTS)
def test_email_and_ip(text):
    formatter = pytest.importorskip("datatrove.pipeline.formatters.pii").PIIFormatter
    theirs = formatter(email_replacement="<E>", ip_replacement="<4>").format(text)
    texts = Texts.of([text])
    ours = pii.edits(texts, Pii(kinds=["email", "ip"], email="<E>", ipv4="<4>")).apply_all(texts)[0]
    assert ours == theirs


def test_words(tmp_path):
    entries = ["sludge", "foul play", "a$$"]
    (tmp_path / "words").write_text("\n".join(entries))
    texts = [
        "",
        "sludge",
        "SLUDGE.",
        "sludges",
        "a foul play",
        "foul plays",
        "a$$",
        "a$$b",
        "_sludge",
        "x-sludge",
    ]
    filters = pytest.importorskip("datatrove.pipeline.filters.c4_filters")
    theirs = filters.C4BadWordsFilter(default_language="en")
    theirs._badwords_regex["en"] = re.compile(rf"(?:\W|^)({'|'.join(map(re.escape, entries))})(?:\W|$)")
    settings = WordBlocklist(words=[str(tmp_path / "words")])
    columns = word_blocklist.measure(Texts.of(texts), settings)
    ours = [reason == "" for reason in word_blocklist.decide(columns, settings)]
    assert ours == [theirs.filter(SimpleNamespace(text=text, metadata={})) is True for text in texts]
