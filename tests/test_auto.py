"""The model card's first snippet on a local directory, and the facade's own promises."""

import re
from pathlib import Path

import pytest
import torch

import stablelm
from stablelm import AutoModelForCausalLM, AutoTokenizer, InputError, load
from stablelm.auto import PretrainedStableLM
from stablelm.config import preset
from stablelm.inference import Decoding, generate, generate_ids
from stablelm.interchange import save_pretrained
from stablelm.model import StableLM
from stablelm.tokenizer import Tokenizer, train_tokenizer

TEXTS = [
    "The weather is always wonderful, and the weather here is always warm.\n" * 3,
    "def f(x):\n    return x\n" * 3,
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    model = StableLM(preset("stablelm-1m", num_hidden_layers=2, vocab_size=384), seed=4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(5)
    path = tmp_path_factory.mktemp("auto") / "model"
    save_pretrained(model, train_tokenizer(TEXTS, 320), path)
    return path


@pytest.fixture(scope="module")
def model(saved: Path) -> PretrainedStableLM:
    return AutoModelForCausalLM.from_pretrained(saved)


def test_the_cards_first_snippet_runs(saved: Path, shared: Path, capsys) -> None:
    card = (shared / "seed" / "model-card.md").read_text(encoding="utf-8")
    snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    assert "trust_remote_code=True" in snippet
    assert 'torch_dtype="auto"' in snippet
    snippet = snippet.replace("from transformers import", "from stablelm import")
    snippet = snippet.replace("stabilityai/stablelm-3b-4e1t", saved.as_posix())
    names: dict = {}
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match=r"model\.cuda\(\): this machine has no usable CUDA GPU"):
            exec(snippet, {})
        snippet = snippet.replace("model.cuda()\n", "")
    exec(snippet, names)
    printed = capsys.readouterr().out
    assert printed.startswith("The weather is always wonderful")
    assert names["tokens"].shape[1] <= len(names["tokenizer"].encode("The weather is always wonderful")) + 64
    assert "<|" not in printed


def test_what_is_returned_is_a_stablelm_with_the_same_state_dict(
    model: PretrainedStableLM, saved: Path
) -> None:
    assert isinstance(model, StableLM)
    assert list(model.state_dict()) == list(StableLM(model.config, seed=1).state_dict())
    assert not model.training
    assert model.tokenizer.size == 320
    assert isinstance(AutoTokenizer.from_pretrained(saved), Tokenizer)


def test_generate_gives_prompt_and_text_as_int64(model: PretrainedStableLM, saved: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(saved), trust_remote_code=True)
    inputs = tokenizer(["The weather", "def f"], return_tensors="pt", padding=True).to(model.device)
    tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert tokens.dtype == torch.int64
    length = inputs.input_ids.shape[1]
    assert torch.equal(tokens[:, :length], inputs.input_ids)
    texts = tokenizer.batch_decode(tokens[:, length:], skip_special_tokens=True)
    assert texts == generate(model, tokenizer, ["The weather", "def f"], max_new_tokens=12, temperature=0)
    assert torch.equal(
        tokens, model.generate(**inputs, max_new_tokens=12, temperature=0.3, top_k=3, seed=1)
    ), "greedy"
    warm = dict(
        max_new_tokens=12, do_sample=True, temperature=1.5, top_k=0, top_p=0.99, repetition_penalty=1.1
    )
    sampled = [model.generate(**inputs, **warm, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(sampled[0], sampled[1])
    assert not torch.equal(sampled[0], sampled[2])
    texts = tokenizer.batch_decode(sampled[0][:, length:], skip_special_tokens=True)
    del warm["do_sample"]
    assert texts == generate(model, tokenizer, ["The weather", "def f"], **warm, seed=1)


def test_settings_as_transformers_users_give_them(model: PretrainedStableLM) -> None:
    ids = torch.tensor([[40, 41]])
    none = dict(temperature=None, top_k=None, top_p=None, min_p=None, repetition_penalty=None)
    one = dict(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0)
    a, b = (model.generate(ids, max_new_tokens=20, do_sample=True, seed=3, **given) for given in (none, one))
    assert torch.equal(a, b)
    limited = model.generate(ids, max_new_tokens=20, do_sample=True, seed=3, temperature=3.0)
    fifty = model.generate(ids, max_new_tokens=20, do_sample=True, seed=3, temperature=3.0, top_k=50)
    assert torch.equal(limited, fifty)
    first = int(model.generate(ids, max_new_tokens=1)[0, -1])
    stopped = model.generate(ids.repeat(2, 1), max_new_tokens=9, eos_token_id=[first, 5])
    assert stopped.tolist() == [[40, 41, first]] * 2
    with pytest.raises(InputError, match="top_p"):
        model.generate(ids, top_p=2.0)
    with pytest.raises(TypeError):
        model.generate(ids, num_beam_groups=2)


def test_num_beams_is_the_beam_search(model: PretrainedStableLM) -> None:
    ids = torch.tensor([[40, 41]])
    found = model.generate(ids, max_new_tokens=8, num_beams=4, length_penalty=0.5)
    way = Decoding(beams=4, length_penalty=0.5)
    words = model.tokenizer
    assert torch.equal(found, generate_ids(model, ids, max_new_tokens=8, way=way, real_ids=words.size))
    assert not torch.equal(found, model.generate(ids, max_new_tokens=8))
    with pytest.raises(InputError, match="num_beams above 1 searches and do_sample draws"):
        model.generate(ids, num_beams=4, do_sample=True)


def test_ids_beyond_the_tokenizer_are_never_chosen_and_ended_rows_get_its_padding(saved: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved)
    with torch.no_grad():
        model.lm_head.weight[320:] *= 50
    ids = torch.tensor([[40, 41], [50, 51], [60, 61]])
    out = model.generate(ids, max_new_tokens=40, do_sample=True, temperature=3.0, top_k=0, seed=1)
    assert int(out.max()) < 320
    first = model.generate(ids, max_new_tokens=1)[:, -1].tolist()
    assert len(set(first)) > 1
    out = model.generate(ids, max_new_tokens=6, eos_token_id=first[0])
    assert out[0].tolist() == [40, 41, first[0], *[1] * (out.shape[1] - 3)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (dict(), torch.float32),
        (dict(torch_dtype="auto"), torch.float32),
        (dict(dtype="auto"), torch.float32),
        (dict(torch_dtype=torch.bfloat16), torch.bfloat16),
        (dict(dtype="bfloat16"), torch.bfloat16),
        (dict(torch_dtype="torch.float16"), torch.float16),
        (dict(dtype="float64", torch_dtype=torch.float64), torch.float64),
    ],
    ids=str,
)
def test_precision(saved: Path, given: dict, expected: torch.dtype) -> None:
    assert AutoModelForCausalLM.from_pretrained(saved, **given).dtype == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(dtype="bf16"), "dtype 'bf16' does not exist; write auto, float32, bfloat16"),
        (dict(dtype="float32", torch_dtype="bfloat16"), "disagree"),
        (dict(device_map="teapot"), "teapot"),
        (dict(device_map={"model.layers.0": 0, "lm_head": 1}), "device_map"),
        (dict(device_map="balanced"), "balanced"),
    ],
    ids=str,
)
def test_refused(saved: Path, given: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        AutoModelForCausalLM.from_pretrained(saved, **given)


@pytest.mark.parametrize("device_map", [None, "cpu", torch.device("cpu"), {"": "cpu"}, "auto"])
def test_devices(saved: Path, device_map) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved, device_map=device_map)
    assert model.device.type == ("cuda" if device_map == "auto" and torch.cuda.is_available() else "cpu")


