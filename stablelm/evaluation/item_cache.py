"""What is known of items already, so that an interrupted evaluation goes on where it was.

One line of JSON an item, appended as each batch is done; a torn last line is dropped and made again. The
first line names the model, by a hash of all its weights and its arithmetic: results of another model are
never mixed in."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from stablelm.config import InputError

V = TypeVar("V")


def key_of(value: Any) -> str:
    """A short name of whatever JSON can hold."""
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()


class ItemCache(Generic[V]):
    """Results by key; on the disk too when it has a path."""

    def __init__(
        self,
        path: str | Path | None = None,
        model: str = "",
        *,
        read: Callable[[list[Any]], V],
        write: Callable[[V], list[Any]] = lambda value: [value],
        kind: str = "texts",
    ) -> None:
        """`model` is what `weights_hash` says; a file of another model is refused. `write` gives what a line
        holds after the key, `read` takes it back, or raises; `kind` names the contents in messages."""
        self._known: dict[str, V] = {}
        self._read_value, self._write_value, self._kind = read, write, kind
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
                    f"{path}: holds {self._kind} of another model or precision. Give another --out, or "
                    "remove it."
                )
            for line in lines[1:]:
                number += 1
                key, *values = json.loads(line)
                self._known[str(key)] = self._read_value(values)
        except InputError:
            raise
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{path}, line {number}: not a file of {self._kind}. Remove it to start anew."
            ) from None
        if len(whole) < len(content) or not lines:
            path.write_bytes(whole or (json.dumps({"model": model}) + "\n").encode())

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> V:
        return self._known[key]

    def __len__(self) -> int:
        return len(self._known)

    def add(self, values: Mapping[str, V]) -> None:
        """Keeps results, on the disk before this returns."""
        self._known.update(values)
        lines = [json.dumps([key, *self._write_value(value)]) + "\n" for key, value in values.items()]
        if self._path is not None and lines:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write("".join(lines))
