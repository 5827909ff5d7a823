"""Preference tuning: the trainer of pre-training, with another loss on pairs of answers.

A step's loss is the mean over its pairs, counted over all processes before the first pass; steps,
checkpoints, meshes and resume are the trainer's. Both sides of a pair are read in the same pass."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stablelm.config import InputError
from stablelm.config.finetune import SOURCE
from stablelm.config.preference import PreferenceConfig
from stablelm.config.tuning_evaluation import ANSWERS, LOSS
from stablelm.finetuning.answers import (
    FILE,
    answer_sums,
    files_hash,
    lanes_of,
    read_reference,
    sums,
    write_reference,
)
from stablelm.finetuning.best import Best
from stablelm.finetuning.data import PairData
from stablelm.finetuning.held_out import loss_numbers
from stablelm.finetuning.packing import Int64, PairRows
from stablelm.finetuning.preference import compared, described, judged
from stablelm.finetuning.tuner import Tuner
from stablelm.interchange.gguf import is_gguf
from stablelm.interchange.hub import resolve
from stablelm.interchange.neox import is_neox
from stablelm.interchange.open import locate
from stablelm.storage import fingerprint
from stablelm.training.batches import Batch
from stablelm.training.parallel.apply import accumulate, reshard
from stablelm.training.passes import norm_of, summed

LARGE, HIGH = 500_000_000, 5e-6
"""Parameters from which, and learning rate above which, a run is warned."""


class PreferenceTuner(Tuner):
    """A run on pairs of answers, or on judged ones."""

    data: PairData
    reference: dict[str, Tensor]
    """ln π_ref of each pair's sides, float64 [2, pairs], by side of the data; made where the run begins."""
    told: dict[str, float]
    """Of the newest step."""

    @property
    def choice(self) -> PreferenceConfig:
        """The loss."""
        return self.settings.preference

    @property
    def judging(self) -> bool:
        """Whether single answers are judged, not pairs compared."""
        return self.choice.loss == "kto"

    @property
    def lanes(self) -> tuple[int, ...]:
        """Sides that a gradient goes through."""
        return (0,) if self.judging else (0, 1)

    @property
    def sides(self) -> dict[str, PairRows]:
        """Rows by side of the data."""
        return {"train": self.data.rows, "held_out": self.data.held_rows}

    def _begin(self, resume: bool, force_data: bool) -> None:
        """With the reference, which is made before a checkpoint replaces the weights."""
        going_on = resume and bool(self.ranks.at_first(self._saved))
        sizes = {name: len(rows.pairs) for name, rows in self.sides.items()}
        about = self.ranks.at_first(self._about)
        found, made_of = self.ranks.at_first(lambda: read_reference(self.run, sizes))
        same = {name for name in about if made_of.get(name) == about[name]}
        if going_on and made_of and "data" not in same:
            super()._begin(resume, force_data)  # which refuses, and says what is different
            raise InputError(f"{self.run / FILE}: is of other examples or of another precision.")
        usable = bool(found) and (going_on or len(same) == len(about))
        if going_on and not usable:
            self.console.message(f"{self.run / FILE}: not there any more, or damaged; made again")
        if going_on and usable and "model" not in same:
            self.console.message(
                f"warning: {self.settings.model} has changed since the run began, which goes on from its own "
                "checkpoint, against the reference of then"
            )
        if usable:
            self.reference = {name: torch.as_tensor(part).to(self.device) for name, part in found.items()}
        else:
            self._read_answers()
        super()._begin(resume, force_data)
        if not usable:
            self.ranks.at_first(lambda: write_reference(self.run, self.reference, about))

    def _describe(self) -> None:
        super()._describe()
        if self.plan.trained > LARGE and self.config.optimizer.lr > HIGH:
            self.console.message(
                f"warning: learning rate {self.config.optimizer.lr:g}; preference tuning of a whole model "
                "of this size wants 1e-7 to 1e-6, or it forgets how to write (--lr)"
            )

    def _about(self) -> dict[str, str]:
        """What the reference's numbers depend on, hashed."""
        folder = resolve(self.settings.model)
        place = folder if is_gguf(folder) or is_neox(folder) else locate(folder)
        data = fingerprint([self.data.fingerprint, self.config.precision])
        return {"data": data, "model": files_hash(Path(place))}

    def _read_answers(self) -> None:
        self.console.message("reading all answers once, for their log-probabilities before training")
        batch = self.config.batch.micro_sequences
        self.reference = {
            name: answer_sums(self.model, rows, len(rows), batch, self.layout, self.console.message)
            for name, rows in self.sides.items()
        }
        reshard(self.model)

    def train_step(self) -> dict[str, Any]:
        """One optimizer step; tokens are those of all rows with a gradient."""
        record = super().train_step()
        for key in ("tokens", "step_tokens"):
            record[key] *= len(self.lanes)
        return (
            record if "reason" in record else record | self.told
        )  # of a rejected step none of it is a number

    def passes(self, batch: Batch) -> tuple[float, Tensor]:
        """Leaves the step's gradients in the parameters → mean loss, gradient norm before clipping."""
        first, count, _ = self.loader.steps.span(self.step, self.plan.samples)
        begin, end = self.layout.share(count)
        rows = self.order.mixture.address(self.loader.numbers(first, count)[begin:end])[2]
        micro, kept = self.config.batch.micro_sequences, self.sides["train"]
        passes = [
            rows[n * micro : (n + 1) * micro]
            for n in range(math.ceil(math.ceil(count / self.layout.data) / micro))
        ]
        pairs = float(summed(self.layout, self._number(len(kept.members(rows)))))
        kl = 0.0
        if self.judging:
            with torch.no_grad():
                told = [self._sums(batch, n, mine, (1,)) for n, mine in enumerate(passes)]
            ratio = torch.cat(told, dim=1).sum() - self.reference["train"][1, kept.members(rows)].sum()
            kl = max(0.0, float(summed(self.layout, ratio)) / pairs)
        tally = torch.zeros(9, dtype=torch.float64, device=self.device)
        for number, mine in enumerate(passes):
            accumulate(
                self.model, self.layout.replicates, self.config.parallel.zero, last=number == len(passes) - 1
            )
            logps = self._sums(batch, number, mine, self.lanes)
            losses, part = self._losses(logps, kept, kept.members(mine), "train", kl)
            (losses.sum() / pairs).backward()  # type: ignore[no-untyped-call]
            tally += part
        self.told = described(summed(self.layout, tally), judging=self.judging, kl=kl)
        return self.told.pop("loss"), norm_of(self.model, self.layout)

    def _number(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float64, device=self.device)

    def _sums(self, batch: Batch, number: int, mine: Int64, lanes: Sequence[int]) -> Tensor:
        """ln p of the answers in one pass of a step, [lanes, pairs]; its rows are `mine`."""
        assert batch.documents is not None
        first = number * self.config.batch.micro_sequences
        part = slice(first, first + len(mine)) if len(mine) else slice(0, 1)
        samples = batch.samples[part] if len(mine) else torch.full_like(batch.samples[part], -1)
        pairs = self.sides["train"].members(mine)
        lengths = self.sides["train"].lengths(pairs, lanes)
        found = sums(self.model, *lanes_of(samples, batch.documents[part], lanes), lengths)
        return found.view(len(lanes), len(pairs))

    def _losses(
        self, logps: Tensor, rows: PairRows, pairs: Sequence[int], side: str, kl: float
    ) -> tuple[Tensor, Tensor]:
        """Of `logps` [lanes, pairs]: losses [pairs], tally [9]."""
        reference = self.reference[side][:, pairs]
        if self.judging:
            wanted = torch.tensor([rows.pairs[n].wanted for n in pairs], dtype=torch.bool, device=self.device)
            return judged(self.choice, logps[0], reference[0], wanted, kl)
        lengths = torch.tensor(rows.lengths(pairs, (0, 1)), device=self.device).view(2, -1)
        return compared(self.choice, logps, reference, lengths)

    def _judge(self) -> Best | None:
        """By the held-out loss of the preferences, or a task."""
        best = super()._judge()
        if best is not None and best.metric == ANSWERS:
            raise InputError(f"evaluation.best: {ANSWERS} is not measured on preferences. Judge by the loss.")
        return Best("preference_loss", best.patience) if best is not None and best.metric == LOSS else best

    def _measure_held_out(self) -> None:
        """Loss and rewards of the held-out pairs; and how likely their chosen answers are a token."""
        rows = self.sides["held_out"]
        count = min(len(rows), self.settings.evaluation.rows)
        if not count:
            return
        pairs = rows.members(np.arange(count))
        logps = answer_sums(self.model, rows, count, self.config.batch.micro_sequences, self.layout)[:, pairs]
        reshard(self.model)
        kl = 0.0
        if self.judging:
            kl = max(0.0, float((logps[1] - self.reference["held_out"][1, pairs]).mean()))
        _, tally = self._losses(logps, rows, pairs, "held_out", kl)
        told = described(tally, judging=self.judging, kl=kl)
        record = {"step": self.step, "kind": "preference", "source": SOURCE, "pairs": len(pairs), **told}
        self._record(record)
        self.suite.append(record)
        shown = f"loss {told['loss']:.4f}"
        if "rewards/accuracies" in told:
            shown += f", {100 * told['rewards/accuracies']:.1f} % of {len(pairs):,} pairs right"
        if "rewards/margins" in told:
            shown += f", margin {told['rewards/margins']:.4f}"
        self.console.message(f"step {self.step}: held-out preferences: {shown}")
        chosen = [place for place, number in enumerate(pairs) if rows.pairs[number].wanted]
        wanted = [pairs[place] for place in chosen]
        if tokens := sum(rows.lengths(wanted, (0,))):
            size = sum(rows.pairs[number].text_bytes for number in wanted)
            numbers = loss_numbers(-float(logps[0, chosen].sum()), tokens, size)
            numbers["preference_loss"] = told["loss"]
            self._tell_held_out(numbers, "held-out chosen answers")
