"""Fine-tuning by `transformers` and torch's AdamW, one conversation a row, agrees step by step."""

import math

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from stablelm.config.finetune import finetune_config
from stablelm.finetuning import finetune
from stablelm.finetuning.packing import ExampleSamples
from stablelm.finetuning.tuner import prepare
from stablelm.interchange import open_path
from stablelm.tokenizer.chat import ZEPHYR
from stablelm.training.metrics import read_metrics
from tests.finetuning.conftest import TALKS, base, write_lines  # noqa: F401 (a fixture)
from tests.training.conftest import Recorder

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.oracle

STEPS, WARMUP, PEAK, ROWS = 20, 2, 3e-3, 3


@pytest.fixture
def config(base, tmp_path):  # noqa: F811
    path = write_lines(tmp_path / "chats.jsonl", [{"messages": said} for said in TALKS])
    return finetune_config({
        "out": str(tmp_path / "run"), "model": str(base), "data": {"paths": [str(path)], "held_out_share": 0},
        "batch": {"sequences": ROWS, "micro_sequences": 2, "sequence_length": 96},
        "epochs": 4, "steps": STEPS,
        "optimizer": {"lr": PEAK, "weight_decay": 0.1}, "schedule": {"warmup_steps": WARMUP, "floor": 0.1},
        "precision": "fp32", "device": "cpu",
    })  # fmt: skip


def test_twenty_steps_of_answers(config):
    architecture, tuning = prepare(config)
    records = [r for r in read_metrics(finetune(config, console=Recorder())) if "kind" not in r]
    order = ExampleSamples(tuning.rows, config.run(architecture))
    model = transformers.AutoModelForCausalLM.from_pretrained(config.model, dtype=torch.float32)
    norms = {id(p) for m in model.modules() if isinstance(m, torch.nn.LayerNorm) for p in m.parameters()}
    groups = [
        {"params": [p for p in model.parameters() if id(p) not in norms], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if id(p) in norms], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.95), eps=1e-6, foreach=False)

    def factor(step: int) -> float:
        if step <= WARMUP:
            return max(1, step) / WARMUP
        return 0.1 + 0.9 / 2 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))

    schedule = LambdaLR(optimizer, factor)
    assert len(records) == STEPS
    for step, record in enumerate(records):
        rows = order.mixture.address(np.arange(step * ROWS, (step + 1) * ROWS))[2].tolist()
        examples = [tuning.train[number] for row in rows for number in tuning.rows.examples[row]]
        width = max(len(example.ids) for example in examples)
        ids, labels = (
            torch.ones(len(examples), width, dtype=torch.long),
            torch.full((len(examples), width), -100),
        )
        mask = torch.zeros_like(ids)
        for row, example in enumerate(examples):
            marked = torch.from_numpy(example.ids).long()
            ids[row, : len(marked)] = torch.where(marked < 0, ~marked, marked)
            labels[row, : len(marked)] = torch.where(marked < 0, -100, marked)
            mask[row, : len(marked)] = 1
        # Their own loss: shifted, −100 ignored, the mean over all answers' tokens of the step.
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert record["loss"] == pytest.approx(loss.item(), abs=1e-4)
        assert record["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)
        assert record["lr"] == pytest.approx(schedule.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    final, theirs = open_path(config.out)[0], dict(model.named_parameters())
    for name, parameter in final.named_parameters():
        assert (parameter - theirs[name]).abs().max() <= 1e-4, name
    assert records[-1]["loss"] < records[0]["loss"] - 1


def test_their_tokenizer_renders_and_reads_what_we_train(config):
    """`apply_chat_template` of the exported tokenizer gives the ids of our examples."""
    run = finetune(config.model_copy(update={"steps": 2}), console=Recorder())
    tokenizer = open_path(run)[1]
    tokenizer.save(run / "exported")
    theirs = transformers.AutoTokenizer.from_pretrained(run / "exported")
    assert theirs.chat_template == ZEPHYR
    assert (theirs.pad_token_id, theirs.eos_token_id) == (1, 0)
    _, tuning = prepare(config)
    for said, example in zip(TALKS, tuning.train, strict=True):
        ids = theirs.apply_chat_template(said, tokenize=True, return_dict=False)
        ours = np.where(example.ids < 0, ~example.ids, example.ids).tolist()
        assert ids[: len(ours)] == ours
        assert theirs.decode(ids[len(ours) :]) == "\n", "the line end after the last separator is left out"
