"""Preference losses beside TRL's trainers: loss, gradients and metrics of one batch, in float32."""

import copy

import pytest
import torch

from stablelm.finetuning.preference_tuner import PreferenceTuner
from stablelm.finetuning.tuner import prepare
from stablelm.interchange import open_path
from tests.finetuning.conftest import Recorder, base, make  # noqa: F401 (fixtures)
from tests.finetuning.test_preference import judged, moved, pairs  # noqa: F401 (a fixture)

trl = pytest.importorskip("trl")
transformers = pytest.importorskip("transformers")
datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.oracle

METRICS = (
    "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen",
    "logps/rejected", "kl",
)  # fmt: skip


def network(path):
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def their_trainer(kind, out, now, before, rows, **settings):
    """TRL's trainer on rows of texts, its model moved away from its reference."""
    make_config, make_trainer = {
        "dpo": (trl.DPOConfig, trl.DPOTrainer), "kto": (trl.KTOConfig, trl.KTOTrainer),
    }[kind]  # fmt: skip
    tokenizer = transformers.AutoTokenizer.from_pretrained(before)
    tokenizer.pad_token = "<|padding|>"
    config = make_config(
        output_dir=str(out), per_device_train_batch_size=len(rows), max_length=None, report_to=[],
        use_cpu=True, bf16=False, gradient_checkpointing=False, **settings,
    )  # fmt: skip
    return make_trainer(
        model=network(now), ref_model=network(before), args=config,
        train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer,
    )  # fmt: skip


def ours(make, records, choice, now, before):  # noqa: F811
    """The data, and a trainer that has made the passes of one step over all of it."""
    config = make(
        records, model=str(now), preference=choice, data={"held_out_share": 0},
        batch={"sequences": 99, "micro_sequences": 3}, optimizer={"clip": 0.0},
    )  # fmt: skip
    architecture, data = prepare(config)
    run = config.run(architecture)
    untuned = PreferenceTuner(data, config, run.model_copy(update={"init": str(before)}), Recorder())
    untuned._read_answers()
    tuner = PreferenceTuner(data, config, run, Recorder())
    tuner.reference = untuned.reference
    loss, _ = tuner.passes(tuner.batches.get(tuner.loader.steps.span(0, tuner.plan.samples), None))
    return data, tuner, loss


def parts(example):
    """Prompt and answer of one of our examples, as lists of ids."""
    at = int((example.ids >= 0).argmax())
    return (~example.ids[:at]).tolist(), example.ids[at:].tolist()


def compare(trainer, batch, tuner, loss):
    model = trainer.model.train()
    theirs = trainer.compute_loss(model, {name: part.clone() for name, part in batch.items()})
    theirs.backward()
    assert loss == pytest.approx(theirs.item(), abs=1e-5)
    gradients = dict(model.named_parameters())
    largest = 0.0
    for name, parameter in tuner.model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, atol=1e-5, rtol=1e-4, msg=name)
        largest = max(largest, float(parameter.grad.abs().max()))
    assert largest > 1e-2, "there is something to compare"
    told = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    both = [name for name in METRICS if name in told and name in tuner.told]
    assert {"rewards/margins", "logps/chosen"} <= set(both) or "kl" in both
    for name in both:
        assert tuner.told[name] == pytest.approx(told[name], abs=1e-4), name


@pytest.mark.parametrize(
    ("choice", "theirs"),
    [
        ({"loss": "dpo", "beta": 0.3}, {"loss_type": ["sigmoid"]}),
        ({"loss": "ipo", "beta": 0.7}, {"loss_type": ["ipo"]}),
    ],
)
def test_pairs(make, base, moved, tmp_path, choice, theirs):  # noqa: F811
    records = pairs(9)
    data, tuner, loss = ours(make, records, choice, moved, base)
    trainer = their_trainer("dpo", tmp_path, moved, base, records, beta=choice["beta"], **theirs)
    rows = []
    for pair in data.train:
        (prompt, chosen), (same, rejected) = map(parts, pair.sides)
        assert prompt == same
        rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    compare(trainer, trainer.data_collator(rows), tuner, loss)


def test_judged_answers(make, base, moved, tmp_path):  # noqa: F811
    records = judged(9)
    choice = {"loss": "kto", "beta": 0.4, "desirable_weight": 1.3, "undesirable_weight": 0.6}
    data, tuner, loss = ours(make, records, choice, base, moved)  # so that z₀ is above 0
    weights = {name: choice[name] for name in ("beta", "desirable_weight", "undesirable_weight")}
    trainer = their_trainer("kto", tmp_path, base, moved, records, **weights)
    rows = []
    for pair in data.rows.pairs:
        prompt, answer = parts(pair.first)
        rows.append({
            "prompt_ids": prompt, "completion_ids": answer, "KL_completion_ids": parts(pair.second)[1],
            "label": pair.wanted,
        })  # fmt: skip
    compare(trainer, trainer.data_collator(rows), tuner, loss)
    assert tuner.told["kl"] > 0.01


def test_their_tokens_of_chats_are_ours(make, base, tmp_path):  # noqa: F811
    """Ours end with the separator; theirs go on with the line end that the template writes behind it."""
    records = [
        {
            "prompt": [{"role": "user", "content": record["prompt"]}],
            "chosen": [{"role": "assistant", "content": record["chosen"]}],
            "rejected": [{"role": "assistant", "content": record["rejected"]}],
        }
        for record in pairs(6)
    ]
    config = make(copy.deepcopy(records), preference={"loss": "dpo"}, data={"held_out_share": 0})
    data = prepare(config)[1]
    model, _ = open_path(base)
    from stablelm.interchange import save_pretrained

    save_pretrained(model, data.tokenizer, tmp_path / "with-template")
    trainer = their_trainer("dpo", tmp_path, base, tmp_path / "with-template", records)
    assert len(trainer.train_dataset) == len(data.train)
    for pair, row in zip(data.train, trainer.train_dataset, strict=True):
        (prompt, chosen), (_, rejected) = map(parts, pair.sides)
        assert row["prompt_ids"] == prompt
        for answer, theirs in ((chosen, row["chosen_ids"]), (rejected, row["rejected_ids"])):
            assert theirs[: len(answer)] == answer and answer[-1] == 0
            assert data.tokenizer.decode(theirs[len(answer) :]) == "\n"
