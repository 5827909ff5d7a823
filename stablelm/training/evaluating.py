"""What a run measures at intervals, and how it is told.

Held-out text per source (loss, bits per byte, calibration), copying, a cloze set made from the held-out
documents, lm_eval tasks. All of it goes through the network's own forward pass, so it works on any mesh
without gathering the model; the processes share the passes, and each has every number. What is read is made
once, when the run starts, and is always the same: nothing is drawn that training could notice. Blocks that
are compiled for training's shape answer the other shapes uncompiled."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from stablelm.config import RunConfig
from stablelm.data.replay import PREFIX as REPLAYED
from stablelm.data.run_data import TrainingData
from stablelm.evaluation import cloze, perplexity
from stablelm.evaluation.copying import copying
from stablelm.evaluation.curves import TaskSet
from stablelm.evaluation.shares import Share
from stablelm.model import StableLM
from stablelm.tokenizer import Tokenizer

HELD_OUT = "evaluation"
"""`kind` of the records of held-out text, in metrics.jsonl and in checkpoints."""


class Evaluator:
    """All that a run measures, ready."""

    def __init__(self, config: RunConfig, data: TrainingData, compiled: bool = False) -> None:
        """`InputError` for tasks that are not there. `compiled`: whether the network's blocks are."""
        self.settings, self.compiled = config.evaluation, compiled
        self.window = config.batch.sequence_length
        self.rows = config.batch.micro_sequences
        settings = self.settings
        self.tokenizer: Tokenizer | None = None
        if settings.copying or settings.cloze or settings.tasks:
            self.tokenizer = data.open_tokenizer()
        self.held_out = {
            source: (tokens, data.text_bytes(source, "held_out"))
            for source in data.sources
            if (source in config.data.sources() or source.startswith(REPLAYED))
            and (tokens := data.held_out(source)) is not None
        }
        self.cloze: dict[str, cloze.Cloze] = {}
        for source, (tokens, _) in self.held_out.items() if settings.cloze else ():
            eos = config.model.eos_token_id
            assert self.tokenizer is not None
            made = cloze.make(tokens, self.tokenizer, eos, self.settings.cloze, self.window)
            if made is not None:
                self.cloze[source] = made
        names = self.settings.tasks
        self.tasks = TaskSet(names, self.settings.task_data, self.settings.limit) if names else None

    def records(self, model: StableLM, share: Share) -> Iterator[dict[str, Any]]:
        """Each measurement, for metrics.jsonl: with its `kind`, and what it is of."""
        for source, (tokens, text_bytes) in self.held_out.items():
            windows = self.settings.windows
            result = perplexity(
                model, tokens, text_bytes, self.window, windows=windows, batch=self.rows, share=share
            )
            yield {"kind": HELD_OUT, "source": source, **result.as_dict()}
        size = self.window, self.rows * self.window
        with torch.compiler.set_stance("force_eager") if self.compiled else contextlib.nullcontext():
            if self.settings.copying and self.tokenizer is not None:
                ids = sorted(set(range(self.tokenizer.size)) - self.tokenizer.special_ids)
                yield {"kind": "copying", **copying(model, ids, self.settings.copying, *size, share)}
            for source, items in self.cloze.items():
                yield {"kind": "cloze", "source": source, **cloze.evaluate(model, items, *size, share)}
            if self.tasks is not None and self.tokenizer is not None:
                for found in self.tasks.evaluate(model, self.tokenizer, *size, share):
                    yield {"kind": "task", **found}


def told(record: dict[str, Any]) -> str:
    """A measurement on one line of the console."""
    if record["kind"] == HELD_OUT:
        return (
            f"held-out {record['source']}: loss {record['loss']:.4f}, "
            f"perplexity {record['perplexity']:,.2f}, {record['bits_per_byte']:.4f} bits per byte"
        )
    if record["kind"] == "copying":
        return (
            f"copying: {100 * record['accuracy']:.1f} % right, loss {record['loss']:.3f} the second time, "
            f"{record['first_loss']:.3f} the first"
        )
    if record["kind"] == "cloze":
        parts = []
        if "choice_accuracy" in record:
            chance = f"({100 * record['chance']:.0f} % by chance)"
            parts.append(f"{100 * record['choice_accuracy']:.1f} % of continuations {chance}")
        if "word_accuracy" in record:
            parts.append(f"{100 * record['word_accuracy']:.1f} % of last words")
        return f"cloze {record['source']}: {', '.join(parts) or 'no items'}"
    error = f" ± {record['standard_error']:.4f}" if "standard_error" in record else ""
    return f"{record['task']}: {record['metric']} {record['value']:.4f}{error}, {record['items']:,} items"
