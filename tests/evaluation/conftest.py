"""A small model with a tokenizer, saved as any other."""

import pytest

from stablelm.config import ModelConfig
from stablelm.interchange import save_pretrained
from stablelm.model import StableLM
from stablelm.tokenizer import Tokenizer
from stablelm.tokenizer.training import train_tokenizer

TEXTS = [
    "Question: what is the answer of the small town? Answer: yes, no, the river runs past the old machine."
]


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    """Its directory: 2 layers, a byte-level tokenizer of 285 ids, 256 tokens of context."""
    folder = tmp_path_factory.mktemp("evaluated") / "small"
    train_tokenizer(TEXTS, 285, folder.with_name("tokenizer"))
    config = ModelConfig(
        vocab_size=384, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=256,
    )  # fmt: skip
    tokenizer = Tokenizer.from_file(folder.with_name("tokenizer"))
    save_pretrained(StableLM(config, seed=5), tokenizer, folder)
    return folder
