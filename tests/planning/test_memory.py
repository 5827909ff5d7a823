"""Bytes by formula, held against what PyTorch really keeps."""

import pytest
import torch

from stablelm.config import InputError, RunConfig, preset
from stablelm.config.run import run_config
from stablelm.model import StableLM, bfloat16_products
from stablelm.model.rotary import Rotary
from stablelm.planning import DEVICES
from stablelm.planning.layout import layout_of, make_layout
from stablelm.planning.memory import (
    block_activations,
    group_numbers,
    local_numbers,
    memory_of,
    parameter_shapes,
    usable,
)

SEED = preset("stablelm-3b-4e1t")
BATCH = {"sequences": 1024, "micro_sequences": 4, "sequence_length": 4096}
GB = 1e9


def layout(world=256, model=SEED, **keys):
    return make_layout(model, world, **{**BATCH, **keys})


@pytest.mark.parametrize("name", ["stablelm-3b-4e1t", "stablelm-1m", "stablelm-2-1_6b", "stablelm-2-12b"])
def test_every_weight_is_in_the_list(name):
    config = preset(name)
    with torch.device("meta"):
        model = StableLM(config)
    listed = {name: shape for name, shape, _ in parameter_shapes(config)}
    assert listed == {name: tuple(p.shape) for name, p in model.named_parameters()}


VARIANTS = [
    {},
    {"num_key_value_heads": 2, "use_qkv_bias": True},
    {"use_parallel_residual": True},
    {"qk_layernorm": True, "num_key_value_heads": 2},
]


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("changed", VARIANTS, ids=str)
def test_a_block_keeps_what_the_formula_says(changed, precision, monkeypatch):
    """Every storage that autograd saves during one block's forward pass, weights left out. With PyTorch's
    operators: those of a CPU without bf16 products keep an attention output less."""
    monkeypatch.setattr(bfloat16_products, "WIDENED", False)
    shape = {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 1376, "vocab_size": 128}
    config = preset("stablelm-1m", **{**shape, "num_key_value_heads": 8, "num_hidden_layers": 1, **changed})
    rows, length = 2, 128
    model = StableLM(config).to({"bf16": torch.bfloat16, "fp32": torch.float32}[precision])
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor):
        alive.append(tensor)
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = model.model.embed_tokens(torch.zeros(rows, length, dtype=torch.long))
    rotary = Rotary(torch.arange(length), config.rotary_dim, config.rope_theta)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.model.layers[0](x, rotary, None, None)
    wanted = make_layout(
        config, 1, sequences=2, micro_sequences=rows, sequence_length=length, precision=precision
    )
    assert sum(kept.values()) == pytest.approx(block_activations(config, wanted), rel=0.01)


def test_the_original_setting_by_hand():
    """256 × A100-40GB, micro-batch 4, ZeRO 1, everything recomputed."""
    need = memory_of(SEED, layout(recompute="full"))
    assert need.weights == pytest.approx(4 * 2_795_443_200 / 256, rel=0.003)
    assert need.moments == 2 * need.weights and need.gradients == 0  # one pass: nothing is left of another
    assert need.gathered == 2 * 2_795_443_200
    stream = 2 * 4 * 4096 * 2560
    assert need.activations == 32 * stream
    assert 10 * GB < need.total < 15 * GB and need.fits(DEVICES["a100-40gb"])


def test_without_recomputation_it_does_not_fit_and_half_the_micro_batch_does():
    card = DEVICES["a100-40gb"]
    whole = memory_of(SEED, layout())
    assert 50 * GB < whole.activations < 56 * GB and not whole.fits(card)
    assert whole.fits(DEVICES["a100-80gb"])
    half = layout(micro_sequences=2, zero=2)
    assert half.micro_batches == 2 and memory_of(SEED, half).fits(card)
    hoarding = memory_of(SEED, layout(micro_sequences=2, zero=1))  # whole fp32 gradients between the passes
    assert hoarding.gradients == 4 * 2_795_443_200
    assert memory_of(SEED, half).gradients == pytest.approx(4 * 2_795_443_200 / 256, rel=0.003)
    assert not hoarding.fits(card)


def test_stages():
    needs = [memory_of(SEED, layout(zero=stage, recompute="full")) for stage in range(4)]
    assert needs[0].weights + needs[0].moments == 12 * 2_795_443_200
    assert needs[1] == needs[2]  # one pass a step: the same computation
    root, block = group_numbers(SEED, 1)
    assert needs[3].gathered == 2 * (root + 2 * block) and root + 32 * block == 2_795_443_200
    assert needs[3].total < needs[1].total < needs[0].total


