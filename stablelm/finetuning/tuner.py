"""Supervised fine-tuning: the trainer of pre-training, reading examples.

Steps, checkpoints, parallelism and resume are the trainer's; what is here opens the base model's
configuration and tokenizer, reads the examples, and measures the loss on those held out. The run's directory
opens as the tuned model: its newest checkpoint carries the tokenizer with the chat template."""

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from stablelm.config import InputError, ModelConfig, RunConfig
from stablelm.config.finetune import SOURCE, FinetuneConfig, TuningAdapterConfig
from stablelm.config.model import from_huggingface
from stablelm.config.tuning_evaluation import ANSWERS, LOSS
from stablelm.data.run_data import TrainingData
from stablelm.data.samples import Samples
from stablelm.finetuning.answering import prompts_of, write
from stablelm.finetuning.best import Best
from stablelm.finetuning.data import PairData, TuningData
from stablelm.finetuning.dropout import AdapterDropout
from stablelm.finetuning.held_out import measure
from stablelm.finetuning.low_rank import (
    adapted_plan,
    adapter_files,
    build_adapted,
    trained_numbers,
    write_result,
)
from stablelm.finetuning.noise import EmbeddingNoise
from stablelm.finetuning.packing import ExampleSamples
from stablelm.interchange import open_path
from stablelm.interchange.base import Base
from stablelm.interchange.gguf import is_gguf
from stablelm.interchange.hub import resolve
from stablelm.interchange.huggingface import read_config
from stablelm.interchange.native import BEST, best_of, finished_checkpoints, step_of
from stablelm.interchange.neox import is_neox
from stablelm.interchange.open import locate
from stablelm.interchange.peft import is_adapter
from stablelm.interchange.quantized import is_quantized
from stablelm.model import StableLM
from stablelm.storage import json_bytes, read_json, write_json
from stablelm.tokenizer import Tokenizer
from stablelm.training import Trainer
from stablelm.training.building import Start
from stablelm.training.console import Console
from stablelm.training.evaluating import HELD_OUT, told
from stablelm.training.parallel.apply import reshard
from stablelm.training.running import train_by

