"""The learning rate as a pure function of the step: linear warm-up, a shape, a cooldown.

With peak p, floor f, w warm-up steps and N steps, update number t (from 0):

    t ≤ w          p · max(1, t) / w                                    GPT-NeoX, `learning_rates.py`
    cosine         f + (p − f)/2 · (1 + cos(π·(t − w)/(N − w)))         the same
    linear         f + (p − f) · (1 − (t − w)/(N − w))
    constant       p
    inverse_sqrt   max(f, r · sqrt(D / (D + t − s))), from s on         Vaswani et al., 2017, §5.3
                   s = w, r = p, D = w + offset: with offset 0 that is p · sqrt(w/t); or a cosine over
                   `cosine_horizon` · N until s, r its value there and D = −r / (2 · its slope), so that value
                   and slope go on: the family of Stable LM 2 (arXiv 2402.17834). The exact horizon of that
                   run is not public, and none is claimed here
    cooldown       c + (u − c) · (1 − x) or · (1 − sqrt x)              Hägele et al., 2024 (arXiv 2405.18392)
                   over the last C steps, x from 0 to 1, u the shape's rate where it starts, c its floor

A phase of the data may have a schedule of its own, planned over its own steps as if they were a run, or a
peak of its own, which scales the run's.

A shape is planned over all N steps and the cooldown cuts it short, so a run is the same up to its cooldown
whether it has one or not. A run that branches off another has that one's rates until then, and cools from
there: u is the rate that the other had reached. Rejected: schedulers with a state, which a resume has to
restore."""

import dataclasses
import math
from functools import cached_property

from stablelm.config import InputError, RunConfig
from stablelm.config.optimization import ScheduleConfig


