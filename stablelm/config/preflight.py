"""What `stablelm train --preflight` takes for slow, and what it does about it."""

from typing import Literal

from pydantic import Field

from stablelm.config.schema import Schema


class PreflightConfig(Schema):
    """What is compared before the first step by `stablelm train --preflight` (docs/preflight.md). A process
    with other versions, another configuration or other data always stops the run."""

    tolerance: float = Field(0.8, gt=0, le=1)
    """A process is slow when its rate is below this share of the median of all."""
    on_warning: Literal["continue", "stop"] = "continue"
    """What a slow process does, a clock that is off, another driver or environment, a disk that will fill."""
    clock: float = Field(1.0, gt=0)
    """Seconds by which the clock of a machine may differ from the median."""
