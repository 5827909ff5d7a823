"""How a run adapts the weights it starts from: a longer context, code to be filled in, the old mixture kept
in mind."""

from typing import Any

from pydantic import Field

from stablelm.config.schema import Schema


class AdaptConfig(Schema):
    """What may differ from the architecture of the initial weights (`init`); no weight is changed by it."""

    rope_theta: float | None = Field(None, gt=0)
    """Base of the rotary frequencies: a larger one turns more slowly, which is how a longer context is learnt
    (10,000 → 1,000,000 for 4,096 → 16,384 tokens in stable-code-3b); null keeps that of the weights."""
    max_position_embeddings: int | None = Field(None, ge=1)
    """Context length in tokens that the model is to have; null keeps that of the weights."""

    def changes(self) -> dict[str, Any]:
        """The keys of the architecture that are set, with their values."""
        return {name: value for name, value in self.model_dump().items() if value is not None}


class InfillingConfig(Schema):
    """Fill-in-the-middle (Bavarian et al., 2022): some documents are cut in three, the middle moved to the
    end."""

    rate: float = Field(0.5, ge=0, le=1)
    """Share of the documents that are rearranged, chosen by a hash of each; the others stay as they are."""
    spm_rate: float = Field(0.5, ge=0, le=1)
    """Share of these with the suffix first (SPM); in the others the prefix is first (PSM), which is how
    `stablelm generate --infill` asks."""


class ReplayConfig(Schema):
    """What an older run was trained on, read on at a small share, so that less of it is forgotten."""

    run: str = Field(min_length=1)
    """The older run (its newest checkpoint counts), or one of its checkpoints. Its sources join every mixture
    as replay:NAME, in the proportions in which it had read them."""
    share: float = Field(0.05, gt=0, lt=1)
    """Share of this run's samples that are replayed."""
    path: str | None = None
    """Where the older run's prepared data are now; null: where it read them."""
