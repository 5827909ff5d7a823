"""A packed model on disk: comes back bit for bit, is whole or not there, and says what is wrong with it."""

import json

import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

from stablelm.auto import load
from stablelm.cli.main import application
from stablelm.config import InputError, ModelConfig
from stablelm.inference.quantization import is_packed
from stablelm.interchange import open_path, save_pretrained
from stablelm.interchange.inspection import describe
from stablelm.model import StableLM
from stablelm.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def models(tmp_path_factory, shared):
    """A small model on disk, and the same in 4 bits."""
    folder = tmp_path_factory.mktemp("models")
    words = Tokenizer.from_file(shared / "data/neox-tokenizer/tokenizer.json")
    config = ModelConfig(
        vocab_size=words.size, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=176, max_position_embeddings=64,
    )  # fmt: skip
    save_pretrained(StableLM(config, seed=5).to(torch.bfloat16), words, folder / "plain")
    run = CliRunner().invoke(
        application(),
        ["quantize", str(folder / "plain"), str(folder / "four"), "--group", "32", "--tokens", "128"],
    )
    assert run.exit_code == 0, run.output
    return folder


def test_what_was_written_is_what_is_rounded_on_the_fly(models):
    ids = torch.arange(30)[None]
    stored, words = open_path(models / "four")
    rounded, _ = load(models / "plain", quantize=4, group=32)
    assert is_packed(stored)
    assert words is not None
    assert torch.equal(stored(ids), rounded(ids))
    assert stored(ids).isfinite().all()
    again, _ = load(models / "four")
    assert torch.equal(again(ids[:, :3]), rounded(ids[:, :3]))


def test_the_files(models):
    settings = json.loads((models / "four/config.json").read_text())
    assert settings["quantization_config"]["bits"] == 4
    quality = json.loads((models / "four/quality.json").read_text())
    assert 0 < quality["kl"] < 0.05
    assert quality["tokens"] == 128
    raw = (models / "four/model.safetensors").read_bytes()
    assert (8 + int.from_bytes(raw[:8], "little")) % 64 == 0
    with safe_open(models / "four/model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"
    assert len(raw) < 0.8 * (models / "plain/model.safetensors").stat().st_size


def test_inspection(models):
    facts = describe(models / "four", verify=True, kernels=torch.device("cpu"))
    assert facts["quantization"] == {"bits": 4, "group": 32, "head_bits": 8, "calibrated": False}
    assert "Numba" in facts["kernels"]["quantised_weights"]


def test_calibration_from_a_file(models, tmp_path, root):
    text = tmp_path / "text.txt"
    text.write_text((root / "CONTRIBUTING.md").read_text())
    run = CliRunner().invoke(
        application(),
        [
            "quantize",
            str(models / "plain"),
            str(tmp_path / "out"),
            "--bits",
            "8",
            "--calibrate",
            str(text),
            "--tokens",
            "200",
        ],
    )
    assert run.exit_code == 0, run.output
    settings = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert (settings["calibrated"], settings["bits"]) == (True, 8)
    assert json.loads((tmp_path / "out/quality.json").read_text())["kl"] < 1e-3


def test_an_interrupted_run_leaves_nothing(models, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("stablelm.interchange.huggingface.save_file", stop)
    run = CliRunner().invoke(
        application(), ["quantize", str(models / "plain"), str(tmp_path / "out"), "--tokens", "64"]
    )
    assert run.exit_code != 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plain", "new", "--bits", "5"], "bits = 5"),
        (["plain", "new", "--group", "20"], "group = 20"),
        (["four", "new"], "quantised already"),
        (["plain", "four"], "already exists"),
        (["nothing", "new"], "no such directory"),
    ],
)
def test_mistakes(models, arguments, words):
    name, out, *rest = arguments
    run = CliRunner().invoke(application(), ["quantize", str(models / name), str(models / out), *rest])
    assert isinstance(run.exception, InputError)
    assert words in str(run.exception)
    assert not (models / "new").exists()


def damaged(models, tmp_path, change):
    for path in (models / "four").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    settings = json.loads((tmp_path / "config.json").read_text())
    change(settings)
    (tmp_path / "config.json").write_text(json.dumps(settings))


def test_damage_is_named(models, tmp_path):
    with pytest.raises(InputError, match="quantised, as only"):
        save_pretrained(open_path(models / "four")[0], None, tmp_path / "out")
    with pytest.raises(InputError, match="quantised already"):
        load(models / "four", quantize=4)
    damaged(models, tmp_path, lambda s: s["quantization_config"].update(group=64))
    with pytest.raises(InputError, match="has shape"):
        open_path(tmp_path)
    damaged(models, tmp_path, lambda s: s.pop("quantization_config"))
    with pytest.raises(InputError, match="has no place in"):
        open_path(tmp_path)
    damaged(models, tmp_path, lambda s: s.update(quantization_config={"quant_method": "bitsandbytes"}))
    with pytest.raises(InputError, match="of 'bitsandbytes' cannot be read"):
        open_path(tmp_path)
    damaged(models, tmp_path, lambda s: None)
    raw = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(raw[:-100])
    with pytest.raises(InputError, match="truncated"):
        open_path(tmp_path)
