"""Prefixes, beams and samples on the CPU kernels: what the plain runner gives is what they give."""

import pytest
import torch

from stablelm.config import InputError
from stablelm.inference import Decoding, PrefixCache, Sampling, generate_ids
from stablelm.inference.cpu_runner import CpuRunner, runner_for
from stablelm.inference.prefix import PrefixRunner
from stablelm.inference.quantization import Recipe, quantize
from stablelm.model import StableLM
from tests.inference.networks import network as sharp


def network(bits: int | None) -> StableLM:
    model = sharp(factor=4).requires_grad_(False).bfloat16()
    if bits:
        quantize(model, Recipe.of(bits, 32))
    return model


def drawn(length: int, seed: int = 1) -> list[int]:
    return torch.randint(1, 500, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize(("bits", "kind"), [(None, None), (4, None), (4, "bf16")])
@torch.inference_mode()
def test_a_prefix_on_the_kernels(bits, kind, tmp_path) -> None:
    model, start, more = network(bits), drawn(40), drawn(5, 2)
    assert isinstance(runner_for(model, kind), CpuRunner)
    cache = PrefixCache(model, kind)
    cache.read(start)
    cache.save(tmp_path / "p")
    plain = runner_for(model, kind)
    plain.prefill(torch.tensor([start]), None, 60)
    expected = plain.extend(torch.tensor([more]), None)
    for held in (cache, PrefixCache.load(tmp_path / "p", model, kind)):
        worker = PrefixRunner(held)
        assert torch.equal(worker.prefill(torch.tensor([start + more]), None, 60), expected)
        assert worker.skipped == 40
    assert torch.equal(worker.step(torch.tensor([7])), plain.step(torch.tensor([7])))
    rows = torch.tensor([start + more, [0, 0, *start, *more[:3]]])
    mask = torch.arange(45) >= torch.tensor([[0], [2]])
    held = PrefixCache.load(tmp_path / "p", model, kind)
    both = PrefixRunner(held)
    assert torch.equal(both.prefill(rows, mask, 60)[0], expected[0])
    after = both.step(torch.tensor([7, 8]))
    alone = PrefixRunner(PrefixCache.load(tmp_path / "p", model, kind))
    alone.prefill(torch.tensor([start + more[:3]]), None, 60)
    assert torch.equal(after[1], alone.step(torch.tensor([8]))[0])
    if bits:
        other = "bf16" if kind is None else "int8"
        with pytest.raises(InputError, match="Make it again with --save-prefix"):
            PrefixCache.load(tmp_path / "p", model, other)


@pytest.mark.parametrize("bits", [None, 4])
def test_beams_and_samples_on_the_kernels(bits) -> None:
    model, ids = network(bits), torch.tensor([drawn(20)])
    found = generate_ids(model, ids, max_new_tokens=10, eos_ids=[], way=Decoding(beams=4))
    assert found.shape == (1, 30)
    cache = PrefixCache(model)
    cache.read(drawn(20)[:10])
    again = generate_ids(model, ids, max_new_tokens=10, eos_ids=[], way=Decoding(beams=4, prefix=cache))
    assert again.shape == (1, 30) and not torch.equal(
        found, generate_ids(model, ids, max_new_tokens=10, eos_ids=[], sampling=Sampling(0.0))
    )
