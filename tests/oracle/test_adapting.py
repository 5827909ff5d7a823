"""Adapted models, exported, in `transformers`: logits beyond the old context, the tokens of filling in."""

import pytest
import torch

from stablelm.config import ModelConfig
from stablelm.config.run import run_config
from stablelm.interchange import open_path, save_pretrained
from stablelm.interchange.export import export
from stablelm.model import StableLM
from stablelm.tokenizer import Tokenizer
from stablelm.tokenizer.infilling import FILL, InfillingTokenizer, with_infilling
from stablelm.training import train
from tests.training.conftest import Recorder, dataset_path  # noqa: F401 (a fixture)

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.oracle
MODEL = ModelConfig(
    vocab_size=384, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    max_position_embeddings=64,
)  # fmt: skip


@torch.no_grad()
def test_an_extended_model_is_transformers_model(dataset_path, tmp_path):  # noqa: F811
    tokenizer = Tokenizer.from_file(dataset_path)
    base = StableLM(MODEL, 7)
    for parameter in base.parameters():
        parameter.mul_(4 if parameter.dim() == 2 else 1)  # attention that prefers
    save_pretrained(base, tokenizer, tmp_path / "base")
    with torch.enable_grad():
        run = train(
            run_config({
                "out": str(tmp_path / "run"), "init": str(tmp_path / "base"), "model": MODEL.model_dump(),
                "adapt": {"rope_theta": 1e6, "max_position_embeddings": 256}, "steps": 3, "precision": "fp32",
                "data": {"path": str(dataset_path), "epochs": {"tales": 2}}, "device": "cpu",
                "batch": {"sequences": 2, "micro_sequences": 2, "sequence_length": 256},
            }),
            console=Recorder(),
        )  # fmt: skip
    list(export(run, tmp_path / "model", torch.float32))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    assert theirs.config.max_position_embeddings == 256
    ids = torch.randint(0, 340, (2, 256), generator=torch.Generator().manual_seed(3))
    ours, _ = open_path(tmp_path / "model")
    found = theirs(ids).logits
    assert (ours(ids) - found).abs().max() <= 1e-5
    before, _ = open_path(run)
    before.config = MODEL  # the same weights at the old base: another model
    assert (before(ids) - found).abs().max() > 1e-3


def test_infilling_prompts_are_those_of_the_cards_snippet(shared, tmp_path):
    made = with_infilling(Tokenizer.from_file(shared / "data" / "neox-tokenizer"))
    made.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    before, after = "def fib(n):\n", "    else:\n        return fib(n - 2) + fib(n - 1)"
    prompt = f"<fim_prefix>{before}<fim_suffix>{after}<fim_middle>"
    assert InfillingTokenizer(made).encode(before + FILL + after) == theirs(prompt)["input_ids"]
    assert len(theirs) == 50_281
