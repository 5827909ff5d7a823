"""What a run writes about itself while it goes on."""

from typing import Literal

from pydantic import Field

from stablelm.config.schema import Schema


class WandbConfig(Schema):
    """Where a run is shown on Weights & Biases. A resumed run goes on under the same run there."""

    project: str = Field(min_length=1)
    """Project."""
    entity: str | None = None
    """User or team; null: that of the account that `wandb login` noted."""
    name: str | None = None
    """Name of the run; null: that of its directory."""
    mode: Literal["online", "offline"] = "online"
    """offline only writes files below RUN/wandb, which `wandb sync` sends later."""


class LoggingConfig(Schema):
    """What is written while the run goes on; `metrics.jsonl` always is."""

    every: int = Field(10, ge=1)
    """Steps between lines on the console. Every step is in metrics.jsonl."""
    tensorboard: bool = False
    """Also write TensorBoard event files (needs `pip install stablelm[track]`)."""
    wandb: WandbConfig | None = None
    """Also write to Weights & Biases: {project: NAME, entity: TEAM, name: RUN, mode: offline}, all but the
    project left out at will (needs `pip install stablelm[track]`). A service that cannot be reached is told
    and does not stop the run."""
    health: int = Field(0, ge=0)
    """Steps between measurements of every layer (gradients, activations, attention logits, updates); 0 makes
    none. A step that is measured takes up to half as long again."""
