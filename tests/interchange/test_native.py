"""Our own checkpoints: the newest finished one, checked byte for byte."""

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from stablelm.config import InputError, preset
from stablelm.config.model import to_huggingface
from stablelm.interchange import open_path
from stablelm.interchange.native import is_checkpoint, load_checkpoint, newest_checkpoint
from stablelm.model import StableLM
from stablelm.storage import write_json, write_manifest
from stablelm.tokenizer import train_tokenizer

CONFIG = preset("stablelm-1m", num_hidden_layers=1, hidden_size=64, vocab_size=512)


def write_checkpoint(
    run: Path, step: int, seed: int, *, finished: bool = True, words: bool = True
) -> StableLM:
    """A checkpoint as training lays it out, written by PyTorch's own writer."""
    model, folder = StableLM(CONFIG, seed=seed), run / "checkpoints" / f"step-{step:06d}"
    for part in ("model", "optimizer"):
        writer = dcp.HuggingFaceStorageWriter(path=str(folder / part), save_distributed=True)
        dcp.save(dict(model.state_dict()), storage_writer=writer, no_dist=True)
    write_json(folder / "config.json", to_huggingface(CONFIG, "float32"))
    write_json(folder / "state.json", {"step": step})
    if words:
        tokenizer = train_tokenizer(["the cat and the other cat"], 285)
        tokenizer.save(folder / "aside")
        (folder / "aside" / "tokenizer.json").rename(folder / "tokenizer.json")
        for file in (folder / "aside").iterdir():
            file.unlink()
        (folder / "aside").rmdir()
    if finished:
        write_manifest(folder, {"step": step})
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("run")
    for step, seed in ((900, 1), (1000, 2), (99, 3)):
        write_checkpoint(run, step, seed)
    write_checkpoint(run, 1001, 4, finished=False)
    (run / "checkpoints" / "step-1002.tmp-77").mkdir()
    (run / "checkpoints" / "step-last").mkdir()
    return run


def flip(file: Path, at: int = -1) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


@pytest.mark.filterwarnings("ignore")
def test_a_run_opens_at_its_newest_finished_checkpoint(run: Path) -> None:
    assert newest_checkpoint(run) == run / "checkpoints" / "step-001000"
    model, tokenizer = open_path(run)
    expected = StableLM(CONFIG, seed=2).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert model.config == CONFIG
    assert tokenizer is not None
    assert tokenizer.encode_documents(["<|endoftext|>"]) != [[0]]
    old, _ = open_path(run / "checkpoints" / "step-000099", torch.bfloat16)
    assert torch.equal(old.lm_head.weight, StableLM(CONFIG, seed=3).lm_head.weight.bfloat16())
    assert isinstance(load_checkpoint(run / "checkpoints" / "step-000900")[0], StableLM)


def test_an_unfinished_one_is_not_a_checkpoint(run: Path) -> None:
    assert not is_checkpoint(run / "checkpoints" / "step-001001")
    assert is_checkpoint(run / "checkpoints" / "step-000900")
    assert newest_checkpoint(run / "checkpoints") is None
    assert newest_checkpoint(run / "nowhere") is None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", ["model", "config.json", "tokenizer.json"])
def test_a_flipped_byte_is_refused_by_name(tmp_path: Path, part: str) -> None:
    write_checkpoint(tmp_path, 5, 1)
    folder = tmp_path / "checkpoints" / "step-000005"
    (file,) = (folder / part).glob("*.safetensors") if part == "model" else [folder / part]
    flip(file)
    with pytest.raises(
        InputError, match=r"corrupt: its sha256 is not the manifest's\. Use another checkpoint"
    ) as caught:
        open_path(tmp_path)
    assert str(file) in str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_truncated_and_missing_files_are_refused_by_name(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 5, 1, words=False)
    folder = tmp_path / "checkpoints" / "step-000005"
    model, tokenizer = open_path(folder)
    assert tokenizer is None
    (file,) = (folder / "optimizer").glob("*.safetensors")
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(InputError, match="truncated or changed"):
        open_path(folder)
    file.unlink()
    with pytest.raises(InputError, match="missing, although the manifest lists it"):
        open_path(folder)
    file.write_bytes(content)
    flip(file)  # the optimizer is not read here, so its bytes are not hashed
    again, _ = open_path(folder)
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