def test_a_moving_average_is_kept_in_float32_and_sharded():
    for options in ({}, {"precision": "bf16-pure"}, {"zero": 0}):
        without, kept = (memory_of(SEED, layout(ema=ema, **options)) for ema in (False, True))
        assert kept.average == (1 if "precision" not in options else 2) * kept.weights
        assert kept.total == without.total + kept.average and without.average == 0


def test_tensor_parallelism_cuts_activations_and_weights():
    one, four = (layout(tensor=t, micro_sequences=16) for t in (1, 4))
    uncut = layout(tensor=4, micro_sequences=16, sequence_parallel=False)
    assert block_activations(SEED, four) < block_activations(SEED, uncut) < 4 * block_activations(SEED, one)
    same_tokens = block_activations(SEED, layout(tensor=1)) * four.tokens / layout(tensor=1).tokens
    assert same_tokens / 4 < block_activations(SEED, four) < same_tokens / 2
    assert group_numbers(SEED, 4)[0] == 2 * 50304 * 2560 // 4 + 5120


def test_uneven_rows_go_to_the_first_rank():
    assert local_numbers((50304, 2560), 0, layout()) == 197 * 2560  # 196.5
    assert local_numbers((2560, 6912), 1, layout(tensor=4)) == 40 * 1728
    assert local_numbers((5,), None, layout()) == 1


def test_hybrid_sharding_holds_more_of_the_state():
    hybrid = memory_of(SEED, layout(replicate=32))
    assert hybrid.weights == 4 * 2_795_443_200 / 8
    assert memory_of(SEED, layout(replicate=32, shard=8)) == hybrid


def test_one_process_casts_where_it_computes():
    alone = memory_of(SEED, layout(1, sequences=8))
    assert alone.weights == alone.gradients == 4 * 2_795_443_200
    assert alone.gathered == pytest.approx(2 * (2_795_443_200 - 128_778_240), rel=1e-5)
    assert memory_of(SEED, layout(1, sequences=4, precision="fp32")).gathered == 0


def test_more_recomputation_needs_less():
    kept = [memory_of(SEED, layout(recompute=r)).activations for r in ("none", "selective", 2, "full")]
    assert kept == sorted(kept, reverse=True) and len(set(kept)) == 4


def test_usable_memory_is_less_than_all():
    card = DEVICES["h100"]
    assert 0.9 * card.memory < usable(card) < card.memory


@pytest.mark.parametrize(
    ("world", "keys", "message"),
    [
        (256, {"tensor": 3}, "replicate 1 × shard what is left × tensor 3 does not make 256 processes"),
        (6, {"tensor": 4}, "tensor 4 does not make 6 processes. Start a multiple of 4"),
        (256, {"tensor": 64}, "parallel.tensor 64 does not divide model.num_attention_heads 32"),
        (256, {"replicate": 3}, "replicate 3 × shard what is left × tensor 1 does not make 256 processes"),
        (256, {"replicate": 2, "shard": 64}, "replicate 2 × shard 64 × tensor 1 does not make 256 processes"),
        (24, {}, "batch.sequences 1,024 cannot be shared out evenly over 24"),
        (2048, {}, "batch.sequences 1,024 cannot be shared out evenly over 2048"),
        (8, {"tensor": 8, "sequence_length": 4095}, "does not divide batch.sequence_length"),
    ],
)  # fmt: skip
def test_what_does_not_come_out_even_is_refused(world, keys, message):
    with pytest.raises(InputError, match=message):
        layout(world, **keys)


def test_a_configuration_is_a_layout():
    values = {"data": {"path": "nowhere", "epochs": {"web": 1}}, "recompute": "full", "loss_chunk": 256}
    wanted = RunConfig(parallel={"tensor": 4, "zero": 3, "sequence_parallel": False}, **values)
    assert layout_of(wanted, 256) == layout(
        tensor=4, zero=3, sequence_parallel=False, recompute="full", loss_chunk=256
    )
    assert layout_of(run_config({"data": values["data"]}), 256) == layout()


def test_layouts():
    seed = layout()
    assert (seed.replicate, seed.shard, seed.micro_batches, seed.step_tokens) == (1, 256, 1, 4_194_304)
    assert (layout(zero=0).replicate, layout(zero=0).shard) == (256, 1)
    assert layout(8).micro_batches == 32
    assert layout(tensor=4).micro_batches == 4
    assert layout(512).micro_sequences == 2  # no more than a rank has
    assert "ZeRO 1, micro-batch 4 × 1" in seed.describe()
