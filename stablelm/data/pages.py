"""Web pages: HTML files and web archives (WARC, WET), a page a document.

Text is the main content as Resiliparse extracts it; a page without any is dropped as `no main text`, one
whose elements lie in each other a thousand deep as `nested too deeply` (extraction would take minutes). The
characters of a page are found in this order: a byte order mark; UTF-8, if the bytes are UTF-8 and not ASCII
alone (other encodings are never so by chance, and pages often declare them wrongly); what HTTP or the page
declares; what Resiliparse detects. The first that decodes every byte wins; if none does, it is a fault: no
byte is replaced.

Of an archive, every record is read and counted. Pages are responses with a 2xx status and an HTML type, and
the plain text of `conversion` records (WET); others are dropped as `not a page: …`. Records are framed here,
so that a cut or broken one is noticed, and FastWARC parses what is inside. Address and date are the record's.
After a record whose head is broken, reading goes on at the next `WARC/` that begins a line."""

import codecs
import io
import re
import zlib
from collections.abc import Iterator
from typing import Any

from stablelm.config import InputError
from stablelm.data.documents import AGAIN, Document, Intake, first_line, printable
from stablelm.data.unpacking import BrokenFile, unpacked

_HEAD = 1 << 16  # bytes of a record's head, at most
_LENGTH = re.compile(rb"(?mi)^content-length[ \t]*:[ \t]*(\d{1,18})[ \t]*\r?$")
_META = re.compile(rb"<meta[^>]{0,1024}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]{1,40})", re.IGNORECASE)
_NESTING = re.compile(r"<(/?)(?:div|article)\b", re.IGNORECASE)
_DEEPEST = 1000  # browsers cut at 512
_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_BLANK = 8  # of line ends after a record, two of which are due
_OTHER_TYPES = ("warcinfo", "request", "metadata", "revisit", "continuation")
_HTML_TYPES = ("text/html", "application/xhtml+xml")


def require_html(shown: str) -> None:
    """Refuses, with the line that installs it, when the extra is missing."""
    try:
        from fastwarc.warc import ArchiveIterator  # noqa: F401
        from resiliparse.extract.html2text import extract_plain_text  # noqa: F401
    except ImportError:
        raise InputError(f'{shown}: reading pages needs `pip install "stablelm[html]"`.') from None


def main_text(
    data: bytes,
    declared: str,
    name: str,
    number: int,
    size: int,
    intake: Intake,
    url: str = "",
    date: str = "",
) -> Document | None:
    """The document of a page of HTML; `declared` is the charset that came with it, if any."""
    from resiliparse.extract.html2text import extract_plain_text

    html = decoded(data, declared)
    if html is None:
        what = "the page's characters are in no encoding that it declares, nor in one that was detected"
        return intake.fault(
            number, "unknown charset", what, "Convert it to UTF-8, or leave it out.", size=size
        )
    if _nesting(html) > _DEEPEST:
        return intake.drop(number, "nested too deeply", size)
    text = extract_plain_text(html, main_content=True, alt_texts=False)
    if not text.strip():
        return intake.drop(number, "no main text" if html.strip() else "empty", size)
    return intake.page(text, name, number, size, url, date)


def decoded(data: bytes, declared: str = "") -> str | None:
    """The characters of a page; None if no encoding fits."""
    from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

    for mark, marked in _MARKS.items():
        if data.startswith(mark):
            return _strictly(data[len(mark) :], marked)
    if not data.isascii() and (utf8 := _strictly(data, "utf-8")) is not None:
        return utf8
    meta = _META.search(data[:_HEAD])
    named = [declared, meta[1].decode() if meta else ""]
    candidates = [map_encoding_to_html5(name, fallback_utf8=False) for name in named if name]
    for encoding in [*candidates, "utf-8", detect_encoding(data)]:
        if encoding and not encoding.startswith("utf-16") and (text := _strictly(data, encoding)) is not None:
            return text
    return None


def read_records(chunks: Iterator[bytes], intake: Intake) -> Iterator[Document]:
    """The pages of an archive, whose unpacked bytes are `chunks`."""
    require_html(intake.file.shown)
    stream, number, told = _Stream(chunks), 0, False
    while stream.have(1):
        number += 1
        intake.entry.read += 1
        raw, fault = _next_record(stream)
        if fault and stream.broken and not stream.buffer:
            told = True
            intake.fault(number, stream.broken.reason, stream.broken.what, AGAIN, size=len(raw))
        elif fault:
            intake.fault(number, "broken record", fault, AGAIN, size=len(raw))
        elif document := _page(raw, number, intake):
            yield document
    if stream.broken and not told:
        number, intake.entry.read = number + 1, intake.entry.read + 1
        intake.fault(number, stream.broken.reason, stream.broken.what, AGAIN)
    intake.entry.empty = number == 0


