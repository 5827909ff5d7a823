"""Preference tuning, as a user says it: which loss, and how far from the reference the model may go."""

from typing import Literal

from pydantic import Field

from stablelm.config.schema import Schema


class PreferenceConfig(Schema):
    """Learning which of two answers is preferred (dpo, ipo), or whether an answer is wanted (kto). The
    reference is the model as the run begins."""

    loss: Literal["none", "dpo", "ipo", "kto"] = "none"
    """none: supervised tuning. dpo (Rafailov et al., 2023) and ipo (Azar et al., 2023) read a prompt with a
    chosen and a rejected answer; kto (Ethayarajh et al., 2024) a prompt, a completion and a label, or such
    pairs."""
    beta: float = Field(0.1, gt=0)
    """What a departure from the reference costs: β of DPO and KTO, τ of IPO. Larger keeps the model closer to
    it."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """dpo: probability that a pair is labelled the wrong way round (conservative DPO; Mitchell, 2023)."""
    desirable_weight: float = Field(1.0, gt=0)
    """kto: weight of the wanted answers (λ_D)."""
    undesirable_weight: float = Field(1.0, gt=0)
    """kto: weight of the unwanted ones (λ_U). Weight times number should differ by no more than a third
    between the two."""

    @property
    def on(self) -> bool:
        """Whether this is preference tuning at all."""
        return self.loss != "none"
