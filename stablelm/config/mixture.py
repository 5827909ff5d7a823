"""What a run reads: sources, epochs, phases, and the order of a GPT-NeoX run to be continued."""

from fractions import Fraction
from typing import Literal

from pydantic import Field, field_validator, model_validator

from stablelm.config.adaptation import ReplayConfig
from stablelm.config.optimization import ScheduleConfig
from stablelm.config.schema import Schema

NO_PATHS = "(train-data-paths is empty)"
"""Stands in data.neox.paths for a GPT-NeoX YAML that names no data: it can be planned, not trained."""


class PhaseConfig(Schema):
    """A part of the run with settings of its own. Each source goes on where the phases before it stopped."""

    epochs: dict[str, float | str] = Field(default_factory=dict)
    """Source name → epochs that this phase adds, honoured exactly; a source may come or go. Left out where
    data.epochs is the mixture of all phases."""
    until_step: int | None = Field(None, ge=1)
    """The optimizer step of the run after which this phase ends although its epochs are not complete; null
    reads them whole. Required before a phase that changes batch, context or learning rate."""
    document_boundaries: bool | None = None
    """As data.document_boundaries, for this phase alone; null takes that."""
    sequences: int | None = Field(None, ge=1)
    """Sequences in a step of this phase; null takes batch.sequences."""
    sequence_length: int | None = Field(None, ge=2)
    """Tokens of context in this phase, a divisor of batch.sequence_length, whose windows are then cut into
    that many sequences of one step; null takes all of it. A pass takes as many more of them."""
    schedule: ScheduleConfig | None = None
    """A learning rate planned over this phase alone, from its own warm-up to its own cooldown; null goes on
    with the run's."""
    lr: float | None = Field(None, gt=0)
    """Peak learning rate in this phase; null takes optimizer.lr."""

    @field_validator("epochs")
    @classmethod
    def _positive(cls, epochs: dict[str, float | str]) -> dict[str, float | str]:
        return _positive_epochs(epochs)


class NeoxConfig(Schema):
    """Token files and settings of a GPT-NeoX run whose order of samples is to be continued."""

    paths: list[str] = Field(min_length=1)
    """Prefixes of the .bin and .idx files: train_data_paths, or with `split` the one data_path."""
    weights: list[float] = Field(default_factory=list)
    """train_data_weights, one for each path; empty gives each the weight 1."""
    split: str | None = None
    """`split` of a run with a single data_path, such as "969, 30, 1": its first part is read, without
    blending. null for a run with train_data_paths, which reads every document."""
    train_iters: int = Field(ge=1)
    """Steps that the old run was planned for; with batch.sequences they decide its order."""
    tokenizer: str
    """The tokenizer.json of these files, or the directory that holds it."""

    @model_validator(mode="after")
    def _check(self) -> "NeoxConfig":
        if self.weights and len(self.weights) != len(self.paths):
            raise ValueError(f"{len(self.paths)} paths have {len(self.weights)} weights; give each path one")
        if any(weight <= 0 for weight in self.weights):
            raise ValueError("weights must be above 0; leave the path out instead")
        if self.split is not None and (len(self.paths) > 1 or self.weights):
            raise ValueError("`split` belongs to a single data_path without weights; leave it out")
        if len(self.paths) > 254:
            raise ValueError(f"{len(self.paths)} paths; GPT-NeoX blends fewer than 255")
        return self


