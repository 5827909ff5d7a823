"""A GPT-NeoX YAML as a run of ours: every key judged (`config/neox_keys.py`), every value the original's.

Three layers, the later wins: what the file's keys mean (one that is not given means GPT-NeoX's default, not
ours), the file's own section `stablelm` in our spelling, and `--set`, in our spelling too. Faults are
collected, so `explain` shows the whole file and loading it names all of them at once. A refused key is
settled by a `--set` of the key of ours that it would have set.

The file names no number of GPUs, and its batch is micro batch × accumulation × GPUs / model_parallel_size:
`reference_world` (in the file, or as `--set batch.reference_world=N`) says on how many it ran. Rejected: the
world at hand, which would change the run with the machine."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

from stablelm.config.mixture import NO_PATHS
from stablelm.config.model import swiglu_width
from stablelm.config.neox_file import WORLD, NeoxFile, tokenizer_ids
from stablelm.config.neox_keys import KEYS, SECTIONS, Key, Verdict

Values = dict[str, Any]

# Keys of ours that are more than one value of the file, or another one.
_COMPUTED = {
    "model.intermediate_size", "model.num_key_value_heads", "schedule.floor", "batch.sequences", "precision",
    "recompute", "evaluation.windows", "out", "logging.tensorboard", "model.vocab_size",
}  # fmt: skip


class Row(NamedTuple):
    """One key and what becomes of it."""

    key: str
    value: Any
    verdict: Verdict
    ours: str
    why: str
    given: bool = True
    """False: the file does not have it, and its default counts."""


@dataclass
class Reading:
    """A GPT-NeoX YAML, read: a row for each key, our values, and what stands against a run."""

    source: str
    rows: list[Row] = field(default_factory=list)
    values: Values = field(default_factory=dict)
    """For `RunConfig`, nested."""
    ours: Values = field(default_factory=dict)
    """The same, dotted, as the file's keys mean it: without its section `stablelm` and `--set`."""
    faults: list[str] = field(default_factory=list)
    origin: dict[str, str] = field(default_factory=dict)
    """Our key → the file's, to name it in errors."""

    def renamed(self, message: str) -> str:
        """`message` about our keys, naming the file's."""
        lines = []
        for line in message.splitlines():
            where, colon, rest = line.removeprefix(f"{self.source}: ").partition(": ")
            theirs = self.origin.get(where)
            lines.append(f"{self.source}: {theirs} (here {where}): {rest}" if colon and theirs else line)
        return "\n".join(lines)


