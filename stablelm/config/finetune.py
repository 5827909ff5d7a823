"""A fine-tuning run, as a user says it: a model, examples, and how to learn from them.

It becomes a `RunConfig`, because the trainer of pre-training makes the steps. Defaults differ where tuning
differs: a small batch, a low learning rate that ends at 0, no weight decay."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from stablelm.config.adaptation import AdaptConfig, InfillingConfig
from stablelm.config.adapter import AdapterConfig
from stablelm.config.card import CardConfig
from stablelm.config.errors import InputError
from stablelm.config.guard import GuardConfig
from stablelm.config.logging import LoggingConfig
from stablelm.config.mixture import as_fraction
from stablelm.config.model import ModelConfig
from stablelm.config.optimization import OptimizerConfig, ScheduleConfig
from stablelm.config.parallelism import ParallelConfig
from stablelm.config.preference import PreferenceConfig
from stablelm.config.run import CheckpointConfig, RunConfig
from stablelm.config.schema import Schema, apply_overrides, commented_yaml, read_yaml, validate
from stablelm.config.tuning_evaluation import TuningEvaluationConfig

SOURCE = "examples"
"""What the trainer, its reports and the model card call the examples."""
LONGEST = 2048
"""Tokens of a row where nothing is said, if the model's context is not shorter."""
_MEASURED = {"every", "copying", "tasks", "task_data", "limit"}  # as in a training run
KEYS = (
    "text", "prompt", "completion", "messages", "instruction", "input", "output", "system", "chosen",
    "rejected", "label",
)  # fmt: skip
"""What `keys` may rename."""


