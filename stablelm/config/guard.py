"""What a run does about steps that must not be learned from, and when it stands still."""

from pydantic import Field

from stablelm.config.schema import Schema


class GuardConfig(Schema):
    """Steps that are rejected, and what follows (docs/robustness.md). A step whose loss or gradient norm is
    not finite is always rejected: weights and moments stay as they were."""

    deviations: float = Field(0, ge=0)
    """Also reject a step whose loss or gradient norm is more than this many robust standard deviations above
    the median of the accepted steps before it; 0 rejects only what is not finite. 8 suits steps of a million
    tokens. Small steps are uneven by nature: a rare kind of text must not be taken for an accident."""
    window: int = Field(128, ge=8)
    """How many of the last accepted steps that median is of; from half as many on, steps are judged."""
    in_a_row: int = Field(8, ge=1)
    """After so many rejected steps in a row, the run goes back to the last good checkpoint and leaves out the
    samples that led there."""
    lookback: int = Field(100, ge=0)
    """How many accepted steps before the first rejected one are left out too when the run goes back: the
    batch that spoils weights is seldom the one that shows it."""
    rollbacks: int = Field(3, ge=0)
    """How often the run goes back to one checkpoint before it stops with a report; 0 stops at once."""
    hang_timeout: float | None = Field(None, ge=0)
    """Seconds without progress after which a process ends and says where it stands (ten times as long in
    evaluation, saving and the first step). null: nine tenths of parallel.timeout, at least 60, with several
    processes, and never with one; 0: never."""
