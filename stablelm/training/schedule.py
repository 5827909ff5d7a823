"""The learning rate as a pure function of the step: linear warm-up, cosine to a floor (GPT-NeoX
`learning_rates.py`)."""

import math

from stablelm.config import RunConfig
from stablelm.planning import Plan


def learning_rate(step: int, peak: float, floor: float, warmup_steps: int, steps: int) -> float:
    """Learning rate of the update that follows `step` completed updates.

    Up to the warm-up, peak · max(1, step) / warmup; then floor + (peak − floor)/2 · (1 + cos(π·progress))
    with progress from 0 at the end of the warm-up to 1 at `steps`."""
    if step <= warmup_steps and warmup_steps > 0:
        return peak * max(1, step) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    return floor + (peak - floor) / 2 * (1 + math.cos(math.pi * progress))


def scheduled_rate(step: int, config: RunConfig, plan: Plan) -> float:
    """The learning rate of a run's update number `step`, counted from 0."""
    peak = config.optimizer.lr
    return learning_rate(step, peak, peak * config.schedule.floor, plan.warmup_steps, plan.schedule_steps)
