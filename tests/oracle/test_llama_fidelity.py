"""4 bits of ours beside 4 bits of llama.cpp: the same weights, the same text, each against its own bfloat16.

Both sides compute with their own kernels, activations in 8 bits; KL(bf16 ‖ 4 bits) in nats a token."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stablelm.auto import load
from stablelm.config import preset
from stablelm.inference.cpu_runner import CpuRunner
from stablelm.inference.quantization import Recipe, quantize
from stablelm.interchange import save_pretrained
from stablelm.interchange.gguf import save_gguf
from stablelm.model import StableLM
from stablelm.tokenizer import train_tokenizer

llama_cpp = pytest.importorskip("llama_cpp")
from tests.oracle.test_llama_cpp import opened, quantized_by_llama  # noqa: E402 (it needs llama_cpp)

pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module")
def story(shared) -> tuple[StableLM, object, torch.Tensor, torch.Tensor]:
    """A small model that has learnt from a story, its tokenizer, ids of the end that it has not seen
    [8, 120], and ids of what it has seen, for calibration."""
    text = max((path.read_text() for path in (shared / "data/corpus/raw/tree").rglob("*.txt")), key=len)
    tokenizer = train_tokenizer([text], 500)
    ids = torch.tensor(tokenizer.encode_documents([text])[0])
    seen, unseen = ids[:-960], ids[-960:].view(8, 120)
    sizes = dict(vocab_size=512, num_hidden_layers=2, hidden_size=256, intermediate_size=512)
    model = StableLM(preset("stablelm-1m", **sizes), seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        starts = torch.randint(0, len(seen) - 65, (8,), generator=generator)
        rows = torch.stack([seen[at : at + 65] for at in starts])
        loss = model(rows[:, :-1], labels=rows[:, 1:]) / rows[:, 1:].numel()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 4.8  # ln 512 = 6.2 at the start
    starts = torch.randint(0, len(seen) - 120, (16,), generator=generator)
    calibration = torch.stack([seen[at : at + 120] for at in starts])
    return model.eval().requires_grad_(False).bfloat16(), tokenizer, unseen, calibration


def divergence(reference: torch.Tensor, other: torch.Tensor) -> float:
    p, q = reference.float().log_softmax(-1), other.float().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def by_llama(file: Path, rows: torch.Tensor) -> torch.Tensor:
    """Logits [B, S, V] of llama.cpp."""
    llama, found = opened(file, every_token=True), []
    for row in rows.tolist():
        llama.reset()
        llama.eval(row)
        found.append(torch.from_numpy(llama.scores[: len(row)].copy()))
    return torch.stack(found)


@pytest.fixture(scope="module")
def theirs(story, tmp_path_factory) -> dict[str, float]:
    """KL of llama.cpp's formats, by name."""
    model, tokenizer, text, _ = story
    folder = tmp_path_factory.mktemp("llama")
    save_gguf(model, tokenizer, folder / "bf16.gguf", dtype="bf16")
    exact, found = by_llama(folder / "bf16.gguf", text), {}
    assert divergence(model(text), exact) < 1e-4, "the same network"
    for name, kind in (("Q4_0", 2), ("Q8_0", 7)):
        quantized_by_llama(folder / "bf16.gguf", folder / f"{name}.gguf", kind)
        found[name] = divergence(exact, by_llama(folder / f"{name}.gguf", text))
    assert 1e-4 < found["Q4_0"] < 1e-2, "worse than nothing, better than noise"
    return found


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("calibrated", [False, True])
def test_four_bits_are_no_further_than_q4_0(story, theirs, group, calibrated) -> None:
    model, _, text, calibration = story
    packed = copy.deepcopy(model)
    quantize(packed, Recipe.of(4, group), [calibration] if calibrated else [])
    found = divergence(model(text), packed(text))
    print(f"group {group}, calibrated {calibrated}: {found:.2e}, Q4_0 {theirs['Q4_0']:.2e}")
    assert 1e-6 < found <= theirs["Q4_0"]


@torch.inference_mode()
def test_the_file_that_decoding_is_timed_with(story, theirs, tmp_path) -> None:
    """`benchmarks/decode_cpu.py` makes its 4-bit file so: `stablelm quantize` with no option but --bits."""
    model, tokenizer, text, _ = story
    save_pretrained(model, tokenizer, tmp_path / "plain")
    words = ["quantize", str(tmp_path / "plain"), str(tmp_path / "int4"), "--bits", "4", "--tokens", "64"]
    subprocess.run([sys.executable, "-m", "stablelm", *words], check=True, capture_output=True)
    packed, _ = load(tmp_path / "int4")
    at_once = packed(text)
    assert 1e-6 < divergence(model(text), at_once) <= theirs["Q4_0"]
    written = []
    for row in text:  # and by the kernels that decode, 16 tokens at a time
        runner = CpuRunner(packed)
        runner.prefill(row[None, :16], None, len(row))
        written.append(torch.cat([runner.read(part[None])[0] for part in row[16:].split(16)]))
    assert 1e-6 < divergence(model(text)[:, 16:], torch.stack(written)) <= theirs["Q4_0"]


def test_eight_bits_are_within_a_thousandth_of_a_nat(story, theirs) -> None:
    model, _, text, _ = story
    packed = copy.deepcopy(model)
    quantize(packed, Recipe.of(8, 64))
    found = divergence(model(text), packed(text))
    print(f"int8: {found:.2e}, Q8_0 {theirs['Q8_0']:.2e}")
    assert 0 < found <= 1e-3
