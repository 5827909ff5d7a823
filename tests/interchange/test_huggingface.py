"""The Hugging Face layout: bit-equal there and back, whole or absent, and every broken directory named."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from stablelm.config import InputError, preset
from stablelm.interchange import huggingface, load_pretrained, save_pretrained
from stablelm.model import StableLM
from stablelm.storage import read_json, write_json
from stablelm.tokenizer import Tokenizer, train_tokenizer

CONFIG = preset(
    "stablelm-1m", num_hidden_layers=2, hidden_size=64, vocab_size=512, rope_theta=50_000.0,
    layer_norm_eps=1e-3, partial_rotary_factor=0.5, max_position_embeddings=128,
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the cat sat on the mat, and the other cat sat there too " * 2], 300)


@pytest.fixture(scope="module")
def model() -> StableLM:
    return StableLM(CONFIG, seed=11)


@pytest.fixture
def saved(tmp_path: Path, model: StableLM, tokenizer: Tokenizer) -> Path:
    save_pretrained(model, tokenizer, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def sharded(tmp_path: Path, model: StableLM, tokenizer: Tokenizer) -> Path:
    save_pretrained(model, tokenizer, tmp_path / "shards", max_shard_bytes=150_000)
    return tmp_path / "shards"


def assert_same(ours: StableLM, theirs: StableLM) -> None:
    a, b = ours.state_dict(), theirs.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert torch.equal(a[name], b[name]), name
    assert ours.config == theirs.config


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_there_and_back_is_bit_equal(tmp_path: Path, tokenizer: Tokenizer, dtype: torch.dtype) -> None:
    model = StableLM(CONFIG, seed=2).to(dtype)
    save_pretrained(model, tokenizer, tmp_path / "a")
    again, words = load_pretrained(tmp_path / "a")
    assert_same(model, again)
    assert words is not None
    assert words.sha256 == tokenizer.sha256
    assert not again.training
    save_pretrained(again, words, tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert (tmp_path / "b" / file.name).read_bytes() == file.read_bytes()


def test_the_files(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "special_tokens_map.json",
        "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    config = read_json(saved / "config.json")
    assert config["model_type"] == "stablelm"
    assert config["architectures"] == ["StableLmForCausalLM"]
    assert config["torch_dtype"] == "float32"
    assert read_json(saved / "generation_config.json") == {
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 1,
    }
    with safe_open(saved / "model.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
        assert len(opened.keys()) == 11 * 2 + 4


def test_without_a_tokenizer(tmp_path: Path, model: StableLM) -> None:
    save_pretrained(model, None, tmp_path / "bare")
    again, words = load_pretrained(tmp_path / "bare")
    assert words is None
    assert_same(model, again)
    assert sorted(path.name for path in (tmp_path / "bare").iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors",
    ]  # fmt: skip


def test_shards(sharded: Path, model: StableLM) -> None:
    index = read_json(sharded / "model.safetensors.index.json")
    assert index["metadata"]["total_size"] == 4 * model.num_parameters()
    files = sorted(path.name for path in sharded.glob("*.safetensors"))
    assert files == [f"model-{n:05}-of-{len(files):05}.safetensors" for n in range(1, len(files) + 1)]
    assert len(files) > 2
    assert sorted(set(index["weight_map"].values())) == files
    for file in files:
        held = load_file(sharded / file)
        assert {name for name, at in index["weight_map"].items() if at == file} == held.keys()
        assert sum(tensor.nbytes for tensor in held.values()) <= 150_000
    assert_same(model, load_pretrained(sharded)[0])


def test_a_tensor_larger_than_the_limit_has_its_own_shard(tmp_path: Path, model: StableLM) -> None:
    save_pretrained(model, None, tmp_path / "tiny", max_shard_bytes=1)
    assert len(list((tmp_path / "tiny").glob("*.safetensors"))) == 26
    assert_same(model, load_pretrained(tmp_path / "tiny")[0])


def test_precision_is_the_stated_one_or_the_stored_one_or_the_wanted_one(
    saved: Path, model: StableLM
) -> None:
    assert load_pretrained(saved, torch.bfloat16)[0].dtype == torch.bfloat16
    config = read_json(saved / "config.json")
    for key, value, expected in (
        ("torch_dtype", "bfloat16", torch.bfloat16),
        ("dtype", "float16", torch.float16),
        ("dtype", None, torch.float32),
        ("torch_dtype", "auto", torch.float32),
    ):
        write_json(
            saved / "config.json", {k: v for k, v in config.items() if k != "torch_dtype"} | {key: value}
        )
        assert load_pretrained(saved)[0].dtype == expected
        assert load_pretrained(saved, torch.float64)[0].dtype == torch.float64
    assert torch.equal(load_pretrained(saved, torch.float64)[0].lm_head.weight, model.lm_head.weight.double())


def test_configs_as_found_in_the_wild(saved: Path, model: StableLM) -> None:
    config = read_json(saved / "config.json")
    theta, share, eps = (config.pop(key) for key in ("rope_theta", "partial_rotary_factor", "layer_norm_eps"))
    rope = {"rope_theta": theta, "partial_rotary_factor": share, "rope_type": "default"}
    for spelling in (
        {"layer_norm_eps": eps, "rope_parameters": rope, "pad_token_id": None,
         "transformers_version": "5.23.0"},
        {"model_type": "stablelm_epoch", "norm_eps": eps, "rope_pct": share, "rope_theta": theta,
         "architectures": ["StableLMEpochForCausalLM"], "rotary_scaling_factor": 1.0},
    ):  # fmt: skip
        write_json(saved / "config.json", config | spelling)
        assert_same(model, load_pretrained(saved)[0])


PRIVATE_BYTES = """
import sys
from pathlib import Path
from stablelm.interchange import load_pretrained