class ExamplesConfig(Schema):
    """What the model learns from."""

    paths: list[str] = Field(min_length=1)
    """Files (.jsonl, .json, also .gz and .zst; .parquet; .txt, one example each), folders that `datasets`
    reads, or names of data sets on the Hub."""
    format: Literal["auto", "text", "completion", "chat", "alpaca"] = "auto"
    """Shape of a record: text; prompt and completion; messages (OpenAI) or conversations (ShareGPT);
    instruction, input and output (Alpaca). auto takes the shape that the first record fits."""
    keys: dict[str, str] = Field(default_factory=dict)
    """For records that call them otherwise, as {prompt: question, completion: answer}."""
    split: str = "train"
    """Of a data set that `datasets` reads."""
    subset: str = ""
    """Of a data set on the Hub."""
    train_on: Literal["answers", "all"] = "answers"
    """answers: the loss counts what the model is to write, each answer and the <|endoftext|> after it, and
    nothing else. all: every token."""
    template: str | None = None
    """Chat template: null takes the model's own, or stablelm-zephyr's if it has none; zephyr; or a file with
    a Jinja template."""
    fim: InfillingConfig | None = None
    """For texts: teach filling in (program code, as a rule) by rearranging some of them, also among those
    held out; {} takes the defaults. The tokenizer gets the tokens if it lacks them."""
    too_long: Literal["refuse", "drop", "truncate"] = "refuse"
    """An example longer than batch.sequence_length: stop and name it, drop it and count it, or cut off its
    end and count it."""
    on_error: Literal["stop", "skip"] = "stop"
    """At a record that is no example (empty answer, roles out of order, …): stop and name it, or skip it and
    count it by reason. A file that cannot be read always stops."""
    held_out: list[str] = Field(default_factory=list)
    """Files to measure the loss on; empty holds out a share of `paths`."""
    held_out_share: float = Field(0.05, ge=0, lt=1)
    """Share of the examples that is held out, chosen by seed; equal examples stay on one side. 0 holds out
    none."""
    packing: bool = True
    """Several examples share a row of batch.sequence_length tokens. Attention stays within each, so the loss
    is the same, only faster."""

    @field_validator("paths", "held_out", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("keys")
    @classmethod
    def _known(cls, keys: dict[str, str]) -> dict[str, str]:
        for name in keys:
            if name not in KEYS:
                raise ValueError(f"{name!r} is none of ours: {', '.join(KEYS)}; write ours: theirs")
        return keys

    @model_validator(mode="after")
    def _check(self) -> "ExamplesConfig":
        if self.fim is not None and self.format not in ("auto", "text"):
            raise ValueError(f"fim rearranges texts, not examples of format {self.format}; leave it out")
        if self.fim is not None and self.too_long == "truncate":
            raise ValueError("fim moves the middle to the end, which truncate would cut off; drop instead")
        return self


class TuningBatchConfig(Schema):
    """How many tokens one optimizer step reads, and in which pieces."""

    sequences: int = Field(8, ge=1)
    """Rows in one optimizer step, over all processes; a packed row holds as many examples as fit."""
    micro_sequences: int = Field(1, ge=1)
    """Rows in one forward and backward pass; the rest of the step is accumulated."""
    sequence_length: int | None = Field(None, ge=2)
    """Tokens in a row; null takes the model's context, at most 2,048."""


class TuningOptimizerConfig(OptimizerConfig):
    """AdamW (Loshchilov & Hutter, 2019)."""

    lr: float = Field(2e-5, gt=0)
    """Peak learning rate; small models want more, up to 1e-3 for one of some million parameters. Where
    nothing is said an adapter has ten times as much, 2e-4; preference tuning 1e-6, with an adapter 1e-5."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay of matrices and embeddings."""


class TuningAdapterConfig(AdapterConfig):
    """A low-rank adapter: only it is trained, the model stays as it is and is kept in the precision of the
    arithmetic."""

    rank: int = Field(0, ge=0)
    """Rows of A and columns of B, r; 8 to 64 are usual. 0 trains the whole model instead."""

    def asked(self) -> AdapterConfig | None:
        """The adapter; None when the whole model is trained."""
        return AdapterConfig(**self.model_dump()) if self.rank else None


class TuningScheduleConfig(ScheduleConfig):
    """Learning rate over the run: linear warm-up, a shape, and at the end, if wanted, a cooldown."""

    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of the steps spent warming up."""
    floor: float = Field(0.0, ge=0, le=1)
    """Last learning rate of cosine and linear, lowest of inverse_sqrt, as a share of the peak."""


class TuningCheckpointConfig(CheckpointConfig):
    """When the run is saved. The last step is always saved, and is the result."""

    every: int = Field(500, ge=1)
    """Steps between checkpoints."""
    keep: int = Field(2, ge=1)
    """How many of the newest checkpoints stay on the disk."""


class FinetuneConfig(Schema):
    """One fine-tuning run."""

    out: str = Field("runs/finetuned", min_length=1)
    """Directory of the run; when it is done, also the name of the tuned model."""
    model: str = Field(min_length=1)
    """What is tuned: a model in any form that opens, or a Hub id."""
    adapt: AdaptConfig = Field(default_factory=AdaptConfig)
    """What the run changes of the model's architecture, to read longer examples."""
    data: ExamplesConfig
    """What the model learns from."""
    adapter: TuningAdapterConfig = Field(default_factory=TuningAdapterConfig)
    """Trains an adapter (LoRA, rsLoRA, DoRA) instead of the whole model."""
    quantize: Literal[4, 8] | None = None
    """Keeps the matrices under an adapter in so many bits (QLoRA): a fraction of the memory, and a coarser
    model. null keeps them in the precision of the arithmetic, or as packed as they are in the files."""
    preference: PreferenceConfig = Field(default_factory=PreferenceConfig)
    """Learn from comparisons of answers instead (docs/preference.md)."""
    epochs: float | str = 3
    """How often each row is read; fractions as 1.5 or "7/3"."""
    batch: TuningBatchConfig = Field(default_factory=TuningBatchConfig)
    """Batch size."""
    optimizer: TuningOptimizerConfig = Field(default_factory=TuningOptimizerConfig)
    """Optimizer."""
    schedule: TuningScheduleConfig = Field(default_factory=TuningScheduleConfig)
    """Learning-rate schedule."""
    steps: int | None = Field(None, ge=1)
    """Optimizer steps; null makes all epochs."""
    neftune: float = Field(0.0, ge=0)
    """Noise on the embeddings in training, uniform within ± this / √(tokens · hidden size) of each example
    (NEFTune; Jain et al., 2023, take 5 to 15); 0 adds none."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of each target that is spread over the vocabulary in the training loss; 0 for none."""
    precision: Literal["bf16", "fp32", "bf16-pure"] = "bf16"
    """As in a training run: arithmetic in bf16 with float32 weights, all float32, or all bf16."""
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)
    """How the run is laid out over processes, when torchrun or srun starts several."""
    recompute: Literal["none", "selective", "full"] | int = "none"
    """Activations that are computed again in the backward pass instead of kept."""
    compile: bool | None = None
    """Compile each block with torch.compile; null: on CUDA only."""
    loss_chunk: int = Field(512, ge=1)
    """Tokens whose logits are alive at once in the cross-entropy."""
    checkpoint: TuningCheckpointConfig = Field(default_factory=TuningCheckpointConfig)
    """Checkpoints."""
    evaluation: TuningEvaluationConfig = Field(default_factory=TuningEvaluationConfig)
    """What is measured, which checkpoint is the result, when the run stops."""
    guard: GuardConfig = Field(default_factory=GuardConfig)
    """What is done about bad steps."""
    logging: LoggingConfig = Field(default_factory=LoggingConfig)
    """Logs."""
    card: CardConfig = Field(default_factory=CardConfig)
    """What `stablelm export` writes into the model card."""
    seed: int = Field(1234, ge=0)
    """Fixes which examples are held out, how they are packed, and their order."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto takes CUDA when there is one."""

    @model_validator(mode="before")
    @classmethod
    def _usual_rate(cls, values: Any) -> Any:
        adapter, preference, optimizer = (
            values.get(name) or {} for name in ("adapter", "preference", "optimizer")
        )
        if not all(isinstance(section, dict) for section in (adapter, preference, optimizer)):
            return values
        compared = preference.get("loss", "none") != "none"
        if adapter.get("rank"):
            return {**values, "optimizer": {"lr": 1e-5 if compared else 2e-4, **optimizer}}
        return {**values, "optimizer": {"lr": 1e-6, **optimizer}} if compared else values

    @model_validator(mode="after")
    def _check(self) -> "FinetuneConfig":
        if as_fraction(self.epochs) <= 0:
            raise ValueError(f"epochs must be above 0, not {self.epochs}")
        if self.adapter.rank and self.parallel.tensor > 1:
            raise ValueError("adapter does not go with parallel.tensor above 1; use parallel.shard instead")
        if self.adapter.rank and self.adapt.changes():
            raise ValueError(
                "adapt does not go with adapter: PEFT's files have no place for another architecture; adapt "
                "the whole model first, then train an adapter on the result"
            )
        if self.quantize and not self.adapter.rank:
            raise ValueError("quantize keeps the model under an adapter in few bits; give adapter.rank, too")
        if self.adapter.dropout and not self.adapter.rank:
            raise ValueError("adapter.dropout is that of an adapter; give adapter.rank, too, or leave it out")
        if self.evaluation.judged_by and not (self.data.held_out or self.data.held_out_share):
            raise ValueError(
                "evaluation.best and patience need held-out examples; set data.held_out_share above 0, or "
                "name files (data.held_out)"
            )
        if self.neftune and self.parallel.tensor > 1:
            raise ValueError("neftune does not go with parallel.tensor above 1; use parallel.shard instead")
        if self.preference.on:
            self._check_preference()
        return self

    def _check_preference(self) -> None:
        loss = f"does not go with preference.loss {self.preference.loss}"
        if self.neftune:
            raise ValueError(f"neftune {loss}: the reference has no noise; set it to 0")
        if self.adapter.dropout:
            raise ValueError(f"adapter.dropout {loss}: the reference drops nothing; set it to 0")
        if self.label_smoothing:
            raise ValueError(f"label_smoothing {loss}; preference.label_smoothing is that of dpo")
        if self.data.format != "auto":
            raise ValueError(
                f"data.format {self.data.format} {loss}, which has shapes of its own; leave it out"
            )
        if self.data.fim is not None:
            raise ValueError(f"data.fim {loss}; leave it out")
        if self.data.train_on != "answers":
            raise ValueError(f"data.train_on {self.data.train_on} {loss}: answers are what is compared")
        if self.preference.label_smoothing and self.preference.loss != "dpo":
            raise ValueError(f"preference.label_smoothing {loss}; it belongs to dpo")
        if self.preference.loss != "kto" and (
            self.preference.desirable_weight != 1 or self.preference.undesirable_weight != 1
        ):
            raise ValueError(f"preference.desirable_weight and undesirable_weight {loss}; they belong to kto")

    def length(self, model: ModelConfig) -> int:
        """Tokens in a row."""
        context = self.adapt.max_position_embeddings or model.max_position_embeddings
        return self.batch.sequence_length or min(LONGEST, context)

    def run(self, model: ModelConfig) -> RunConfig:
        """The training run that this is for a model of this architecture; `InputError` where it does not
        fit."""
        same = (
            "out", "steps", "precision", "recompute", "compile", "loss_chunk", "seed", "device",
        )  # fmt: skip
        sections = ("optimizer", "schedule", "parallel", "checkpoint", "guard", "logging", "card")
        values = {
            **{name: getattr(self, name) for name in same},
            **{name: getattr(self, name).model_dump() for name in sections},
            "model": model.model_dump(),
            "adapt": self.adapt.model_dump(),
            "init": self.model,
            "data": {"path": ", ".join(self.data.paths), "epochs": {SOURCE: self.epochs},
                     "document_boundaries": True},
            "batch": {**self.batch.model_dump(), "sequence_length": self.length(model)},
            "evaluation": {"cloze": 0, **self.evaluation.model_dump(include=_MEASURED)},
        }  # fmt: skip
        return validate(RunConfig, values, "finetune")


def load_finetune_config(path: str | Path, overrides: Sequence[str] = ()) -> FinetuneConfig:
    """The run in a YAML file with `key=value` overrides; `InputError` names file and key."""
    values = read_yaml(path)
    if isinstance(values.get("model"), dict):
        raise InputError(
            f"{path}: model is a section, as in a training run (stablelm train). Fine-tuning wants `model: "
            "PATH` of the model that is tuned; configs/finetune.yml has every key."
        )
    return validate(FinetuneConfig, apply_overrides(values, overrides), str(path))


def finetune_config(values: dict[str, Any], overrides: Sequence[str] = ()) -> FinetuneConfig:
    """The run in a mapping, as the command line makes it; `InputError` names the key."""
    return validate(FinetuneConfig, apply_overrides(values, overrides), "finetune")


HEADING = """
Every key of a fine-tuning run, with its default: stablelm finetune configs/finetune.yml
Generated by `make docs` from the field docstrings in stablelm/config/finetune.py; do not edit.
"""


def finetune_yaml() -> str:
    """The commented reference configuration (configs/finetune.yml)."""
    return commented_yaml(
        FinetuneConfig, HEADING, {"model": "models/mine", "data": {"paths": ["data.jsonl"]}}
    )
