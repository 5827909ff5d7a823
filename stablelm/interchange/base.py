"""On what an adapter of ours stands: how its base model is found again, and that it is still the same.

base.json lies beside the adapter, in a run's checkpoints and in RUN/adapter. It names the base model as the
user did (a path, a Hub id), says where it lay from the run's directory on, so that both may be moved
together, and has a fingerprint of its weights as they are stored, whatever the file format. An adapter on
other weights fits every shape and writes nonsense, so a base that has changed is refused (reading it all
costs two seconds for 5.6 GB). A base that is itself an adapter on something is known by both, never by their
sum, whose last bits depend on the machine."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path

from stablelm.config import InputError
from stablelm.inference.quantization import BITS
from stablelm.interchange.hub import resolve
from stablelm.interchange.huggingface import stored_tensors
from stablelm.interchange.native import is_checkpoint
from stablelm.interchange.peft import CONFIG, stored_parts
from stablelm.interchange.weights import Reread, read_headers, read_tensor
from stablelm.model import StableLM
from stablelm.model.fingerprint import digest
from stablelm.storage import fingerprint, json_bytes, read_json

BASE, SETTINGS = "base.json", "config.json"


@dataclass(frozen=True)
class Base:
    """The model that an adapter stands on."""

    model: str
    """As the user named it."""
    beside: str | None = None
    """Where it lay, from the run's directory on; None for a Hub id."""
    fingerprint: str | None = None
    """Of its weights; None when another program wrote the adapter."""
    bits: int | None = None
    """Of its matrices, which the training rounded when it opened it (QLoRA); None where it did not."""

    @classmethod
    def of(cls, name: str, folder: Path, fingerprint: str, run: Path, bits: int | None = None) -> "Base":
        """The model called `name`, found in `folder`, as the base of what `run` trains."""
        beside = os.path.relpath(folder.resolve(), run.resolve()) if Path(name).exists() else None
        return cls(name, beside, fingerprint, bits)

    @classmethod
    def read(cls, directory: Path) -> "Base":
        """What the adapter in a directory stands on; `InputError` when nothing says so."""
        if not (directory / BASE).is_file():
            values = read_json(directory / CONFIG)
            name = values.get("base_model_name_or_path") if isinstance(values, dict) else None
            if not isinstance(name, str) or not name:
                raise InputError(
                    f"{directory / CONFIG}: names no base_model_name_or_path. Give the adapter together with "
                    "its base model."
                )
            return cls(name)
        values = read_json(directory / BASE)
        try:
            found = cls(**values)
            texts = all(isinstance(value, str) for value in (found.model, found.fingerprint))
            if texts and found.bits in (None, *BITS):
                return found
        except TypeError:
            pass
        raise InputError(f"{directory / BASE}: damaged: no model and fingerprint. Restore it.")

    def as_bytes(self) -> bytes:
        """The file's content."""
        return json_bytes(asdict(self))

    def find(self, directory: Path) -> Path:
        """The base model of the adapter in `directory`; `InputError` says where it was looked for."""
        run = directory.parent.parent if is_checkpoint(directory) else directory.parent
        beside = None if self.beside is None else Path(os.path.normpath(run / self.beside))
        if beside is not None and beside.exists():
            return beside
        try:
            found = resolve(self.model)
        except InputError as error:
            raise InputError(
                f"{directory}: the base model of this adapter is not to be had: {error}"
            ) from None
        if not found.exists():
            also = f", nor is {beside}" if beside is not None else ""
            raise InputError(
                f"{directory}: its base model, {self.model}, is not there{also}. An adapter is nothing "
                "without it: put it back, or make a link there to where it is now."
            )
        return found

    def require_same(self, now: str | None, folder: Path, directory: Path) -> None:
        """Refuses a base model with another fingerprint than the adapter in `directory` was trained on."""
        if self.fingerprint not in (None, now):
            raise InputError(
                f"{folder}: the weights have changed since the adapter in {directory} was trained on them. "
                "Bring the old ones back, or train anew on these."
            )


def reread(folder: Path, model: StableLM) -> Reread:
    """The tensors of a model as `open_path(folder)` gave it in its own precision, one at a time."""
    if is_checkpoint(folder):
        return Reread(model, read_headers(sorted((folder / "model").glob("*.safetensors"))))
    return Reread(model, stored_tensors(folder) if (folder / SETTINGS).is_file() else {})


def base_fingerprint(folder: Path, model: StableLM) -> str:
    """Of the weights of a model as it was opened from `folder`, as `locate` gives it, in its own
    precision."""
    if not (folder / CONFIG).is_file():
        return digest(reread(folder, model))
    parts = {name: read_tensor(key, stored) for name, (key, stored) in stored_parts(folder).items()}
    return fingerprint([Base.read(folder).fingerprint, read_json(folder / CONFIG), digest(parts)])
