"""Supervised fine-tuning: the trainer of pre-training, reading examples.

Steps, checkpoints, parallelism and resume are the trainer's; what is here opens the base model's
configuration and tokenizer, reads the examples, and measures the loss on those held out. The run's directory
opens as the tuned model: its newest checkpoint carries the tokenizer with the chat template."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stablelm.config import InputError, ModelConfig, RunConfig
from stablelm.config.finetune import SOURCE, FinetuneConfig, TuningAdapterConfig
from stablelm.config.model import from_huggingface
from stablelm.data.run_data import TrainingData
from stablelm.data.samples import Samples
from stablelm.finetuning.data import PairData, TuningData
from stablelm.finetuning.low_rank import (
    adapted_plan,
    adapter_files,
    build_adapted,
    trained_numbers,
    write_result,
)
from stablelm.finetuning.noise import EmbeddingNoise
from stablelm.finetuning.packing import ExampleSamples, Rows
from stablelm.interchange import open_path
from stablelm.interchange.base import Base
from stablelm.interchange.gguf import is_gguf
from stablelm.interchange.hub import resolve
from stablelm.interchange.huggingface import read_config
from stablelm.interchange.native import finished_checkpoints
from stablelm.interchange.neox import is_neox
from stablelm.interchange.open import locate
from stablelm.interchange.peft import is_adapter
from stablelm.interchange.quantized import is_quantized
from stablelm.model import StableLM
from stablelm.storage import read_json, write_json
from stablelm.tokenizer import Tokenizer
from stablelm.training import Trainer
from stablelm.training.building import Start
from stablelm.training.console import Console
from stablelm.training.parallel.apply import reshard
from stablelm.training.passes import summed
from stablelm.training.trainer import train_by

_FIXED = {
    "": ("neftune", "label_smoothing"),
    "preference": ("loss", "beta", "label_smoothing", "desirable_weight", "undesirable_weight"),
    "adapter": tuple(sorted(TuningAdapterConfig.model_fields, key=lambda name: name != "rank")),
    "data": (
        "format",
        "keys",
        "train_on",
        "template",
        "too_long",
        "on_error",
        "held_out_share",
        "packing",
        "fim",
    ),
}
"""Settings that decide what is learnt, by section."""
FEW_STEPS = 10
"""Below this, a run is told that it is hardly one."""


def finetune(config: FinetuneConfig, *, resume: bool = False, console: Console | None = None) -> Path:
    """Tunes as configured and returns the run's directory, which opens as the tuned model.

    `InputError` for a model, examples or settings that do not go together; `RunError` when the training
    itself cannot go on."""
    model, data = prepare(config)
    return train_by(tuner_of(data, config), config.run(model), resume=resume, console=console)


def tuner_of(data: TuningData, config: FinetuneConfig) -> Callable[..., Trainer]:
    """What makes the trainer of a run on these data."""
    if isinstance(data, PairData):
        from stablelm.finetuning.preference_tuner import PreferenceTuner

        return partial(PreferenceTuner, data, config)
    return partial(Tuner, data, config)


def prepare(config: FinetuneConfig) -> tuple[ModelConfig, TuningData]:
    """Architecture of the base model, and the examples as it will read them; no weight is read."""
    model, tokenizer = open_base(config.model)
    config.run(model)  # settings that do not fit are told before the examples are read
    if (adapter := config.adapter.asked()) is not None:
        trained_numbers(adapter, model)
    kind = PairData if config.preference.on else TuningData
    return model, kind(config, model, tokenizer)


def open_base(name: str) -> tuple[ModelConfig, Tokenizer]:
    """Configuration and tokenizer of the model to be tuned; `InputError` where it cannot be."""
    folder = resolve(name)
    if is_gguf(folder) or is_neox(folder) or is_adapter(folder):  # whose configuration comes with the weights
        network, found = open_path(folder)
        config, tokenizer = network.config, found
    else:
        place = locate(folder)
        if is_quantized(place):
            raise InputError(
                f"{name}: its weights are packed, and packed weights cannot be trained. Tune the model that "
                "they were made from, and quantise the result."
            )
        config = from_huggingface(read_config(place), str(place / "config.json"))
        tokenizer = Tokenizer.from_file(place) if (place / "tokenizer.json").is_file() else None
    if tokenizer is None:
        raise InputError(
            f"{name}: has no tokenizer.json, so examples cannot become tokens. Put the one that it was "
            "trained with there."
        )
    return config, tokenizer


class Tuner(Trainer):
    """A run on examples."""

    def __init__(
        self,
        data: TuningData,
        settings: FinetuneConfig,
        config: RunConfig,
        console: Console | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """`settings` are the user's, `config` the training run that they make."""
        self.data, self.settings, self.adapter = data, settings, settings.adapter.asked()
        self.base: Base | None = None
        """What the adapter stands on."""
        super().__init__(config, console, device=device, dtype=dtype)
        self.model.lm_head.smoothing = settings.label_smoothing
        self.noise: EmbeddingNoise | None = None
        if settings.neftune:
            self.noise = EmbeddingNoise(settings.neftune, self.order, config.seed, config.model.hidden_size)
            self.model.model.embed_tokens.register_forward_hook(self.noise.hook)

    def open(self, config: RunConfig) -> tuple[TrainingData, Samples]:
        """The examples, in the order of a run of this configuration."""
        self.order = ExampleSamples(self.data.rows, config)
        return self.data, self.order

    def make_plan(self) -> None:
        """Derived quantities; of an adapter, what it trains."""
        super().make_plan()
        if self.adapter is not None:
            self.plan = adapted_plan(self.plan, self.config, self.adapter)

    def build(self, dtype: torch.dtype | None) -> tuple[StableLM, Start]:
        """The base model, or an adapter on it."""
        if self.adapter is None:
            return super().build(dtype)
        config, adapter = self.config, self.adapter
        model, start, self.base = build_adapted(config, adapter, self.layout, self.device, dtype)
        return model, start

    def files(self) -> dict[str, bytes]:
        """What a checkpoint keeps beside tensors and numbers."""
        if self.adapter is None or self.base is None:
            return super().files()
        return {**super().files(), **adapter_files(self.adapter, self.base)}

    def train(self, resume: bool, force_data: bool = False) -> Path:
        """Runs to the last step; an adapter is then in RUN/adapter, too."""
        run = super().train(resume, force_data)
        if self.adapter is not None:
            self.ranks.at_first(lambda: write_result(run, list(super(Tuner, self).files())))
        return run

    def _begin(self, resume: bool, force_data: bool) -> None:
        if resume and finished_checkpoints(self.run):
            self.ranks.at_first(self._same_settings)
        super()._begin(resume, force_data)

    def _same_settings(self) -> None:
        """Refuses to go on with other settings of the loss or the examples than the run began with."""
        path = self.run / "finetune.json"
        began, now = read_json(path), self.settings.model_dump(mode="json")
        for section, keys in _FIXED.items():
            saved, given = (values.get(section, {}) if section else values for values in (began, now))
            for key in keys:
                if key in saved and saved[key] != given[key]:
                    name = f"{section}.{key}" if section else key
                    raise InputError(
                        f"{path}: the run began with {name} = {saved[key]!r}, this one says {given[key]!r}. "
                        "Resume with the same, or tune anew in another --out."
                    )
        saved = finished_checkpoints(self.run)[-1]
        if self.base is not None and is_adapter(saved):
            Base.read(saved).require_same(self.base.fingerprint, Path(self.base.model), saved)

    def train_step(self) -> dict[str, Any]:
        """One optimizer step, with noise on the embeddings if asked."""
        if self.noise is None:
            return super().train_step()
        first, count, _ = self.loader.steps.span(self.step, self.plan.samples)
        begin, end = self.layout.share(count)
        with self.noise.on(self.loader.numbers(first, count)[begin:end]):
            return super().train_step()

    def _describe(self) -> None:
        super()._describe()
        write_json(self.run / "finetune.json", self.settings.model_dump(mode="json"))
        for line in self.data.describe():
            self.console.message(line)
        if self.plan.steps < FEW_STEPS:
            self.console.message(
                f"warning: only {self.plan.steps:,} step{'s' * (self.plan.steps > 1)}; lower batch.sequences "
                f"({self.config.batch.sequences:,}), or raise --epochs, for more"
            )

    def _evaluate(self) -> None:
        rows = self.data.held_rows
        count = min(len(rows), self.settings.evaluation.rows)
        if not count:
            return
        layout = self.layout
        batch = self.config.batch.micro_sequences
        self.model.lm_head.smoothing = 0.0  # what is measured is the plain loss
        found = rows_loss(self.model, rows, count, batch, layout.part, layout.data)
        self.model.lm_head.smoothing = self.settings.label_smoothing
        nats, tokens = summed(layout, torch.tensor(found, dtype=torch.float64, device=self.device)).tolist()
        size = sum(self.data.held[number].text_bytes for row in rows.examples[:count] for number in row)
        self._tell_held_out(nats, round(tokens), size, "held-out examples")
        reshard(self.model)

    def _tell_held_out(self, nats: float, tokens: int, size: int, what: str) -> None:
        """Records the loss of `tokens` held-out tokens of `size` bytes of text."""
        loss = nats / tokens
        record = {
            "step": self.step, "kind": "evaluation", "source": SOURCE, "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)), "bits_per_byte": nats / math.log(2) / max(1, size),
            "tokens": tokens, "text_bytes": size,
        }  # fmt: skip
        self._record(record)
        self.evaluations.append(record)
        self.console.message(f"step {self.step}: {what}: loss {loss:.4f}, {tokens:,} tokens")


@torch.no_grad()
def rows_loss(
    model: StableLM, rows: Rows, count: int, batch: int, part: int = 0, parts: int = 1
) -> tuple[float, int]:
    """Summed −ln p, and number, of the trained tokens in the first `count` rows that fall to `part` of
    `parts` processes, each of which makes equally many passes of `batch` rows."""
    nats, tokens = 0.0, 0
    for first in range(part * batch, count + part * batch, batch * parts):
        chosen = np.arange(first, min(first + batch, count))
        mine = chosen if len(chosen) else np.arange(1)  # no row is left for this one: a pass without targets
        samples = torch.from_numpy(rows.ids(mine))
        labels = samples[:, 1:] if len(chosen) else torch.full_like(samples[:, 1:], -1)
        inputs = torch.where(samples < 0, ~samples, samples)[:, :-1]
        ids = torch.from_numpy(rows.documents(mine))
        nats += float(model(inputs.to(model.device), labels=labels.to(model.device), document_ids=ids))
        tokens += int((labels >= 0).sum())
    return nats, tokens
