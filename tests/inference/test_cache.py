"""The key-value cache against attention without one."""

import pytest
import torch

from stablelm.config import preset
from stablelm.inference import KVCache
from stablelm.model import StableLM
from tests.inference.networks import network


@pytest.fixture(scope="module")
def model() -> StableLM:
    return network(2048, seed=7)


def cache_for(model: StableLM, batch: int, capacity: int) -> KVCache:
    return KVCache(model.config, batch, capacity, model.dtype, model.device)


@pytest.mark.parametrize("pieces", [[24], [1] * 24, [10, 1, 1, 12], [1, 23], [8, 8, 8]])
@torch.inference_mode()
def test_pieces_of_any_size_give_the_logits_of_one_pass(model: StableLM, pieces: list[int]) -> None:
    ids = torch.randint(0, 2048, (2, 24), generator=torch.Generator().manual_seed(1))
    cache = cache_for(model, 2, 24)
    seen = [model(piece, cache=cache) for piece in ids.split(pieces, dim=1)]
    assert cache.length == 24
    torch.testing.assert_close(torch.cat(seen, dim=1), model(ids), rtol=0, atol=2e-5)


@pytest.mark.parametrize("pieces", [[16], [9, 1, 6], [8, 1, 1, 1, 5]])
@torch.inference_mode()
def test_left_padding_in_pieces_gives_each_row_its_own_logits(model: StableLM, pieces: list[int]) -> None:
    ids = torch.randint(0, 2048, (3, 16), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[1, :5] = mask[2, :1] = 0
    cache, seen, read = cache_for(model, 3, 16), [], 0
    for piece in ids.split(pieces, dim=1):
        read += piece.shape[1]
        seen.append(model(piece, mask[:, :read], cache=cache))
    logits = torch.cat(seen, dim=1)
    for row, gap in enumerate((0, 5, 1)):
        alone = model(ids[row : row + 1, gap:])
        torch.testing.assert_close(logits[row, gap:], alone[0], rtol=0, atol=2e-5)


@torch.inference_mode()
def test_what_lies_in_the_buffer_beyond_the_length_is_never_read(model: StableLM) -> None:
    ids = torch.randint(0, 2048, (1, 12), generator=torch.Generator().manual_seed(3))
    cache = cache_for(model, 1, 400)
    for layer in cache.layers:
        layer._buffer.fill_(torch.nan)
    logits = torch.cat([model(piece, cache=cache) for piece in ids.split([5, 1, 6], dim=1)], dim=1)
    torch.testing.assert_close(logits, model(ids), rtol=0, atol=2e-5)


def test_memory_is_what_the_config_says() -> None:
    config = preset("stablelm-3b-4e1t")
    cache = KVCache(config, 2, 4096, torch.bfloat16, "meta")
    held = sum(layer._buffer.nbytes for layer in cache.layers)
    assert held == 2 * 4096 * config.kv_bytes_per_token() == 2 * 4096 * 327_680


@torch.inference_mode()
def test_an_overfull_cache_is_our_bug(model: StableLM) -> None:
    cache = cache_for(model, 1, 3)
    model(torch.tensor([[1, 2, 3]]), cache=cache)
    with pytest.raises(AssertionError, match="cache of 3 tokens"):
        model(torch.tensor([[4]]), cache=cache)


@torch.inference_mode()
def test_a_bfloat16_cache_serves_float32_weights_computing_in_bfloat16() -> None:
    model = StableLM(preset("stablelm-1m", num_hidden_layers=1), seed=7)
    model.compute_dtype = torch.bfloat16
    cache = KVCache(model.config, 1, 4, torch.bfloat16, "cpu")
    logits = torch.cat([model(torch.tensor([[number]]), cache=cache) for number in (5, 6, 7, 8)], dim=1)
    torch.testing.assert_close(logits, model(torch.tensor([[5, 6, 7, 8]])), rtol=0, atol=2e-2)
