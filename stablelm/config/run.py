"""A training run, as a user says it: one YAML file, checked before anything starts.

Derived values (steps, warm-up steps, accumulation, FLOPs) are not here; they live in `planning.Plan`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from stablelm.config.adaptation import AdaptConfig
from stablelm.config.card import CardConfig
from stablelm.config.ema import EmaConfig
from stablelm.config.errors import InputError
from stablelm.config.evaluation import EvaluationConfig
from stablelm.config.guard import GuardConfig
from stablelm.config.logging import LoggingConfig
from stablelm.config.mixture import DataConfig
from stablelm.config.model import ModelConfig, preset
from stablelm.config.neox import Reading, is_neox, read_neox
from stablelm.config.neox_file import WORLD
from stablelm.config.optimization import BatchConfig, BranchConfig, OptimizerConfig, ScheduleConfig
from stablelm.config.parallelism import ParallelConfig
from stablelm.config.preflight import PreflightConfig
from stablelm.config.schema import Schema, apply_overrides, commented_yaml, read_yaml, section_of, validate
from stablelm.config.steps import Steps


class CheckpointConfig(Schema):
    """When the run is saved. The last step is always saved."""

    every: int = Field(1000, ge=1)
    """Steps between checkpoints."""
    keep: int = Field(3, ge=1)
    """How many of the newest checkpoints stay on the disk."""
    permanent_every: int | None = Field(None, ge=1)
    """Also save at the multiples of this number of steps, and never remove those; null keeps only the
    newest."""
    copy_to: str | None = None
    """Also copy finished checkpoints, in the background, to this address (s3://bucket/run, gs://…, file:///…;
    anything fsspec writes). A place that refuses is told and does not stop the run."""
    copy_every: int | None = Field(None, ge=1)
    """Copy only those of the multiples of this number of steps; null copies each."""
    asynchronous: bool = True
    """Go on training while the files are written, from a copy in host memory (12 bytes a parameter, shared
    out over the processes)."""


class RunConfig(Schema):
    """One training run."""

    out: str = Field("runs/stablelm", min_length=1)
    """Directory of the run: metrics, checkpoints, report."""
    model: ModelConfig = Field(default_factory=ModelConfig)
    """Architecture; `preset: NAME` starts from a named one and the other keys change it. Left out beside
    `init`, it is that of those weights."""
    init: str | None = None
    """Start from these weights instead of from the seed: any form that opens (a run, a checkpoint, a Hugging
    Face directory, GPT-NeoX's, a GGUF file), or a Hub id."""
    adapt: AdaptConfig = Field(default_factory=AdaptConfig)
    """What the run changes of the architecture of `init`; takes the place of the same keys of `model`."""
    data: DataConfig
    """What is read."""
    batch: BatchConfig = Field(default_factory=BatchConfig)
    """Batch size."""
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    """Optimizer."""
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    """Learning-rate schedule."""
    steps: int | None = Field(None, ge=1)
    """Optimizer steps; null trains until every source has had its epochs."""
    branch: BranchConfig | None = None
    """Branch off into a cooldown: {checkpoint: RUN/checkpoints/step-N of another run, cooldown_steps: 100}.
    Weights, moments, step and place in the data are those saved there; the other keys must be that run's,
    but for phases and skipped ranges ahead, schedule.cooldown_shape and schedule.cooldown_floor."""
    precision: Literal["bf16", "fp32", "bf16-pure"] = "bf16"
    """Arithmetic of forward and backward; weights, moments, the reduction of gradients and the loss are
    float32. bf16-pure keeps weights and moments in bf16 too: 6 bytes less a parameter, but small updates are
    rounded away."""
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)
    """How the run is laid out over processes, when torchrun or srun starts several."""
    recompute: Literal["none", "selective", "full"] | int = "none"
    """Activations that are computed again in the backward pass instead of kept: none; selective keeps the
    matrix products and attention and repeats the cheap rest; full keeps what enters each block; a number n
    does so in every n-th block."""
    compile: bool | None = None
    """Compile each block with torch.compile; null: on CUDA only (nothing is gained on a CPU)."""
    kernels: Literal["pytorch", "triton"] | None = None
    """Rotation, SwiGLU, and norms after a residual sum: PyTorch's operators, or our Triton kernels (CUDA
    only, not with parallel.tensor above 1); null: Triton's where they run."""
    fp8: Literal["tensorwise", "rowwise"] | None = None
    """Matrix products of the blocks in 8-bit floating point, on a GPU that has them (H100 and later), through
    torchao: one scale a tensor, or one a row (nearer to bf16, slower). Changes what is learnt
    (docs/gpu.md)."""
    loss_chunk: int | None = Field(None, ge=1)
    """Tokens whose logits are alive at once in the cross-entropy; null: 4,096 on CUDA, 512 elsewhere."""
    z_loss: float = Field(0.0, ge=0)
    """Coefficient c of an auxiliary loss c · ln²Z for each target, Z the normaliser of its softmax, which
    keeps logits from drifting (PaLM: 1e-4; OLMo 2: 1e-5); 0 adds none. Recorded apart: the loss that is told
    stays −ln p."""
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    """Checkpoints."""
    guard: GuardConfig = Field(default_factory=GuardConfig)
    """What is done about bad steps."""
    ema: EmaConfig = Field(default_factory=EmaConfig)
    """A moving average of the weights."""
    preflight: PreflightConfig = Field(default_factory=PreflightConfig)
    """What is checked before the first step, when asked."""
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    """Evaluation while training."""
    logging: LoggingConfig = Field(default_factory=LoggingConfig)
    """Logs."""
    card: CardConfig = Field(default_factory=CardConfig)
    """What `stablelm export` writes into the model card."""
    seed: int = Field(1234, ge=0)
    """Fixes the initial weights and the order of the samples."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto takes CUDA when there is one."""

    def loss_tokens(self, device_type: str) -> int:
        """`loss_chunk`, or what suits a device."""
        return self.loss_chunk or (4096 if device_type == "cuda" else 512)

    @model_validator(mode="before")
    @classmethod
    def _adapted(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or not isinstance(values.get("adapt"), Mapping):
            return values
        model = values.get("model") or {}
        if not isinstance(model, Mapping):  # refused below, by name
            return values
        changes = {
            k: v for k, v in values["adapt"].items() if k in AdaptConfig.model_fields and v is not None
        }
        return {**values, "model": {**model, **changes}} if changes else values

    @model_validator(mode="after")
    def _check(self) -> "RunConfig":
        if self.adapt.changes() and self.init is None:
            raise ValueError(
                "adapt changes the architecture of the weights that `init` names; name them, or set the same "
                "keys of `model`"
            )
        if self.batch.sequence_length > self.model.max_position_embeddings:
            raise ValueError(
                f"batch.sequence_length {self.batch.sequence_length} is longer than "
                f"model.max_position_embeddings {self.model.max_position_embeddings}"
            )
        steps_of(self)
        if isinstance(self.recompute, int) and self.recompute < 1:
            raise ValueError("recompute is none, selective, full, or a number of blocks from 1 on")
        return self


def steps_of(config: RunConfig) -> Steps:
    """Which windows each step of a run reads; `ValueError` where its phases do not fit together."""
    return Steps.of(config.data, config.batch)


def load_run_config(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    gpus: int | None = None,
    architecture: Callable[[str], ModelConfig] | None = None,
) -> RunConfig:
    """The run in a YAML file, ours or GPT-NeoX's, with `key=value` overrides of our keys; raises `InputError`
    naming file and key.

    A GPT-NeoX file says on how many GPUs it ran by its key reference_world or by the override
    `batch.reference_world=N`; `gpus` stands in for it where only a plan is wanted. `architecture` reads that
    of the weights `init`, where the file has no `model`."""
    values = read_yaml(path)
    if not is_neox(values, list(RunConfig.model_fields)):
        values = apply_overrides(values, overrides)
        if architecture and "model" not in values and isinstance(values.get("init"), str):
            values["model"] = architecture(values["init"]).model_dump()
        return validate(RunConfig, values, str(path))
    return from_reading(read_neox(values, str(path), overrides, gpus), overrides)


def from_reading(reading: Reading, overrides: Sequence[str] = ()) -> RunConfig:
    """The run of a GPT-NeoX YAML; all its faults in one `InputError`, which names its keys and ours."""
    if reading.faults:
        raise InputError("\n".join(f"{reading.source}: {fault}" for fault in reading.faults))
    ours = [o for o in overrides if not o.startswith((WORLD, "reference_world"))]
    try:
        return validate(RunConfig, apply_overrides(_existing(reading), ours), reading.source)
    except InputError as error:
        raise InputError(reading.renamed(str(error))) from None


def has_key(name: str) -> bool:
    """Whether `name`, dotted, is a key of a run."""
    schema: type[Schema] | None = RunConfig
    for part in name.split("."):
        if schema is None or part not in schema.model_fields:
            return False
        schema = section_of(schema.model_fields[part])
    return True


def _existing(reading: Reading) -> dict[str, Any]:
    """The values of a GPT-NeoX YAML without those for sections that are not built yet."""
    values = apply_overrides(reading.values, [])
    for name in reading.ours:
        *sections, last = name.split(".")
        if not has_key(name):
            node = values
            for part in sections:
                node = node.get(part, {})
            node.pop(last, None)
    return {name: part for name, part in values.items() if part != {} or has_key(name)}


def run_config(values: dict[str, Any], source: str = "config") -> RunConfig:
    """The run in a mapping; raises `InputError` naming the key."""
    return validate(RunConfig, values, source)


REFERENCE_HEADING = """
Every key of a training run, with its default.
Generated by `make docs` from the field docstrings in stablelm/config/run.py; do not edit.
"""


def reference_yaml() -> str:
    """The commented reference configuration (configs/reference.yml)."""
    example = {"data": {"path": "data/prepared", "epochs": {"web": 4, "code": 1}}}
    return commented_yaml(RunConfig, REFERENCE_HEADING, example)


SMALL_HEADING = """
A 15M-parameter StableLM for a CPU or a small GPU, on your own text prepared with configs/data/example.yml.
Generated by `make docs`; copy it and change what you like, a key left out keeps its default.
"""


def small_yaml() -> str:
    """A commented run of a small model (configs/small.yml)."""
    values = {
        "out": "runs/small",
        "model": preset("stablelm-12m", vocab_size=8192).model_dump(),
        "data": {"path": "data/prepared", "epochs": {"web": 4, "code": 1}},
        "batch": {"sequences": 32, "micro_sequences": 8, "sequence_length": 512},
        "optimizer": {"lr": 1e-3},
        "schedule": {"warmup": 0.02},
        "checkpoint": {"every": 100},
        "evaluation": {"every": 100, "windows": 32},
    }
    return commented_yaml(RunConfig, SMALL_HEADING, values)


ORIGINAL_HEADING = """
StableLM-3B-4E1T in our own spelling: the run of configs/stablelm-3b-4e1t.yml (GPT-NeoX's keys), its data
prepared by configs/data/stablelm-3b-4e1t.yml. Generated by `make docs`; copy it and change what you like.
"""


def original_yaml() -> str:
    """The commented run of the original (configs/stablelm-3b.yml)."""
    sources = ("refinedweb", "redpajama", "pile", "starcoder", "pes2o")
    values = {
        "model": preset("stablelm-3b-4e1t").model_dump(),
        "data": {"path": "data/stablelm-3b-4e1t", "epochs": dict.fromkeys(sources, 4)},
        "steps": 955_000,
        "parallel": {"zero": 1},
        "recompute": "full",
        "checkpoint": {"every": 2000, "permanent_every": 10_000},
        "evaluation": {"every": 5000, "windows": 10_240},
    }
    return commented_yaml(RunConfig, ORIGINAL_HEADING, values)