def learning_rate(step: int, peak: float, floor: float, warmup_steps: int, steps: int) -> float:
    """Warm-up and cosine: the rate of the update that follows `step` completed updates.

    Up to the warm-up, peak · max(1, step) / warmup; then floor + (peak − floor)/2 · (1 + cos(π·progress))
    with progress from 0 at the end of the warm-up to 1 at `steps`."""
    if step <= warmup_steps and warmup_steps > 0:
        return peak * max(1, step) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    return floor + (peak - floor) / 2 * (1 + math.cos(math.pi * progress))


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a run has branched off another."""

    step: int
    """Updates completed by then."""
    schedule: "Schedule"
    """The rates of the other run, over the steps that it was planned for."""


@dataclasses.dataclass(frozen=True)
class Part:
    """Steps with a rate of their own, because a phase of the data says so."""

    begin: int
    """Updates completed before its first."""
    end: int
    schedule: "Schedule"
    offset: int
    """What is taken off a step before the schedule is asked: `begin` if it is planned over the part alone."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The rate of every update of a run of `steps`; `InputError` where its parts do not fit into them."""

    config: ScheduleConfig
    peak: float
    """Highest learning rate."""
    steps: int
    """Updates that the rate is planned for."""
    origin: Origin | None = None
    """Of a branch, which is all cooldown from there to `steps`, whatever its phases say."""
    parts: tuple[Part, ...] = ()
    """Where phases differ, ascending."""

    @classmethod
    def of(cls, config: RunConfig, steps: int, origin: Origin | None = None) -> "Schedule":
        """The rates of a run that is planned for `steps`, those of its phases included."""
        parts, begin, peak = [], 0, config.optimizer.lr
        for number, phase in enumerate(config.data.parts()):
            end = steps if phase.until_step is None else phase.until_step
            own, lr = phase.schedule, peak if phase.lr is None else phase.lr
            if begin < steps and (own is not None or phase.lr is not None):
                try:
                    inner = cls(config.schedule, lr, steps) if own is None else cls(own, lr, end - begin)
                except InputError as error:
                    raise InputError(f"data.phases.{number}: {error}") from None
                parts.append(Part(begin, end, inner, 0 if own is None else begin))
            begin = end
        return cls(config.schedule, peak, steps, origin, tuple(parts))

    def __post_init__(self) -> None:
        if self.origin is not None:
            return
        if self.warmup_steps + self.cooldown_steps > self.steps:
            raise InputError(
                f"schedule: {self.warmup_steps:,} steps of warm-up and {self.cooldown_steps:,} of cooldown "
                f"do not fit into {self.steps:,} steps. Shorten schedule.warmup or schedule.cooldown."
            )
        if self.config.inverse_sqrt_start and self._start <= self.warmup_steps:
            raise InputError(
                f"schedule: the inverse square root starts at step {self._start:,}, within the warm-up of "
                f"{self.warmup_steps:,}. Raise schedule.inverse_sqrt_start, or set it to 0: no cosine before."
            )

    @cached_property
    def warmup_steps(self) -> int:
        """Steps of linear warm-up."""
        if self.origin is not None:
            return self.origin.schedule.warmup_steps
        given = self.config.warmup_steps
        return round(self.config.warmup * self.steps) if given is None else given

    @cached_property
    def cooldown_steps(self) -> int:
        """Steps of the cooldown, the last ones."""
        if self.origin is not None:
            return self.steps - self.origin.step
        given = self.config.cooldown_steps
        return round(self.config.cooldown * self.steps) if given is None else given

    def rate(self, step: int) -> float:
        """Learning rate of the update that follows `step` completed updates."""
        if (part := self._part(step)) is not None:
            return part.schedule.rate(step - part.offset)
        begin, last = self.steps - self.cooldown_steps, self.peak * self.config.cooldown_floor
        if not self.cooldown_steps or step <= begin:
            return self._before(step)
        progress = min(1.0, (step - begin) / self.cooldown_steps)
        if self.config.cooldown_shape == "1-sqrt":
            progress = math.sqrt(progress)
        return last + (self._before(begin) - last) * (1 - progress)

    def turning_points(self) -> list[tuple[int, float]]:
        """(Completed updates, rate) where a part begins or ends, ascending; the last is that of `steps`."""
        points = {0, self.warmup_steps, self.steps - self.cooldown_steps, self.steps}
        if self.origin is not None:
            earlier = {step for step, _ in self.origin.schedule.turning_points() if step < self.origin.step}
            points = {*earlier, self.origin.step, self.steps}
        elif self.config.shape == "inverse_sqrt" and self._start < self.steps - self.cooldown_steps:
            points.add(self._start)
        for part in self.parts if self.origin is None else ():
            inner = {step + part.offset for step, _ in part.schedule.turning_points()}
            points = {step for step in points if not part.begin < step < part.end}
            points |= {part.begin, part.end, *(step for step in inner if part.begin < step < part.end)}
            points = {step for step in points if step <= self.steps}
        return [(step, self.rate(step)) for step in sorted(points)]

    def _before(self, step: int) -> float:
        """The rate before the cooldown."""
        return self._shape(step) if self.origin is None else self.origin.schedule.rate(step)

    def _part(self, step: int) -> Part | None:
        at = min(step, self.steps - 1)  # the end of the run is that of its last part
        found = (part for part in self.parts if part.begin <= at < part.end)
        return next(found, None) if self.origin is None else None

    def _shape(self, step: int) -> float:
        warmup, shape = self.warmup_steps, self.config.shape
        floor = self.peak * self.config.floor
        if shape == "cosine" or (step <= warmup and warmup > 0):
            return learning_rate(step, self.peak, floor, warmup, self.steps)
        if shape == "constant":
            return self.peak
        if shape == "linear":
            progress = min(1.0, (step - warmup) / max(1, self.steps - warmup))
            return floor + (self.peak - floor) * (1 - progress)
        if step < self._start:
            return learning_rate(step, self.peak, floor, warmup, self._horizon)
        value, distance = self._taken_over
        return max(floor, value * math.sqrt(distance / (distance + step - self._start)))

    @cached_property
    def _start(self) -> int:
        """Where the inverse square root begins."""
        share = self.config.inverse_sqrt_start
        return round(share * self.steps) if share else self.warmup_steps

    @cached_property
    def _horizon(self) -> int:
        return max(self._start + 1, round(self.config.cosine_horizon * self.steps))

    @cached_property
    def _taken_over(self) -> tuple[float, float]:
        """r and D of the inverse square root."""
        warmup, floor = self.warmup_steps, self.peak * self.config.floor
        if not self.config.inverse_sqrt_start:
            return self.peak, max(1, warmup + self.config.inverse_sqrt_offset)
        length = self._horizon - warmup
        value = learning_rate(self._start, self.peak, floor, warmup, self._horizon)
        slope = (
            -(self.peak - floor) / 2 * math.pi / length * math.sin(math.pi * (self._start - warmup) / length)
        )
        return value, -value / (2 * slope)
