"""One door: what each kind of path opens as, and what is said about the others."""

from pathlib import Path

import pytest
import torch

from stablelm.config import InputError, preset
from stablelm.interchange import open_path, save_pretrained
from stablelm.interchange.inspection import describe
from stablelm.interchange.open import locate
from stablelm.model import StableLM

CONFIG = preset("stablelm-1m", num_hidden_layers=1, hidden_size=32, num_attention_heads=2, vocab_size=64)


class Special(StableLM):
    """What a caller may want to get instead."""


def test_a_directory_and_a_demos_output_open_alike(tmp_path: Path) -> None:
    model = StableLM(CONFIG, seed=5)
    save_pretrained(model, None, tmp_path / "demo" / "model")
    (tmp_path / "demo" / "report.html").write_text("x")
    for path in (tmp_path / "demo" / "model", tmp_path / "demo", str(tmp_path / "demo")):
        opened, tokenizer = open_path(path)
        assert tokenizer is None
        assert torch.equal(opened.lm_head.weight, model.lm_head.weight)
        assert type(opened) is StableLM
    special, _ = open_path(tmp_path / "demo", torch.float16, "cpu", Special)
    assert type(special) is Special
    assert special.dtype == torch.float16
    assert open_path(tmp_path / "demo", device="meta")[0].device.type == "meta"


def test_a_link_to_a_model_opens(tmp_path: Path) -> None:
    save_pretrained(StableLM(CONFIG, seed=5), None, tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert open_path(tmp_path / "link")[0].config == CONFIG


def test_what_is_not_a_model_is_told_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "checkpoints" / "step-000005").mkdir(parents=True)
    with pytest.raises(InputError, match="no model found") as caught:
        open_path(tmp_path)
    for wanted in (
        str(tmp_path),
        "config.json",
        "model.safetensors",
        "manifest.json",
        "checkpoints/step-N",
        "model/",
    ):
        assert wanted in str(caught.value)


def test_paths_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing: no such directory.$"):
        open_path(tmp_path / "nothing")
    (tmp_path / "model.safetensors").write_text("x")
    with pytest.raises(InputError, match="a file; give the directory that holds it"):
        open_path(tmp_path / "model.safetensors")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError, match="loop: a symbolic link that leads nowhere, or in a circle"):
        locate(tmp_path / "loop")


def test_links_in_a_circle_or_to_nowhere_are_told_apart_from_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "dead").symlink_to("gone")
    for name in ("a", "dead"):
        for opened in (open_path, describe):
            with pytest.raises(
                InputError, match=rf"{name}: a symbolic link that leads nowhere, or in a circle"
            ):
                opened(tmp_path / name)
    save_pretrained(StableLM(CONFIG), None, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "model" / "model.safetensors").symlink_to("model.safetensors")
    for opened in (open_path, describe):
        with pytest.raises(InputError, match=r"model\.safetensors: a symbolic link"):
            opened(tmp_path / "model")


def test_a_checkpoint_that_was_never_finished_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "step-000010"
    (folder / "model").mkdir(parents=True)
    for name in ("state.json", "config.json"):
        (folder / name).write_text("{}")
    with pytest.raises(InputError, match="step-000010: a checkpoint that was never finished"):
        open_path(folder)
