"""The architecture: exact sizes, the rules for what is left out, and every spelling of config.json."""

import json

import pytest
from pydantic import ValidationError

from stablelm.config import PRESETS, InputError, ModelConfig, preset
from stablelm.config.model import from_huggingface, swiglu_width, to_huggingface

OLD = {
    "architectures": ["StableLMEpochForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_stablelm_epoch.StableLMEpochConfig"},
    "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "silu", "hidden_size": 2560,
    "initializer_range": 0.02, "intermediate_size": 6912, "max_position_embeddings": 4096,
    "model_type": "stablelm_epoch", "norm_eps": 1e-05, "num_attention_heads": 32, "num_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 32,
    "rope_pct": 0.25, "rope_theta": 10000, "rotary_scaling_factor": 1.0, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "transformers_version": "4.33.2", "use_cache": True, "vocab_size": 50304,
}  # fmt: skip
NEW = {
    "architectures": ["StableLmForCausalLM"], "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "silu",
    "hidden_size": 2560, "initializer_range": 0.02, "intermediate_size": 6912, "layer_norm_eps": 1e-05,
    "max_position_embeddings": 4096, "model_type": "stablelm",
    "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 32, "partial_rotary_factor": 0.25, "rope_theta": 10000,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.38.0",
    "use_cache": True, "use_qkv_bias": False, "vocab_size": 50304,
}  # fmt: skip


def by_hand(config: ModelConfig) -> int:
    """Parameters counted tensor by tensor, as a checkpoint of this network lists them."""
    h, m, head = (
        config.hidden_size,
        config.intermediate_size,
        config.hidden_size // config.num_attention_heads,
    )
    kv = config.num_key_value_heads * head
    norm = [(h,), (h,)] if config.use_norm_bias else [(h,)]
    layer = [(h, h), (kv, h), (kv, h), (h, h), (m, h), (m, h), (h, m), *norm]
    if not config.use_parallel_residual:
        layer += norm
    if config.use_qkv_bias:
        layer += [(h,), (kv,), (kv,)]
    if config.qk_layernorm:
        layer += [(head,)] * (config.num_attention_heads + config.num_key_value_heads)
    total = 0
    for shape in layer * config.num_hidden_layers + [(config.vocab_size, h)] * 2 + norm:
        size = 1
        for length in shape:
            size *= length
        total += size
    return total


def test_the_original_has_its_published_size():
    config = ModelConfig()
    assert config.num_parameters == 2_795_443_200
    assert 2 * config.num_parameters == 5_590_886_400
    assert config.kv_bytes_per_token() == 327_680
    assert config.kv_bytes_per_token(4) == 655_360
    assert (config.head_dim, config.rotary_dim) == (80, 20)
    assert preset("stablelm-3b-4e1t") == config


# Written down, so that a preset cannot change its size unnoticed.
SIZES = {
    "stablelm-3b-4e1t": 2_795_443_200, "stablelm-1m": 1_312_512, "stablelm-5m": 5_509_632,
    "stablelm-12m": 12_001_536, "stablelm-34m": 35_668_992, "stablelm-160m": 148_078_080,
    "stablelm-1b": 1_028_263_936, "stablelm-zephyr-3b": 2_795_443_200, "stable-code-3b": 2_795_443_200,
    "stablelm-2-1_6b": 1_644_515_328, "stablelm-2-12b": 12_142_976_000,
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_exactly_their_parameters(name):
    config = preset(name)
    assert config.num_parameters == by_hand(config) == SIZES[name]


@pytest.mark.parametrize(
    ("hidden", "width"),
    [(2560, 6912), (2048, 5632), (5120, 13824), (512, 1536), (96, 256), (97, 512), (384, 1024)],
)
def test_mlp_width_rule(hidden, width):
    """int(2·h·4/3) rounded up to 256: 96 is exactly 256 and stays, 97 (258) goes up."""
    assert swiglu_width(hidden) == width


def test_width_given_wins_and_null_means_left_out():
    assert (
        ModelConfig(hidden_size=512, num_attention_heads=8, intermediate_size=1408).intermediate_size == 1408
    )
    assert (
        ModelConfig(hidden_size=512, num_attention_heads=8, intermediate_size=None).intermediate_size == 1536
    )


def test_changing_a_presets_width_follows_the_rule():
    changed = preset("stablelm-34m", hidden_size=1024, num_attention_heads=16)
    assert (changed.intermediate_size, changed.vocab_size) == (2816, 8192)
    assert preset("stablelm-34m", intermediate_size=1408).intermediate_size == 1408


def test_a_config_is_frozen():
    with pytest.raises(ValidationError):
        ModelConfig().hidden_size = 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(num_attention_heads=33), "does not divide into 33 heads"),
        (dict(hidden_size=0), "hidden_size must be at least 1"),
        (dict(num_hidden_layers=0), "num_hidden_layers must be at least 1"),
        (dict(num_attention_heads=0), "num_attention_heads must be at least 1"),
        (dict(partial_rotary_factor=0.0), "rotates 0 dimensions"),
        (dict(partial_rotary_factor=1.5), "rotates 120 dimensions"),
        (dict(hidden_size=96, num_attention_heads=32), "head_dim 3"),
        (dict(eos_token_id=50_304), "outside the vocabulary of 50304"),
        (dict(bos_token_id=-1), "outside the vocabulary"),
        (dict(hidden_sise=2048), "did you mean 'hidden_size'"),
        (dict(layer_norm_eps=float("nan")), "layer_norm_eps"),
        (dict(vocab_size="many"), "vocab_size"),
    ],
)
def test_what_is_no_network_is_refused_with_its_numbers(changes, said):
    with pytest.raises(InputError, match=said):
        preset("stablelm-3b-4e1t", **changes)


