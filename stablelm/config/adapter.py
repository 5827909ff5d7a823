"""A low-rank adapter, as a user says it: the method, its size, and which matrices it stands on.

The words are PEFT's where it has them; `interchange/peft.py` reads and writes its files. A default of 32 for
alpha goes with any rank: with α / r, the learning rate that suits one rank then nearly suits another (Hu et
al., 2021, section 4.1)."""

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from stablelm.config.errors import InputError
from stablelm.config.schema import Schema

ALL_LINEAR = "all-linear"
"""Every projection of the blocks; the head is named apart."""


class AdapterConfig(Schema):
    """A low-rank adapter: only it is trained, the model stays as it is."""

    method: Literal["lora", "rslora", "dora", "rsdora"] = "lora"
    """lora: W x + α/r · B A x (Hu et al., 2021). rslora: α/√r in place of α/r (Kalajdzievski, 2023), for high
    ranks. dora: each row of W + α/r · B A keeps its direction and learns its length apart (Liu et al., 2024).
    rsdora: dora with α/√r."""
    rank: int = Field(16, ge=1)
    """Rows of A and columns of B, r."""
    alpha: float = Field(32.0, gt=0)
    """α, the weight of what the adapter adds."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the numbers that A does not see, drawn anew for each sample, while the adapter is trained
    (PEFT's lora_dropout). Helps against learning few examples by heart."""
    targets: list[str] | str = ALL_LINEAR
    """Which matrices: names or ends of names as [q_proj, v_proj, lm_head], a regular expression of the whole
    name, or all-linear for every projection of the blocks."""
    rank_pattern: dict[str, int] = Field(default_factory=dict)
    """Other ranks by module: a regular expression of the end of a name → rank, as {layers.0.self_attn.q_proj:
    4}."""
    alpha_pattern: dict[str, float] = Field(default_factory=dict)
    """Other alphas by module, alike."""

    @field_validator("targets", mode="after")
    @classmethod
    def _some(cls, targets: Any) -> Any:
        if not targets:
            raise ValueError("name at least one matrix, or write all-linear")
        return targets

    @model_validator(mode="after")
    def _check(self) -> "AdapterConfig":
        for name, values in (("rank_pattern", self.rank_pattern), ("alpha_pattern", self.alpha_pattern)):
            for pattern, value in values.items():
                pattern_of(pattern, name)
                if value <= 0:
                    raise ValueError(f"{name}.{pattern} must be above 0, not {value}")
        return self

    @property
    def decomposed(self) -> bool:
        """Whether lengths are learnt apart (DoRA)."""
        return self.method.endswith("dora")

    def scale(self, rank: int, alpha: float) -> float:
        """What B A x is multiplied by."""
        return float(alpha / (rank**0.5 if self.method.startswith("rs") else rank))


def pattern_of(text: str, what: str) -> re.Pattern[str]:
    """A regular expression; `InputError` naming `what` it is when it is none."""
    try:
        return re.compile(text)
    except re.error as error:
        raise InputError(f"{what} {text!r}: not a regular expression ({error}).") from None
