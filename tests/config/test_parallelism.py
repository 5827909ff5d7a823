"""Meshes that fit and meshes that do not."""

import pytest

from stablelm.config import InputError, ModelConfig
from stablelm.config.optimization import BatchConfig
from stablelm.config.parallelism import Degrees, ParallelConfig
from stablelm.config.run import run_config

MODEL = ModelConfig()


@pytest.mark.parametrize(
    ("keys", "world", "degrees"),
    [
        ({}, 1, (1, 1, 1)),
        ({}, 256, (1, 256, 1)),
        ({"tensor": 4}, 256, (1, 64, 4)),
        ({"replicate": 32, "shard": 8}, 256, (32, 8, 1)),
        ({"replicate": 8, "tensor": 4}, 256, (8, 8, 4)),
        ({"zero": 0}, 8, (8, 1, 1)),
        ({"zero": 0, "tensor": 2}, 8, (4, 1, 2)),
        ({"zero": 0, "replicate": 4, "tensor": 2}, 8, (4, 1, 2)),
    ],
)
def test_what_is_left_is_sharded_over(keys, world, degrees):
    found = ParallelConfig(**keys).check(world, MODEL, BatchConfig())
    assert found == Degrees(*degrees)
    assert found.data == degrees[0] * degrees[1]


@pytest.mark.parametrize(
    ("keys", "world", "message"),
    [
        ({"tensor": 2}, 1, r"tensor 2 does not make 1 process\. Start a multiple of 2"),
        ({"tensor": 2}, 3, r"shard what is left × tensor 2 does not make 3 processes\."),
        ({"shard": 4}, 2, r"replicate 1 × shard 4 × tensor 1 does not make 2 processes"),
        ({"replicate": 3}, 4, r"replicate 3 .* does not make 4 processes\. Start a multiple of 3"),
        ({"tensor": 64}, 64, r"parallel.tensor 64 does not divide model.num_attention_heads 32"),
        ({}, 3, r"batch.sequences 1,024 cannot be shared out evenly over 3 data-parallel"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(keys, world, message):
    with pytest.raises(InputError, match=message):
        ParallelConfig(**keys).check(world, MODEL, BatchConfig())


@pytest.mark.parametrize(
    ("model", "batch", "message"),
    [
        ({"num_key_value_heads": 2}, {}, r"parallel.tensor 4 does not divide model.num_key_value_heads 2"),
        ({"intermediate_size": 6914}, {}, r"does not divide model.intermediate_size 6,914"),
        ({"vocab_size": 50_306}, {}, r"does not divide model.vocab_size 50,306"),
        ({}, {"sequence_length": 4094}, r"batch.sequence_length 4,094.*sequence_parallel off"),
        ({"qk_layernorm": True}, {}, r"qk_layernorm has a norm for each head"),
    ],
)
def test_tensor_parallelism_divides_every_part(model, batch, message):
    with pytest.raises(InputError, match=message):
        ParallelConfig(tensor=4).check(4, ModelConfig(**model), BatchConfig(**batch))
    ParallelConfig().check(4, ModelConfig(**model), BatchConfig(**batch))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"recompute": 0}, "recompute is none, selective, full, or a number"),
        ({"recompute": "all"}, "recompute"),
        ({"precision": "fp16"}, "precision"),
        ({"parallel": {"zero": 4}}, "parallel.zero"),
        ({"parallel": {"tensr": 2}}, "did you mean 'tensor'"),
    ],
)
def test_wrong_values_name_their_key(keys, message):
    with pytest.raises(InputError, match=message):
        run_config({"data": {"path": "x", "epochs": {"a": 1}}, **keys})
