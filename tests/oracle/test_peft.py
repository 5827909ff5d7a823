"""Adapters against peft: its directories here, ours there, and twenty steps side by side."""

import pytest
import torch

from stablelm.config.adapter import AdapterConfig
from stablelm.interchange import open_path
from stablelm.interchange.peft import load_adapter, save_adapter
from stablelm.model import adapters
from tests.finetuning.conftest import base  # noqa: F401 (a fixture)
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
