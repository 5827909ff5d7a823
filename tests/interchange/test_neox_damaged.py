"""GPT-NeoX checkpoints that are broken, foreign or hostile: one message with file, tensor or key and remedy,
and no code of theirs is ever run."""

import os
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from stablelm.config import InputError, preset
from stablelm.interchange.neox import load_neox, open_neox
from stablelm.interchange.neox_inspection import describe_neox
from stablelm.model import StableLM
from tests.interchange import neox_fixture as fixture

CONFIG = preset(
    "stablelm-3b-4e1t", num_hidden_layers=2, hidden_size=32, intermediate_size=48, vocab_size=64,
    max_position_embeddings=32, num_attention_heads=4, num_key_value_heads=4,
)  # fmt: skip
WEIGHTS = dict(StableLM(CONFIG, seed=9).state_dict())
LAYER, STATE = "layer_03-model_01-model_states.pt", "mp_rank_01_model_states.pt"


@pytest.fixture(params=[False, True], ids=["pipeline", "sequential"])
def tag(request, tmp_path: Path) -> Path:
    return fixture.write(tmp_path / "save", WEIGHTS, CONFIG, sequential=request.param, width=2)


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    return fixture.write(tmp_path / "save", WEIGHTS, CONFIG, width=2)


def file_of(tag: Path) -> Path:
    """A file that holds weights of block 1, rank 1."""
    return tag / LAYER if (tag / LAYER).exists() else tag / STATE


def change(tag: Path, key: str, new, layer: int = 3) -> None:
    """Replaces (or with None removes) one tensor of a block's rank 1 in whichever layout."""
    file = file_of(tag)
    content = torch.load(file, weights_only=False)
    tensors = content if file.name == LAYER else content["module"]
    name = key if file.name == LAYER else f"sequential.{layer}.{key}"
    if new is None:
        del tensors[name]
    else:
        tensors[name] = new(tensors.get(name))
    torch.save(content, file)


def refused(tag: Path, *parts: str) -> None:
    with pytest.raises(InputError) as caught:
        load_neox(tag)
    for part in parts:
        assert re.search(part, str(caught.value)), caught.value


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_truncated(tag: Path, share: float) -> None:
    file = file_of(tag)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    refused(tag, f"{file.name}: truncated", "Download or copy the file again")


def test_files_that_are_not_there(pipeline: Path) -> None:
    shutil.copytree(pipeline, pipeline.parent / "global_step1")
    other = pipeline.parent / "global_step1"
    (pipeline / LAYER).unlink()
    refused(pipeline, f"{LAYER} is missing; other layers have 2 ranks")
    (pipeline / LAYER.replace("_01", "_00")).unlink()
    refused(pipeline, "layer_03-model_00-model_states.pt: missing; .* describes 2 blocks")
    for rank in range(2):
        (other / f"layer_06-model_{rank:02d}-model_states.pt").unlink()
    refused(other, "layer_06-model_00-model_states.pt: missing")
    (other / "configs" / "model.yml").write_text(
        yaml.safe_dump(fixture.yaml_of(CONFIG, 2, **{"no-weight-tying": None}))
    )
    refused(other, "no_weight_tying is not set, and there is no final_linear.weight")


@pytest.mark.parametrize("layer", [0, 2, 5])
def test_a_whole_layer_is_missing(pipeline: Path, layer: int) -> None:
    for rank in range(2):
        (pipeline / f"layer_{layer:02d}-model_{rank:02d}-model_states.pt").unlink()
    refused(pipeline, rf"layer_{layer:02d}-model_00-model_states.pt: missing")