def test_no_code_of_a_checkpoint_is_run(saved: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved)
    model.save_pretrained(tmp_path / "trap")
    config = (tmp_path / "trap" / "config.json").read_text()
    trap = '{\n  "auto_map": {"AutoModelForCausalLM": "modeling_trap.Trap"},'
    (tmp_path / "trap" / "config.json").write_text(config.replace("{", trap, 1))
    (tmp_path / "trap" / "modeling_trap.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\n")
    AutoModelForCausalLM.from_pretrained(tmp_path / "trap", trust_remote_code=True)
    AutoTokenizer.from_pretrained(tmp_path / "trap", trust_remote_code=True)
    assert not (tmp_path / "sprung").exists()


def test_saving_keeps_model_and_tokenizer(model: PretrainedStableLM, saved: Path, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "again", max_shard_bytes=100_000)
    assert len(list((tmp_path / "again").glob("model-*.safetensors"))) > 1
    again, tokenizer = load(tmp_path / "again")
    assert isinstance(again, PretrainedStableLM)
    assert tokenizer.sha256 == model.tokenizer.sha256
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    AutoTokenizer.from_pretrained(saved).save_pretrained(tmp_path / "words")
    assert AutoTokenizer.from_pretrained(tmp_path / "words").size == 320
    assert AutoTokenizer.from_pretrained(tmp_path / "words" / "tokenizer.json").size == 320


def test_load_wants_both(saved: Path, tmp_path: Path) -> None:
    model, tokenizer = load(saved, dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    assert stablelm.generate(model, tokenizer, "The", max_new_tokens=3, seed=1) is not None
    save_pretrained(model, None, tmp_path / "bare")
    with pytest.raises(InputError, match=r"holds weights but no tokenizer\.json"):
        load(tmp_path / "bare")
    bare = AutoModelForCausalLM.from_pretrained(tmp_path / "bare")
    assert bare.tokenizer is None
    assert bare.generate(torch.tensor([[5]]), max_new_tokens=2, eos_token_id=[]).shape == (1, 3)
    with pytest.raises(InputError, match=r"holds weights but no tokenizer\.json"):
        AutoTokenizer.from_pretrained(tmp_path / "bare")
