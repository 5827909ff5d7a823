"""Web pages: what text comes out of them, in which characters, and that no record of an archive is lost."""

import gzip
import zlib

import pytest

from stablelm.config import InputError
from stablelm.data.pages import decoded

TEXT = "Wörter aus einem längeren Absatz, wie er auf einer Seite steht."


def texts(result):
    return [document.text for document in result[0]]


def html(text=TEXT, head=""):
    return (
        f"<html><head><title>t</title>{head}<script>var hidden = 1;</script></head><body><nav>"
        f"<a href='/'>Home</a></nav><article><p>{text}</p></article><footer>imprint</footer></body></html>"
    )


def record(kind, block, **fields):
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\n"
    head += "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"{head}Content-Length: {len(block)}\r\n\r\n".encode() + block + b"\r\n\r\n"


def response(body, number=0, kind="text/html; charset=utf-8", status="200 OK", **fields):
    body = body.encode() if isinstance(body, str) else body
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n"
    head += "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return record(
        "response", f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body,
        WARC_Record_ID=f"<urn:uuid:{number}>", WARC_Target_URI=f"http://example.org/{number}",
        WARC_Date=f"2023-01-0{number % 9 + 1}T00:00:00Z", Content_Type="application/http; msgtype=response",
    )  # fmt: skip


# --- HTML files --------------------------------------------------------------------------------------------


def test_the_main_content_of_html_files(read, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.html").write_text(html(), encoding="utf-8")
    (tmp_path / "sub/b.htm.gz").write_bytes(gzip.compress(html("Another page of text.").encode()))
    documents, account = read(tmp_path)
    assert [(d.id, d.text) for d in documents] == [
        ("a.html", TEXT),
        ("sub/b.htm.gz", "Another page of text."),
    ]
    assert documents[0].size == len(html().encode())
    assert account["read_bytes"] == account["kept_bytes"] == sum(document.size for document in documents)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b" \n\t", "empty"),
        (b"<html><body></body></html>", "no main text"),
        (b"<script>x = 1</script><style>p {}</style>", "no main text"),
        (b"<!-- only a comment -->", "no main text"),
    ],
)
def test_pages_without_text(read, tmp_path, data, reason):
    (tmp_path / "x.html").write_bytes(data)
    documents, account = read(tmp_path)
    assert documents == []
    assert account["dropped"] == {reason: 1}
    assert account["dropped_bytes"] == {reason: len(data)}


@pytest.mark.parametrize(
    ("encoding", "declared"),
    [
        ("utf-8", ""), ("utf-8", "utf-8"), ("utf-8", "iso-8859-1"), ("utf-8", "shift_jis"),
        ("utf-8", "nonsense"), ("utf-8-sig", ""), ("utf-16", ""), ("utf-16", "utf-8"),
        ("latin-1", "iso-8859-1"), ("latin-1", "latin1"), ("latin-1", "utf-8"), ("cp1252", "iso-8859-1"),
        ("latin-1", ""),
    ],
)  # fmt: skip
def test_characters_that_are_declared_wrongly_or_not_at_all(read, tmp_path, encoding, declared):
    head = f"<meta charset='{declared}'>" if declared else ""
    (tmp_path / "x.html").write_bytes(html(head=head).encode(encoding))
    assert texts(read(tmp_path)) == [TEXT]


def test_encodings_of_other_scripts():
    for encoding, text in (
        ("shift_jis", "日本語の文章"), ("iso-2022-jp", "日本語の文章"), ("koi8-r", "Привет, мир"),
        ("gb18030", "中文页面"), ("windows-1251", "Привет"), ("euc-kr", "한국어"),
    ):  # fmt: skip
        page = f'<meta http-equiv="Content-Type" content="text/html; charset={encoding}"><p>{text}</p>'
        assert text in decoded(page.encode(encoding)), encoding
        assert text in decoded(f"<p>{text}</p>".encode(encoding), encoding), encoding


