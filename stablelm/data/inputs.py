"""Input files, wherever they lie: opened, hashed, and noticed when they change.

A location is a local path or an address that fsspec opens (s3://, gs://, hf://, https://, memory://, …); the
package that a protocol needs is named when it is missing. Size and stamp (modification time, or the store's
tag) are taken when the file is found and compared whenever it is opened and when it has been read, so nothing
is planned from one version and read from another."""

import contextlib
import dataclasses
import datetime
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from stablelm.config import InputError

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(://|::)")
_PACKAGES = {
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs",
    "http": "aiohttp", "https": "aiohttp", "sftp": "paramiko", "ssh": "paramiko", "hf": "huggingface_hub",
}  # fmt: skip
_TAGS = (
    "ETag",
    "etag",
    "blob_id",
    "md5Hash",
    "checksum",
    "LastModified",
    "last_modified",
    "mtime",
    "created",
)


@dataclass(frozen=True)
class InputFile:
    """A file to read, or one shard of a dataset."""

    location: str
    """What opens it: a path from the working directory, an address, or a dataset's name or folder."""
    shown: str
    """The path as the user wrote it."""
    id: str
    """The path below the folder or pattern that was named; the file's name when it was named itself."""
    format: str
    """text, code, jsonl, parquet, arrow, datasets, warc or html."""
    size: int = 0
    """Bytes on the disk; 0 if it cannot be known."""
    stamp: str = ""
    """Differs when the file was changed; empty if it cannot be known."""
    shard: int = 0
    """Which shard of a dataset."""
    sha256: str = ""
    """Of the content, if planning came by it."""

    @property
    def path(self) -> Path:
        """Of a local file."""
        return Path(self.location)

    @property
    def remote(self) -> bool:
        """An address, not a path."""
        return is_address(self.location)

    @property
    def suffix(self) -> str:
        """The last one, lower-case, with its dot."""
        return os.path.splitext(self.location)[1].lower()

    def as_dict(self) -> dict[str, Any]:
        """For `from_dict`, through JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "InputFile":
        """What `as_dict` wrote."""
        return cls(**values)


@dataclass(frozen=True)
class Span:
    """A part of a file that is read on its own."""

    file: InputFile
    start: int = 0
    """Bytes (jsonl), row groups (parquet), record batches (arrow) or rows (datasets) before it."""
    end: int = -1
    """Where it ends, in the same unit; −1: at the end of the file."""
    first: int = 0
    """Lines or rows before it."""
    size: int = 0
    """Its bytes on the disk, about; 0 if that cannot be known."""

    @property
    def whole(self) -> bool:
        """The whole file."""
        return self.start == 0 and self.end < 0


class Tap:
    """A file as its bytes are drawn: counted in `position` and hashed."""

    def __init__(self, file: IO[bytes], shown: str) -> None:
        self.file, self.shown, self.position, self.digest = file, shown, 0, hashlib.sha256()

    def chunks(self, size: int, end: int = -1) -> Iterator[bytes]:
        """The rest of the file, or the part before byte `end` of what is drawn."""
        while chunk := self._read(size if end < 0 else min(size, end - self.position)):
            yield chunk

    def sha256(self) -> str:
        """Of the whole file; reads what was not drawn."""
        while self._read(1 << 20):
            pass
        return self.digest.hexdigest()

    def _read(self, size: int) -> bytes:
        with explained(self.shown):
            chunk = self.file.read(size)
        self.position += len(chunk)
        self.digest.update(chunk)
        return chunk


def is_address(text: str) -> bool:
    """Whether fsspec is to open it."""
    return bool(_ADDRESS.match(text)) and not text.startswith("file://")


@contextlib.contextmanager
def opened(file: InputFile) -> Iterator[IO[bytes]]:
    """The file, open for reading at random places; `InputError` if it is not the one that was found."""
    if not file.remote:
        with open(file.path, "rb") as handle:
            _compare(file, *_local_stamp(os.fstat(handle.fileno())))
            yield handle
            _compare(file, *_local_stamp(os.fstat(handle.fileno())))
        return
    with explained(file.shown):
        system, path = file_system(file.location)
        system.invalidate_cache()
        _compare(file, *remote_stamp(system.info(path), file.stamp.partition(" ")[0]))
        remote = system.open(path, "rb")
    try:
        yield cast(IO[bytes], _Stored(remote, file.shown))
        with explained(file.shown):
            system.invalidate_cache()
            _compare(file, *remote_stamp(system.info(path), file.stamp.partition(" ")[0]))
    finally:
        with contextlib.suppress(Exception):  # nothing was written
            remote.close()


class _Stored:
    """A store's file whose failures are one clear error, also when a library reads it: they are no fault of
    the data, and never counted as one."""

    def __init__(self, file: Any, shown: str) -> None:
        self.file, self.shown = file, shown

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def read(self, size: int = -1) -> Any:
        """As of files."""
        with explained(self.shown):
            return self.file.read(size)


def file_system(address: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and its path there."""
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise InputError(f'{address}: reading addresses needs `pip install "stablelm[data]"`.') from None
    protocol = address.split("://")[0]
    try:
        system, path = url_to_fs(address)
    except ImportError as error:
        package = _PACKAGES.get(protocol)
        remedy = f"`pip install {package}`" if package else f"a package: {error}"
        raise InputError(f"{address}: reading {protocol}:// needs {remedy}.") from None
    except ValueError as error:
        raise InputError(f"{address}: {error}. Correct the address in `paths`.") from None
    return system, str(path)


@contextlib.contextmanager
def explained(shown: str) -> Iterator[None]:
    """Turns what a store or its client raises into one clear error; local files' `OSError`s go through."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(
            f"{shown}: no such file or folder, or out of reach. Correct `paths`, or check the network."
        ) from None
    except Exception as error:
        if isinstance(error, OSError) and not is_address(shown):
            raise
        detail = str(error).split("\n")[0].rstrip(".") or type(error).__name__
        raise InputError(
            f"{shown}: cannot be read ({detail}). Check the address, the credentials and the network."
        ) from None


def remote_stamp(info: Mapping[str, Any], tag: str = "") -> tuple[int, str]:
    """Size and stamp of a stored file, from what its file system tells; of one kind if `tag` names it."""
    for name in [tag] if tag else _TAGS:
        if value := info.get(name):
            seconds = value.timestamp() if isinstance(value, datetime.datetime) else value
            return int(info.get("size") or 0), f"{name} {str(seconds).strip(chr(34))}"
    return int(info.get("size") or 0), ""


def local_file(path: Path, shown: str, name: str, kind: str, info: os.stat_result) -> InputFile:
    """The file at `path`."""
    size, stamp = _local_stamp(info)
    return InputFile(str(path), shown, name, kind, size, stamp)


def _local_stamp(info: os.stat_result) -> tuple[int, str]:
    return info.st_size, f"mtime {info.st_mtime_ns}"


def _compare(file: InputFile, size: int, stamp: str) -> None:
    if size != file.size or (stamp and file.stamp and stamp != file.stamp):
        what = f"{file.size:,} bytes then, {size:,} now" if size != file.size else "its time stamp differs"
        raise InputError(f"{file.shown}: changed since it was found ({what}). Let it rest, and begin again.")


def hash_file(file: InputFile) -> str:
    """Hex sha256 of the content; empty for a dataset."""
    if file.sha256 or file.format == "datasets":
        return file.sha256
    with opened(file) as handle:
        return Tap(handle, file.shown).sha256()
