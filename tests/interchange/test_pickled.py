"""Pickled weights: only when asked for, only data, every damage told by name."""

import json
import os
import pickle

import pytest
import torch

from stablelm.config import InputError, preset
from stablelm.interchange import load_pretrained, save_pretrained
from stablelm.interchange.huggingface import stored_tensors
from stablelm.model import StableLM

CONFIG = preset("stablelm-1m", num_hidden_layers=2, hidden_size=64, vocab_size=512)


@pytest.fixture
def model():
    return StableLM(CONFIG, seed=3).to(torch.bfloat16)


@pytest.fixture
def pickled(model, tmp_path):
    """A directory as older tools wrote it: config.json and pytorch_model.bin."""
    save_pretrained(model, None, tmp_path / "old")
    (tmp_path / "old" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "old" / "pytorch_model.bin")
    return tmp_path / "old"


def same(loaded, model):
    expected = model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    assert loaded.dtype == model.dtype


def test_only_when_asked_for(pickled, model):
    with pytest.raises(InputError, match=r"pytorch_model\.bin is a pickle.*--allow-pickle"):
        load_pretrained(pickled)
    same(load_pretrained(pickled, allow_pickle=True)[0], model)


def test_the_format_from_before_2020(pickled, model):
    file = pickled / "pytorch_model.bin"
    torch.save(model.state_dict(), file, _use_new_zipfile_serialization=False)
    same(load_pretrained(pickled, allow_pickle=True)[0], model)


def test_shards(pickled, model):
    (pickled / "pytorch_model.bin").unlink()
    names = list(model.state_dict())
    files = {name: f"pytorch_model-{i % 2 + 1}-of-2.bin" for i, name in enumerate(names)}
    for file in set(files.values()):
        torch.save({n: model.state_dict()[n] for n in names if files[n] == file}, pickled / file)
    index = pickled / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    same(load_pretrained(pickled, allow_pickle=True)[0], model)
    (pickled / "pytorch_model-1-of-2.bin").rename(pickled.parent / "away.bin")
    with pytest.raises(InputError, match=r"pytorch_model-1-of-2\.bin: missing"):
        stored_tensors(pickled, allow_pickle=True)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(files, "../away.bin")}))
    with pytest.raises(InputError, match="leads outside this directory"):
        stored_tensors(pickled, allow_pickle=True)


def test_safetensors_come_first(pickled, model):
    save_pretrained(StableLM(CONFIG, seed=9), None, pickled.parent / "both")
    (pickled / "pytorch_model.bin").rename(pickled.parent / "both" / "pytorch_model.bin")
    loaded, _ = load_pretrained(pickled.parent / "both", allow_pickle=True)
    assert not torch.equal(loaded.lm_head.weight, model.lm_head.weight.float())


class Attack:
    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_never_run(pickled, model, tmp_path, zipped):
    state = {**model.state_dict(), "model.extra": Attack(tmp_path / "owned")}
    torch.save(state, pickled / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"pytorch_model\.bin: holds more than weights.*not opened"):
        load_pretrained(pickled, allow_pickle=True)
    assert not (tmp_path / "owned").exists()
    (pickled / "pytorch_model.bin").write_bytes(pickle.dumps(Attack(tmp_path / "owned")))
    with pytest.raises(InputError, match=r"pytorch_model\.bin: "):
        load_pretrained(pickled, allow_pickle=True)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("keep", [0, 1, 100, 0.3, 0.999])
def test_a_cut_file(pickled, keep):
    file = pickled / "pytorch_model.bin"
    data = file.read_bytes()
    file.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(InputError, match=r"pytorch_model\.bin: .*(damaged|cannot be read)"):
        load_pretrained(pickled, allow_pickle=True)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {3: torch.zeros(2)}, torch.zeros(3)])
def test_what_is_no_state_dict(pickled, content):
    torch.save(content, pickled / "pytorch_model.bin")
    with pytest.raises(InputError, match="not a state dict"):
        load_pretrained(pickled, allow_pickle=True)


def test_shapes_are_checked_before_values_are_made(pickled, model):
    state = dict(model.state_dict())
    state["lm_head.weight"] = torch.zeros(1, dtype=torch.bfloat16).expand(1 << 40)  # 2 TB on paper
    torch.save(state, pickled / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"'lm_head\.weight' has shape"):
        load_pretrained(pickled, allow_pickle=True)
