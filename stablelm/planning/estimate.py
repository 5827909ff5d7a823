"""What a run will need and cost on devices that nobody has started yet.

Memory and traffic are formulas; speed is what the user measured, or an assumption that the result states. To
compare settings the hardware utilisation is held: a setting that recomputes less needs fewer FLOPs a token
and is that much faster. Rejected: a model of kernels and overlap, whose error would be larger than the
differences that it is asked about."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from stablelm.config import InputError, ModelConfig, RunConfig
from stablelm.config.run import steps_of
from stablelm.data.run_data import open_data
from stablelm.planning.devices import Device
from stablelm.planning.flops import (
    COUNTS,
    Utilization,
    block_parameters,
    causal_flops_per_token,
    flops_per_token,
    hardware_flops_per_token,
    utilization,
)
from stablelm.planning.layout import Layout, layout_of
from stablelm.planning.memory import Memory, memory_of, usable
from stablelm.planning.plan import make_plan
from stablelm.planning.traffic import Traffic, traffic_of

RECOMPUTE = ("none", "selective", "full")


@dataclass(frozen=True)
class Setting:
    """One way to run the step, what it needs and how fast it is."""

    layout: Layout
    memory: Memory
    fits: bool
    tokens_per_second: float
    """Of one device."""
    days: float | None
    """None where the length of the run is not known."""
    gpu_hours: float | None
    cost: float | None
    """GPU-hours at the price given; None without one."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "memory": self.memory.as_dict()}


@dataclass(frozen=True)
class Estimate:
    """The answer of `stablelm plan`."""

    model: ModelConfig
    device: Device
    step_tokens: int
    """Tokens in one step, over all devices."""
    steps: int | None
    """Optimizer steps; None where neither configuration nor data say."""
    asked: Setting
    """As configured."""
    table: tuple[Setting, ...]
    """The configured mesh and micro-batch, each ZeRO stage with each kind of recomputation."""
    recommended: Setting | None
    """The fastest that fits; None where nothing does."""
    utilization: Utilization
    """Of `asked`, by the three counts."""
    speed_source: str
    """Whether the speed was given or assumed, and on what grounds."""
    traffic: tuple[Traffic, ...]
    """The collectives of one step of `asked`."""
    tokens: int | None
    """Tokens of the run; where phases change the batch not `steps` × `step_tokens`."""

    @property
    def step_seconds(self) -> float:
        """Seconds of one step of `asked`."""
        return self.step_tokens / (self.asked.tokens_per_second * self.asked.layout.world)

    @property
    def unrecomputed(self) -> Setting | None:
        """`asked` without recomputation, where it recomputes."""
        if self.asked.layout.recompute == "none":
            return None
        return next(s for s in self.table if s.layout == replace(self.asked.layout, recompute="none"))

    def parameters(self) -> dict[str, int]:
        """Weights by part, and in all."""
        model, table = self.model, self.model.vocab_size * self.model.hidden_size
        return {
            "embedding": table,
            "blocks": model.num_hidden_layers * block_parameters(model),
            "final_norm": model.hidden_size * (1 + model.use_norm_bias),
            "head": table,
            "total": model.num_parameters,
        }

    def flops(self) -> dict[str, int]:
        """FLOPs a token, by the three counts."""
        length, model = self.asked.layout.sequence_length, self.model
        return {
            "mfu": flops_per_token(model, length),
            "mfu_causal": causal_flops_per_token(model, length),
            "hfu": hardware_flops_per_token(model, length, self.asked.layout.recompute),
        }

    def as_dict(self) -> dict[str, Any]:
        """For JSON; bytes, seconds, FLOP."""
        without = self.unrecomputed
        return {
            "gpus": self.asked.layout.world,
            "device": {**asdict(self.device), "usable": usable(self.device)},
            "parameters": self.parameters(),
            "steps": self.steps,
            "step_tokens": self.step_tokens,
            "tokens": self.tokens,
            "flops_per_token": self.flops(),
            "counts": COUNTS,
            "utilization": asdict(self.utilization),
            "speed_source": self.speed_source,
            "step_seconds": self.step_seconds,
            "asked": self.asked.as_dict(),
            "table": [setting.as_dict() for setting in self.table],
            "without_recomputation": without and without.as_dict(),
            "recommended": self.recommended and self.recommended.as_dict(),
            "traffic": [asdict(row) for row in self.traffic],
        }


