"""Directories that we write, in `transformers`; directories that it writes, here; generation beside its
own."""

import re
from pathlib import Path

import pytest
import torch
import transformers
from transformers import StableLmConfig, StableLmForCausalLM
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from stablelm.auto import PretrainedStableLM, load
from stablelm.config import preset
from stablelm.inference import Sampling
from stablelm.inference.sampling import distribution, penalize
from stablelm.interchange import open_path, save_pretrained
from stablelm.model import StableLM
from stablelm.storage import read_json
from stablelm.tokenizer import Tokenizer

pytestmark = pytest.mark.oracle
# Ids that the tokenizer does not have: never chosen here, so forbidden there.
NO_PADDING = dict(suppress_tokens=list(range(50_277, 50_304)))
PROMPTS = ["def f(x):\n    return", "The weather is always wonderful", "🦕", "x" * 150]
SHAPES = {
    "usual": {},
    "unusual": dict(
        hidden_size=96, num_attention_heads=2, intermediate_size=160, partial_rotary_factor=0.5,
        rope_theta=1e6, layer_norm_eps=1e-3,
    ),
    "head 80": dict(hidden_size=160, num_attention_heads=2),
}  # fmt: skip


def lively(model: torch.nn.Module) -> torch.nn.Module:
    """Weights far from their initial values: norms that scale and shift, attention that prefers."""
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
            else:
                parameter.add_(torch.empty_like(parameter).normal_(0, 0.3, generator=generator))
    return model


@pytest.fixture(scope="module")
def neox(shared: Path) -> Tokenizer:
    return Tokenizer.from_file(shared / "data" / "neox-tokenizer")


@pytest.fixture(scope="module", params=SHAPES)
def written(request, neox: Tokenizer, tmp_path_factory) -> tuple[StableLM, Path]:
    config = preset("stablelm-1m", num_hidden_layers=2, vocab_size=50_304, **SHAPES[request.param])
    model = lively(StableLM(config, seed=6))
    folder = tmp_path_factory.mktemp("written") / "model"
    save_pretrained(model, neox, folder, max_shard_bytes=30_000_000 if request.param == "unusual" else 10**9)
    return model, folder


@pytest.fixture(scope="module")
def theirs(written) -> StableLmForCausalLM:
    model = transformers.AutoModelForCausalLM.from_pretrained(written[1])
    assert type(model) is StableLmForCausalLM
    assert model.dtype == torch.float32
    return model.eval()


@torch.no_grad()
def test_logits_are_equal(written, theirs) -> None:
    ids = torch.randint(0, 50_277, (3, 100), generator=torch.Generator().manual_seed(1))
    expected = theirs(ids).logits
    assert float(expected.std()) > 0.5
    torch.testing.assert_close(written[0](ids), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_logits_of_a_padded_batch_are_equal(written, theirs, neox) -> None:
    batch = neox(PROMPTS, return_tensors="pt", padding=True)
    positions = (batch.attention_mask.cumsum(-1) - 1).clamp(min=0)
    expected = theirs(**batch, position_ids=positions).logits
    ours, real = written[0](**batch), batch.attention_mask.bool()
    torch.testing.assert_close(ours[real], expected[real], rtol=0, atol=1e-5)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_64_tokens_are_equal(written, theirs, prompt: str) -> None:
    model, tokenizer = load(written[1])
    words = transformers.AutoTokenizer.from_pretrained(written[1])
    inputs = words(prompt, return_tensors="pt")
    expected = theirs.generate(**inputs, max_new_tokens=64, do_sample=False, **NO_PADDING)
    ours = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=64, do_sample=False)
    assert ours.dtype == expected.dtype
    assert torch.equal(ours, expected)
    assert tokenizer.decode(ours[0], skip_special_tokens=True) == words.decode(
        expected[0], skip_special_tokens=True
    )


def test_greedy_of_a_padded_batch_is_equal(written, theirs) -> None:
    model, tokenizer = load(written[1])
    batch = tokenizer(PROMPTS[:3], return_tensors="pt", padding=True)
    expected = theirs.generate(**batch, max_new_tokens=40, do_sample=False, **NO_PADDING)
    assert torch.equal(model.generate(**batch, max_new_tokens=40, do_sample=False), expected)