class _Stream:
    """Bytes that can be looked at before they are taken; it ends where its file breaks off."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.chunks, self.buffer = chunks, bytearray()
        self.broken: BrokenFile | None = None

    def have(self, count: int) -> bool:
        """Whether there are `count` more bytes."""
        while len(self.buffer) < count:
            try:
                self.buffer += next(self.chunks)
            except StopIteration:
                return False
            except BrokenFile as broken:
                self.broken = broken
        return True

    def find(self, mark: bytes, start: int, limit: int | None = None) -> int:
        """Where `mark` first is at or after `start` (and ends before `limit`); −1 if nowhere."""
        while True:
            at = self.buffer.find(mark, start, limit)
            if at >= 0 or (limit is not None and len(self.buffer) >= limit):
                return at
            start = max(start, len(self.buffer) - len(mark) + 1)
            if not self.have(len(self.buffer) + 1):
                return -1

    def take(self, count: int) -> bytes:
        """The next `count` bytes, or what is left."""
        taken = bytes(self.buffer[:count])
        del self.buffer[:count]
        return taken


def _next_record(stream: _Stream) -> tuple[bytes, str]:
    """The bytes of the next record, and what is wrong with it, if anything."""
    stream.have(5)
    head = stream.find(b"\r\n\r\n", 0, _HEAD) if stream.buffer.startswith(b"WARC/") else -1
    if head < 0 and len(stream.buffer) < _HEAD and b"WARC/".startswith(stream.buffer[:5]):
        return stream.take(_HEAD), "the file ends in a record's head: it was cut off"
    if head < 0:
        return _skip(stream), "no WARC record begins here, or its head has no end"
    head += 4
    length = _LENGTH.search(stream.buffer, 0, head)
    if not length:
        return _skip(stream), "the record has no Content-Length"
    end = head + int(length[1])
    if not stream.have(end):
        left = len(stream.buffer) - head
        what = f"the record promises {end - head:,} bytes, {left:,} are left: it was cut off"
        return _skip(stream), what
    more = stream.have(end + 1)
    stream.have(end + _BLANK)
    after = bytes(stream.buffer[end : end + _BLANK])
    blank = len(after) - len(after.lstrip(b"\r\n"))
    if more and blank < 2:
        return _skip(stream), "the record does not end where its Content-Length says"
    return stream.take(end + blank), ""


def _skip(stream: _Stream) -> bytes:
    """All bytes before the next record."""
    at = stream.find(b"\nWARC/", 0)
    return stream.take(at + 1 if at >= 0 else len(stream.buffer))


def _page(raw: bytes, number: int, intake: Intake) -> Document | None:
    """The document of a record; others are counted."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    size = len(raw)
    try:
        record = next(iter(ArchiveIterator(io.BytesIO(raw), parse_http=True, auto_decode="transfer")), None)
        data = _content(record) if record else b""
    except BrokenFile as error:
        record, detail = None, error.what
    except (OSError, ValueError, RuntimeError) as error:
        record, detail = None, first_line(error)
    else:
        detail = "its head is no WARC head"
    if record is None:
        what = f"the record cannot be unpacked ({detail})"
        return intake.fault(number, "broken record", what, AGAIN, size=size)
    kind = record.record_type
    if kind not in (WarcRecordType.response, WarcRecordType.resource, WarcRecordType.conversion):
        named = (record.headers.get("WARC-Type") or "").lower()
        reason = f"not a page: {named if named in _OTHER_TYPES else 'another record'}"
        return intake.drop(number, reason, size)
    name = printable((record.record_id or "").strip("<>")) or f"{intake.file.id}:{number}"
    url = printable(record.headers.get("WARC-Target-URI") or "")
    date = printable(record.headers.get("WARC-Date") or "")
    status = record.http_headers.status_code if record.http_headers else 200
    if status is None or not 200 <= status < 300:
        return intake.drop(number, f"not a page: HTTP status {status}", size)
    declared = record.http_content_type if record.http_headers else record.headers.get("Content-Type")
    mime = (declared or "").split(";")[0].strip().lower()
    if kind == WarcRecordType.conversion and mime == "text/plain":
        try:
            return intake.page(data.decode(), name, number, size, url, date)
        except UnicodeDecodeError as error:
            place = f"byte {error.start + 1:,} of the record's text"
            return intake.not_utf8(number, data, error.start, place, size)
    if mime not in _HTML_TYPES:
        return intake.drop(number, "not a page: no HTML", size)
    return main_text(data, record.http_charset or "", name, number, size, intake, url, date)


def _nesting(html: str) -> int:
    """How deep the elements lie within each other for which the extraction takes the square of the depth."""
    deepest = depth = 0
    if html.count("<") > _DEEPEST:
        for tag in _NESTING.finditer(html):
            depth = max(0, depth + (-1 if tag[1] else 1))
            deepest = max(deepest, depth)
    return deepest


def _content(record: Any) -> bytes:
    """The body of a record, unpacked; `BrokenFile` if that fails half-way."""
    data = bytes(record.reader.read())
    packing = (record.http_headers.get("Content-Encoding") or "").lower() if record.http_headers else ""
    if packing in ("", "identity") or (packing in ("gzip", "x-gzip") and not data.startswith(b"\x1f\x8b")):
        return data  # some archives hold the unpacked body below the header it came with
    if packing in ("gzip", "x-gzip"):
        return b"".join(unpacked(iter([data]), ".gz", "a page"))
    if packing == "deflate":
        return _inflated(data)
    raise BrokenFile("packed", f"its content has the encoding {packing[:20]!r}, which is not read")


def _inflated(data: bytes) -> bytes:
    """Content of the encoding deflate, which is zlib's by the standard and raw from some servers."""
    for window in (zlib.MAX_WBITS, -zlib.MAX_WBITS):
        try:
            return zlib.decompress(data, window)
        except zlib.error as error:
            reason = error
    raise BrokenFile("corrupt", f"its deflated content cannot be unpacked ({reason})")


def _strictly(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except (UnicodeDecodeError, LookupError):
        return None