@pytest.mark.parametrize("name", [["stablelm-1m"], 5, {"a": 1}])
def test_a_preset_that_is_no_name(name):
    with pytest.raises(InputError, match="does not exist"):
        preset(name)


def test_a_misspelt_preset_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'stablelm-12m'"):
        preset("stablelm-12mm")


@pytest.mark.parametrize("values", [OLD, NEW], ids=["stablelm_epoch", "stablelm"])
def test_both_released_spellings_are_the_same_network(values):
    assert from_huggingface(values, "config.json") == ModelConfig()


def test_newer_spellings():
    nested = {k: v for k, v in NEW.items() if k not in ("partial_rotary_factor", "rope_theta")}
    nested["rope_parameters"] = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}
    config = from_huggingface(nested, "config.json")
    assert (config.rope_theta, config.rotary_dim) == (500.0, 40)
    renamed = {**NEW, "rotary_pct": 0.5}
    del renamed["partial_rotary_factor"]
    assert from_huggingface(renamed, "config.json").rotary_dim == 40


def test_a_width_of_a_sibling_is_kept():
    assert from_huggingface({**NEW, "intermediate_size": 1000}, "config.json").intermediate_size == 1000


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "llama"}, "'llama' is not StableLM"),
        ({"model_type": None}, "not StableLM"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"num_key_value_heads": 5}, "cannot share 5 key-value heads"),
        ({"num_key_value_heads": 0}, "num_key_value_heads must be at least 1"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "'yarn' is not supported"),
        ({"num_attention_heads": 31, "num_key_value_heads": 31}, "does not divide"),
    ],
)
def test_another_network_is_refused_by_key(change, said):
    with pytest.raises(InputError, match=said) as caught:
        from_huggingface({**NEW, **change}, "some/config.json")
    assert str(caught.value).startswith("some/config.json: ")


@pytest.mark.parametrize("values", [[], "stablelm", None, {**NEW, "rope_parameters": [1]}])
def test_a_file_that_is_no_configuration(values):
    with pytest.raises(InputError, match="a mapping of keys to values is wanted"):
        from_huggingface(values, "config.json")


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"])
def test_a_missing_size_is_not_guessed(key):
    values = {name: value for name, value in NEW.items() if name != key}
    with pytest.raises(InputError, match=f"'{key}' is missing"):
        from_huggingface(values, "config.json")


@pytest.mark.parametrize("name", PRESETS)
def test_writing_and_reading_keeps_the_network(name):
    config = preset(name, rope_theta=12_345.5, layer_norm_eps=1e-6)
    written = json.loads(json.dumps(to_huggingface(config, "float32")))
    assert from_huggingface(written, "config.json") == config
    assert written["model_type"] == "stablelm"
    assert written["torch_dtype"] == "float32"
    assert written["num_key_value_heads"] == config.num_key_value_heads


def test_the_older_spelling_is_that_of_the_first_release():
    written = to_huggingface(ModelConfig(), "bfloat16", "stablelm_epoch")
    released = {
        name: value for name, value in OLD.items() if name not in ("auto_map", "transformers_version")
    }
    assert written == {**released, "use_qkv_bias": False}  # explicit, since a missing one was taken for true
    assert from_huggingface(written, "test") == ModelConfig()


@pytest.mark.parametrize("name", ["stable-code-3b", "stablelm-2-1_6b", "stablelm-5m"])
def test_the_older_spelling_is_read_back(name):
    config = preset(name)
    assert from_huggingface(to_huggingface(config, "float32", "stablelm_epoch"), "test") == config


def test_the_older_spelling_refuses_what_it_has_no_key_for():
    with pytest.raises(InputError, match="no key for qk_layernorm = True; write this architecture as"):
        to_huggingface(preset("stablelm-2-12b"), "float32", "stablelm_epoch")


def test_a_head_of_another_width_is_refused():
    with pytest.raises(InputError, match="head_dim = 64 is not supported"):
        from_huggingface({**NEW, "head_dim": 64}, "c")
    assert from_huggingface({**NEW, "head_dim": 80}, "c") == from_huggingface({**NEW, "head_dim": None}, "c")


def test_the_twelve_billion_model_has_two_counts():
    """Without norm biases as released, with them as `transformers` builds it."""
    assert preset("stablelm-2-12b").num_parameters == 12_142_976_000
    assert preset("stablelm-2-12b", use_norm_bias=True).num_parameters == 12_143_185_920


def test_a_missing_qkv_bias_means_none_and_missing_kv_heads_as_many():
    plain = {
        name: value for name, value in NEW.items() if name not in ("use_qkv_bias", "num_key_value_heads")
    }
    config = from_huggingface(plain, "config.json")
    assert not config.use_qkv_bias
    assert config.num_key_value_heads == config.num_attention_heads
    assert (
        from_huggingface({**plain, "use_qkv_bias": True, "num_key_value_heads": 8}, "c").kv_bytes_per_token()
        == 81_920
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope_theta", 0), ("rope_theta", -1), ("layer_norm_eps", 0), ("layer_norm_eps", -1e-5),
        ("initializer_range", -0.1), ("max_position_embeddings", 0),
    ],
)  # fmt: skip
def test_a_number_that_makes_no_network_is_refused_by_key(key, value):
    with pytest.raises(InputError, match=f"{key}: Input should be greater"):
        preset("stablelm-1m", **{key: value})
