"""What fine-tuning needs, by formula, beside every storage of a real step."""

import copy
import functools

import pytest
import torch

from stablelm.config import InputError, preset
from stablelm.config.adapter import AdapterConfig
from stablelm.inference.quantization import Recipe, quantize
from stablelm.model import StableLM
from stablelm.model.adapters import attach
from stablelm.planning.layout import make_layout
from stablelm.planning.tuning import Method, estimate_tuning, tuning_memory, usable
from stablelm.training.dry_run import Alive
from stablelm.training.parallel.recomputation import apply_recomputation

SMALL = preset(
    "stablelm-1m", hidden_size=256, num_attention_heads=4, num_key_value_heads=4, intermediate_size=688,
    vocab_size=2048, num_hidden_layers=6,
)  # fmt: skip


@functools.cache
def start(bits):
    model = StableLM(SMALL)
    if bits:
        quantize(model, Recipe.of(bits))
    return model


def tuned(method, recompute):
    model = copy.deepcopy(start(method.bits))
    if method.rank:
        if method.precision != "fp32":
            model.to(torch.bfloat16)
        attach(model, AdapterConfig(rank=method.rank))
    else:
        model.to(torch.bfloat16 if method.precision == "bf16-pure" else torch.float32)
    model.compute_dtype = torch.float32 if method.precision == "fp32" else torch.bfloat16
    model.lm_head.chunk = 64
    apply_recomputation(model, recompute)
    return model


@pytest.mark.parametrize(("recompute", "rows", "length"), [("none", 1, 64), ("full", 4, 128)])
@pytest.mark.parametrize(
    "method",
    [
        Method("full", "bf16-pure"), Method("lora", rank=8), Method("lora", "fp32", rank=16),
        Method("qlora", rank=8, bits=4), Method("qlora", "fp32", rank=8, bits=8),
    ],
    ids=str,
)  # fmt: skip
def test_peak_of_a_step(method, recompute, rows, length):
    model = tuned(method, recompute)
    learnt = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=1e-3, foreach=False, fused=True)
    ids = torch.randint(0, SMALL.vocab_size, (rows, length + 1))

    def step() -> None:
        for _ in range(2):
            (model(ids[:, :-1], labels=ids[:, 1:]) / ids.numel()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()  # the moments exist from here on
    alive = Alive()
    kept = [*model.state_dict().values(), *(v for s in optimizer.state.values() for v in s.values())]
    held = sum(alive.see(tensor) for tensor in kept)
    with alive:
        step()
    layout = make_layout(
        SMALL, 1, sequences=2 * rows, micro_sequences=rows, sequence_length=length,
        precision=method.precision, recompute=recompute, loss_chunk=64,
    )  # fmt: skip
    need = tuning_memory(SMALL, layout, method)
    assert need.weights + need.moments == pytest.approx(held, rel=1e-3)
    assert 0.9 < need.total / alive.peak < 1.1


SEED = preset("stablelm-3b-4e1t")


def test_the_3b_model():
    """What the card's users ask: which method on which card."""
    estimate = estimate_tuning(SEED, "stablelm-3b-4e1t", length=512)
    full, pure, lora, _, four = estimate.needs
    assert full.rows == {8: 0, 16: 0, 24: 0, 40: 0} and full.longest[40] == 0
    assert full.memory.weights == 4 * SEED.num_parameters and 16 * SEED.num_parameters < full.memory.total
    assert pure.rows[24] == 0 < pure.rows[40]
    assert lora.memory.weights == pytest.approx(2 * SEED.num_parameters, rel=0.02)
    assert lora.rows[8] >= 1 and four.rows[8] > lora.rows[8]
    assert four.memory.total < 2.6e9 < 5.6e9 < lora.memory.total < 6.6e9
    for need in estimate.needs:
        counts = list(need.rows.values())
        assert counts == sorted(counts)


def test_the_most_rows_fit_and_one_more_does_not():
    for need in estimate_tuning(SEED, "x", length=1024, sizes=(12,), recompute="none").needs[2:]:
        rows = need.rows[12]
        sizes = []
        for count in (rows, rows + 1):
            layout = make_layout(
                SEED, 1, sequences=2 * count, micro_sequences=count, sequence_length=1024, recompute="none"
            )
            sizes.append(tuning_memory(SEED, layout, need.method).needed)
        assert sizes[0] <= usable(12) < sizes[1]


def test_longest_row_where_no_whole_one_fits():
    need = estimate_tuning(SEED, "x", length=4096, sizes=(8,)).needs[2]
    assert need.rows[8] == 0 < 1024 < need.longest[8] < 4096
    lines = estimate_tuning(SEED, "the model", length=4096, sizes=(8,)).lines()
    assert any(f"{need.longest[8]:,} tokens" in line and "LoRA 16" in line for line in lines)


def test_mistakes():
    for keys, words in (
        ({"length": 5000}, "from 2 to the model's context, 4,096"),
        ({"rank": 3000}, "at most 2,560"),
        ({"sizes": (0,)}, "GB of a device"),
    ):
        with pytest.raises(InputError, match=words):
            estimate_tuning(SEED, "x", **keys)
