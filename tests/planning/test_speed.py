"""Rates: what is counted, what is divided by what, and the bytes that a token costs."""

import pytest
import torch

from stablelm.config import preset
from stablelm.inference.quantization import Recipe
from stablelm.inference.quantization import quantize as round_model
from stablelm.model import StableLM
from stablelm.planning import speed
from stablelm.planning.devices import copy_rate
from stablelm.planning.speed import Speed, bytes_per_token, measure, peak_memory, speed_of


@pytest.fixture
def model():
    return StableLM(preset("stablelm-1m", num_hidden_layers=2, vocab_size=256), seed=1)


def test_bytes_of_a_token(model):
    config = model.config
    weights = (config.num_parameters - config.vocab_size * config.hidden_size) * 4
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert bytes_per_token(model, 0) == weights
    assert bytes_per_token(model, 10.5) == weights + 10.5 * cache
    assert bytes_per_token(model.to(torch.bfloat16), 10) == (weights + 10 * cache) / 2
    round_model(model, Recipe.of(8, 32))
    assert weights / 4 < bytes_per_token(model, 0) < weights / 4 * 1.3


def test_rates(model):
    found = speed_of(model, 100, 10.0, [12.0, 12.5, 13.0, 14.0])
    assert (found.prefill, found.new_tokens, found.decode) == (50.0, 3, 1.5)
    assert found.bytes_per_token == bytes_per_token(model, 101.5)
    assert found.bandwidth == 1.5 * found.bytes_per_token
    lines = found.lines(torch.device("cpu"))
    assert lines[0] == "prefill: 100 tokens in 2.000 s, 50.0 tokens/s"
    assert lines[1].startswith("decode: 3 tokens in 2.000 s, 1.5 tokens/s; reads ")
    assert Speed(3, 1.0, 0, 0.0, 1.0).decode == 0.0


def test_measure_reads_and_writes_what_it_says(model, monkeypatch):
    read = []
    clock = iter(range(10**6))
    monkeypatch.setattr(speed, "_clock", lambda device: float(next(clock)))
    hidden = model.hidden_states
    monkeypatch.setattr(
        model, "hidden_states", lambda ids, *rest: read.append(ids.shape[1]) or hidden(ids, *rest)
    )
    found = measure(model, 20, 5, rounds=3)
    assert read == [20, 1, 1, 1, 1, 1] * 4
    assert (found.prefill, found.decode, found.new_tokens) == (20.0, 1.0, 5)


def test_the_machine():
    cpu = torch.device("cpu")
    assert 1e8 < copy_rate(cpu) < 1e13 and copy_rate(cpu) == copy_rate(cpu)
    assert 5e7 < peak_memory(cpu) < 1e12