def mlp_widths(hidden: int, stated: float, given: bool, multiple: int) -> tuple[int, int]:
    """Widths of the MLP that a size can mean: as before gpt-neox's gated MLP, and since (a third of it; of
    4·hidden where none is `given`; gpt-neox#1319)."""
    halved = math.ceil((int(stated * 2 / 3) // 2) / multiple) * multiple
    return (int(stated) if given else swiglu_width(hidden, multiple)), halved


def is_neox(values: Mapping[str, Any], ours: Sequence[str]) -> bool:
    """Whether most top-level keys are GPT-NeoX's and not `ours`."""
    names = [str(name).replace("-", "_") for name in values]
    theirs = [n for n in names if (n in KEYS or n in SECTIONS) and n not in ours and n != "stablelm"]
    return len(theirs) > len([n for n in names if n in ours and n not in KEYS and n not in SECTIONS])


def read_neox(
    values: Mapping[str, Any], source: str, overrides: Sequence[str] = (), gpus: int | None = None
) -> Reading:
    """Judges and maps `values`; `overrides` are ours, `key=value`. `gpus` stands in for a reference_world
    that is named nowhere. Raises nothing for the file's own faults: see `Reading.faults`."""
    return _Reader(source, NeoxFile(values, overrides), gpus).read()


class _Reader:
    def __init__(self, source: str, file: NeoxFile, gpus: int | None) -> None:
        self.reading, self.file, self.gpus = Reading(source), file, gpus
        self.given, self.broken, self.fixed, self.value = file.given, file.broken, file.fixed, file.value
        self.ours = self.reading.ours

    def take(self, ours: str, value: Any, name: str) -> None:
        """Sets our key, unless there is nothing to set."""
        if value is not None:
            self.ours[ours] = value
            self.reading.origin[ours] = self.given[name][0] if name in self.given else name

    # What it means.

    def read(self) -> Reading:
        for name, key in KEYS.items():
            if key.kind:
                self.value(name)  # finds values of a wrong kind, also of keys that set nothing
            if key.verdict == "mapped" and key.ours not in _COMPUTED and "data." not in key.ours:
                self.take(key.ours, self.value(name), name)
        self._network()
        self._learning()
        self._batch()
        self._data()
        self._saving()
        self._judge()
        self.reading.values = self._nested()
        return self.reading

    def _network(self) -> None:
        hidden, multiple = self.value("hidden_size"), self.value("mlp_multiple_of")
        for name in ("num_layers", "hidden_size", "num_attention_heads", "seq_length"):
            if self.value(name) is None and name not in self.broken:
                self._missing(name, KEYS[name].ours)
        stated = self.value("intermediate_size")
        if stated is None and self.value("expansion_factor") and hidden:
            stated = hidden * self.value("expansion_factor")
        old = self.given.get("mlp_type", ("", None))[1] is not None
        if not old and self.value("activation") in ("silu", "swish"):
            self.broken["activation"] = (
                "without mlp_type it is a plain MLP, this network's is gated; write activation: swiglu, or "
                "mlp_type: gated"
            )
        if hidden and multiple and hidden > 0 and multiple > 0:
            sizes = mlp_widths(hidden, stated or 4 * hidden, stated is not None, multiple)
            width = sizes[0] if old else sizes[1]
            if width != swiglu_width(hidden):  # left to the network where it is the usual one
                self.take("model.intermediate_size", width, "intermediate_size")
        kind, heads = self.value("attention_head_type"), self.value("num_attention_heads")
        shared = self.value("num_kv_heads") or (1 if kind == "multiquery" else None)
        if kind == "multihead" and shared not in (None, heads):
            self.broken["num_kv_heads"] = "it contradicts attention_head_type multihead; keep one"
        if shared != heads:
            self.take("model.num_key_value_heads", shared, "num_kv_heads")
        if self.value("max_position_embeddings") is None:
            self.take("model.max_position_embeddings", self.value("seq_length"), "seq_length")
        if self.value("gpt_j_residual") and not self.value("gpt_j_tied"):
            self.broken["gpt_j_tied"] = (
                "with gpt_j_residual, two LayerNorms side by side are GPT-NeoX-20B's and Pythia's network, "
                "this one has one; write true"
            )

    def _learning(self) -> None:
        peak, least = self.value("optimizer.params.lr"), self.value("min_lr")
        if peak is None and "optimizer.params.lr" not in self.broken:
            self._missing("optimizer.params.lr", "optimizer.lr")
        if peak and least is not None:
            self.take("schedule.floor", float(Fraction(str(least)) / Fraction(str(peak))), "min_lr")
        steps, decay = self.value("train_iters"), self.value("lr_decay_iters")
        if steps is None and "train_iters" not in self.broken:
            self._missing("train_iters", "steps")
        if None not in (decay, steps) and decay != steps:
            self.broken["lr_decay_iters"] = (
                f"train_iters is {steps}, and the schedule here is that of all steps; write the same number"
            )
        bf16 = self.value("bf16.enabled")
        stated = self.value("precision")
        if bf16 and stated not in (None, "bfloat16"):
            self.broken["precision"] = "it contradicts bf16.enabled; keep one of them"
        name = "bf16.enabled" if stated is None and bf16 else "precision"
        spelling = {"bfloat16": "bf16"}
        self.take("precision", spelling.get(stated, stated) or ("bf16" if bf16 else "fp32"), name)
        on = self.value("checkpoint_activations")
        self.take("recompute", "full" if on else "none", "checkpoint_activations")

    def _batch(self) -> None:
        tensor, pipe = self.value("model_parallel_size"), self.value("pipe_parallel_size")
        micro = self.value("train_micro_batch_size_per_gpu")
        pieces = self.value("gradient_accumulation_steps")
        stated, world = self.value("train_batch_size"), self.value("reference_world")
        for name in ("model_parallel_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps",
                     "reference_world"):  # fmt: skip
            number = self.value(name)
            if number is not None and number < 1:
                self.broken[name] = "1 or more is wanted"
        if world is None and "reference_world" not in self.broken and stated is None:
            world = self.gpus
        for number in (tensor, micro, pieces):
            if number is None or number < 1:
                return
        ways = tensor * max(1, pipe if isinstance(pipe, int) else 1)
        if world is not None and world >= 1:
            if world % ways:
                self.broken["reference_world"] = f"{ways} GPUs hold one model; give a multiple of it"
                return
            total = world // ways * micro * pieces
            if stated not in (None, total):
                self.broken["train_batch_size"] = (
                    f"{world} GPUs × micro batch × accumulation are {total}; correct one of them"
                )
            self.take("batch.sequences", total, "reference_world")
        elif stated is not None:
            self.take("batch.sequences", stated, "train_batch_size")
        elif "batch.sequences" not in self.fixed and "reference_world" not in self.broken:
            self.reading.faults.append(
                f"a GPT-NeoX YAML does not name its number of GPUs, and the batch is {micro * pieces} "
                f"sequences {f'for each {ways} GPUs' if ways > 1 else 'times it'}. Say on how many it ran "
                f"(the seed: 256): --set {WORLD}=N, or the key reference_world in the file."
            )

    def _data(self) -> None:
        named = next(
            (n for n in ("data.path", "data.epochs", "data.phases", "phases") if n in self.fixed), None
        )
        mask = self.value("reset_attention_mask")
        if bool(mask) != bool(self.value("reset_position_ids")):
            self.broken["reset_attention_mask"] = "it goes with reset_position_ids here; write both or none"
        self.take("data.document_boundaries", mask, "reset_attention_mask")
        paths, single = self.value("train_data_paths"), self.value("data_path")
        weights = self.value("train_data_weights")
        if paths and not all(isinstance(path, str) for path in paths):
            self.broken["train_data_paths"] = "a list of paths is wanted"
        if weights and not all(isinstance(w, int | float) and not isinstance(w, bool) for w in weights):
            self.broken["train_data_weights"] = "a list of numbers is wanted"
        paths = [path for path in paths or [] if path]  # an empty name is a blank to fill in
        file = self.value("vocab_file")
        if named is not None:  # the data is ours, so the file's says nothing
            for part in ("paths", "weights", "split"):
                self.fixed.setdefault(f"data.neox.{part}", self.fixed[named])
        else:
            if paths and single:
                self.broken["data_path"] = "train_data_paths is given too; keep one of them"
            self.take("data.order", "neox", "train_data_paths")
            self.take("data.neox.paths", paths or ([single] if single else [NO_PATHS]), "train_data_paths")
            self.take("data.neox.weights", weights if paths and weights else [], "train_data_weights")
            if single and not paths:
                self.take("data.neox.split", self.value("split") or "969, 30, 1", "split")
            self.take("data.neox.train_iters", self.value("train_iters"), "train_iters")
            self.take("data.neox.tokenizer", file, "vocab_file")
            if file is None and "vocab_file" not in self.broken:
                self._missing("vocab_file", "data.neox.tokenizer")
        self._vocabulary(file)

    def _vocabulary(self, file: str | None) -> None:
        kind, multiple = self.value("tokenizer_type"), self.value("make_vocab_size_divisible_by")
        tensor = self.value("model_parallel_size")
        if not multiple or not tensor or multiple < 1 or tensor < 1:
            return
        found = tokenizer_ids(file, kind) if file else None
        if found is None:
            if "model.vocab_size" not in self.fixed and file:
                self.broken["vocab_file"] = (
                    "no such tokenizer.json, and its number of ids is not known: put it there, or say "
                    "--set model.vocab_size=N"
                )
            return
        ids, end = found
        divisor = multiple * tensor
        self.take("model.vocab_size", -(-ids // divisor) * divisor, "vocab_file")
        self.take("model.bos_token_id", end, "vocab_file")
        self.take("model.eos_token_id", end, "vocab_file")

    def _saving(self) -> None:
        self.take("out", self.value("save") or None, "save")
        self.take("logging.tensorboard", True if self.value("tensorboard_dir") else None, "tensorboard_dir")
        sequences, times = self.ours.get("batch.sequences"), self.value("eval_iters")
        if sequences and times:
            self.take("evaluation.windows", sequences * times, "eval_iters")
        load, save = self.value("load"), self.value("save")
        if load and self.value("finetune"):
            self.take("init", load, "load")
        elif load and load != save and "init" not in self.fixed:
            self.broken["load"] = (
                "moments of a GPT-NeoX checkpoint are not read. finetune: true starts from its "
                "weights; --resume continues a run of ours; else leave it empty"
            )

    def _missing(self, name: str, ours: str) -> None:
        if ours not in self.fixed and "model.preset" not in self.fixed:
            self.reading.faults.append(f"the key {name!r} is missing; add it, or say --set {ours}=…")

    # The verdicts.

    def _judge(self) -> None:
        reading = self.reading
        reading.rows += [self._verdict(name, label, value) for name, (label, value) in self.given.items()]
        for name, key in KEYS.items():  # what is not given and means something all the same
            if name not in self.given and (name in self.broken or key.default is not None):
                row = self._verdict(name, name, key.default)
                if row.verdict in ("mapped", "refused"):
                    reading.rows.append(row._replace(given=False))
        for label, (value, why) in self.file.unknown.items():
            reading.rows.append(Row(label, value, "refused", "", why))
        for row in reading.rows:
            if row.verdict == "refused":
                default = "" if row.given else " (not given: GPT-NeoX's default)"
                fault = f"{_shown(row.key)} = {_shown(row.value)}{default}: {row.why}."
                reading.faults.append(fault.replace("?.", "?"))

    def _verdict(self, name: str, label: str, value: Any) -> Row:
        key = KEYS.get(name, Key("used", "a section; its keys follow"))
        if key.ours in self.fixed and key.verdict != "ignored":
            return Row(label, value, "ignored", key.ours, f"{self.fixed[key.ours]} decides")
        if name in self.broken:
            return Row(label, value, "refused", key.ours, self.broken[name])
        meant = key.default if value is None else value
        if key.allowed and meant is not None and not key.allowed(meant):
            return Row(label, value, "refused", key.ours, f"{key.why}; {key.remedy}".removeprefix("; "))
        if name == "load" and value and self.value("finetune"):
            return Row(label, value, "mapped", "init", KEYS["finetune"].why)
        return Row(label, value, key.verdict, key.ours, key.why)

    def _nested(self) -> Values:
        """Our values, nested; a key that the user sets himself is not set before him."""
        kept = dict(self.ours)
        if "model.preset" in self.fixed:
            kept = {name: value for name, value in kept.items() if not name.startswith("model.")}
        nested: Values = {}
        for name, value in kept.items():
            node = nested
            *path, last = name.split(".")
            for part in path:
                node = node.setdefault(part, {})
            node[last] = value
        return _merged(nested, self.file.section)


def _shown(value: Any) -> str:
    plain = isinstance(value, str) and value.isprintable() and value
    return (value if plain else repr(value))[:60]


def _merged(base: Mapping[str, Any], other: Mapping[str, Any]) -> Values:
    """`other` laid over `base`; sections merge, all else is replaced."""
    merged = dict(base)
    for name, value in other.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merged(merged[name], value) if both else value
    return merged
