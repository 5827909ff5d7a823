"""The runner: chunks, trimming and reordering give the logits of one pass; what does not fit is refused."""

import pytest
import torch

from stablelm.config import InputError
from stablelm.inference import generate_ids, runner
from stablelm.inference.runner import ModelRunner
from stablelm.model import StableLM
from tests.inference.networks import network


@pytest.fixture(scope="module")
def model() -> StableLM:
    return network(2048, seed=7)


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 2048, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("chunk", [1, 4, 7, 19, 20, 21])
@torch.inference_mode()
def test_a_prompt_in_chunks_gives_the_logits_of_one_pass(model: StableLM, chunk: int) -> None:
    ids = drawn(2, 20)
    for gap in (0, 6):
        mask = None if gap == 0 else torch.arange(20) >= torch.tensor([[gap], [0]])
        worker = ModelRunner(model, chunk)
        logits = worker.prefill(ids, mask, 21)
        alone = torch.stack([model(ids[row : row + 1, skip:])[0, -1] for row, skip in ((0, gap), (1, 0))])
        torch.testing.assert_close(logits, alone, rtol=0, atol=3e-5)
        after = worker.step(torch.tensor([3, 4]))
        whole = torch.cat([ids, torch.tensor([[3], [4]])], dim=1)
        alone = torch.stack([model(whole[row : row + 1, skip:])[0, -1] for row, skip in ((0, gap), (1, 0))])
        torch.testing.assert_close(after, alone, rtol=0, atol=3e-5)


@torch.inference_mode()
def test_trimmed_and_reordered_rows_continue_from_where_they_were(model: StableLM) -> None:
    ids = drawn(2, 9)
    mask = torch.arange(9) >= torch.tensor([[2], [0]])
    worker = ModelRunner(model, 4)
    worker.prefill(ids, mask, 12)
    worker.step(torch.tensor([1, 2]))
    worker.trim(9)
    worker.reorder([1, 1, 0])
    logits = worker.step(torch.tensor([5, 6, 7]))
    for row, (source, skip, token) in enumerate(((1, 0, 5), (1, 0, 6), (0, 2, 7))):
        text = torch.cat([ids[source, skip:], torch.tensor([token])])[None]
        torch.testing.assert_close(logits[row], model(text)[0, -1], rtol=0, atol=3e-5)


def test_a_cache_that_does_not_fit_is_refused_before_anything_is_read(model: StableLM, monkeypatch) -> None:
    needed = 2 * 13 * model.config.kv_bytes_per_token(4)
    monkeypatch.setattr(runner, "free_memory", lambda device: needed)
    assert generate_ids(model, drawn(2, 10), max_new_tokens=4, eos_ids=[]).shape == (2, 14)
    monkeypatch.setattr(runner, "free_memory", lambda device: needed - 1)
    monkeypatch.setattr(model, "hidden_states", None)
    with pytest.raises(InputError, match=r"cache for 2 x 13 tokens needs .* free on cpu. Ask for fewer"):
        generate_ids(model, drawn(2, 10), max_new_tokens=4)


def test_free_memory_is_told() -> None:
    free = runner.free_memory(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**50
