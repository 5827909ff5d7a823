"""Steps, tokens and FLOPs of the original run and of small ones."""

import pytest
import torch

from stablelm.config import InputError, preset
from stablelm.config.run import run_config
from stablelm.planning import flops_per_token, hardware, make_plan, matmul_peak, resolve_device

DATA = {"path": "prepared", "epochs": {"web": 4}}


def test_the_original_run():
    plan = make_plan(
        run_config({"data": DATA}), 977_920_000, {"web": {"windows": 244_480_000, "epochs": "4"}}
    )
    assert plan.steps == 955_000
    assert plan.warmup_steps == 4_775
    assert plan.tokens == 4_005_560_320_000
    assert plan.parameters == 2_795_443_200
    assert plan.micro_batches == 256
    assert plan.last_step_samples == 1024
    assert plan.flops_per_token / 1e9 == pytest.approx(20.80, abs=0.005)
    assert plan.checkpoint_bytes == 12 * 2_795_443_200


def test_flops_are_six_n_plus_attention():
    config = preset("stablelm-1m")
    assert flops_per_token(config, 100) == 6 * config.num_parameters + 12 * 3 * 128 * 100


@pytest.mark.parametrize(
    ("samples", "batch", "asked", "steps", "last"),
    [
        (100, 10, None, 10, 10),
        (101, 10, None, 11, 1),
        (101, 10, 10, 10, 10),
        (7, 10, None, 1, 7),
        (99, 10, 10, 10, 9),
    ],
)
def test_steps_fill_the_epochs(samples, batch, asked, steps, last):
    config = run_config({"data": DATA, "batch": {"sequences": batch, "micro_sequences": 3}, "steps": asked})
    plan = make_plan(config, samples, {})
    assert (plan.steps, plan.last_step_samples) == (steps, last)
    assert plan.samples == min(samples, steps * batch)
    assert plan.micro_batches == 4
    assert plan.as_dict()["steps"] == steps
    assert f"{steps:,} steps" in " ".join(plan.lines())


def test_more_steps_than_the_epochs_hold_are_refused():
    with pytest.raises(
        InputError, match=r"steps 12 × batch.sequences 10 asks for 120 windows; .* hold 101 \(11 steps\)"
    ):
        make_plan(run_config({"data": DATA, "batch": {"sequences": 10}, "steps": 12}), 101, {})


def test_devices():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(InputError, match="device 'warp' does not exist"):
        resolve_device("warp")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no usable CUDA GPU"):
            resolve_device("cuda:0")
    assert matmul_peak("cpu", torch.float32, 0.05) > 1e8
    assert {"name", "threads", "torch", "system"} <= set(hardware(torch.device("cpu")))
