"""Which steps are learned from: the guard judges loss and gradient norm before they touch anything.

A step is rejected when its loss or gradient norm is not finite, or so large that its square would not be,
which poisons second moments; with `guard.deviations` also when either is an outlier: above

    median + deviations · max(1.4826 · MAD, floor · median)          floor 0.01 for the loss, 0.1 for the norm

of the last `window` accepted steps (MAD, the median distance to the median, times 1.4826 is the standard
deviation of a normal distribution; the floor keeps a very even window from finding outliers in nothing).
Only upwards: a loss that falls is no accident. A rejected step enters no window, so that one spike neither
hides the next nor becomes normal; a phase of the data with another mixture or batch starts a new one.

The decision is global without a message of its own: both numbers come from one all-reduce, which gave all
processes the same bits. Its place is before the optimizer's step, so nothing is multiplied by zero (0 · NaN
is NaN). A rejected step counts as a step: its samples are consumed, the learning rate goes on (PaLM and
OLMo-core do the same, and a run then has the steps and the data that were planned). The optimizer's own
count, which bias correction reads, is of updates: steps minus rejected ones.

Rejected: mean and standard deviation (one spike of 100 widens them for the whole window), judging by default
(a batch of few sequences is uneven by nature, and a rare source would never be learned)."""

import math
import statistics
from collections import deque
from typing import Any

from stablelm.config.guard import GuardConfig

LARGEST = 1.8e19
"""Of a gradient norm: the square of a larger one overflows float32."""
_FLOORS = {"loss": 0.01, "gradient norm": 0.1}
Rollback = dict[str, Any]
"""`to` and `from` (steps), `reason`, `skip` ([first, last] sample number), `rejected` (steps)."""


class Guard:
    """The judge of one run; its whole memory is `state`."""

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.windows = {name: deque[float](maxlen=config.window) for name in _FLOORS}
        self.phase = 0
        """Of the data, that the windows are of."""
        self.rejected = 0
        """Steps rejected so far that the weights have behind them: steps minus updates."""
        self.accepted = 0
        """The last accepted step."""
        self.row: list[dict[str, Any]] = []
        """The rejected steps since, in a row."""
        self.rollbacks: list[Rollback] = []
        """All so far; their `skip` is left out of the data."""

    def judge(self, loss: float, norm: float, phase: int) -> str | None:
        """Why a step of this phase must be rejected, or None; the same on all processes."""
        if phase != self.phase:
            self.phase = phase
            for window in self.windows.values():
                window.clear()
        for name, value in (("loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value) or value > LARGEST:
                return f"{name} {value}" if not math.isfinite(value) else f"{name} {value:.3g} is too large"
        for (name, window), value in zip(self.windows.items(), (loss, norm), strict=True):
            if self.config.deviations and len(window) >= self.config.window // 2:
                middle = statistics.median(window)
                spread = 1.4826 * statistics.median(abs(each - middle) for each in window)
                spread = max(spread, _FLOORS[name] * middle)
                if value > middle + self.config.deviations * spread:
                    return (
                        f"{name} {value:.4g} is {(value - middle) / max(spread, 1e-30):,.1f} deviations "
                        f"above {middle:.4g}, the median of {len(window)} steps"
                    )
        return None

    def accept(self, step: int, loss: float, norm: float) -> None:
        """Learns from a step."""
        for window, value in zip(self.windows.values(), (loss, norm), strict=True):
            window.append(value)
        self.accepted, self.row = step, []

    def reject(self, step: int, reason: str) -> None:
        """Counts a step that is not learned from."""
        self.rejected += 1
        self.row.append({"step": step, "reason": reason})

    @property
    def exhausted(self) -> bool:
        """Whether so many steps were rejected in a row that the weights or the data must be at fault."""
        return len(self.row) >= self.config.in_a_row

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "loss": list(self.windows["loss"]), "gradient norm": list(self.windows["gradient norm"]),
            "phase": self.phase, "rejected": self.rejected, "accepted": self.accepted, "row": self.row,
            "rollbacks": self.rollbacks,
        }  # fmt: skip

    def restore(self, state: dict[str, Any], step: int) -> None:
        """Continues from the `state` of a checkpoint after `step` steps; {} is one of before there was a
        guard. Rollbacks known already stay: those in a checkpoint are the first of them."""
        for name, window in self.windows.items():
            window.clear()
            window.extend(state.get(name, []))
        self.phase, self.rejected = state.get("phase", 0), state.get("rejected", 0)
        self.accepted, self.row = state.get("accepted", step), list(state.get("row", []))
        if len(state.get("rollbacks", [])) > len(self.rollbacks):
            self.rollbacks = list(state["rollbacks"])


def refusal(loss: float, norm: float, reason: str) -> dict[str, Any]:
    """What the record of a rejected step says otherwise; JSON has no number that is none."""
    numbers = {
        name: value if math.isfinite(value) else None for name, value in (("loss", loss), ("grad_norm", norm))
    }
    return {"kind": "rejected", "reason": reason, **numbers}