def test_ranks_that_are_not_there(tmp_path: Path) -> None:
    tag = fixture.write(tmp_path / "a", WEIGHTS, CONFIG, width=2)
    for file in tag.glob("layer_*-model_01-*"):
        file.unlink()
    refused(tag, "mp_rank_01_model_states.pt is there, but the layers have only 1 rank:")
    (tag / STATE).unlink()
    refused(tag, "model_parallel_size 2, but .* holds files of 1 rank")
    tag = fixture.write(tmp_path / "b", WEIGHTS, CONFIG, width=4, sequential=True)
    (tag / "mp_rank_02_model_states.pt").unlink()
    refused(tag, "mp_rank_02_model_states.pt is missing, although mp_rank_03 is there")
    (tag / "mp_rank_03_model_states.pt").unlink()
    refused(tag, "model_parallel_size 4, but .* holds files of 2 ranks")
    shutil.rmtree(tag / "configs")
    refused(tag, "mp_rank_00_model_states.pt: model_parallel_size 4, but .* holds files of 2 ranks")


def test_ranks_of_different_widths(tmp_path: Path) -> None:
    tag = fixture.write(tmp_path / "a", WEIGHTS, CONFIG, width=2)
    other = fixture.write(tmp_path / "b", WEIGHTS, CONFIG, width=4)
    shutil.copy(other / "layer_03-model_02-model_states.pt", tag)
    refused(tag, "layer_00-model_02-model_states.pt is missing; other layers have 3 ranks")
    (tag / "layer_03-model_02-model_states.pt").unlink()
    shutil.copy(other / LAYER, tag)
    refused(tag, f"{LAYER}: tensor 'attention.query_key_value.weight' has shape", r"wants \[48, 32\]")


def test_wrong_tensors(tag: Path) -> None:
    whole = {file: file.read_bytes() for file in tag.glob("*.pt")}
    name = file_of(tag).name
    for key, new, message in (
        ("mlp.linear2.weight", None, r"tensor '.*mlp.linear2.weight' is missing"),
        ("mlp.linear2.weight", lambda t: t[:, 1:].clone(), r"'.*mlp.linear2.weight' has shape \[32, 23\]"),
        ("attention.dense.weight", lambda t: t.T.clone(), r"dense.weight' has shape \[16, 32\]"),
        ("attention.dense.weight", lambda t: t.to(torch.int8), r"dense.weight' is torch.int8, no weights"),
        (
            "mlp.linear3.weight",
            lambda _: torch.zeros(3),
            r"'.*mlp.linear3.weight' has no place in this network",
        ),
        ("attention.qk_layernorm.weight", lambda _: torch.ones(2, 8), "qk_layernorm.weight' has no place"),
        ("attention.qk_layernorm.bias", lambda _: torch.zeros(2, 8), "qk_layernorm.bias' has no place"),
        ("mlp.linear1.bias", lambda _: torch.ones(48), "linear1.bias' is a bias that this network does not"),
        (  # one number that says it is a tebibyte of them
            "mlp.linear2.weight",
            lambda _: torch.zeros(1).expand(1 << 20, 1 << 18),
            "is not in its bytes",
        ),
        ("mlp.linear2.weight", lambda _: 3, "'.*mlp.linear2.weight' is a int, not a tensor"),
    ):
        change(tag, key, new)
        refused(tag, message, name)
        for file, content in whole.items():
            file.write_bytes(content)
    load_neox(tag)


def test_values_that_are_not_finite(tag: Path) -> None:
    assert describe_neox(tag, verify=True)["verified"].endswith("finite")

    def spoil(tensor):
        tensor[1, 2] = float("nan")
        return tensor

    change(tag, "mlp.linear2.weight", spoil)
    describe_neox(tag)
    with pytest.raises(
        InputError, match=r"tensor '.*mlp.linear2.weight' holds values that are not finite"
    ) as caught:
        describe_neox(tag, verify=True)
    assert file_of(tag).name in str(caught.value)


