"""What a run will do, derived from its configuration and its data before it starts.

Nothing here is written back into the configuration; the plan is printed, stored with the run and with every
checkpoint."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from stablelm.config import InputError, RunConfig
from stablelm.config.run import steps_of
from stablelm.planning.flops import flops_per_token
from stablelm.planning.schedule import Origin, Schedule


@dataclasses.dataclass(frozen=True)
class Plan:
    """Derived quantities of one run."""

    parameters: int
    """Weights in the network."""
    trained: int
    """Those that are trained: all, or an adapter's."""
    steps: int
    """Optimizer steps in all."""
    schedule_steps: int
    """Steps that the learning rate is planned for: those there would be without data.skip, so that skipping
    samples ahead changes no rate behind."""
    warmup_steps: int
    """Steps of linear warm-up."""
    samples: int
    """Training windows that will be read."""
    tokens: int
    """Tokens that will be trained on: samples × sequence length."""
    micro_batches: int
    """Forward and backward passes that a process makes in one full step (of batch.sequences)."""
    last_step_samples: int
    """Windows in the last step; smaller than the others when the epochs do not fill it."""
    flops_per_token: int
    """6N + 12·L·h·s."""
    checkpoint_bytes: int
    """Disk one checkpoint takes: what is trained, two moments and the average, if any, in float32."""
    sources: dict[str, dict[str, Any]]
    """Per source: windows in an epoch, epochs asked for, samples that will be read."""
    cooldown_steps: int = 0
    """Steps of cooldown, the last of schedule_steps."""
    rates: tuple[tuple[int, float], ...] = ()
    """(Completed updates, learning rate) at the turning points of the schedule."""
    batches: tuple[tuple[int, int, int], ...] = ()
    """(Completed updates, sequences, tokens of context) where phases change the batch; empty where none."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)

    def lines(self) -> list[str]:
        """The plan for a reader, a line each."""
        sources = ", ".join(
            f"{name} {about['windows']:,} windows × {about['epochs']}" for name, about in self.sources.items()
        )
        cooldown = f", {self.cooldown_steps:,} cooldown" if self.cooldown_steps else ""
        batches = "; ".join(
            f"{sequences:,} × {length:,} from step {step + 1:,}" for step, sequences, length in self.batches
        )
        part = f" ({self.trained:,} trained)" if self.trained < self.parameters else ""
        return [
            f"{self.parameters:,} parameters{part}, {self.flops_per_token / 1e6:,.1f} MFLOP a token",
            f"{self.steps:,} steps ({self.warmup_steps:,} warm-up{cooldown}), {self.tokens:,} tokens",
            "learning rate " + ", ".join(f"{rate:.4g} at step {step:,}" for step, rate in self.rates),
            f"{self.samples:,} windows, by source and epochs: {sources}",
            *([f"sequences × tokens of context: {batches}"] if batches else []),
            f"{self.micro_batches} micro-batches a step, {self.checkpoint_bytes / 1e6:,.0f} MB a checkpoint",
        ]


def make_plan(
    config: RunConfig,
    samples: int,
    sources: Mapping[str, dict[str, Any]],
    skipped: int = 0,
    data_parallel: int = 1,
    origin: Origin | None = None,
) -> Plan:
    """The plan of a run over a mixture of `samples` windows, `skipped` more being left out by data.skip, when
    `data_parallel` processes share a step's samples; refuses more steps than the mixture has.

    `origin` is where a run with `branch` has branched off: it goes on for the steps of its cooldown."""
    batch, table = config.batch, steps_of(config)
    full = table.count(samples + skipped)
    planned = full if config.steps is None else config.steps
    if origin is not None and config.branch is not None:
        asked = config.branch.cooldown_steps
        left = table.count(samples) - origin.step
        if asked > left:
            raise InputError(
                f"branch.cooldown_steps {asked:,}: only {max(0, left):,} steps of data are left after step "
                f"{origin.step:,}, where the run branches off. Ask for no more, branch off earlier, or read "
                "more by one more of data.phases."
            )
        planned = origin.step + asked
    elif planned > full:
        size = f" × batch.sequences {batch.sequences:,} asks" if len(table.stretches) == 1 else ": they ask"
        raise InputError(
            f"steps {planned:,}{size} for {table.position(planned):,} windows; the epochs asked for hold "
            f"{samples + skipped:,} ({full:,} steps). Raise data.epochs, or lower steps."
        )
    steps = min(planned, table.count(samples))
    used = min(samples, table.position(steps))
    schedule, phased = Schedule.of(config, planned, origin), len(table.batches) > 1
    return Plan(
        parameters=config.model.num_parameters,
        trained=config.model.num_parameters,
        steps=steps,
        schedule_steps=planned,
        warmup_steps=schedule.warmup_steps,
        samples=used,
        tokens=used * batch.sequence_length,
        micro_batches=math.ceil(math.ceil(batch.sequences / data_parallel) / batch.micro_sequences),
        last_step_samples=used - table.position(steps - 1),
        flops_per_token=flops_per_token(config.model, batch.sequence_length),
        checkpoint_bytes=checkpoint_bytes(config),
        sources={name: dict(about) for name, about in sources.items()},
        cooldown_steps=schedule.cooldown_steps,
        rates=tuple(schedule.turning_points()),
        batches=tuple(change for change in table.batches if change[0] < steps) if phased else (),
    )


def checkpoint_bytes(config: RunConfig) -> int:
    """Of a run that trains all weights: they, two moments, and an average where one is kept, in float32."""
    return (12 if config.ema.decay is None else 16) * config.model.num_parameters