_FIXED = {
    "": ("neftune", "label_smoothing", "quantize"),
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
    model, tokenizer = open_base(config.model, config.adapter.rank, config.quantize)
    config.run(model)  # settings that do not fit are told before the examples are read
    if (adapter := config.adapter.asked()) is not None:
        trained_numbers(adapter, model)
    kind = PairData if config.preference.on else TuningData
    return model, kind(config, model, tokenizer)


def open_base(name: str, rank: int = 0, bits: int | None = None) -> tuple[ModelConfig, Tokenizer]:
    """Configuration and tokenizer of the model to be tuned, by an adapter of `rank` or (0) whole, upon its
    weights in `bits` if given; `InputError` where it cannot be."""
    folder = resolve(name)
    if is_gguf(folder) or is_neox(folder) or is_adapter(folder):  # whose configuration comes with the weights
        network, found = open_path(folder)
        config, tokenizer = network.config, found
    else:
        place = locate(folder)
        if is_quantized(place) and not rank:
            raise InputError(
                f"{name}: its weights are packed, and packed weights cannot be trained; an adapter on them "
                "can: --lora 16. Or tune the model that they were made from."
            )
        if is_quantized(place) and bits is not None:
            raise InputError(f"{name}: its weights are packed already; leave --quantize {bits} away.")
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
        self.prompts = prompts_of(settings.evaluation, data, config.model)
        super().__init__(config, console, device=device, dtype=dtype)
        self.model.lm_head.smoothing = settings.label_smoothing
        self.measures.likelihood = not settings.label_smoothing
        self.best = self._judge()
        self.noise: EmbeddingNoise | None = None
        if settings.neftune:
            self.noise = EmbeddingNoise(settings.neftune, self.order, config.seed, config.model.hidden_size)
            self.model.model.embed_tokens.register_forward_hook(self.noise.hook)
        self.dropout: AdapterDropout | None = None
        if self.adapter is not None and self.adapter.dropout:
            self.dropout = AdapterDropout(self.model, self.adapter.dropout, config.seed)

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
        built = build_adapted(config, adapter, self.layout, self.device, dtype, self.settings.quantize)
        model, start, self.base = built
        return model, start

    def files(self) -> dict[str, bytes]:
        """What a checkpoint keeps beside tensors and numbers; which one is the best among it."""
        found = {**super().files(), **self._best_file()}
        if self.adapter is not None and self.base is not None:
            found |= adapter_files(self.adapter, self.base)
        return found

    def train(self, resume: bool, force_data: bool = False) -> Path:
        """Runs to its end, and says what the run's directory then opens as; an adapter is in RUN/adapter,
        too."""
        run = super().train(resume, force_data)
        if self.adapter is not None:
            self.ranks.at_first(lambda: write_result(run, list(super(Tuner, self).files())))
        if self.best is not None:
            self.ranks.at_first(self._tell_best)
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
        """One optimizer step, with noise on the embeddings and dropout before an adapter if asked."""
        drawn = [one for one in (self.noise, self.dropout) if one is not None]
        if not drawn:
            return super().train_step()
        first, count, _ = self.loader.steps.span(self.step, self.plan.samples)
        begin, end = self.layout.share(count)
        numbers = self.loader.numbers(first, count)[begin:end]
        with ExitStack() as stack:
            for one in drawn:
                stack.enter_context(one.on(numbers))
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

    def _judge(self) -> Best | None:
        """How the run is judged, if asked; `InputError` where that is not measured."""
        settings, judged = self.settings.evaluation, self.settings.evaluation.judged_by
        if judged is None:
            return None
        if not self.data.held:
            raise InputError(
                "evaluation.best: no example is held out. Give more examples, or --held-out FILE."
            )
        if judged == ANSWERS and not self.data.answers:
            raise InputError(
                f"evaluation.best: {ANSWERS} wants examples with answers, and these are texts, or are "
                "trained whole (data.train_on). Judge by the loss."
            )
        tasks = self.evaluator.tasks.members if self.evaluator.tasks else []
        if judged not in (LOSS, ANSWERS, *tasks):
            raise InputError(f"evaluation.best: {judged} is no task; there are {', '.join(tasks) or 'none'}.")
        return Best(judged, settings.patience)

    def ended(self) -> str | None:
        """Why no step is left to make: all are done, or none was better for too long."""
        if (why := super().ended()) or self.best is None or not self.best.stops(self.evaluations):
            return why
        return (
            f"no better {self.best.metric} in {self.best.patience} evaluations: stopped at step {self.step:,}"
        )

    def _best_file(self) -> dict[str, bytes]:
        """Which checkpoint is the best: this one, or one that is on the disk."""
        if self.best is None:
            return {}
        self.checkpoints.settle()
        steps = self.ranks.at_first(lambda: [step_of(path) for path in finished_checkpoints(self.run)])
        found = self.best.of(self.evaluations, {*steps, self.step})
        self.checkpoints.protected = frozenset({found["step"]} if found else ())
        return {BEST: json_bytes(found)} if found else {}

    def _tell_best(self) -> None:
        saved = finished_checkpoints(self.run)
        found = best_of(saved[-1]) if saved else None
        if found is not None:
            self.console.message(
                f"{self.run}: opens as its best checkpoint, step-{found['step']:06d} ({found['metric']} "
                f"{found['value']:.4f}); the newest is {saved[-1].name}"
            )

    def _evaluate(self) -> None:
        self.suite = []
        for found in self.evaluator.records(self.model, self.share):
            self._tell({"step": self.step, **found}, told(found))
            self.suite.append({"step": self.step, **found})
        self._measure_held_out()
        self._write_samples()
        reshard(self.model)

    def _tell(self, record: dict[str, Any], words: str) -> None:
        self._record(record)
        self.console.message(f"step {self.step}: {words}")

    def _measure_held_out(self) -> None:
        rows = self.data.held_rows
        if not (count := min(len(rows), self.settings.evaluation.rows)):
            return
        found = measure(self.model, rows, count, self.config.batch.micro_sequences, self.share)
        size = sum(self.data.held[number].text_bytes for row in rows.examples[:count] for number in row)
        numbers = found.as_dict(size, answers=self.data.answers)
        right = f", {found.answers_right:,} of {found.answers:,} answers right" if self.data.answers else ""
        self._tell_held_out(numbers, "held-out examples", right)

    def _tell_held_out(self, numbers: dict[str, Any], what: str, more: str = "") -> None:
        """Records what was measured on held-out examples, by which the run is judged."""
        record = {"step": self.step, "kind": HELD_OUT, "source": SOURCE, **numbers}
        if tasks := {one["task"]: one for one in self.suite if one["kind"] == "task"}:
            record["tasks"] = {name: {k: one[k] for k in ("metric", "value")} for name, one in tasks.items()}
        self.evaluations.append(record)
        best, mark = self.best and self.best.of(self.evaluations), ""
        if best and best["step"] == self.step:
            self.checkpoints.protected |= {self.step}  # which has it saved
            mark = f"; the best {best['metric']} so far"
        self._tell(record, f"{what}: loss {numbers['loss']:.4f}, {numbers['tokens']:,} tokens{more}{mark}")
        if self.best and self.best.stops(self.evaluations):
            self.console.message(self.ended() or "")

    def _write_samples(self) -> None:
        if not self.prompts:
            return
        tokenizer = self.data.tokenizer
        eager = torch.compiler.set_stance("force_eager") if self.evaluator.compiled else nullcontext()
        with eager:
            texts = write(
                self.model, [prompt.ids for prompt in self.prompts], self.settings.evaluation.sample_tokens,
                eos=tokenizer.eos_id, real_ids=tokenizer.size, multiple=self.layout.tensor,
                ongoing=self.ranks.any,
            )  # fmt: skip
        told: dict[str, Any] = {"step": self.step, "kind": "sample"}
        for number, (prompt, ids) in enumerate(zip(self.prompts, texts, strict=True)):
            ended = ids[-1:] == [tokenizer.eos_id]
            text = tokenizer.decode(ids[:-1] if ended else ids)
            told |= {"number": number, "prompt": prompt.text, "wanted": prompt.wanted, "text": text}
            self._record({**told, "ended": ended})