class Hostile:
    """Touches a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("old_format", [False, True])
def test_a_pickle_with_code_is_not_run(tag: Path, tmp_path: Path, old_format: bool) -> None:
    mark, file, allowed = tmp_path / "ran", file_of(tag), set(torch.serialization.get_safe_globals())
    content = torch.load(file, weights_only=False)
    content["zzz"] = Hostile(mark)
    torch.save(content, file, _use_new_zipfile_serialization=not old_format)
    refused(tag, f"{file.name}: its pickle wants to call .*system, which is not run", "somebody you trust")
    with open(file, "wb") as opened:
        pickle.dump(Hostile(mark), opened)
    refused(
        tag,
        f"{file.name}: not a file of tensors as torch.save writes it: a bare pickle, which could run code",
    )
    for text in ("", "hello world\n", "version https://git-lfs.github.com/spec/v1\noid sha256:1\n"):
        file.write_text(text)
        refused(tag, f"{file.name}: (truncated|damaged|not a file of tensors)")
    torch.save([1, 2], file)
    refused(tag, f"{file.name}: .*found list")
    assert not mark.exists()
    assert set(torch.serialization.get_safe_globals()) == allowed  # NumPy's were allowed for a while only


def test_the_old_format_of_torch_is_read(tag: Path) -> None:
    for file in tag.glob("*model_states.pt"):
        content = torch.load(file, weights_only=False)
        torch.save(content, file, _use_new_zipfile_serialization=False)
    model = load_neox(tag)[0]
    assert all(torch.equal(value, WEIGHTS[name]) for name, value in model.state_dict().items())


def test_optimizer_files_are_not_opened(tag: Path) -> None:
    assert list(tag.glob("*optim_states.pt"))  # of bytes that nothing can read
    load_neox(tag)


def test_zero_3_is_named(tmp_path: Path) -> None:
    (tmp_path / "global_step1").mkdir()
    (tmp_path / "global_step1" / "zero_pp_rank_0_mp_rank_00_model_states.pt").write_bytes(b"x")
    with pytest.raises(InputError, match="cut over ZeRO-3 ranks; gather them"):
        load_neox(tmp_path / "global_step1")
    tag = fixture.write(tmp_path / "save", WEIGHTS, CONFIG)
    for file in tag.glob("layer_*"):
        file.unlink()
    with pytest.raises(InputError, match="holds no weights, and there are no layer_XX"):
        load_neox(tag)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_damage_is_our_error_or_a_model(tmp_path_factory, data) -> None:
    folder = tmp_path_factory.getbasetemp() / "neox-fuzz"
    if not folder.exists():
        fixture.write(folder, WEIGHTS, CONFIG, sequential=True)
    file = folder / "global_step1000" / "mp_rank_00_model_states.pt"
    whole = file.read_bytes()
    content = bytearray(whole)
    # The pickle comes first, the archive's table of contents last; between them are weights.
    for _ in range(data.draw(st.integers(1, 3))):
        near = data.draw(st.integers(0, 6000))
        at = near if data.draw(st.booleans()) else len(content) - 1 - near
        content[at] = data.draw(st.integers(0, 255))
    if data.draw(st.integers(0, 3)) == 0:
        del content[data.draw(st.integers(0, len(content))) :]
    file.write_bytes(content)
    try:
        model = load_neox(folder)[0]
    except InputError:
        return
    finally:
        file.write_bytes(whole)
    assert {n: t.shape for n, t in model.state_dict().items()} == {n: t.shape for n, t in WEIGHTS.items()}


def test_args_of_another_run(pipeline: Path) -> None:
    file = pipeline / "mp_rank_00_model_states.pt"
    for name, value in (("num_layers", 3), ("max_position_embeddings", 64), ("hidden_size", 1)):
        state = fixture.state_of(CONFIG, 2, 5)
        state["args"][name] = value
        torch.save(state, file)
        refused(pipeline, rf"mp_rank_00_model_states.pt: args say {name} {value}", "different runs")
    torch.save({"iteration": 5}, file)
    assert open_neox(pipeline).step == 5


def test_a_foreign_state_does_not_hold_the_weights_back(pipeline: Path, tmp_path: Path) -> None:
    file = pipeline / "mp_rank_00_model_states.pt"
    torch.save({"optimizer": Hostile(tmp_path / "ran")}, file)
    refused(pipeline, "wants to call", "can be read once this file is moved away")
    file.unlink()
    assert open_neox(pipeline).step == 1000  # of the tag's name
    assert all(
        torch.equal(value, WEIGHTS[name]) for name, value in load_neox(pipeline)[0].state_dict().items()
    )
    assert not (tmp_path / "ran").exists()
