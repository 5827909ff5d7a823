"""How a run learns: batch, optimizer, learning-rate schedule."""

from pydantic import Field, field_validator

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
    """Learning rate over the run: linear warm-up, then cosine to a floor (GPT-NeoX's formula)."""

    warmup: float = Field(0.005, ge=0, lt=1)
    """Share of the steps spent warming up."""
    floor: float = Field(0.04, ge=0, le=1)
    """Last learning rate, as a share of the peak."""