def test_bytes_of_no_encoding_are_a_fault(read, tmp_path):
    (tmp_path / "x.html").write_bytes(b"<p>" + bytes(range(128, 256)) * 3 + b"\x81\x8d\xff</p>")
    with pytest.raises(InputError, match=r"x\.html, line 1: the page's characters are in no encoding"):
        read(tmp_path)
    assert read(tmp_path, on_error="skip")[1]["errors"] == {"unknown charset": 1}


@pytest.mark.parametrize(
    "data", ["<p>" + "word " * 200_000, "<" * 10_000 + "text", "a\0b", "<div><div>x</div></div>" * 2000]
)
def test_pages_that_are_hard_on_parsers(read, tmp_path, data):
    (tmp_path / "x.html").write_text(data)
    assert read(tmp_path)[1]["kept"] == 1


def test_a_page_nested_without_end_does_not_stall_the_reading(read, tmp_path):
    (tmp_path / "x.html").write_text("<div>" * 50_000 + "deep" + "</div>" * 50_000)
    assert read(tmp_path)[1]["dropped"] == {"nested too deeply": 1}


# --- archives ----------------------------------------------------------------------------------------------

ARCHIVE = [
    record("warcinfo", b"software: x\r\n", Content_Type="application/warc-fields"),
    record("request", b"GET / HTTP/1.1\r\n\r\n", WARC_Record_ID="<urn:uuid:r>"),
    response(html(), 2),
    response(html("Not found, sorry."), 3, status="404 Not Found"),
    response(b"\x89PNG", 4, kind="image/png"),
    response(html("Latin: café au lait.").encode("latin-1"), 5),
    response(gzip.compress(html("Packed page.").encode()), 6, Content_Encoding="gzip"),
    response(html("Unpacked below a header that says gzip."), 7, Content_Encoding="gzip"),
    response(zlib.compress(html("Deflated page.").encode()), 8, Content_Encoding="deflate"),
    record("conversion", "Plain text é of a WET file.".encode(), WARC_Record_ID="<urn:uuid:9>",
           WARC_Target_URI="http://example.org/9", Content_Type="text/plain"),
    record("response", b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\n\r\n"
           b"8\r\n<p>chunk\r\n6\r\ned</p>\r\n0\r\n\r\n", WARC_Record_ID="<urn:uuid:10>",
           Content_Type="application/http"),
    record("metadata", b"fetchTimeMs: 5\r\n"),
    response("<body></body>", 12),
]  # fmt: skip
KEPT = [
    (3, "urn:uuid:2", TEXT),
    (6, "urn:uuid:5", "Latin: café au lait."),
    (7, "urn:uuid:6", "Packed page."),
    (8, "urn:uuid:7", "Unpacked below a header that says gzip."),
    (9, "urn:uuid:8", "Deflated page."),
    (10, "urn:uuid:9", "Plain text é of a WET file."),
    (11, "urn:uuid:10", "chunked"),
]
DROPPED = {"not a page: warcinfo": 1, "not a page: request": 1, "not a page: HTTP status 404": 1,
           "not a page: no HTML": 1, "not a page: metadata": 1, "no main text": 1}  # fmt: skip


def packed(kind):
    if kind == "plain":
        return "x.warc", b"".join(ARCHIVE)
    if kind == "a member a record":
        return "x.warc.gz", b"".join(map(gzip.compress, ARCHIVE))
    return "x.warc.gz", gzip.compress(b"".join(ARCHIVE))


@pytest.mark.parametrize("kind", ["plain", "a member a record", "one member"])
def test_an_archive(read, tmp_path, kind):
    name, data = packed(kind)
    (tmp_path / name).write_bytes(data)
    documents, account = read(tmp_path)
    assert [(d.number, d.id, d.text) for d in documents] == KEPT
    assert account["dropped"] == DROPPED
    assert account["read"] == len(ARCHIVE)
    assert account["read_bytes"] == sum(map(len, ARCHIVE))
    assert [d.size for d in documents] == [len(ARCHIVE[d.number - 1]) for d in documents]
    assert (documents[0].url, documents[0].date) == ("http://example.org/2", "2023-01-03T00:00:00Z")


