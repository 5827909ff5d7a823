"""How a run learns: batch, optimizer, learning-rate schedule."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from stablelm.config.schema import Schema


class BatchConfig(Schema):
    """How many tokens one optimizer step reads, and in which pieces."""

    sequences: int = Field(1024, ge=1)
    """Sequences in one optimizer step, over all processes."""
    micro_sequences: int = Field(4, ge=1)
    """Sequences in one forward and backward pass; the rest of the step is accumulated. Never changes the
    order."""
    sequence_length: int = Field(4096, ge=2)
    """Tokens in one training window."""


class OptimizerConfig(Schema):
    """AdamW (Loshchilov & Hutter, 2019). Matrices and embeddings decay; LayerNorm weights and biases do
    not."""

    lr: float = Field(3.2e-4, gt=0)
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the two moments."""
    eps: float = Field(1e-6, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(0.1, ge=0)
    """Decoupled weight decay of the decayed group."""
    clip: float = Field(1.0, ge=0)
    """Largest global gradient norm; 0 switches clipping off."""

    @field_validator("betas")
    @classmethod
    def _betas(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("each beta must be at least 0 and below 1")
        return betas


class ScheduleConfig(Schema):
    """Learning rate over the run: linear warm-up, a shape, and at the end, if wanted, a cooldown.

    Formulas and their sources: stablelm/planning/schedule.py. Warm-up, constant, cooldown is WSD."""

    warmup: float = Field(0.005, ge=0, lt=1)
    """Share of the steps spent warming up."""
    warmup_steps: int | None = Field(None, ge=0)
    """Steps of warm-up; null takes the share `warmup`."""
    shape: Literal["cosine", "linear", "constant", "inverse_sqrt"] = "cosine"
    """What follows the warm-up. Cosine and linear end at `floor` with the last step, cooldown or not;
    inverse_sqrt is peak · sqrt(D / (D + steps since its start))."""
    floor: float = Field(0.04, ge=0, le=1)
    """Last learning rate of cosine and linear, lowest of inverse_sqrt, as a share of the peak."""
    inverse_sqrt_offset: int = Field(0, ge=0)
    """For inverse_sqrt that starts at the warm-up: D = warm-up steps + this."""
    inverse_sqrt_start: float = Field(0, ge=0, lt=1)
    """For inverse_sqrt: share of the steps at which it takes over from a cosine, with the same value and
    slope, which decide D; 0 starts it at the end of the warm-up."""
    cosine_horizon: float = Field(1, gt=0)
    """For inverse_sqrt that takes over from a cosine: where that would reach `floor`, as a share of the
    steps."""
    cooldown: float = Field(0, ge=0, le=1)
    """Share of the steps, the last ones, in which the rate falls from what the shape has reached."""
    cooldown_steps: int | None = Field(None, ge=0)
    """Steps of cooldown; null takes the share `cooldown`."""
    cooldown_shape: Literal["linear", "1-sqrt"] = "linear"
    """linear, or 1 − sqrt(progress), which falls faster at first (Hägele et al., 2024)."""
    cooldown_floor: float = Field(0, ge=0, le=1)
    """Where the cooldown ends, as a share of the peak."""

    @model_validator(mode="after")
    def _check(self) -> "ScheduleConfig":
        if self.shape != "inverse_sqrt":
            alien = [n for n in _INVERSE_SQRT if getattr(self, n) != type(self).model_fields[n].default]
            if alien:
                raise ValueError(f"{alien[0]} belongs to shape: inverse_sqrt, not to {self.shape}")
        elif self.inverse_sqrt_start:
            if self.inverse_sqrt_offset:
                raise ValueError(
                    "inverse_sqrt_offset and inverse_sqrt_start are both given; keep one (a slope decides D)"
                )
            if self.cosine_horizon <= self.inverse_sqrt_start:
                raise ValueError(
                    f"inverse_sqrt_start {self.inverse_sqrt_start} is not before cosine_horizon "
                    f"{self.cosine_horizon}: the cosine has no slope left there"
                )
            if self.floor == 1:
                raise ValueError("floor 1 makes the cosine flat; an inverse square root needs a slope")
        elif self.cosine_horizon != 1:
            raise ValueError("cosine_horizon wants inverse_sqrt_start: without it there is no cosine")
        return self


class BranchConfig(Schema):
    """Another run's checkpoint, to be cooled down in a directory of its own."""

    checkpoint: str = Field(min_length=1)
    """RUN/checkpoints/step-N of the other run, which is only read."""
    cooldown_steps: int = Field(ge=1)
    """Steps in which the rate falls from the one reached there, as schedule.cooldown_shape and cooldown_floor
    say."""


_INVERSE_SQRT = ("inverse_sqrt_offset", "inverse_sqrt_start", "cosine_horizon")
