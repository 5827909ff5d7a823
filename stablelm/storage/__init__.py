"""Files that are whole or absent: atomic writes, locks, hashes, manifests, confined paths."""

from stablelm.storage.atomic import (
    DiskFullError,
    atomic_directory,
    atomic_file,
    explain_full_disk,
    json_bytes,
    read_json,
    refuse_existing,
    require_space,
    write_json,
    write_text,
)
from stablelm.storage.hashes import (
    fingerprint,
    keyed_uint64,
    sampled,
    sampled_sha256,
    sha256_file,
    sha256_text,
)
from stablelm.storage.locks import directory_lock
from stablelm.storage.manifests import MANIFEST, Entries, entry, read_manifest, write_manifest
from stablelm.storage.paths import confined, refuse_dead_link

__all__ = [
    "MANIFEST",
    "DiskFullError",
    "Entries",
    "atomic_directory",
    "atomic_file",
    "confined",
    "directory_lock",
    "entry",
    "explain_full_disk",
    "fingerprint",
    "json_bytes",
    "keyed_uint64",
    "read_json",
    "read_manifest",
    "refuse_dead_link",
    "refuse_existing",
    "require_space",
    "sampled",
    "sampled_sha256",
    "sha256_file",
    "sha256_text",
    "write_json",
    "write_manifest",
    "write_text",
]  # fmt: skip