def private_bytes():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")))

before = private_bytes()
model, _ = load_pretrained(sys.argv[1])
for parameter in model.parameters():
    parameter.detach().max()  # reads every page, makes nothing
print(private_bytes() - before)
"""


def test_weights_are_mapped_not_copied(tmp_path: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    big = preset("stablelm-1m", vocab_size=30_000, hidden_size=256, num_hidden_layers=2)
    save_pretrained(StableLM(big, seed=1), None, tmp_path / "big")
    size = (tmp_path / "big" / "model.safetensors").stat().st_size
    assert size > 60e6
    command = [
        sys.executable,
        "-c",
        PRIVATE_BYTES,
        str(tmp_path / "big"),
    ]  # a process whose memory nobody used before
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown < 0.3 * size


def test_an_existing_directory_is_not_overwritten(saved: Path, model: StableLM) -> None:
    before = {path: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(InputError, match="already exists"):
        save_pretrained(model, None, saved)
    assert {path: path.read_bytes() for path in saved.iterdir()} == before


def test_a_failure_in_the_middle_leaves_nothing(tmp_path: Path, model: StableLM, monkeypatch) -> None:
    calls = []

    def fails_at_the_third(tensors, path, metadata) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise OSError("pulled the plug")
        save_file(tensors, path, metadata)

    monkeypatch.setattr(huggingface, "save_file", fails_at_the_third)
    with pytest.raises(OSError, match="pulled the plug"):
        save_pretrained(model, None, tmp_path / "out", max_shard_bytes=100_000)
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_of_another_model_is_refused_both_ways(tmp_path: Path, tokenizer: Tokenizer) -> None:
    small = StableLM(CONFIG.model_copy(update=dict(vocab_size=299)), seed=1)
    with pytest.raises(InputError, match="300 ids are more than the model's vocab_size 299"):
        save_pretrained(small, tokenizer, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    save_pretrained(small, None, tmp_path / "out")
    tokenizer.save(tmp_path / "out")
    with pytest.raises(InputError, match=r"tokenizer\.json: 300 ids"):
        load_pretrained(tmp_path / "out")


def test_missing_parts_are_named(saved: Path) -> None:
    weights = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").unlink()
    with pytest.raises(
        InputError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json is there\.$"
    ):
        load_pretrained(saved)
    (saved / "pytorch_model.bin").write_bytes(pickle.dumps({"lm_head.weight": 1}))
    with pytest.raises(InputError, match=r"pytorch_model\.bin is a pickle, which can run code"):
        load_pretrained(saved)
    (saved / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match=r"model\.safetensors: truncated: tensor '.*' ends at byte"):
        load_pretrained(saved)
    (saved / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json: no such file"):
        load_pretrained(saved)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 1: not valid JSON"),
        ("[1]", "a mapping of settings is wanted, not a list"),
        ('{"model_type": "llama"}', "model_type 'llama' is not StableLM"),
        ('{"model_type": "stablelm", "vocab_size": 512}', "'hidden_size' is missing"),
    ],
)
def test_a_broken_config_is_named(saved: Path, content: str, message: str) -> None:
    (saved / "config.json").write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        load_pretrained(saved)
    assert str(saved / "config.json") in str(caught.value)


def test_config_and_weights_that_disagree(saved: Path) -> None:
    config = read_json(saved / "config.json")
    for key, value, message in (
        ("vocab_size", 600, r"'lm_head\.weight' has shape \[512, 64\], config\.json wants \[600, 64\]"),
        ("num_hidden_layers", 3, r"'model\.layers\.2\.input_layernorm\.bias' \(and 10 more\) is missing"),
        ("num_hidden_layers", 1, r"'model\.layers\.1\.input_layernorm\.bias' \(and 10 more\) has no place"),
        ("intermediate_size", 128, "gate_proj|up_proj|down_proj"),
        ("num_key_value_heads", 2, r"'model\.layers\.\d\.self_attn\.[kv]_proj\.weight' has shape"),
        ("use_qkv_bias", True, r"'model\.layers\.0\.self_attn\.k_proj\.bias' \(and 5 more\) is missing"),
        ("qk_layernorm", True, r"q_layernorm|k_layernorm"),
        ("use_parallel_residual", True, r"post_attention_layernorm\.bias' \(and 3 more\) has no place"),
    ):
        write_json(saved / "config.json", config | {key: value})
        with pytest.raises(InputError, match=message):
            load_pretrained(saved)


@pytest.mark.parametrize("kind", ["parent", "absolute", "link"])
def test_an_index_may_not_lead_out_of_its_directory(sharded: Path, tmp_path: Path, kind: str) -> None:
    index = read_json(sharded / "model.safetensors.index.json")
    first = sorted(set(index["weight_map"].values()))[0]
    shutil.move(sharded / first, tmp_path / "outside.safetensors")
    name = {
        "parent": "../outside.safetensors",
        "absolute": str(tmp_path / "outside.safetensors"),
        "link": first,
    }[kind]
    if kind == "link":
        os.symlink(tmp_path / "outside.safetensors", sharded / first)
    index["weight_map"] = {n: name if at == first else at for n, at in index["weight_map"].items()}
    write_json(sharded / "model.safetensors.index.json", index)
    with pytest.raises(InputError, match="leads outside this directory"):
        load_pretrained(sharded)


def test_a_broken_index_is_named(sharded: Path) -> None:
    path = sharded / "model.safetensors.index.json"
    index = read_json(path)
    last = sorted(set(index["weight_map"].values()))[-1]
    for content in ({}, [], {"weight_map": {"a": 5}}, {"weight_map": "x"}):
        write_json(path, content)
        with pytest.raises(InputError, match="no weight_map from tensor names to files"):
            load_pretrained(sharded)
    write_json(
        path,
        index | {"weight_map": index["weight_map"] | {"lm_head.weight": "model-00001-of-00001.safetensors"}},
    )
    with pytest.raises(InputError, match=r"model-00001-of-00001\.safetensors: missing, although"):
        load_pretrained(sharded)
    other = next(at for at in index["weight_map"].values() if at != index["weight_map"]["lm_head.weight"])
    write_json(path, index | {"weight_map": index["weight_map"] | {"lm_head.weight": other}})
    with pytest.raises(InputError, match="tensor 'lm_head.weight' is not in it, although"):
        load_pretrained(sharded)
    write_json(path, index)
    (sharded / last).unlink()
    with pytest.raises(InputError, match=f"{last}: missing"):
        load_pretrained(sharded)


def test_the_single_file_wins_over_a_stale_index(saved: Path, model: StableLM) -> None:
    write_json(saved / "model.safetensors.index.json", {"weight_map": {"gone": "gone.safetensors"}})
    assert_same(model, load_pretrained(saved)[0])


def test_json_files_are_plain(saved: Path) -> None:
    for file in saved.glob("*.json"):
        json.loads(file.read_text(encoding="utf-8"))


def test_all_files_of_an_export_can_be_read_by_the_same_people(tmp_path: Path) -> None:
    save_pretrained(StableLM(preset("stablelm-1m", num_hidden_layers=1), seed=1), None, tmp_path / "m")
    assert len({file.stat().st_mode for file in (tmp_path / "m").iterdir()}) == 1
