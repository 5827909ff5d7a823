"""Bytes out of .gz and .zst files, and lines out of bytes, with every truncation noticed.

A compressed file that ends inside a frame is a fault; all that could be unpacked before has been yielded by
then. Rejected: zstandard's `stream_reader`, which takes a truncation for the end of the file. Memory is what
one chunk unpacks to (and the line, for lines, whose length has no limit)."""

import zlib
from collections.abc import Iterator
from typing import Any

from stablelm.config import InputError


class BrokenFile(Exception):
    """A file whose bytes cannot be had to the end."""

    def __init__(self, reason: str, what: str) -> None:
        self.reason, self.what = reason, what


def unpacked(raw: Iterator[bytes], packing: str, shown: str) -> Iterator[bytes]:
    """The content of a `.gz` or `.zst` file, frame by frame; `BrokenFile` when it is corrupt or cut off."""
    make, failure, what = _decoder(packing, shown)
    frame: Any = None
    frames = 0
    for chunk in raw:
        while (
            chunk := chunk.lstrip(b"\0") if packing == ".gz" and frame is None and frames else chunk
        ):  # padding
            frame = frame or make()
            try:
                data = frame.decompress(chunk)
            except failure as error:
                raise BrokenFile("corrupt", f"the {what} cannot be unpacked ({error})") from None
            if data:
                yield data
            chunk = frame.unused_data
            if frame.eof:
                frame, frames = None, frames + 1
    if frame is not None:
        raise BrokenFile("truncated", f"the file ends here, inside a {what}: it was cut off")


def _decoder(packing: str, shown: str) -> tuple[Any, Any, str]:
    if packing == ".gz":
        return lambda: zlib.decompressobj(31), zlib.error, "gzip member"
    try:
        import zstandard
    except ImportError:
        raise InputError(f'{shown}: reading .zst needs `pip install "stablelm[data]"`.') from None
    return zstandard.ZstdDecompressor().decompressobj, zstandard.ZstdError, "zstd frame"


class Lines:
    """The lines of a stream, each with its LF; the last one need not have it."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.chunks, self.pending = chunks, list[bytes]()

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self.chunks:
            *whole, rest = chunk.split(b"\n")
            for line in whole:
                self.pending += line, b"\n"
                line = b"".join(self.pending)
                self.pending.clear()
                yield line
            if rest:
                self.pending.append(rest)
        if self.pending:
            line = self.partial()
            self.pending.clear()
            yield line

    def partial(self) -> bytes:
        """What came after the last LF, for a stream that broke off."""
        return b"".join(self.pending)
