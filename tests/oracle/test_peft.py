"""Adapters against peft: its directories here, ours there, and twenty steps side by side."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.optim.lr_scheduler import LambdaLR

from stablelm.config.adapter import AdapterConfig
from stablelm.config.finetune import finetune_config
from stablelm.finetuning import finetune
from stablelm.finetuning.packing import ExampleSamples
from stablelm.finetuning.tuner import prepare
from stablelm.interchange import open_path
from stablelm.interchange.peft import WEIGHTS, load_adapter, save_adapter
from stablelm.model import adapters
from stablelm.training.metrics import read_metrics
from tests.finetuning.conftest import TALKS, Recorder, base, write_lines  # noqa: F401 (a fixture)
from tests.model.test_adapters import disturbed

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.oracle

IDS = torch.arange(3 * 40).view(3, 40) * 11 % 300
KINDS = [
    AdapterConfig(rank=4, alpha=8),
    AdapterConfig(method="rslora", rank=4, alpha=6, targets=["q_proj", "v_proj", "lm_head"]),
    AdapterConfig(method="dora", rank=8, alpha=16, targets=r".*\.(o|down)_proj"),
    AdapterConfig(method="rsdora", rank=3, alpha=5, rank_pattern={"q_proj": 6}, alpha_pattern={"mlp.*": 9}),
]


def theirs_of(path):
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


@pytest.mark.parametrize("config", KINDS, ids=lambda config: config.method)
def test_peft_loads_our_directory(base, tmp_path, config):  # noqa: F811
    model, _ = open_path(base)
    adapters.attach(model, config)
    disturbed(model)
    save_adapter(model, tmp_path / "adapter", base=str(base))
    found = peft.PeftModel.from_pretrained(theirs_of(base), tmp_path / "adapter")
    with torch.no_grad():
        plain = found.base_model.model(IDS).logits
        torch.testing.assert_close(found(IDS).logits, model(IDS), atol=1e-5, rtol=1e-5)
        with found.disable_adapter(), adapters.switched_off(model):
            unadapted = found(IDS).logits
            torch.testing.assert_close(unadapted, model(IDS), atol=1e-5, rtol=1e-5)
        assert (plain - unadapted).abs().max() > 0.1
        adapters.merge(model, "default")
        merged = found.merge_and_unload()
        torch.testing.assert_close(merged(IDS).logits, model(IDS), atol=1e-5, rtol=1e-5)
    # The base is found by the name in its configuration.
    again = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(again(IDS).logits, model(IDS), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.1},
        {"r": 5, "use_rslora": True, "target_modules": "all-linear", "exclude_modules": ["k_proj"]},
        {"r": 4, "use_dora": True, "target_modules": ["o_proj", "up_proj"], "layers_to_transform": [1]},
        {"r": 4, "use_dora": True, "use_rslora": True, "target_modules": r".*(q_proj|lm_head)"},
        {"r": 4, "target_modules": ["q_proj", "down_proj"], "rank_pattern": {r"layers\.0.*": 2},
         "alpha_pattern": {"down_proj": 3}, "init_lora_weights": "gaussian"},
    ],
)  # fmt: skip
def test_we_load_theirs(base, tmp_path, settings):  # noqa: F811
    theirs = peft.get_peft_model(theirs_of(base), peft.LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    theirs.save_pretrained(tmp_path / "adapter")
    model, _ = open_path(base)
    before = model(IDS)
    load_adapter(model, tmp_path / "adapter")
    with torch.no_grad():
        wanted = theirs(IDS).logits
        torch.testing.assert_close(model(IDS), wanted, atol=1e-5, rtol=1e-5)
        assert (wanted - before).abs().max() > 0.1


STEPS, WARMUP, PEAK, ROWS = 20, 2, 5e-3, 3


def test_the_card_of_a_run_loads_in_peft(base, tmp_path, monkeypatch):  # noqa: F811
    """The card's own lines, run where it lies; and PEFT reads the dropout that was trained with."""
    path = write_lines(tmp_path / "chats.jsonl", [{"messages": said} for said in TALKS])
    config = finetune_config({
        "out": str(tmp_path / "run"), "model": str(base), "data": {"paths": [str(path)]}, "steps": 3,
        "batch": {"sequences": 2, "sequence_length": 96}, "optimizer": {"lr": 1e-2},
        "adapter": {"rank": 4, "dropout": 0.1}, "precision": "fp32", "device": "cpu",
    })  # fmt: skip
    run = finetune(config, console=Recorder())
    monkeypatch.chdir(run / "adapter")
    code = (run / "adapter" / "README.md").read_text("utf-8").partition("```python")[2].partition("```")[0]
    names: dict = {}
    exec(code, names)
    tuned, _ = open_path(run)
    with torch.no_grad():
        torch.testing.assert_close(names["model"](IDS).logits, tuned(IDS), atol=1e-5, rtol=1e-5)
    assert names["model"].peft_config["default"].lora_dropout == 0.1
    assert names["tokenizer"].decode([70, 71]) == open_path(run)[1].decode([70, 71])


