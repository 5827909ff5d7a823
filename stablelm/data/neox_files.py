"""The token files of a GPT-NeoX run, with the face of a prepared dataset.

They carry no manifest, so nothing says which tokenizer made them or what was held out: the tokenizer is named
by the user, and there is no held-out text. The fingerprint is of every document's length and, since hashing
terabytes before each start is no option, of 64 pieces of each .bin, evenly spread."""

import hashlib
import json
from pathlib import Path
from typing import Any

from stablelm.config import InputError
from stablelm.config.mixture import NeoxConfig
from stablelm.data.token_files import TokenFile
from stablelm.storage import fingerprint, sampled
from stablelm.tokenizer import Tokenizer


class NeoxFiles:
    """Prefixes of .bin and .idx, opened and checked."""

    def __init__(self, config: NeoxConfig) -> None:
        """`InputError` names a file that is missing or damaged, or a tokenizer that is none."""
        self.tokenizer = Tokenizer.from_file(config.tokenizer)
        self.tokenizer_path = Path(self.tokenizer.source)
        self.tokenizer_size = self.tokenizer.size
        self.files: list[TokenFile] = []
        self.names: list[str] = []
        """What the sources are called: their paths, a repeated one with its number."""
        for path in config.paths:
            prefix = path.removesuffix(".bin").removesuffix(".idx")
            for suffix in (".bin", ".idx"):
                if not Path(prefix + suffix).is_file():
                    raise InputError(f"{prefix}{suffix}: no such file; data.neox.paths names it.")
            self.files.append(TokenFile(prefix))
            repeated = sum(name.split(" (")[0] == prefix for name in self.names)
            self.names.append(f"{prefix} ({repeated + 1})" if repeated else prefix)
        self.sources: tuple[str, ...] = ()
        """Sources with held-out text: none."""
        self.fingerprints = [_fingerprint(file) for file in self.files]
        """Of each path's files."""
        self.fingerprint = fingerprint([self.tokenizer.sha256, *self.fingerprints])

    def held_out(self, source: str) -> TokenFile | None:
        """Always None: these files name no held-out text."""
        return None

    def text_bytes(self, source: str, side: str = "train") -> int:
        """Unknown to token files."""
        raise InputError(f"{source}: a GPT-NeoX token file does not say how many bytes its text has.")

    def open_tokenizer(self) -> Tokenizer:
        """Text to the ids of the token files."""
        return self.tokenizer

    def tokenizer_files(self) -> dict[str, bytes]:
        """What a checkpoint keeps of the tokenizer."""
        return {"tokenizer.json": self.tokenizer_path.read_bytes()}

    def summary(self) -> dict[str, Any]:
        """What a checkpoint and a model card carry of the data."""
        return {
            "fingerprint": self.fingerprint,
            "tokenizer": {"sha256": self.tokenizer.sha256, "size": self.tokenizer_size},
            "sources": {
                name: {"train": {"documents": file.num_documents, "tokens": file.num_tokens}}
                for name, file in zip(self.names, self.files, strict=True)
            },
        }

    def summary_json(self) -> str:
        """`summary` as JSON text."""
        return json.dumps(self.summary(), indent=2, ensure_ascii=False) + "\n"


def _fingerprint(file: TokenFile) -> str:
    digest = hashlib.sha256()
    for first in range(0, file.num_documents, 1 << 20):
        digest.update(file.sizes[first : first + (1 << 20)].tobytes())
    data = Path(f"{file.prefix}.bin")
    size = data.stat().st_size
    digest.update(f"{size} {file.dtype}".encode())
    for piece in sampled(data):
        digest.update(piece)
    return digest.hexdigest()
