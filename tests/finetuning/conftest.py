"""A tiny base model whose tokenizer is NeoX-like, and examples for it."""

import json
from pathlib import Path

import pytest

from stablelm.config import ModelConfig
from stablelm.config.finetune import finetune_config
from stablelm.interchange import save_pretrained
from stablelm.model import StableLM
from stablelm.tokenizer import Tokenizer, train_tokenizer
from tests.training.conftest import Recorder, _one_thread  # noqa: F401 (a fixture)

COLOURS = {"sky": "blue", "grass": "green", "snow": "white", "coal": "black", "lemon": "yellow"}


def talk(number: int) -> list[dict[str, str]]:
    """A question and its answer; some have a second turn, so lengths differ."""
    thing = list(COLOURS)[number % len(COLOURS)]
    said = [
        {"role": "user", "content": f"What colour is the {thing}, number {number}?"},
        {"role": "assistant", "content": f"The {thing} is {COLOURS[thing]}."},
    ]
    again = [
        {"role": "user", "content": "Really?"},
        {"role": "assistant", "content": f"Yes, {COLOURS[thing]}."},
    ]
    return said + again * (number % 3 == 0)


TALKS = [talk(number) for number in range(40)]


def write_lines(path: Path, records) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A model of 2 layers without a chat template, in the Hugging Face layout."""
    root = tmp_path_factory.mktemp("base")
    texts = [message["content"] for said in TALKS for message in said]
    tokenizer = train_tokenizer([*texts, *["<|user|>\n<|assistant|>\n"] * 9], 320, root / "tokenizer")
    config = ModelConfig(
        vocab_size=384, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=128,
    )  # fmt: skip
    save_pretrained(StableLM(config, seed=3), tokenizer, root / "model")
    return root / "model"


@pytest.fixture(scope="session")
def tokenizer(base) -> Tokenizer:
    return Tokenizer.from_file(base)


@pytest.fixture
def make(base, tmp_path):
    """A function that makes a run's configuration on chats, or on the records given."""

    def made(records=None, out="run", data=None, **changes):
        chats = [{"messages": said} for said in TALKS]
        path = write_lines(tmp_path / "data.jsonl", chats if records is None else records)
        values = {
            "out": str(tmp_path / out), "model": str(base),
            "data": {"paths": [str(path)], **(data or {})},
            "epochs": 2, "batch": {"sequences": 3, "micro_sequences": 2, "sequence_length": 96},
            "optimizer": {"lr": 5e-3}, "precision": "fp32", "device": "cpu",
            "checkpoint": {"every": 3}, "evaluation": {"every": 5},
        }  # fmt: skip
        for section, change in changes.items():
            values[section] = {**values.get(section, {}), **change} if isinstance(change, dict) else change
        return finetune_config(values)

    return made


__all__ = ["Recorder"]
