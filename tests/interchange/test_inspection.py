"""What is said about every kind of path: true, complete without reading weights; nothing broken passes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stablelm.auto import AutoModelForCausalLM
from stablelm.config import InputError, preset
from stablelm.config.model import to_huggingface
from stablelm.config.recipe import DataRecipe
from stablelm.data import Dataset
from stablelm.data.preparation import prepare
from stablelm.interchange import save_pretrained
from stablelm.interchange.inspection import as_lines, describe
from stablelm.model import StableLM
from stablelm.storage import write_json, write_manifest
from stablelm.tokenizer import Tokenizer, train_tokenizer

CONFIG = preset("stablelm-1m", num_hidden_layers=2, hidden_size=64, vocab_size=512)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the cat sat on the mat, and the other cat sat there too " * 2], 300)


@pytest.fixture(scope="module")
def model() -> StableLM:
    return StableLM(CONFIG, seed=3)


@pytest.fixture
def saved(model: StableLM, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    save_pretrained(model, tokenizer, tmp_path / "model")
    return tmp_path / "model"


def checkpoint(folder: Path, model: StableLM, tokenizer: Tokenizer, step: int) -> Path:
    """A checkpoint as the training room writes it, with one evaluated source."""
    path = folder / "checkpoints" / f"step-{step:06}"
    (path / "model").mkdir(parents=True)
    tensors = dict(model.state_dict())
    half = len(tensors) // 2
    for number, names in enumerate((list(tensors)[:half], list(tensors)[half:])):
        save_file({name: tensors[name] for name in names}, path / "model" / f"part-{number}.safetensors")
    write_json(path / "config.json", to_huggingface(model.config, "float32"))
    tokenizer.save(path)
    seen = [{"source": "web", "bits_per_byte": bits} for bits in (2.5, 1.23456)]
    write_json(path / "state.json", {"step": step, "steps": 1000, "samples": 4 * step, "evaluations": seen})
    write_manifest(path, {"format": "stablelm-checkpoint", "version": 1, "step": step})
    return path


@pytest.mark.parametrize("verify", [False, True])
def test_a_model(saved: Path, model: StableLM, tokenizer: Tokenizer, verify: bool) -> None:
    facts = describe(saved, verify=verify)
    assert ("verified" in facts) == verify
    assert facts.pop("verified", None) in (None, "26 tensors: all there, of the right shape, finite")
    assert facts == {
        "kind": "model",
        "path": str(saved),
        "parameters": model.num_parameters(),
        "architecture": {
            "layers": 2, "hidden": 64, "heads": 4, "key_value_heads": 4, "head_dimensions": 16,
            "rotary_dimensions": 4, "rotary_base": 10_000, "mlp": 256, "vocabulary": 512, "context": 256,
            "residual": "sequential", "norm_biases": "yes", "qkv_biases": "no", "query_key_norms": "no",
            "kv_bytes_per_token": 2 * 2 * 64 * 2,
        },
        "weights": {"tensors": 26, "stored_as": ["float32"], "files": 1,
                    "bytes": (saved / "model.safetensors").stat().st_size,
                    "tensor_bytes": 4 * model.num_parameters()},
        "tokenizer": {"ids": 300, "end_of_text": 0, "padding": 1, "sha256": tokenizer.sha256},
    }  # fmt: skip
    assert json.loads(json.dumps(facts)) == facts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_are_those_that_opening_the_model_chooses(
    tmp_path: Path, tokenizer: Tokenizer, dtype: torch.dtype
) -> None:
    save_pretrained(StableLM(CONFIG, seed=3).to(dtype), tokenizer, tmp_path / "model")
    kernels = describe(tmp_path / "model", kernels=torch.device("cpu"))["kernels"]
    assert kernels["precision"] == str(dtype).removeprefix("torch.")
    for wish in (None, "flash_attention_2", "eager"):
        opened = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation=wish)
        said = kernels[f"attention_if_{wish}" if wish else "attention"]
        assert said == f"{opened.attention.name}: {opened.attention.reason}"
    head = CONFIG.hidden_size // CONFIG.num_attention_heads
    for when in ("in_prefill", "in_decoding", "with_padding"):
        assert kernels[f"sdpa_{when}"] == f"FLASH_ATTENTION (head dimension {head})"
    assert "flash_attention_2 on cpu" in kernels["attention_if_flash_attention_2"]


def test_kernels_of_what_is_no_model(dataset: Path) -> None:
    with pytest.raises(InputError, match="no model found"):
        describe(dataset, kernels=torch.device("cpu"))


def test_the_released_architecture_from_its_config_alone(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", to_huggingface(preset("stablelm-3b-4e1t"), "bfloat16"))
    facts = describe(tmp_path)
    assert facts["parameters"] == 2_795_443_200
    assert facts["weights"] == facts["tokenizer"] == "none"
    assert "parameters            2,795,443,200" in "\n".join(as_lines(facts))
    with pytest.raises(InputError, match="no weights: neither"):
        describe(tmp_path, verify=True)


def test_shards_of_two_precisions(model: StableLM, tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_pretrained(model, tokenizer, tmp_path / "m", max_shard_bytes=150_000)
    files = sorted((tmp_path / "m").glob("*.safetensors"))
    first = {name: tensor.bfloat16() for name, tensor in load_file(files[0]).items()}
    save_file(first, files[0], {"format": "pt"})
    weights = describe(tmp_path / "m")["weights"]
    assert set(weights["stored_as"]) == {"float32", "bfloat16"}
    assert weights["files"] == len(files) > 2
    assert weights["bytes"] == sum(file.stat().st_size for file in files)


def test_a_demo_is_its_model(saved: Path) -> None:
    facts = describe(saved.parent)
    assert (facts["kind"], facts["model"]) == ("demo", str(saved))
    assert facts["parameters"] == describe(saved)["parameters"]


@pytest.mark.parametrize("verify", [False, True])
def test_a_run_and_its_checkpoints(
    model: StableLM, tokenizer: Tokenizer, tmp_path: Path, verify: bool
) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert describe(tmp_path / "run", verify=verify)["checkpoints"] == []
    write_json(tmp_path / "run" / "plan.json", {"steps": 1000})
    assert describe(tmp_path / "run")["steps"] == {"done": 0, "planned": 1000}
    for step in (900, 1000, 80):
        path = checkpoint(tmp_path / "run", model, tokenizer, step)
    facts = describe(path, verify=verify)
    assert facts["kind"] == "checkpoint"
    assert facts["steps"] == {"done": 80, "planned": 1000}
    assert facts["windows_read"] == 320
    assert facts["held_out_bits_per_byte"] == {"web": 1.2346}
    assert facts["weights"]["files"] == 2
    assert ("every file has the manifest's sha256" in facts.get("verified", "")) == verify
    (tmp_path / "run" / "checkpoints" / "step-002000").mkdir()  # cut off by a kill: passed over
    run = describe(tmp_path / "run", verify=verify)
    assert run["checkpoints"] == ["step-000080", "step-000900", "step-001000"]
    assert run["steps"] == {"done": 1000, "planned": 1000}
    assert run["kind"] == "run"
    lines = list(as_lines(run))
    assert next(line for line in lines if line.startswith("checkpoints")).split(None, 1)[1] == (
        "step-000080, step-000900, step-001000"
    )
    with pytest.raises(InputError, match="try .*step-002000"):
        describe(tmp_path / "run" / "checkpoints")


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "message", "only_by_reading"),
    [
        (lambda c: (c / "manifest.json").unlink(), "a checkpoint that was never finished", False),
        (lambda c: (c / "manifest.json").write_text("["), "manifest.json, line 1: not valid JSON", False),
        (lambda c: (c / "manifest.json").write_text("[]"), "manifest.json: lists no files", False),
        (lambda c: (c / "state.json").write_text("{}"), "state.json: truncated or changed", False),
        (lambda c: (c / "model" / "part-1.safetensors").unlink(), "part-1.safetensors: missing", False),
        (lambda c: _flip(c / "model" / "part-1.safetensors", -5), "part-1.safetensors: corrupt", True),
    ],
)  # fmt: skip
def test_a_broken_checkpoint(
    model: StableLM, tokenizer: Tokenizer, tmp_path: Path, harm, message: str, only_by_reading: bool
) -> None:
    path = checkpoint(tmp_path, model, tokenizer, 7)
    harm(path)
    if only_by_reading:
        assert describe(path)["kind"] == "checkpoint"
    else:
        with pytest.raises(InputError, match=message):
            describe(path)
    with pytest.raises(InputError, match=message):
        describe(path, verify=True)


@pytest.mark.parametrize(
    "state", [[], {}, {"step": 3}, {"step": 3, "steps": 4, "samples": 1, "evaluations": [5]}]
)
def test_a_state_that_is_none(model: StableLM, tokenizer: Tokenizer, tmp_path: Path, state) -> None:
    path = checkpoint(tmp_path, model, tokenizer, 7)
    write_json(path / "state.json", state)
    write_manifest(path, {"format": "stablelm-checkpoint", "version": 1, "step": 7})
    with pytest.raises(InputError, match=r"state\.json: damaged"):
        describe(path)


def test_the_first_tensor_that_is_not_finite_is_named_with_its_file(
    model: StableLM, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    save_pretrained(model, tokenizer, tmp_path / "m", max_shard_bytes=150_000)
    for value in (float("nan"), float("-inf")):
        file = sorted((tmp_path / "m").glob("*.safetensors"))[1]
        tensors = load_file(file)
        name = sorted(tensors)[0]
        tensors[name].view(-1)[-1] = value
        save_file(tensors, file, {"format": "pt"})
        assert describe(tmp_path / "m")["kind"] == "model"
        for path in (tmp_path / "m", file):
            with pytest.raises(InputError, match=f"{file.name}: tensor '{name}' holds values that are not"):
                describe(path, verify=True)


def test_a_weights_file(saved: Path, model: StableLM) -> None:
    facts = describe(saved / "model.safetensors", verify=True)
    assert facts["kind"] == "weights"
    assert facts["shapes"] == {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert "  lm_head.weight " in "\n".join(as_lines(facts)), "a tensor keeps its underscores"
    (saved / "model.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match=r"model\.safetensors: truncated"):
        describe(saved / "model.safetensors")


@pytest.fixture
def dataset(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    (tmp_path / "text").mkdir()
    for number in range(12):
        (tmp_path / "text" / f"{number}.txt").write_text(f"the cat number {number} sat there " * 9)
    (tmp_path / "bad.jsonl").write_text('{"text": "the mat"}\n{"x": 1}\n\n')
    (tmp_path / "empty.jsonl").write_text("")
    tokenizer.save(tmp_path / "tok")
    recipe = DataRecipe(
        out=str(tmp_path / "data"),
        tokenizer=str(tmp_path / "tok"),
        held_out=0.3,
        on_error="skip",
        max_error_rate=1,
        sources=[
            {"name": "a_text", "paths": [str(tmp_path / "text")]},
            {"name": "lines", "paths": [str(tmp_path / "*.jsonl")]},
        ],
    )
    return prepare(recipe)


def test_a_dataset(dataset: Path) -> None:
    facts, made = describe(dataset), Dataset(dataset)
    assert (facts["kind"], facts["fingerprint"]) == ("dataset", made.fingerprint)
    text, lines = facts["sources"]["a_text"], facts["sources"]["lines"]
    assert text["train"]["documents"] + text["held_out"]["documents"] == text["read"] == text["kept"] == 12
    assert text["train"]["tokens"] == made.train("a_text").num_tokens
    assert (lines["read"], lines["kept"]) == (3, 1)
    assert lines["dropped"] == {"blank line": 1} and lines["errors"] == {"missing key": 1}
    assert lines["empty_files"] == [str(dataset.parent / "empty.jsonl")]
    shown = "\n".join(as_lines(facts))
    assert "  a_text\n" in shown, "a source keeps its underscore"
    assert f"held out     {text['held_out']['documents']} documents, " in shown
    assert "errors       1 missing key" in shown
    assert describe(dataset, verify=True)["verified"] == f"every byte of {len(made.verify())} files"


def test_a_dataset_that_was_changed(dataset: Path) -> None:
    _flip(dataset / "a_text" / "train.bin", 3)
    assert describe(dataset)["kind"] == "dataset"
    with pytest.raises(InputError, match=r"a_text/train\.bin: corrupt"):
        describe(dataset, verify=True)
    (dataset / "a_text" / "train.idx").unlink()
    with pytest.raises(InputError, match=r"a_text/train\.idx: missing"):
        describe(dataset)


def test_token_files_by_any_of_their_names(dataset: Path) -> None:
    prefix = dataset / "a_text" / "train"
    about = describe(prefix, verify=True)
    tokens = Dataset(dataset).train("a_text")
    assert (about["documents"], about["tokens"]) == (tokens.num_documents, tokens.num_tokens)
    assert about["largest_id"] == int(tokens.tokens(0, tokens.num_tokens).max()) < 300
    for suffix in ("bin", "idx"):
        same = describe(f"{prefix}.{suffix}", verify=True)
        assert {**same, "path": ""} == {**about, "path": ""}
    with pytest.raises(InputError, match=f"known one by one: try {prefix}"):
        describe(prefix.parent)
    (dataset / "a_text" / "train.bin").write_bytes(b"\0\0")
    for name in (prefix, f"{prefix}.idx"):
        with pytest.raises(InputError, match=r"train\.bin: truncated"):
            describe(name)


def test_a_tokenizer(saved: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tok")
    for path in (tmp_path / "tok", tmp_path / "tok" / "tokenizer.json", saved / "tokenizer.json"):
        facts = describe(path)
        assert (facts["kind"], facts["ids"], facts["sha256"]) == ("tokenizer", 300, tokenizer.sha256)


@pytest.mark.parametrize("name", [".", "", "..", "/", "/dev/null"])
def test_places_without_a_name_of_their_own(tmp_path: Path, monkeypatch, name: str) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InputError, match=r"nothing known is in this directory|not a kind of file"):
        describe(name)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_a_part_points_to_the_whole(saved: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"{name}: only a part of something; give the directory .*{saved}"):
        describe(saved / name)


@pytest.mark.parametrize("name", ["a.txt", "metrics.jsonl", "noext", "model.bin", "x.json"])
def test_other_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x00\xff\x13")
    with pytest.raises(InputError, match=name.split(".")[0]):
        describe(tmp_path / name)
    with pytest.raises(InputError, match="no such file or directory"):
        describe(tmp_path / "nowhere" / name)


def test_a_model_that_lost_its_config_is_known_by_what_is_left(saved: Path) -> None:
    (saved / "config.json").unlink()
    assert describe(saved)["kind"] == "tokenizer"
    shutil.rmtree(saved)
    with pytest.raises(InputError, match="no such file"):
        describe(saved)


def test_lines_are_aligned_whatever_the_depth() -> None:
    facts = {
        "a": 1,
        "section": {"inner_name": 12345, "flag": "x"},
        "sources": {"n_1": {"in": {"t": 2, "u": 3000}}},
    }
    assert list(as_lines(facts)) == [
        "a             1",
        "section",
        "  inner name  12,345",
        "  flag        x",
        "sources",
        "  n_1",
        "    in        2 t, 3,000 u",
    ]
