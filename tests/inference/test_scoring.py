"""Log-probabilities: those of one whole pass, whatever the slices; never more logits at once than theirs."""

import pytest
import torch

from stablelm.config import InputError
from stablelm.inference import generate_ids, score_ids
from stablelm.model import StableLM
from tests.inference.networks import network


@pytest.fixture(scope="module")
def model() -> StableLM:
    return network(2048, seed=7)


@pytest.mark.parametrize("positions", [1, 3, 29, 30, 500])
def test_slices_give_what_one_pass_gives(model: StableLM, positions: int) -> None:
    ids = torch.randint(0, 2048, (30,), generator=torch.Generator().manual_seed(2)).tolist()
    asked: list[int] = []
    hook = model.lm_head.register_forward_hook(lambda _m, _i, out: asked.append(out.shape[0]))
    scores = score_ids(model, ids, top=4, positions=positions)
    hook.remove()
    assert max(asked) <= positions and sum(asked) == 29
    with torch.inference_mode():
        whole = model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
    expected = whole.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    torch.testing.assert_close(scores.log_probabilities, expected, rtol=0, atol=5e-5)
    best = whole.topk(4)
    assert torch.equal(scores.top_ids, best.indices)
    torch.testing.assert_close(scores.top_log_probabilities, best.values, rtol=0, atol=5e-5)
    assert not scores.greedy


def test_a_greedy_text_is_greedy(model: StableLM) -> None:
    text = generate_ids(model, torch.tensor([[5, 6]]), max_new_tokens=20, eos_ids=[])[0].tolist()
    scores = score_ids(model, text, top=1)
    assert torch.equal(scores.log_probabilities[1:], scores.top_log_probabilities[1:, 0])


def test_refused(model: StableLM) -> None:
    full = model.config.max_position_embeddings + 1
    long = ([1] * (full + 1), f"{full + 1:,} tokens cannot")
    for ids, said in (([], "0 tokens"), ([1], "1 tokens"), long, ([1, 2048], "outside")):
        with pytest.raises(InputError, match=said):
            score_ids(model, ids)
    assert len(score_ids(model, [1] * full).log_probabilities) == full - 1
    with pytest.raises(InputError, match="top must be"):
        score_ids(model, [1, 2], top=-1)
    broken = StableLM(model.config, seed=1)
    with torch.no_grad():
        broken.model.norm.weight[0] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        score_ids(broken, [1, 2, 3])
