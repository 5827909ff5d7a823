"""An independent trainer, `transformers` with torch's AdamW and LambdaLR, agrees step by step."""

import math

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from stablelm.config.recipe import DataRecipe
from stablelm.config.run import run_config
from stablelm.data import Dataset, Loader
from stablelm.data.preparation import prepare
from stablelm.interchange import open_path, save_pretrained
from stablelm.model import StableLM
from stablelm.tokenizer.training import train_tokenizer
from stablelm.training import train
from stablelm.training.metrics import read_metrics

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.oracle

STEPS, BATCH, LENGTH, PEAK, FLOOR, WARMUP = 50, 6, 64, 1e-3, 0.04, 5
MODEL = {
    "vocab_size": 1024, "hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 256, "max_position_embeddings": 128,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory, shared):
    """Our 50 steps on real text, three micro-batches a step, from weights with LayerNorm off the identity."""
    root = tmp_path_factory.mktemp("parity")
    tree = str(shared / "data" / "corpus" / "raw" / "tree")
    text = "\n".join(
        p.read_text("utf-8-sig") for p in sorted((shared / "data/corpus/raw/tree").rglob("*.txt"))
    )
    train_tokenizer([text], MODEL["vocab_size"], root / "tokenizer")
    data = prepare(
        DataRecipe(
            out=str(root / "data"),
            tokenizer=str(root / "tokenizer"),
            sources=[{"name": "tales", "paths": [tree]}],
            held_out=0,
        )
    )
    config = run_config(
        {
            "out": str(root / "run"), "model": MODEL, "init": str(root / "initial"),
            "data": {"path": str(data), "epochs": {"tales": 1}},
            "batch": {"sequences": BATCH, "micro_sequences": 2, "sequence_length": LENGTH},
            "optimizer": {"lr": PEAK}, "schedule": {"warmup": WARMUP / STEPS, "floor": FLOOR},
            "steps": STEPS, "precision": "fp32", "loss_chunk": 37, "device": "cpu",
        }
    )  # fmt: skip
    model = StableLM(config.model, seed=11)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    save_pretrained(model, None, root / "initial")
    return config, train(config)


def test_losses_norms_rates_and_final_weights_agree(run):
    config, directory = run
    model = transformers.AutoModelForCausalLM.from_pretrained(config.init, dtype=torch.float32)
    norms = {id(p) for m in model.modules() if isinstance(m, torch.nn.LayerNorm) for p in m.parameters()}
    groups = [
        {"params": [p for p in model.parameters() if id(p) not in norms], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if id(p) in norms], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.95), eps=1e-6, foreach=False)

    def factor(step: int) -> float:
        if step <= WARMUP:
            return max(1, step) / WARMUP
        return FLOOR + (1 - FLOOR) / 2 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))

    schedule = LambdaLR(optimizer, factor)
    loader = Loader(Dataset(config.data.path), config.data, LENGTH, config.seed)
    ours = read_metrics(directory)
    ours = [record for record in ours if "kind" not in record]
    assert len(ours) == STEPS
    clipped = 0
    for step, record in enumerate(ours):
        ids = torch.from_numpy(loader.samples(step * BATCH, BATCH))
        logits = model(input_ids=ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        clipped += bool(norm > 1)
        assert record["loss"] == pytest.approx(loss.item(), abs=1e-4)
        assert record["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)
        assert record["lr"] == pytest.approx(schedule.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    assert clipped > 5, "the comparison must include clipped steps"
    final, _ = open_path(directory)
    theirs = dict(model.named_parameters())
    for name, parameter in final.named_parameters():
        assert (parameter - theirs[name]).abs().max() <= 1e-4, name
    assert ours[-1]["loss"] < ours[0]["loss"] - 0.7
