"""A running average of the weights beside the run."""

from pydantic import Field

from stablelm.config.schema import Schema


class EmaConfig(Schema):
    """An exponential moving average of the weights, kept in float32 beside them and in checkpoints; `stablelm
    checkpoint ema` makes a model of it (docs/robustness.md). It changes nothing of the run."""

    decay: float | None = Field(None, gt=0, lt=1)
    """Share of the average that each accepted step keeps, such as 0.999; in the first t steps at most
    (1 + t) / (10 + t). null: no average. Costs 4 bytes a parameter, sharded as the weights are."""
