"""Hashes: sha256 for files and fingerprints, 64-bit keyed integers for everything drawn by name."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def sha256_file(path: str | Path) -> str:
    """Hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sampled_sha256(path: str | Path, pieces: int = 64, size: int = 1 << 16) -> str:
    """Hex sha256 of a file's length and of `pieces` of `size` bytes, evenly spread: for files of which
    reading every byte takes too long."""
    length, digest = Path(path).stat().st_size, hashlib.sha256()
    digest.update(str(length).encode())
    for piece in sampled(path, pieces, size):
        digest.update(piece)
    return digest.hexdigest()


def sampled(path: str | Path, pieces: int = 64, size: int = 1 << 16) -> Iterator[bytes]:
    """Those pieces, from the first to the last."""
    length = Path(path).stat().st_size
    with open(path, "rb") as file:
        for number in range(pieces):
            file.seek(max(0, length - size) * number // (pieces - 1))
            yield file.read(size)


def sha256_text(text: str) -> str:
    """Hex sha256 of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint(value: Any) -> str:
    """Hex sha256 of a JSON-serialisable value, independent of key order."""
    return sha256_text(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True))


def keyed_uint64(*parts: object) -> int:
    """A 64-bit integer fixed by its parts, the same on every machine and Python (BLAKE2b, not `hash()`)."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
