"""A wrong order of the QKV rows fits every shape; a forward pass finds it, and so does the loss on a text."""

import json
import math
from pathlib import Path

import pytest
import torch

from stablelm.config import InputError, preset
from stablelm.interchange import save_pretrained
from stablelm.interchange.inspection import as_lines
from stablelm.interchange.neox_inspection import describe_neox
from stablelm.interchange.neox_verify import compare_models, fixed_ids, loss_by_layout, verify_neox
from stablelm.interchange.neox_writing import save_neox
from stablelm.model import StableLM
from stablelm.tokenizer import train_tokenizer
from tests.interchange import neox_fixture as fixture

SMALL = dict(
    num_hidden_layers=2, hidden_size=64, intermediate_size=96, vocab_size=320, max_position_embeddings=128,
    num_attention_heads=4,
)  # fmt: skip
MHA = preset("stablelm-3b-4e1t", **SMALL, num_key_value_heads=4, initializer_range=0.2)
GROUPED = preset("stablelm-3b-4e1t", **SMALL, num_key_value_heads=2, initializer_range=0.2)
TEXT = "the cat sat on the mat, and the other cat sat there too; the dog saw the cat and ran off. " * 6


@pytest.mark.parametrize(
    ("config", "stored", "first"),
    [(MHA, "concatenated", "interleaved"), (GROUPED, "grouped", "concatenated")],
)
def test_another_qkv_order_is_found(tmp_path: Path, config, stored: str, first: str) -> None:
    model = StableLM(config, seed=4)
    save_pretrained(model, None, tmp_path / "hf")
    fixture.write(tmp_path / "neox", dict(model.state_dict()), config, layout=stored, width=2)
    compared = verify_neox(tmp_path / "neox", tmp_path / "hf")
    assert not compared.equal
    assert compared.place == "block 0"
    assert compared.layout == stored
    assert compared.same_choice < 1
    assert "not equal, they part at block 0: logits differ by up to" in str(compared)
    assert f"with qkv_layout {stored} they are equal" in str(compared)
    right = verify_neox(tmp_path / "neox", tmp_path / "hf", qkv_layout=stored)
    assert right.equal
    assert right.largest_difference == 0
    assert str(right) == "bit-equal: logits differ by at most 0"
    again = verify_neox(tmp_path / "neox", tmp_path / "neox", qkv_layout=first)
    assert again.equal  # as the other side is read in the first order too


def test_where_two_models_part(tmp_path: Path) -> None:
    model = StableLM(MHA, seed=4)
    save_neox(model, None, tmp_path / "neox")
    for name, place in (
        ("model.embed_tokens.weight", "the embedding"), ("model.layers.1.mlp.up_proj.weight", "block 1"),
        ("model.norm.weight", "the final norm"), ("lm_head.weight", "the head"),
    ):  # fmt: skip
        other = StableLM(MHA, seed=4)
        with torch.no_grad():
            other.state_dict()[name].mul_(1.5)
        save_pretrained(other, None, tmp_path / place.replace(" ", "-"))
        compared = verify_neox(tmp_path / "neox", tmp_path / place.replace(" ", "-"))
        assert compared.place == place
        assert compared.layout is None
        assert compared.largest_difference > 0
        assert ("no order of the QKV rows" in str(compared)) == place.startswith("block")
    spoilt = StableLM(MHA, seed=4)
    with torch.no_grad():
        spoilt.lm_head.weight[0, 0] = float("nan")
    assert math.isnan(compare_models(model, spoilt).largest_difference)
    assert compare_models(model, spoilt).place == "the head"
    short = StableLM(preset("stablelm-3b-4e1t", **{**SMALL, "num_hidden_layers": 1}, num_key_value_heads=4))
    assert compare_models(model, short).place == "their num_hidden_layers"


def test_rounding_is_not_a_difference() -> None:
    one, other = StableLM(MHA, seed=4), StableLM(MHA, seed=4)
    with torch.no_grad():
        other.lm_head.weight.mul_(1 + 1e-6)
    compared = compare_models(one, other)
    assert compared.equal
    assert 0 < compared.largest_difference < 1e-4
    assert str(compared).startswith("equal but for rounding")
    ids = torch.tensor([[1, 2, 3]])
    assert compare_models(one, other, ids).largest_logit > 0
    assert torch.equal(fixed_ids(320), fixed_ids(320))
    assert fixed_ids(7, 100).max() == 6


