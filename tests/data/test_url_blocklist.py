"""URL blocklists: domains, words, substrings, and files that are no lists."""

import pytest

from stablelm.config import InputError
from stablelm.config.cleaning import UrlBlocklist
from stablelm.data.texts import Texts
from stablelm.data.url_blocklist import decide, measure, measured_by

LISTS = {
    "domains": "# adult\nbad.example\n\nBÜCHER.example\n.dotted.example.\n",
    "urls": "https://ok.example/one?x=1\n",
    "words": "casino\nX-Rated\n",
    "soft_words": "webcam\nescort\nbabes\n",
    "substrings": "freemovie\n日本\nqz\n",
}


@pytest.fixture
def settings(tmp_path):
    for name, text in LISTS.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return UrlBlocklist(**{name: [str(tmp_path / name)] for name in LISTS})


DOMAIN, URL, WORD = "urls: listed domain", "urls: listed URL", "urls: listed word"
SOFT, SUBSTRING = "urls: soft words", "urls: listed substring"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("", ""),
        ("https://ok.example/", ""),
        ("https://bad.example/", DOMAIN),
        ("https://www.BAD.example:8080/x", DOMAIN),
        ("http://a.b.bad.example", DOMAIN),
        ("bad.example/page", DOMAIN),
        ("//bad.example", DOMAIN),
        ("https://u:p@bad.example./", DOMAIN),
        ("https://notbad.example/", ""),
        ("https://bad.example.org/", ""),
        ("https://ok.example/bad.example", ""),
        ("https://bücher.example/", DOMAIN),
        ("https://xn--bcher-kva.example/", DOMAIN),
        ("https://sub.dotted.example", DOMAIN),
        ("http://[::1", ""),  # no URL at all, but no reason to stop
        ("https://ok.example/one?x=1", URL),
        ("https://ok.example/one?x=2", ""),
        ("https://ok.example/best-CASINO.html", WORD),
        ("https://ok.example/casinos", ""),
        ("https://ok.example/xrated", WORD),
        ("https://ok.example/webcam", ""),
        ("https://ok.example/webcam/webcam", ""),  # one word twice
        ("https://ok.example/webcam/babes", SOFT),
        ("https://ok.example/free-movie", SUBSTRING),
        ("https://ok.example/my.FREE.movies", SUBSTRING),
        ("https://ok.example/日本語", SUBSTRING),
        ("https://ok.example/q-z", SUBSTRING),
        ("https://ok.example/q", ""),
        ("https://bad.example/casino", DOMAIN),  # the first reason
    ],
)
def test_each_rule(settings, url, expected):
    columns = measure(Texts.of(["text"]), settings, [url])
    assert decide(columns, settings).tolist() == [expected]


def test_numbers(settings):
    columns = measure(Texts.of(["a", "b"]), settings, ["", "https://x.example/babes/webcam/escort/casino"])
    assert columns["urls.soft_words"].tolist() == [0, 3] and columns["urls.words"].tolist() == [0, 1]
    strict = settings.model_copy(update={"soft_threshold": 4, "words": []})
    assert decide(columns | {"urls.words": columns["urls.words"] * 0}, strict).tolist() == ["", ""]
    assert measured_by(strict)["soft_words"] == measured_by(settings)["soft_words"]


def test_one_list_is_enough(tmp_path):
    path = tmp_path / "domains.txt"
    path.write_bytes("\ufeffbad.example\r\n".encode())
    settings = UrlBlocklist(domains=[str(path)])
    columns = measure(Texts.of(["", ""]), settings, ["https://bad.example", "https://ok.example"])
    assert decide(columns, settings).tolist() == ["urls: listed domain", ""]


def test_a_changed_list_is_read_again(tmp_path):
    path = tmp_path / "domains.txt"
    path.write_text("one.example\n")
    settings = UrlBlocklist(domains=[str(path)])
    before = measured_by(settings)
    assert measure(Texts.of([""]), settings, ["http://two.example"])["urls.domain"].tolist() == [False]
    path.write_text("one.example\ntwo.example\n")
    assert measure(Texts.of([""]), settings, ["http://two.example"])["urls.domain"].tolist() == [True]
    assert measured_by(settings) != before


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("domains", b"", "holds no entry"),
        ("domains", b"# nothing\n\n", "holds no entry"),
        ("domains", b"ok.example\nhttps://x.example/\n", "line 2: a domain alone"),
        ("domains", b"# a\na.example b.example\n", "line 2: a domain alone"),
        ("domains", b"*.example\n", "line 1: a domain alone"),
        ("domains", b"...\n", "line 1: a domain alone"),
        ("words", b"ok\n---\n", "line 2: an entry needs a letter"),
        ("substrings", b"caf\xe9\n", "line 1: not UTF-8"),
        ("urls", None, "no such file; urls.urls names"),
    ],
)
def test_files_that_are_no_lists(tmp_path, name, content, said):
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"list.txt.*{said}"):
        measure(Texts.of([""]), UrlBlocklist(**{name: [str(path)]}), ["http://x.example"])
    with pytest.raises(InputError, match="is a directory"):
        measured_by(UrlBlocklist(**{name: [str(tmp_path)]}))


def test_long_urls_take_linear_time(settings):
    url = "https://ok.example/" + "a" * 1_000_000
    assert not measure(Texts.of([""]), settings, [url])["urls.substring"][0]
