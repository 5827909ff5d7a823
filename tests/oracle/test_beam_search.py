"""Beam search writes the ids that the one of `transformers` writes, in float32."""

import pytest
import torch

from stablelm.auto import AutoModelForCausalLM
from stablelm.config import preset
from stablelm.interchange import save_pretrained
from stablelm.model import StableLM

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.oracle

SMALL = dict(hidden_size=96, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Far from uniform, so that beams differ, and an end comes now and then."""
    model = StableLM(preset("stablelm-1m", vocab_size=120, **SMALL), seed=4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() == 2 else 1)
    folder = tmp_path_factory.mktemp("beams") / "saved"
    save_pretrained(model, None, folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return AutoModelForCausalLM.from_pretrained(folder), theirs.eval()


@pytest.mark.parametrize("ends", [[0], [3, 17, 40], list(range(50, 90))])
@pytest.mark.parametrize("penalty", [1.0, 0.0, 2.0, -1.0])
@pytest.mark.parametrize("beams", [2, 5])
def test_the_same_ids(pair, beams, penalty, ends):
    ours, theirs = pair
    lengths = set()
    for seed in range(6):
        ids = torch.randint(1, 120, (2, 9), generator=torch.Generator().manual_seed(seed))
        mask = torch.ones_like(ids)
        mask[0, : seed % 3] = 0
        settings = dict(
            max_new_tokens=24, num_beams=beams, length_penalty=penalty, eos_token_id=ends, pad_token_id=1,
            do_sample=False,
        )  # fmt: skip
        expected = theirs.generate(ids, attention_mask=mask, early_stopping=False, **settings)
        assert ours.generate(ids, mask, **settings).tolist() == expected.tolist()
        lengths.add(expected.shape[1])
    if len(ends) == 40 and penalty < 2:
        assert len(lengths) > 1, "ends came, at different lengths"


def test_the_same_ids_with_penalties_on_the_scores(pair):
    ours, theirs = pair
    for seed in range(6):
        ids = torch.randint(1, 120, (1, 7), generator=torch.Generator().manual_seed(seed))
        settings = dict(
            max_new_tokens=24, num_beams=4, repetition_penalty=1.3, eos_token_id=list(range(50, 90)),
            pad_token_id=1, do_sample=False,
        )  # fmt: skip
        expected = theirs.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        assert ours.generate(ids, **settings).tolist() == expected.tolist()
