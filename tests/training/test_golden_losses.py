"""Twenty steps whose losses were written down once: a change of the network, the loss, the optimizer, the
schedule or the order of the samples shows, even one that every other test's two sides share.

Bit-equal on the PyTorch build and the processor they were written with, on one thread; elsewhere within 1e-5,
since the order of a sum is free there. The data are arithmetic, so no tokenizer or generator can move them.
After a change that is meant to move the losses, `STABLELM_WRITE_GOLDEN=1 pytest` this file writes it anew."""

import json
import os
import platform
from pathlib import Path

import pytest
import torch

from stablelm.config.run import run_config
from stablelm.training import Trainer
from tests.data.conftest import make_dataset  # noqa: F401  (a fixture)
from tests.training.conftest import Recorder

GOLDEN = Path(__file__).with_name("golden_losses.json")
STEPS = 20
RUNS = {
    "the default schedule": {},
    "warm-up, constant, cooldown, within documents": {
        "schedule": {"warmup_steps": 3, "shape": "constant", "cooldown_steps": 8},
        "data": {"document_boundaries": True},
    },
}


def build() -> dict[str, str]:
    """What losses are bit-equal on."""
    processor = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), processor)
    except OSError:
        pass
    capability = torch.backends.cpu.get_cpu_capability()
    return {"torch": torch.__version__, "processor": processor, "capability": capability}


def documents(count: int, speed: int) -> list[list[int]]:
    return [[2 + (j * (i % speed + 1) + i * i) % 90 for j in range(20 + i % 13)] for i in range(count)]


@pytest.mark.parametrize("name", RUNS)
def test_twenty_steps(name, make_dataset, tmp_path):  # noqa: F811
    dataset = make_dataset(vocabulary=100, slow=documents(80, 3), quick=documents(60, 11))
    changes = RUNS[name]
    config = run_config({
        "out": str(tmp_path / "run"),
        "model": {
            "vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 128, "max_position_embeddings": 64,
        },
        "data": {"path": str(dataset.path), "epochs": {"slow": 2, "quick": "3/2"}, **changes.get("data", {})},
        "batch": {"sequences": 5, "micro_sequences": 2, "sequence_length": 48},
        "optimizer": {"lr": 5e-3},
        "schedule": changes.get("schedule", {"warmup": 0.2}),
        "steps": STEPS, "precision": "fp32", "device": "cpu", "evaluation": {"copying": 0, "cloze": 0},
    })  # fmt: skip
    trainer = Trainer(config, Recorder())
    losses = [trainer.train_step()["loss"] for _ in range(STEPS)]
    if os.environ.get("STABLELM_WRITE_GOLDEN"):
        _write(name, losses)
    golden = json.loads(GOLDEN.read_text())
    assert losses == pytest.approx(golden["losses"][name], rel=0, abs=1e-5), losses
    if golden["build"] == build():
        assert losses == golden["losses"][name], "the same build and processor, other bits"


def _write(name: str, losses: list[float]) -> None:
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {"losses": {}}
    golden = {"build": build(), "losses": {**golden["losses"], name: losses}}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