@pytest.fixture(scope="module")
def trained() -> StableLM:
    """A model that has learnt that what came three tokens ago comes again: attention alone can tell."""
    config = preset(
        "stablelm-3b-4e1t", **{**SMALL, "num_hidden_layers": 1}, num_key_value_heads=2,
        partial_rotary_factor=1.0, rope_theta=100.0,
    )  # fmt: skip
    model, draw = StableLM(config, seed=1), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(100):
        ids = torch.randint(0, 32, (32, 3), generator=draw).repeat(1, 8)
        loss = model(ids[:, :-1], labels=ids[:, 1:]) / ids[:, 1:].numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("stored", ["concatenated", "grouped"])
def test_the_loss_tells_the_order(tmp_path: Path, trained: StableLM, stored: str) -> None:
    words = train_tokenizer([TEXT], 310)
    save_neox(trained, words, tmp_path / "neox", qkv_layout=stored, width=2)
    losses = loss_by_layout(tmp_path / "neox", [5, 17, 23] * 8)
    assert list(losses) == ["concatenated", "grouped"]
    assert losses[stored] < 1.2
    assert losses[stored] + 1 < max(losses.values())
    assert loss_by_layout(tmp_path / "neox", TEXT) == loss_by_layout(tmp_path / "neox", words.encode(TEXT))
    (tmp_path / "neox" / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="no tokenizer.json beside it; give ids"):
        loss_by_layout(tmp_path / "neox", TEXT)
    for ids in ([1], [1, 320], [-1, 2]):
        with pytest.raises(InputError, match="at least two are wanted, below the vocabulary of 320"):
            loss_by_layout(tmp_path / "neox", ids)


@pytest.mark.parametrize("sequential", [False, True])
def test_facts(tmp_path: Path, sequential: bool) -> None:
    weights = dict(StableLM(GROUPED).to(torch.bfloat16).state_dict())
    written = dict(sequential=sequential, width=2, mlp="legacy", layout="concatenated")
    tag = fixture.write(tmp_path / "save", weights, GROUPED, **written)
    words = train_tokenizer([TEXT], 300)
    words.save(tmp_path / "save")
    facts = describe_neox(tmp_path / "save", verify=True)
    assert facts["kind"] == "model"
    assert facts["format"] == f"GPT-NeoX checkpoint, {'sequential' if sequential else 'pipeline'} layout"
    assert facts["tag"] == "global_step1000"
    assert facts["steps"] == {"done": 1000}
    assert facts["tensor_parallel_ranks"] == 2
    assert facts["mlp_names"] == "w1, w2, w3"
    assert facts["qkv_layout"].startswith("concatenated: GPT-NeoX's order for grouped queries since")
    assert facts["architecture_from"].endswith("model.yml")
    assert facts["parameters"] == GROUPED.num_parameters
    assert facts["architecture"]["key_value_heads"] == 2
    count = 2 * (1 + 2 * 9 + 2 + 1)
    assert facts["weights"]["tensors"] == count
    assert facts["weights"]["stored_as"] == ["bfloat16"]
    assert facts["weights"]["files"] == (2 if sequential else 2 * 6)
    files = [file for file in tag.glob("*_states.pt") if "optim" not in file.name]
    assert facts["weights"]["bytes"] == sum(file.stat().st_size for file in files)
    assert facts["tokenizer"]["sha256"] == words.sha256
    assert facts["verified"] == f"{count} tensors: all there, of the right shape, finite"
    json.dumps(facts, allow_nan=False)
    assert any("GPT-NeoX checkpoint" in line for line in as_lines(facts))
    assert describe_neox(tag, qkv_layout="grouped")["qkv_layout"] == "grouped: asked for"


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    config = preset("stablelm-3b-4e1t", **{**SMALL, "vocab_size": 280}, num_key_value_heads=4)
    fixture.write(tmp_path, dict(StableLM(config).state_dict()), config)
    train_tokenizer([TEXT], 300).save(tmp_path)
    with pytest.raises(InputError, match="ids are more than the model's vocab_size 280"):
        describe_neox(tmp_path)
