"""A manifest lists a directory's files with size and sha256; written last, it is the mark that the directory
is whole.

Checking sizes costs nothing and finds truncation; checking hashes reads every byte (about 1 GB/s) and finds a
flipped one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from stablelm.config.errors import InputError
from stablelm.storage.atomic import read_json, write_json
from stablelm.storage.hashes import sha256_file
from stablelm.storage.paths import confined

MANIFEST = "manifest.json"


Entries = dict[str, dict[str, Any]]
"""Name relative to the directory, with `/` → its bytes and sha256."""


def entry(path: Path) -> dict[str, Any]:
    """What a manifest says of one file."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def write_manifest(
    directory: str | Path, about: dict[str, Any], known: Entries | None = None
) -> dict[str, Any]:
    """Lists every file below `directory` and writes `manifest.json` with `about` in front; returns it.

    `known` files were hashed already, by whoever wrote them: `InputError` for one that is not there or has
    another size now."""
    directory, known = Path(directory), known or {}
    found = {p.relative_to(directory).as_posix(): p for p in sorted(directory.rglob("*")) if p.is_file()}
    files = {n: known.get(n) or entry(path) for n, path in found.items() if path.name != MANIFEST}
    for name, expected in known.items():
        if name not in found or found[name].stat().st_size != expected["bytes"]:
            raise InputError(
                f"{directory / name}: was written with {expected['bytes']:,} bytes and is not there as it "
                "was. Do all processes see one directory?"
            )
    manifest = {**about, "files": files}
    write_json(directory / MANIFEST, manifest)
    return manifest


def read_manifest(
    directory: str | Path, *, hashes: bool | Callable[[str], bool] = True, remedy: str = ""
) -> dict[str, Any]:
    """The manifest of a directory whose files were all checked: presence and size, and with `hashes` every
    byte (of those whose names it takes, when it is a function).

    Raises `InputError` naming the first file that is missing, of another size or changed; `remedy` ends the
    message."""
    directory = Path(directory)
    manifest: dict[str, Any] = read_json(directory / MANIFEST)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict):
        raise InputError(f"{directory / MANIFEST}: lists no files; this is not a manifest. {remedy}".rstrip())
    for name, expected in files.items():
        path = confined(directory, name)
        kinds = (
            [type(expected.get(key)) for key in ("bytes", "sha256")] if isinstance(expected, dict) else None
        )
        if kinds != [int, str]:
            raise InputError(
                f"{directory / MANIFEST}: damaged: no size and sha256 for {name!r}. {remedy}".rstrip()
            )
        if not path.is_file():
            raise InputError(f"{path}: missing, although the manifest lists it. {remedy}".rstrip())
        actual = path.stat().st_size
        if actual != expected["bytes"]:
            raise InputError(
                f"{path}: truncated or changed: the manifest promises {expected['bytes']:,} bytes, "
                f"the file has {actual:,}. {remedy}".rstrip()
            )
        wanted = hashes(name) if callable(hashes) else hashes
        if wanted and sha256_file(path) != expected["sha256"]:
            raise InputError(f"{path}: corrupt: its sha256 is not the manifest's. {remedy}".rstrip())
    return manifest
