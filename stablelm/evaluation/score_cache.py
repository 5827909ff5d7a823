"""Scores that are known already, so that an interrupted evaluation goes on where it was.

One line of JSON a score, appended as each batch is done; a torn last line is dropped and made again. The
first line names the model, by a hash of all its weights, and its arithmetic: scores of another model are
never mixed in."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stablelm.config import InputError
from stablelm.evaluation.scoring import Score
from stablelm.model import StableLM

Pair = tuple[tuple[int, ...], tuple[int, ...]]


class ScoreCache:
    """Scores by request; on the disk too when it has a path."""

    def __init__(self, path: str | Path | None = None, model: str = "") -> None:
        """`model` is what `weights_hash` says; a file of another model is refused."""
        self._known: dict[str, Score] = {}
        self._path = None if path is None else Path(path)
        if self._path is None:
            return
        if self._path.exists():
            self._read(self._path, model)
        else:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps({"model": model}) + "\n", encoding="utf-8")

    def _read(self, path: Path, model: str) -> None:
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]  # a kill may have torn the last line
        lines = whole.splitlines()
        number = 1
        try:
            head = json.loads(lines[0]) if lines else {"model": model}
            if head["model"] != model:
                raise InputError(
                    f"{path}: holds scores of another model or precision. Give another --out, or remove it."
                )
            for line in lines[1:]:
                number += 1
                key, value, greedy = json.loads(line)
                self._known[str(key)] = Score(float(value), bool(greedy))
        except InputError:
            raise
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{path}, line {number}: not a file of scores. Remove it to start anew."
            ) from None
        if len(whole) < len(content) or not lines:
            path.write_bytes(whole or (json.dumps({"model": model}) + "\n").encode())

    def __contains__(self, pair: Pair) -> bool:
        return _key(pair) in self._known

    def __getitem__(self, pair: Pair) -> Score:
        return self._known[_key(pair)]

    def __len__(self) -> int:
        return len(self._known)

    def add(self, scores: Mapping[Pair, Score]) -> None:
        """Keeps scores, on the disk before this returns."""
        lines = []
        for pair, result in scores.items():
            key = _key(pair)
            self._known[key] = result
            lines.append(json.dumps([key, result.loglikelihood, result.greedy]))
        if self._path is not None and lines:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write("\n".join(lines) + "\n")


def _key(pair: Pair) -> str:
    context, continuation = pair
    text = f"{','.join(map(str, context))}|{','.join(map(str, continuation))}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def weights_hash(model: StableLM) -> str:
    """A hash of all weights, their names and precision, and the arithmetic: about 1 s for a GB."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(str(model.compute_dtype).encode())
    tensors: Sequence[tuple[str, Any]] = sorted(model.state_dict().items())
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy() if flat.numel() else b"")
    return digest.hexdigest()
