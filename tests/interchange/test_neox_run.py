"""A run of ours in GPT-NeoX's keys: it reads back as itself, and what GPT-NeoX cannot say is told."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from stablelm.config import load_run_config, preset
from stablelm.config.model import PRESETS
from stablelm.config.neox import is_neox
from stablelm.config.neox_keys import KEYS, SECTIONS
from stablelm.config.run import RunConfig, run_config
from stablelm.config.schema import read_yaml
from stablelm.interchange.neox_run import converted, run_to_neox

DATA = {"path": "prepared", "epochs": {"web": 4, "code": "7/3"}}


def back(tmp_path, config):
    values, kept = run_to_neox(config)
    path = tmp_path / "neox.yml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), "utf-8")
    assert load_run_config(path) == config
    return values, kept


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_architecture_comes_back(tmp_path, name):
    run = {"model": preset(name).model_dump(), "data": DATA, "batch": {"sequence_length": 128}}
    _, kept = back(tmp_path, run_config(run))
    own = {"model.use_qkv_bias", "model.qk_layernorm", "model.bos_token_id", "model.eos_token_id"}
    assert set(kept) - own <= {"model.vocab_size", "steps", "data.path", "data.epochs", "evaluation.windows"}


@pytest.mark.parametrize("name", ["small", "stablelm-3b", "reference"])
def test_our_files_come_back(tmp_path, root, name):
    source = root / "configs" / f"{name}.yml"
    text, kept = converted(source)
    (tmp_path / "theirs.yml").write_text(text, "utf-8")
    assert load_run_config(tmp_path / "theirs.yml") == load_run_config(source)
    assert {"data.path", "data.epochs"} <= set(kept) and all(
        key in text for key in ("stablelm:", "delete it")
    )
    text, kept = converted(tmp_path / "theirs.yml")
    (tmp_path / "ours.yml").write_text(text, "utf-8")
    assert load_run_config(tmp_path / "ours.yml") == load_run_config(source) and kept == []


def test_the_originals_come_back(tmp_path, root, shared):
    for source, more in (
        (root / "configs" / "stablelm-3b-4e1t.yml", []),
        (shared / "seed" / "configs" / "stablelm-base-alpha-7b-v2.yml", ["precision=fp32"]),
    ):
        wanted = load_run_config(source, ["batch.reference_world=256", *more])
        text, _ = converted(source, ["batch.reference_world=256", *more])
        (tmp_path / "ours.yml").write_text(text, "utf-8")
        assert not is_neox(read_yaml(tmp_path / "ours.yml"), list(RunConfig.model_fields))
        assert load_run_config(tmp_path / "ours.yml") == wanted
        text, kept = converted(tmp_path / "ours.yml")
        (tmp_path / "theirs.yml").write_text(text, "utf-8")
        assert load_run_config(tmp_path / "theirs.yml") == wanted
        assert kept in ([], ["model.vocab_size"])


def test_the_order_of_a_run_is_spelt(tmp_path):
    """All of GPT-NeoX's own: nothing is kept aside."""
    neox = {"paths": ["a", "b"], "weights": [1.0, 0.3], "train_iters": 100, "tokenizer": "20B_tokenizer.json"}
    run = {"steps": 100, "evaluation": {"windows": 2048}, "data": {"order": "neox", "neox": neox}}
    values, kept = back(tmp_path, run_config(run))
    assert kept == [] and "stablelm" not in values
    assert (values["train-data-paths"], values["train-data-weights"]) == (["a", "b"], [1.0, 0.3])
    run["data"]["neox"] = neox | {"paths": ["a"], "weights": [], "split": "9,1,0"}
    assert back(tmp_path, run_config(run))[1] == []
    run["data"]["neox"] = neox | {"train_iters": 200}
    run["data"]["skip"] = [[3, 4]]
    assert back(tmp_path, run_config(run))[1] == ["data.skip", "data.order", "data.neox"]


def test_only_keys_that_have_a_verdict_are_written(tmp_path):
    run = run_config(
        {"data": DATA, "init": "weights", "precision": "fp32", "card": {"gated_fields": {"a": "text"}}}
    )
    values, kept = back(tmp_path, run)
    assert {"init", "precision"}.isdisjoint(kept) and "card.gated_fields" in kept
    for key, value in values.items():
        name = key.replace("-", "_")
        assert name in KEYS or (name in SECTIONS and isinstance(value, dict))
    assert (values["load"], values["finetune"]) == ("weights", True)


@settings(max_examples=60)
@given(
    lr=st.floats(1e-7, 1.0), floor=st.floats(0, 1), warmup=st.floats(0, 0.99), decay=st.floats(0, 1),
    betas=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)), clip=st.floats(0, 10),
    sequences=st.integers(1, 4096), micro=st.integers(1, 64), windows=st.integers(1, 9000),
    steps=st.none() | st.integers(1, 10**6), vocab=st.integers(1, 60_000), seed=st.integers(0, 2**40),
    width=st.integers(1, 8000), every=st.integers(1, 9999),
    shape=st.sampled_from(["cosine", "constant", "linear"]),
)  # fmt: skip
def test_any_run_comes_back(
    lr, floor, warmup, decay, betas, clip, sequences, micro, windows, steps, vocab, seed, width, every, shape
):  # fmt: skip
    run = run_config(
        {
            "data": DATA, "steps": steps, "seed": seed,
            "model": {"preset": "stablelm-1m", "vocab_size": vocab, "intermediate_size": width},
            "batch": {"sequences": sequences, "micro_sequences": micro, "sequence_length": 64},
            "optimizer": {"lr": lr, "betas": betas, "clip": clip, "weight_decay": decay},
            "schedule": {"warmup": warmup, "floor": floor, "shape": shape},
            "evaluation": {"windows": windows}, "checkpoint": {"every": every},
        }
    )  # fmt: skip
    values, _ = run_to_neox(run)  # which reads it back itself, and here from text
    text = yaml.safe_dump(values)
    assert run_to_neox(run)[0] == yaml.safe_load(text)
