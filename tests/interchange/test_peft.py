"""Adapters as PEFT's directories: written, read, and refused by name."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from stablelm.config import InputError
from stablelm.config.adapter import AdapterConfig
from stablelm.interchange.peft import CONFIG, WEIGHTS, load_adapter, save_adapter
from stablelm.model import StableLM, adapters
from tests.model.test_adapters import CONFIG as MODEL
from tests.model.test_adapters import IDS, disturbed

ATTENTION = [f"model.layers.{layer}.self_attn.{letter}_proj" for layer in (0, 1) for letter in "qv"]


def network(**changes):
    return StableLM(MODEL.model_copy(update=changes), seed=1)


@pytest.fixture
def tuned():
    model = network()
    adapters.attach(model, AdapterConfig(method="dora", rank=4, alpha=6, targets=["q_proj", "v_proj"]))
    return disturbed(model)


@pytest.fixture
def saved(tuned, tmp_path):
    save_adapter(tuned, tmp_path / "adapter", base="models/mine", files={"notes.txt": b"x"})
    return tmp_path / "adapter"


def change(directory, **values):
    settings = json.loads((directory / CONFIG).read_text())
    (directory / CONFIG).write_text(json.dumps({**settings, **values}))


def test_peft_names_and_a_round_trip(tuned, saved):
    assert sorted(path.name for path in saved.iterdir()) == [CONFIG, WEIGHTS, "notes.txt"]
    tensors = load_file(saved / WEIGHTS)
    assert {name: list(value.shape) for name, value in tensors.items()} == {
        f"base_model.model.{place}.{part}": shape
        for place in ATTENTION
        for part, shape in (
            ("lora_A.weight", [4, 64]), ("lora_B.weight", [64, 4]), ("lora_magnitude_vector", [64]),
        )
    }  # fmt: skip
    settings = json.loads((saved / CONFIG).read_text())
    assert settings["peft_type"] == "LORA" and settings["base_model_name_or_path"] == "models/mine"
    assert (settings["r"], settings["lora_alpha"], settings["use_dora"]) == (4, 6, True)
    assert settings["target_modules"] == ["q_proj", "v_proj"]
    again = network()
    config = load_adapter(again, saved, "mine")
    assert config.method == "dora" and adapters.active(again) == "mine"
    assert torch.equal(again(IDS), tuned(IDS))
    with pytest.raises(InputError, match="already exists"):
        save_adapter(tuned, saved)
    save_adapter(tuned, saved, replace=True)
    assert not (saved / "notes.txt").exists()


@pytest.mark.parametrize(
    "config",
    [
        AdapterConfig(method="rslora", rank=3, alpha=2.5),
        AdapterConfig(method="rsdora", rank=2, targets=["lm_head"]),
        AdapterConfig(
            targets=r".*\.1\..*(q|up)_proj", rank_pattern={"up_proj": 5}, alpha_pattern={"1.*q_proj": 9}
        ),
    ],
)
def test_every_kind_comes_back(tmp_path, config):
    model, again = network(), network()
    adapters.attach(model, config)
    save_adapter(disturbed(model), tmp_path / "adapter")
    assert load_adapter(again, tmp_path / "adapter").method == config.method
    assert torch.equal(again(IDS), model(IDS))
    assert list(adapters.carriers(again)) == list(adapters.carriers(model))


def test_what_peft_also_writes_is_understood(saved, tuned):
    """Half precision, unknown keys that are off, excluded and chosen layers, PEFT's copy of the head."""
    change(saved, new_method_of_2030=None, other=False, more=[], lora_dropout=0.1, peft_version="9")
    load_adapter(network(), saved)
    tensors = {name: value for name, value in load_file(saved / WEIGHTS).items() if ".0." not in name}
    save_file({name: value.bfloat16() for name, value in tensors.items()}, saved / WEIGHTS)
    for narrowing in (
        {"layers_to_transform": 1},
        {"layers_to_transform": [1], "layers_pattern": "layers"},
        {"exclude_modules": ["layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"]},
        {"exclude_modules": r".*\.0\..*"},
        {"target_modules": r".*\.1\.self_attn\.[qv]_proj"},
    ):
        change(
            saved,
            **{"layers_to_transform": None, "layers_pattern": None, "exclude_modules": None, **narrowing},
        )
        model = network()
        load_adapter(model, saved)
        assert list(adapters.carriers(model)) == ATTENTION[2:]
        part = adapters.parts_of(model, "default")[ATTENTION[2]]
        assert part.lora_A.dtype == torch.float32
        kept = adapters.parts_of(tuned, "default")[ATTENTION[2]].lora_A
        assert torch.equal(part.lora_A, kept.bfloat16().float())
    model = network()
    adapters.attach(model, AdapterConfig(targets=["lm_head"]))
    save_adapter(model, saved, replace=True)
    copied = {"base_model.model.lm_head.base_layer.weight": model.lm_head.weight.detach().bfloat16()}
    save_file({**load_file(saved / WEIGHTS), **copied}, saved / WEIGHTS)
    load_adapter(network(), saved)
    with pytest.raises(InputError, match=r"base_layer\.weight' is not this model's head"):
        load_adapter(StableLM(MODEL, seed=2), saved)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported, only LORA"),
        ({"task_type": "SEQ_CLS"}, "task_type 'SEQ_CLS'"),
        ({"bias": "lora_only"}, "bias 'lora_only' is not supported, only none"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save = \['lm_head'\] is not supported"),
        ({"lora_bias": True}, "lora_bias = True"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"new_method_of_2030": {"x": 1}}, "new_method_of_2030"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' changed the base model's weights"),
        ({"target_modules": None}, "target_modules is null"),
        ({"target_modules": ["q_proj", "wte"]}, "'wte' is no matrix of this model"),
        ({"target_modules": ["q_proj"]}, r"v_proj\.lora_A' has no place"),
        ({"target_modules": "all-linear"}, r"'model\.layers\.0\.mlp\.down_proj\.lora_A' is missing"),
        ({"r": 8}, r"lora_A' has shape \[4, 64\], this model and adapter_config.json want \[8, 64\]"),
        ({"r": "four"}, "rank"),
        ({"rank_pattern": {"(": 4}}, "not a regular expression"),
        ({"use_dora": False}, r"lora_magnitude_vector' has no place"),
        ({"exclude_modules": 3}, "exclude_modules = 3 is not what PEFT writes"),
        ({"exclude_modules": ".*"}, "leave none of its target_modules"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(saved, settings, message):
    change(saved, **settings)
    model = network()
    with pytest.raises(InputError, match=message):
        load_adapter(model, saved)
    assert not adapters.carriers(model), "nothing half attached"


def test_files_that_are_damaged_missing_or_for_another_model(saved, tmp_path):
    def refused(message, model=None):
        with pytest.raises(InputError, match=message):
            load_adapter(model or network(), saved)

    refused(
        "made for a model of other sizes",
        network(hidden_size=128, num_attention_heads=4, num_key_value_heads=4),
    )
    refused("'model.layers.2.self_attn.q_proj.lora_A' is missing", network(num_hidden_layers=3))
    refused("'model.layers.1.self_attn.q_proj.lora_A' has no place", network(num_hidden_layers=1))
    whole = load_file(saved / WEIGHTS)
    name = f"base_model.model.{ATTENTION[0]}.lora_A.weight"
    save_file({**whole, name: whole[name] * float("nan")}, saved / WEIGHTS)
    refused("values that are not finite")
    save_file({**whole, "base_model.model.model.embed_tokens.weight": whole[name] + 1}, saved / WEIGHTS)
    refused(r"embed_tokens\.weight' is none of an adapter's")
    save_file(whole, saved / WEIGHTS)
    content = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(content[:-8])
    refused("truncated")
    (saved / WEIGHTS).unlink()
    refused("adapter_model.safetensors: missing")
    (saved / "adapter_model.bin").write_bytes(b"pickle")
    refused("adapter_model.bin is a pickle, which can run code")
    (saved / WEIGHTS).write_bytes(content)
    (saved / CONFIG).write_text("{")
    refused("adapter_config.json, line 1: not valid JSON")
    with pytest.raises(InputError, match="no adapter: adapter_config.json is not there"):
        load_adapter(network(), tmp_path / "nowhere")
