"""Which parameters decay, and that saved moments are the optimizer's own."""

import torch

from stablelm.config import preset
from stablelm.config.optimization import OptimizerConfig
from stablelm.model import StableLM
from stablelm.training.optimizer import make_optimizer, moments, set_step


def test_matrices_and_embeddings_decay_norms_do_not():
    model = StableLM(preset("stablelm-1m"))
    optimizer = make_optimizer(model, OptimizerConfig(weight_decay=0.3))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.0 if "norm" in name else 0.3), name
    assert {"lr": 3.2e-4, "betas": (0.9, 0.95), "eps": 1e-6}.items() <= optimizer.param_groups[0].items()


def test_moments_are_zero_before_the_first_step_and_shared_after():
    model = StableLM(preset("stablelm-1m"))
    optimizer = make_optimizer(model, OptimizerConfig())
    before = moments(model, optimizer)
    assert set(before) == {f"{m}.{n}" for n, _ in model.named_parameters() for m in ("exp_avg", "exp_avg_sq")}
    assert all(not tensor.any() for tensor in before.values())
    model(torch.arange(8)[None], labels=torch.arange(8)[None]).backward()
    optimizer.step()
    after = moments(model, optimizer)
    assert after["exp_avg.lm_head.weight"].any()
    assert after["exp_avg.lm_head.weight"] is before["exp_avg.lm_head.weight"]
    set_step(optimizer, 41)
    assert {state["step"].item() for state in optimizer.state.values()} == {41.0}