class DataConfig(Schema):
    """What is read, how often and in which order."""

    path: str = ""
    """Directory that `stablelm data prepare` wrote; required unless `order` is neox."""
    epochs: dict[str, float | str] = Field(default_factory=dict)
    """Source name → epochs, honoured exactly; fractions as 1.5 or "7/3". Required without `phases`."""
    phases: list[PhaseConfig] = Field(default_factory=list)
    """To change settings during the run: a list of {epochs: {web: 2, code: 1}, until_step: null,
    document_boundaries: null, sequences: null, sequence_length: null, schedule: null, lr: null}. Either each
    phase says how many epochs it adds, and each source goes on where the phases before stopped, or
    data.epochs is the mixture of all of them and all but the last say `until_step`. A run may be resumed with
    another future: phases added, or the present one ended by `until_step`."""
    replay: ReplayConfig | None = None
    """Also read what an older run was trained on: {run: RUN, share: 0.05, path: null}. Its sources need not
    be named."""
    windows: dict[str, int] = Field(default_factory=dict)
    """Source name → use only its first this many windows of batch.sequence_length tokens; empty uses all."""
    skip: list[tuple[int, int]] = Field(default_factory=list)
    """[first, last] sample numbers to leave out, such as those of the steps before a loss spike
    (`first_sample` and `last_sample` in metrics.jsonl). A run may be resumed with more of them ahead."""
    document_boundaries: bool = False
    """Attention stays within a document, and positions start anew in each. The original run is reported to
    have had this in its last phase only. Held-out loss is always measured without."""
    order: Literal["stablelm", "neox"] = "stablelm"
    """neox repeats the order of a GPT-NeoX run, to continue it; it wants `neox`."""
    neox: NeoxConfig | None = None
    """For order neox: {paths: [prefix of .bin and .idx, …], weights: [1.0, …], split: null, train_iters:
    steps of the old run, tokenizer: its tokenizer.json}."""

    @field_validator("epochs")
    @classmethod
    def _positive(cls, epochs: dict[str, float | str]) -> dict[str, float | str]:
        return _positive_epochs(epochs)

    @field_validator("skip")
    @classmethod
    def _ranges(cls, skip: list[tuple[int, int]]) -> list[tuple[int, int]]:
        for first, last in skip:
            if not 0 <= first <= last:
                raise ValueError(f"[{first}, {last}] is no range of sample numbers; write [first, last]")
        return skip

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        if self.order == "neox":
            if self.neox is None:
                raise ValueError("order neox wants the section `neox`: paths, train_iters, tokenizer")
            given = [
                name for name in ("path", "epochs", "phases", "windows", "replay") if getattr(self, name)
            ]
            if given:
                raise ValueError(f"order neox reads data.neox alone; leave out {', '.join(given)}")
            return self
        if self.neox is not None:
            raise ValueError("the section `neox` wants order: neox")
        if not self.path:
            raise ValueError("path is required: the directory that `stablelm data prepare` wrote")
        if not self.epochs and not self.phases:
            raise ValueError("name at least one source, for example epochs: {web: 4}")
        for number, phase in enumerate(self.phases):
            if self.epochs and phase.epochs:
                raise ValueError(
                    f"epochs and phases.{number}.epochs are both given; keep one: a mixture of the whole run "
                    "(phases without epochs), or one for each phase"
                )
            if not self.epochs and not phase.epochs:
                raise ValueError(
                    f"phases.{number}: name at least one source, for example epochs: {{web: 4}}, or give "
                    "data.epochs for all phases"
                )
            if self.epochs and phase.until_step is None and number < len(self.phases) - 1:
                raise ValueError(f"phases.{number}: without epochs of its own it needs until_step to end")
        unknown = sorted(set(self.windows) - set(self.sources()))
        if unknown:
            where = "data.phases do" if not self.epochs else "data.epochs does"
            raise ValueError(f"data.windows names {unknown[0]!r}, which {where} not")
        return self

    def parts(self) -> list[PhaseConfig]:
        """The phases, each with its mixture; `epochs` alone are one; none in order neox."""
        if not self.epochs:
            return list(self.phases)
        phases = self.phases or [PhaseConfig()]
        return [phase.model_copy(update={"epochs": self.epochs}) for phase in phases]

    def mixtures(self) -> list[PhaseConfig]:
        """The phases that each have epochs of their own: one where `epochs` are those of the whole run."""
        if not self.epochs:
            return list(self.phases)
        until = self.phases[-1].until_step if self.phases else None
        return [PhaseConfig(epochs=self.epochs, until_step=until)]

    def sources(self) -> list[str]:
        """Names of the sources, in the order of the alphabet."""
        return sorted({name for phase in self.parts() for name in phase.epochs})


def _positive_epochs(epochs: dict[str, float | str]) -> dict[str, float | str]:
    for name, value in epochs.items():
        if as_fraction(value) <= 0:
            raise ValueError(
                f"source {name!r}: epochs must be above 0, not {value}; leave the source out instead"
            )
    return epochs


def as_fraction(value: float | str) -> Fraction:
    """An epoch count as an exact rational: 1.5, "1.15" and "7/3" mean what they print."""
    try:
        return Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{value!r} is not a number or a fraction such as 7/3") from None
