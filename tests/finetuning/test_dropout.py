"""Dropout before an adapter: its share and scale, the same for a sample whatever runs it, none outside of
training."""

import json

import pytest
import torch

from stablelm.config import InputError
from stablelm.config.finetune import finetune_config
from stablelm.finetuning import finetune
from stablelm.finetuning.held_out import measure
from stablelm.finetuning.tuner import Tuner, prepare
from stablelm.interchange.peft import load_adapter
from stablelm.model.adapters import parts_of
from tests.finetuning.test_noise import losses
from tests.training.conftest import Recorder

ADAPTER = {"rank": 4, "alpha": 8, "dropout": 0.25, "targets": ["q_proj", "down_proj"]}
CPU = torch.device("cpu")


def tuner(config):
    model, data = prepare(config)
    return Tuner(data, config, config.run(model), Recorder(), dtype=torch.float64)


def test_a_quarter_is_gone_and_the_mean_stays(make):
    one = tuner(make(adapter=ADAPTER))
    drop, shape = one.dropout, torch.Size([96, 64])
    place = "model.layers.0.mlp.down_proj"
    gone = drop.gone(place, 7, shape, CPU)
    assert gone.float().mean() == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 6144) ** 0.5)
    for other in (drop.gone(place, 8, shape, CPU), drop.gone(place.replace("0", "1"), 7, shape, CPU)):
        assert (gone & other).float().mean() == pytest.approx(1 / 16, abs=0.015), "drawn apart"
    assert torch.equal(gone, drop.gone(place, 7, shape, CPU))
    x = torch.randn(2, 96, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    part = parts_of(one.model, "default")[place]
    assert part.drop(x) is x, "nothing outside a step"
    with drop.on(torch.tensor([3, 7]).numpy()):
        one.model.model.embed_tokens(torch.zeros(2, 96, dtype=torch.int64))
        seen = part.drop(x)
    assert torch.equal(seen[1], torch.where(gone, 0, x[1] / 0.75))
    assert seen.sum() != x.sum() and part.drop(x) is x


def test_a_step_does_not_depend_on_passes_or_recomputation(make):
    """The numbers of a step with dropout, however its rows are read; held-out loss knows none of it."""
    found = {}
    for name, changes in {
        "whole": {"batch": {"micro_sequences": 4}},
        "one by one": {"batch": {"micro_sequences": 1}},
        "again": {"batch": {"micro_sequences": 4}, "recompute": "full"},
        "without": {"batch": {"micro_sequences": 4}, "adapter": {**ADAPTER, "dropout": 0.0}},
    }.items():
        batch = {"sequences": 4, **changes.get("batch", {})}
        run = tuner(make(**{"adapter": ADAPTER, **changes, "batch": batch, "out": name.replace(" ", "")}))
        found[name] = [run.train_step()["loss"] for _ in range(4)]
        if name == "whole":
            rows = run.data.held_rows
            held = measure(run.model, rows, len(rows), 2)
            for part in parts_of(run.model, "default").values():
                part.drop = None
            assert measure(run.model, rows, len(rows), 2) == held
    assert found["one by one"] == pytest.approx(found["whole"], abs=1e-12)
    assert found["again"] == pytest.approx(found["whole"], abs=1e-12)
    assert found["without"][0] == pytest.approx(found["whole"][0], abs=1e-12), "B is 0 in the first step"
    assert abs(found["without"][3] - found["whole"][3]) > 1e-5


def test_resume_is_exact_and_the_file_says_what_was_dropped(make, base):
    class Stop(Exception):
        pass

    def stop():
        raise Stop

    both = {"adapter": {**ADAPTER, "method": "dora"}, "neftune": 5.0, "steps": 6}
    whole = finetune(make(out="whole", **both), console=Recorder())
    with pytest.raises(Stop):
        finetune(make(out="cut", **both), console=Recorder({5: stop}))
    cut = finetune(make(out="cut", **both), resume=True, console=Recorder())
    assert losses(cut) == losses(whole)
    stored = [(run / "adapter" / "adapter_model.safetensors").read_bytes() for run in (whole, cut)]
    assert stored[0] == stored[1]
    assert json.loads((cut / "adapter" / "adapter_config.json").read_text())["lora_dropout"] == 0.25
    one = tuner(make())  # a plain model of the same shape
    assert load_adapter(one.model, cut / "adapter").dropout == 0.25
    with pytest.raises(InputError, match=r"the run began with adapter\.dropout = 0\.25, this one says 0\.5"):
        finetune(make(out="cut", **{**both, "adapter": {**both["adapter"], "dropout": 0.5}}), resume=True,
                 console=Recorder())  # fmt: skip


@pytest.mark.parametrize(
    ("adapter", "more", "message"),
    [
        ({"rank": 4, "dropout": 1.0}, {}, r"adapter\.dropout"),
        ({"dropout": 0.1}, {}, r"adapter\.dropout is that of an adapter; give adapter\.rank"),
        ({"rank": 4, "dropout": 0.1}, {"preference": {"loss": "dpo"}}, "the reference drops nothing"),
    ],
)
def test_what_does_not_go_with_it_is_refused(adapter, more, message):
    with pytest.raises(InputError, match=message):
        finetune_config({"model": "m", "data": {"paths": "a"}, "adapter": adapter, **more})


def test_an_adapted_head_is_refused(make):
    with pytest.raises(InputError, match="does not go with lm_head among adapter.targets"):
        finetune(make(adapter={**ADAPTER, "targets": ["lm_head"]}), console=Recorder())
