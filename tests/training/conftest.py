"""A small prepared dataset and the configuration of a run on it."""

import random
from pathlib import Path

import pytest
import torch

from stablelm.config.recipe import DataRecipe
from stablelm.config.run import run_config
from stablelm.data.preparation import prepare
from stablelm.tokenizer.training import train_tokenizer

SUBJECTS = ["the river", "a small town", "my neighbour", "the old machine", "every morning", "her letter"]
VERBS = ["runs past", "remembers", "never answers", "repairs", "waits for", "writes about"]


def sentences(seed: int, count: int) -> str:
    pick = random.Random(seed)
    return " ".join(
        f"{pick.choice(SUBJECTS)} {pick.choice(VERBS)} {pick.choice(SUBJECTS)}." for _ in range(count)
    )


@pytest.fixture(scope="session")
def dataset_path(tmp_path_factory) -> Path:
    """Two sources, `tales` and `notes`, with held-out documents; tokenizer of 400 ids."""
    root = tmp_path_factory.mktemp("corpus")
    for name, files in (("tales", 40), ("notes", 25)):
        (root / name).mkdir()
        for i in range(files):
            (root / name / f"{i:02}.txt").write_text(sentences(i + (500 if name == "tales" else 0), 60))
    texts = [path.read_text() for path in sorted(root.rglob("*.txt"))]
    train_tokenizer(texts, 340, root / "tokenizer")
    recipe = DataRecipe(
        out=str(root / "prepared"),
        tokenizer=str(root / "tokenizer"),
        sources=[{"name": name, "paths": [str(root / name)]} for name in ("tales", "notes")],
        held_out=0.2,
    )
    return prepare(recipe)


@pytest.fixture
def make_config(dataset_path, tmp_path):
    """A function that makes a tiny run's configuration, with changes given as nested dictionaries."""

    def make(out="run", **changes):
        values = {
            "out": str(tmp_path / out),
            "model": {
                "vocab_size": 384, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                "intermediate_size": 64, "max_position_embeddings": 64,
            },
            "data": {
                "path": str(dataset_path),
                "epochs": {"tales": 2, "notes": 1},
                "windows": {"tales": 12, "notes": 16},
            },
            "batch": {"sequences": 4, "micro_sequences": 2, "sequence_length": 32},
            "optimizer": {"lr": 5e-3},
            "schedule": {"warmup": 0.2},
            "precision": "fp32",
            "checkpoint": {"every": 3, "keep": 2},
            # Few items: by default most of such a run's time would go into them.
            "evaluation": {"every": 4, "windows": 4, "copying": 4, "cloze": 4},
            "logging": {"every": 5},
            "device": "cpu",
        }  # fmt: skip
        for section, change in changes.items():
            values[section] = {**values.get(section, {}), **change} if isinstance(change, dict) else change
        return run_config(values)

    return make


class Recorder:
    """A console that remembers; `at` maps a step to what to do once it is made."""

    def __init__(self, at=None):
        self.records, self.messages, self.at = [], [], at or {}

    def start(self, steps, done):
        self.steps, self.done = steps, done

    def step(self, record, eta_seconds, line):
        self.records.append(record)
        if record["step"] in self.at:
            self.at[record["step"]]()

    def message(self, text):
        self.messages.append(text)

    def stop(self):
        self.stopped = True


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
