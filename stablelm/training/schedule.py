"""The learning rate of a run's updates; the formulas are those of `planning/schedule.py`."""

from stablelm.config import RunConfig
from stablelm.planning import Plan
from stablelm.planning.schedule import Schedule


def scheduled_rate(step: int, config: RunConfig, plan: Plan) -> float:
    """The learning rate of a run's update number `step`, counted from 0."""
    return Schedule(config.schedule, config.optimizer.lr, plan.schedule_steps).rate(step)