def test_greedy_with_a_repetition_penalty_is_equal(written, theirs) -> None:
    model, tokenizer = load(written[1])
    inputs = tokenizer(PROMPTS[1], return_tensors="pt")
    expected = theirs.generate(
        **inputs, max_new_tokens=64, do_sample=False, **NO_PADDING, repetition_penalty=1.4
    )
    ours = model.generate(**inputs, max_new_tokens=64, do_sample=False, repetition_penalty=1.4)
    assert torch.equal(ours, expected)


def test_an_end_fills_the_row_as_theirs(written, theirs) -> None:
    model, tokenizer = load(written[1])
    batch = tokenizer(PROMPTS[:3], return_tensors="pt", padding=True)
    free = model.generate(**batch, max_new_tokens=20)
    end = int(free[0, batch.input_ids.shape[1] + 4])
    expected = theirs.generate(**batch, max_new_tokens=20, do_sample=False, **NO_PADDING, eos_token_id=end)
    assert torch.equal(model.generate(**batch, max_new_tokens=20, eos_token_id=end), expected)


def test_the_cards_snippet_runs_with_either_import(written, shared: Path, capsys) -> None:
    card = (shared / "seed" / "model-card.md").read_text(encoding="utf-8")
    snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].replace("model.cuda()\n", "")
    snippet = snippet.replace("stabilityai/stablelm-3b-4e1t", written[1].as_posix())
    for library in ("transformers", "stablelm"):
        exec(snippet.replace("from transformers import", f"from {library} import"), {})
        assert capsys.readouterr().out.startswith("The weather is always wonderful")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_transformers_writes_is_read(tmp_path: Path, shape: str, dtype: torch.dtype) -> None:
    changes = dict(SHAPES[shape])
    share = changes.pop("partial_rotary_factor", 0.25)
    theta = changes.pop("rope_theta", 10_000.0)
    sizes = dict(hidden_size=128, num_attention_heads=4, intermediate_size=192) | changes
    config = StableLmConfig(
        vocab_size=512, num_hidden_layers=2, num_key_value_heads=sizes["num_attention_heads"], **sizes,
        max_position_embeddings=128, bos_token_id=0, eos_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": share},
    )  # fmt: skip
    theirs = lively(StableLmForCausalLM(config)).to(dtype).eval()
    theirs.save_pretrained(tmp_path, max_shard_size="200KB" if shape == "usual" else "1GB")
    assert "rope_parameters" in read_json(tmp_path / "config.json")
    ours, tokenizer = open_path(tmp_path)
    assert tokenizer is None
    assert ours.dtype == dtype
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    assert (ours.config.rope_theta, ours.config.partial_rotary_factor) == (theta, share)
    ids = torch.randint(0, 512, (2, 64), generator=torch.Generator().manual_seed(2))
    theirs = StableLmForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32
    ).eval()  # .to(bf16) spoils its angles
    with torch.no_grad():
        torch.testing.assert_close(ours.float()(ids), theirs(ids).logits, rtol=0, atol=1e-5)


def test_there_and_back_through_transformers(written, tmp_path: Path) -> None:
    model, folder = written
    transformers.AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    again, tokenizer = load(tmp_path)
    assert isinstance(again, PretrainedStableLM)
    assert again.config == model.config
    assert tokenizer.size == 50_277
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@pytest.mark.parametrize("seed", range(40))
def test_the_distribution_is_that_of_their_processors(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 500, generator=draw) * 3
    history = torch.randint(0, 500, (2, 40), generator=draw)
    temperature, top_p, min_p, penalty = (
        torch.rand(4, generator=draw) * torch.tensor([1.5, 1, 0.2, 1])
    ).tolist()
    temperature, penalty, top_k = temperature + 0.1, penalty + 0.5, 1 + seed * 5
    expected = logits.clone()
    for processor in (
        RepetitionPenaltyLogitsProcessor(penalty), TemperatureLogitsWarper(temperature),
        TopKLogitsWarper(top_k), TopPLogitsWarper(top_p), MinPLogitsWarper(min_p),
    ):  # fmt: skip
        expected = processor(history, expected)
    seen = torch.zeros(2, 500, dtype=torch.bool).scatter(1, history, True)
    ours = distribution(penalize(logits, seen, penalty), Sampling(temperature, top_k, top_p, min_p))
    assert torch.equal(ours > 0, expected.isfinite())
    torch.testing.assert_close(ours, expected.softmax(-1), rtol=1e-5, atol=1e-7)
