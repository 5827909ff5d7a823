"""Replay: a run on new data that keeps reading what an older run was trained on, at a small share.

Weights that learn something new forget something old; a few percent of the old mixture, and a learning rate
that is warmed up again, keep most of it (Ibrahim et al., 2024). Sources and proportions are those that the
older run had read by the checkpoint that is named, or its newest; the data are found where it read them, and
must be the same ones. Its source `web` is called `replay:web` here and is measured beside the new ones.

The share is exact: of the samples of a phase, share / (1 − share) as many as new ones, each old source by
whole windows; one that has not a window of its own in a phase is left out there. The old sources are read in
an order of this run's seed, from an epoch of their own. What the older checkpoint said is kept in this run's
checkpoints, so that resuming needs the old data but not the old run, which may have gone on since."""

import contextlib
import json
import re
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

from stablelm.config import InputError, RunConfig
from stablelm.config.adaptation import ReplayConfig
from stablelm.config.mixture import DataConfig, as_fraction
from stablelm.data.manifest import Dataset
from stablelm.data.token_files import TokenFile
from stablelm.storage import MANIFEST, fingerprint, read_json
from stablelm.tokenizer import Tokenizer
from stablelm.tokenizer.comparison import new_words

PREFIX = "replay:"
"""Before the names of old sources."""
Pinned = dict[str, Any]
"""What is kept of the older run: `checkpoint`, `path` and `fingerprint` of its data, `samples` that it had
read of each source, and `replay`, the same of a run that it replayed itself."""


def pin(replay: ReplayConfig) -> Pinned:
    """What the older run says; `InputError` where it says too little, or reads GPT-NeoX's order."""
    folder = _checkpoint(Path(replay.run))
    state, about = read_json(folder / "state.json"), read_json(folder / "about.json")
    try:
        data, dataset = state["config"]["data"], about["dataset"]
        if data.get("order", "stablelm") != "stablelm":
            raise InputError(
                f"data.replay.run: {folder} read GPT-NeoX's token files in their order, which cannot be "
                "replayed. Prepare those texts, and name them as a source of data.epochs."
            )
        samples = {name: int(read["samples"]) for name, read in about["data"].items() if read["samples"]}
        pinned = {
            "checkpoint": str(folder), "path": str(data["path"]), "fingerprint": str(dataset["fingerprint"]),
            "samples": samples, "replay": dataset.get("replay"),
        }  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"data.replay.run: {folder}: does not say what it read ({error!r}).") from None
    if not samples:
        raise InputError(f"data.replay.run: {folder} had read nothing yet.")
    return pinned


def _checkpoint(run: Path) -> Path:
    """The newest finished checkpoint of a run, or the one that is named."""
    if _is_finished(run):
        return run
    steps = {
        int(found[1]): path
        for path in (run / "checkpoints").glob("step-*")
        if (found := re.fullmatch(r"step-(\d+)", path.name)) and _is_finished(path)
    }
    if not steps:
        raise InputError(
            f"data.replay.run: {run}: no finished checkpoint there. Name the directory of a run that "
            "`stablelm train` made, or one of its checkpoints."
        )
    return steps[max(steps)]


def _is_finished(path: Path) -> bool:
    return all((path / name).is_file() for name in (MANIFEST, "state.json", "about.json"))