GOOD = [response(html(f"Page number {n}."), n) for n in range(4)]
BROKEN = {
    "rubbish": (b"rubbish between records\r\n\r\n", "no WARC record begins here"),
    "no length": (b"WARC/1.0\r\nWARC-Type: response\r\n\r\nblock\r\n\r\n", "has no Content-Length"),
    "too short": (GOOD[3].replace(b"Content-Length: ", b"Content-Length: 1\r\nX: ", 1), "does not end where"),
    "too long": (GOOD[3].replace(b"Content-Length: ", b"Content-Length: 1", 1), "promises 1[0-9,]+ bytes"),
    "endless head": (b"WARC/1.0\r\n" + b"A: b\r\n" * 20_000 + b"\r\n", "its head has no end"),
    "bad length": (GOOD[3].replace(b"Content-Length: ", b"Content-Length: x", 1), "has no Content-Length"),
    "cut gzip": (
        response(gzip.compress(html("p" * 999).encode())[:-20], 9, Content_Encoding="gzip"),
        "cannot be unpacked",
    ),
    "bad gzip": (response(b"\x1f\x8b" + bytes(50), 9, Content_Encoding="gzip"), "be unpacked"),
    "unknown packing": (response(b"xyz", 9, Content_Encoding="br"), "the encoding 'br', which is not read"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_record_between_good_ones(read, tmp_path, fault):
    data, message = BROKEN[fault]
    path = tmp_path / "x.warc"
    path.write_bytes(b"".join([*GOOD[:2], data, GOOD[2]]))
    with pytest.raises(InputError, match=rf"x\.warc, record 3: .*{message}"):
        read(path)
    documents, account = read(path, on_error="skip")
    assert texts((documents, account)) == ["Page number 0.", "Page number 1.", "Page number 2."]
    assert account["errors"] == {"broken record": 1}
    assert account["error_bytes"] == {"broken record": len(data)}
    assert account["read_bytes"] == path.stat().st_size


@pytest.mark.parametrize("kind", ["plain", "a member a record", "one member"])
def test_an_archive_cut_at_any_place(read, tmp_path, kind):
    name, whole = packed(kind)
    ends = [0]
    for part in ARCHIVE:
        ends.append(ends[-1] + len(part if kind == "plain" else gzip.compress(part)))
    for length in range(1, len(whole), 53):
        if kind != "one member" and any(0 <= end - length <= 4 for end in ends):
            continue  # between records (or only their blank lines are missing): nothing is lost
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(InputError, match="cut off"):
            read(tmp_path / name)
        documents, account = read(tmp_path / name, on_error="skip")
        assert sum(account["errors"].values()) == 1
        assert [d.id for d in documents] == [i for _, i, _ in KEPT[: len(documents)]]


def test_an_empty_archive(read, tmp_path):
    (tmp_path / "x.warc").write_bytes(b"")
    (tmp_path / "y.warc.gz").write_bytes(gzip.compress(b""))
    assert read(tmp_path)[1]["empty_files"] == [f"{tmp_path}/x.warc", f"{tmp_path}/y.warc.gz"]


@pytest.mark.parametrize(
    ("module", "name"), [("fastwarc", "x.warc"), ("resiliparse.extract.html2text", "x.html")]
)
def test_a_missing_extra_gives_the_install_line(read, tmp_path, monkeypatch, module, name):
    (tmp_path / name).write_bytes(b"anything")
    for loaded in [m for m in __import__("sys").modules if m.split(".")[0] == module.split(".")[0]]:
        monkeypatch.delitem(__import__("sys").modules, loaded)
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(InputError, match=r'pip install "stablelm\[html\]"'):
        read(tmp_path, on_error="skip")