def make_estimate(
    model: ModelConfig,
    layout: Layout,
    device: Device,
    *,
    sequences: int,
    steps: int | None,
    tokens: int | None = None,
    tokens_per_second: float | None = None,
    mfu: float | None = None,
    price_per_gpu_hour: float | None = None,
) -> Estimate:
    """The estimate for `layout`; speed from one device's `tokens_per_second`, from `mfu` (the first count),
    or from the utilisation that the table of devices assumes. `tokens` of the run where its steps are not
    all of this size."""
    length = layout.sequence_length
    rate, source = _speed(model, layout, device, tokens_per_second, mfu)
    work = rate * hardware_flops_per_token(model, length, layout.recompute)  # FLOP/s of one device, held
    step_tokens = sequences * length
    if tokens is None and steps is not None:
        tokens = steps * step_tokens

    def setting(candidate: Layout) -> Setting:
        memory = memory_of(model, candidate)
        speed = work / hardware_flops_per_token(model, length, candidate.recompute)
        hours = None if tokens is None else tokens / speed / 3600
        days = None if hours is None else hours / candidate.world / 24
        cost = None if hours is None or price_per_gpu_hour is None else hours * price_per_gpu_hour
        return Setting(candidate, memory, memory.fits(device), speed, days, hours, cost)

    asked = setting(layout)
    table = tuple(
        setting(replace(_staged(layout, zero), recompute=recompute))
        for zero in range(4)
        for recompute in dict.fromkeys((*RECOMPUTE, layout.recompute))
    )
    best = _recommended(map(setting, _candidates(layout)), model)
    return Estimate(
        model, device, step_tokens, steps, asked, table, best,
        utilization(model, length, layout.recompute, rate, device.bf16), source,
        tuple(traffic_of(model, layout, device.per_node)), tokens,
    )  # fmt: skip


def estimate_run(
    config: RunConfig,
    gpus: int,
    device: Device,
    *,
    tokens_per_second: float | None = None,
    mfu: float | None = None,
    price_per_gpu_hour: float | None = None,
) -> Estimate:
    """The estimate of a configured run on `gpus` devices; its data are looked at only for their number, and
    only where the configuration does not say how many steps there are."""
    steps, table, tokens = _steps(config), steps_of(config), None
    if steps is not None and config.branch is None:
        tokens = table.position(steps) * config.batch.sequence_length
    gpu = device.name != "cpu"
    layout = layout_of(config, gpus, "cuda" if gpu else "cpu")
    layout = replace(layout, compiled=gpu if config.compile is None else config.compile)
    return make_estimate(
        config.model, layout, device, sequences=config.batch.sequences,
        steps=steps, tokens=tokens, tokens_per_second=tokens_per_second, mfu=mfu,
        price_per_gpu_hour=price_per_gpu_hour,
    )  # fmt: skip


def _steps(config: RunConfig) -> int | None:
    if config.branch is not None:
        return config.branch.cooldown_steps
    if config.steps is not None or config.data.order == "neox" or not Path(config.data.path).is_dir():
        return config.steps
    _, loader = open_data(config)
    return make_plan(config, loader.num_samples, loader.table(), loader.skips.count).steps


def _speed(
    model: ModelConfig, layout: Layout, device: Device, tokens_per_second: float | None, mfu: float | None
) -> tuple[float, str]:
    """Tokens a second of one device, and why."""
    length = layout.sequence_length
    if tokens_per_second is not None and mfu is not None:
        raise InputError("--tokens-per-second and --mfu say the same thing; give one of them.")
    if tokens_per_second is not None:
        if not 0 < tokens_per_second < float("inf"):
            raise InputError(
                f"--tokens-per-second {tokens_per_second}: a number above 0 is wanted, of one GPU."
            )
        return tokens_per_second, "given by --tokens-per-second"
    if mfu is not None:
        if not 0 < mfu <= 1:
            raise InputError(f"--mfu {mfu}: a share between 0 and 1 is wanted, as 0.4 for 40 %.")
        return mfu * device.bf16 / flops_per_token(model, length), f"from --mfu {mfu:g}, {COUNTS['mfu']}"
    rate = device.utilization * device.bf16 / hardware_flops_per_token(model, length, layout.recompute)
    share = f"ASSUMED: {100 * device.utilization:.0f} % of the peak, recomputation counted as work"
    slower = "; fp32 is slower than that" if layout.precision == "fp32" and device.name != "cpu" else ""
    return rate, f"{share} ({device.utilization_source}){slower}; measure yours: --tokens-per-second"


def _staged(layout: Layout, zero: int) -> Layout:
    """The layout at another ZeRO stage; at 0 every data-parallel rank is a replica."""
    if zero == 0:
        return replace(layout, zero=0, replicate=layout.data, shard=1)
    if layout.shard == 1 and layout.zero == 0:
        return replace(layout, zero=zero, replicate=1, shard=layout.data)
    return replace(layout, zero=zero)


def _candidates(layout: Layout) -> Iterator[Layout]:
    """Every micro-batch that divides a rank's share, each stage, each kind of recomputation."""
    share = layout.micro_sequences * layout.micro_batches
    for micro in (n for n in range(1, share + 1) if share % n == 0):
        cut = replace(layout, micro_sequences=micro, micro_batches=share // micro)
        for zero in (1, 2, 3):
            for recompute in RECOMPUTE:
                yield replace(_staged(cut, zero), recompute=recompute)


def _recommended(settings: Iterator[Setting], model: ModelConfig) -> Setting | None:
    """Least work a token, then the largest micro-batch up to 16,384 tokens (more gains nothing), then least
    traffic, then least memory."""

    def merit(setting: Setting) -> tuple[float, ...]:
        layout = setting.layout
        sent = sum(row.sent for row in traffic_of(model, layout))
        return (
            RECOMPUTE.index(str(layout.recompute)), -min(layout.tokens, 16_384), sent, setting.memory.total
        )  # fmt: skip

    return min((setting for setting in settings if setting.fits), key=merit, default=None)