class Joined(Dataset):
    """A prepared directory, and the sources of an older run's beside it."""

    def __init__(self, new: Dataset, pinned: Pinned, path: str | None = None) -> None:
        """`path`: where the older run's data are now, if not where it read them. `InputError` when they are
        not there, are others, or have words that the new data's tokenizer has not."""
        self.new, self.pinned = new, pinned
        self.old = _opened(pinned, path)
        self.path, self.manifest = new.path, new.manifest
        self.tokenizer_path, self.tokenizer_size = new.tokenizer_path, new.tokenizer_size
        if self.old.tokenizer_size > 0 and _sha256(self.old) != _sha256(new):
            ours, theirs = (Tokenizer.from_file(each.tokenizer_path) for each in (new, self.old))
            new_words(theirs, ours, f"data.replay: the tokenizer of the old data ({theirs.source})")
        self.replayed = [name for name in self.old.sources if name in pinned["samples"]]
        """The old sources, by their old names."""
        self.sources = (*new.sources, *(PREFIX + name for name in self.replayed))
        self.fingerprint = fingerprint([new.fingerprint, self.old.fingerprint])

    def _whose(self, source: str) -> tuple[Dataset, str]:
        old = source.removeprefix(PREFIX)
        return (self.old, old) if source.startswith(PREFIX) and old in self.replayed else (self.new, source)

    def info(self, source: str) -> dict[str, Any]:
        """What the manifest that has the source says of it."""
        whose, name = self._whose(source)
        return whose.info(name)

    def train(self, source: str) -> TokenFile:
        """The training documents of a source, old or new."""
        whose, name = self._whose(source)
        return whose.train(name)

    def held_out(self, source: str) -> TokenFile | None:
        """The held-out documents of a source, or None when there are none."""
        whose, name = self._whose(source)
        return whose.held_out(name)

    def document_ids(self, source: str, numbers: Iterable[int], side: str = "train") -> dict[int, str]:
        """The ids of some documents of a token file."""
        whose, name = self._whose(source)
        return whose.document_ids(name, numbers, side)

    def summary(self) -> dict[str, Any]:
        """What a checkpoint and a model card carry: both, and what the older run said."""
        new, old = self.new.summary(), self.old.summary()["sources"]
        sources = {**new["sources"], **{PREFIX + name: old[name] for name in self.replayed}}
        return {**new, "fingerprint": self.fingerprint, "sources": sources, "replay": self.pinned}

    def summary_json(self) -> str:
        """`summary` as JSON text."""
        return json.dumps(self.summary(), indent=2, ensure_ascii=False) + "\n"

    def mixture(self, data: DataConfig, share: Fraction, length: int) -> DataConfig:
        """`data` with the old sources in every mixture, `share` of its windows of `length` tokens."""
        if data.epochs:
            return data.model_copy(update={"epochs": self._with_old(data.epochs, data, share, length)})
        phases = [
            phase.model_copy(update={"epochs": self._with_old(phase.epochs, data, share, length)})
            for phase in data.phases
        ]
        return data.model_copy(update={"phases": phases})

    def _with_old(
        self, epochs: dict[str, float | str], data: DataConfig, share: Fraction, length: int
    ) -> dict[str, float | str]:
        sizes = {name: data.windows.get(name, self.train(name).num_tokens // length) for name in epochs}
        new = sum(as_fraction(wanted) * sizes[name] for name, wanted in epochs.items())
        wanted = new * share / (1 - share)
        old = {name: self.old.train(name).num_tokens // length for name in self.replayed}
        weights = {name: self.pinned["samples"][name] for name in self.replayed if old[name]}
        while weights:  # without those too rare for a window
            total = sum(weights.values())
            rare = [name for name, weight in weights.items() if wanted * weight / total < 1]
            if not rare:
                added = {PREFIX + n: str(wanted * w / total / old[n]) for n, w in weights.items()}
                return {**epochs, **added}
            del weights[min(rare, key=weights.__getitem__)]
        raise InputError(
            f"data.replay: {float(share):.3g} of {float(new):,.0f} windows of {length:,} tokens is not one "
            "window of an old source. Raise data.replay.share, or leave replay out."
        )

    def lines(self, table: dict[str, dict[str, Any]]) -> list[str]:
        """The replay for a reader; `table` is that of the run's samples."""
        total = sum(row["samples"] for row in table.values())
        shares = ", ".join(
            f"{name} {100 * table[PREFIX + name]['samples'] / total:.3g} %"
            for name in self.replayed if PREFIX + name in table
        )  # fmt: skip
        left = ", ".join(name for name in self.replayed if PREFIX + name not in table)
        rest = f"; too rare for a window: {left}" if left else ""
        return [f"replay of {self.pinned['checkpoint']}, by samples: {shares}{rest}"]


def _opened(pinned: Pinned, path: str | None) -> Dataset:
    """The older run's data; what it replayed itself with them."""
    place = Path(path or pinned["path"])
    remedy = "Say where they are now: data.replay.path."
    if not (place / MANIFEST).is_file():
        raise InputError(f"data.replay: {pinned['checkpoint']} read {place}, which is not there. {remedy}")
    found = Dataset(place)
    if pinned.get("replay"):
        found = Joined(found, pinned["replay"])
    if found.fingerprint != pinned["fingerprint"]:
        raise InputError(
            f"data.replay: {place} holds other data than {pinned['checkpoint']} read there (their "
            f"fingerprints differ). {remedy}"
        )
    return found


def _sha256(dataset: Dataset) -> str:
    return str(dataset.manifest["tokenizer"]["sha256"])


def with_replay(config: RunConfig) -> tuple[Joined, DataConfig]:
    """The data of a run that replays, and its mixture with the old sources."""
    data = config.data
    assert data.replay is not None
    pinned = _kept(config) or pin(data.replay)
    joined = Joined(Dataset(data.path), pinned, data.replay.path)
    return joined, joined.mixture(data, as_fraction(data.replay.share), config.batch.sequence_length)


def _kept(config: RunConfig) -> Pinned | None:
    """What this run's own checkpoints keep of the older run, or those of the run it branches off."""
    for place in (config.out, *([config.branch.checkpoint] if config.branch else [])):
        with contextlib.suppress(InputError):  # no checkpoint yet
            kept = read_json(_checkpoint(Path(place)) / "about.json")["dataset"].get("replay")
            if kept is not None:
                return dict(kept)
    return None