@pytest.mark.parametrize("method", ["lora", "rslora", "dora"])
def test_twenty_steps_are_those_of_peft(base, tmp_path, method):  # noqa: F811
    """The same examples in the same order, the same initial adapter, float32: losses and final adapters."""
    path = write_lines(tmp_path / "chats.jsonl", [{"messages": said} for said in TALKS])
    config = finetune_config({
        "out": str(tmp_path / "run"), "model": str(base), "data": {"paths": [str(path)], "held_out_share": 0},
        "batch": {"sequences": ROWS, "micro_sequences": 2, "sequence_length": 96},
        "epochs": 4, "steps": STEPS, "adapter": {"method": method, "rank": 8, "alpha": 16},
        "optimizer": {"lr": PEAK}, "schedule": {"warmup_steps": WARMUP, "floor": 0.1},
        "precision": "fp32", "device": "cpu", "recompute": "full",
    })  # fmt: skip
    architecture, tuning = prepare(config)
    run = finetune(config, console=Recorder())
    records = [record for record in read_metrics(run) if "kind" not in record]
    start, _ = open_path(base)
    adapters.attach(start, config.adapter.asked(), seed=config.seed)
    save_adapter(start, tmp_path / "start", base=str(base))
    model = peft.PeftModel.from_pretrained(theirs_of(base), tmp_path / "start", is_trainable=True)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        list(trained.values()), lr=PEAK, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.0, foreach=False
    )

    def factor(step: int) -> float:
        if step <= WARMUP:
            return max(1, step) / WARMUP
        return 0.1 + 0.9 / 2 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))

    schedule = LambdaLR(optimizer, factor)
    order = ExampleSamples(tuning.rows, config.run(architecture))
    assert len(records) == STEPS
    for step, record in enumerate(records):
        rows = order.mixture.address(np.arange(step * ROWS, (step + 1) * ROWS))[2].tolist()
        examples = [tuning.train[number] for row in rows for number in tuning.rows.examples[row]]
        width = max(len(example.ids) for example in examples)
        ids = torch.ones(len(examples), width, dtype=torch.long)
        labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
        for row, example in enumerate(examples):
            marked = torch.from_numpy(example.ids).long()
            ids[row, : len(marked)] = torch.where(marked < 0, ~marked, marked)
            labels[row, : len(marked)] = torch.where(marked < 0, -100, marked)
            mask[row, : len(marked)] = 1
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert record["loss"] == pytest.approx(loss.item(), abs=1e-4)
        assert record["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    assert records[-1]["loss"] < records[0]["loss"] - 0.05
    model.save_pretrained(tmp_path / "theirs")
    ours, theirs = (load_file(folder / WEIGHTS) for folder in (run / "adapter", tmp_path / "theirs"))
    assert ours.keys() == theirs.keys() and len(ours) == 14 * (3 if method == "dora" else 2)
    for name, tensor in theirs.items():
        assert (ours[name] - tensor).abs().max() <= 1e-4, name
    moved = max(float(tensor.abs().max()) for name, tensor in theirs.items() if "lora_B" in name)
    assert moved > 0.01, "what agrees has learnt"
    # What the run opens as is what PEFT has trained.
    with torch.no_grad():
        torch.testing.assert_close(open_path(run)[0](IDS), model(IDS).logits, atol=1e-3, rtol=1e-3)
