"""The three counts, on the original run: 6,028 tokens/s on each of 256 A100, everything recomputed."""

import pytest

from stablelm.config import InputError, preset
from stablelm.model import StableLM
from stablelm.planning import DEVICES, utilization
from stablelm.planning.flops import (
    block_parameters,
    causal_flops_per_token,
    flops_per_token,
    hardware_flops_per_token,
    recomputed_blocks,
)

SEED = preset("stablelm-3b-4e1t")


def test_the_original_run_by_the_three_counts():
    use = utilization(SEED, 4096, "full", 6028, DEVICES["a100-40gb"].bf16)
    assert [round(100 * share, 1) for share in (use.mfu, use.mfu_causal, use.hfu)] == [40.2, 34.8, 52.6]


def test_flops_of_a_token():
    assert flops_per_token(SEED, 4096) == 6 * 2_795_443_200 + 12 * 32 * 2560 * 4096
    assert causal_flops_per_token(SEED, 4096) == 6 * (2_795_443_200 - 128_778_240) + 6 * 32 * 2560 * 4096
    blocks = 2 * (2_537_886_720 - 2 * 2560) + 4 * 32 * 2560 * 4096
    assert hardware_flops_per_token(SEED, 4096, "full") == flops_per_token(SEED, 4096) + blocks
    assert hardware_flops_per_token(SEED, 4096, 2) == flops_per_token(SEED, 4096) + blocks // 2
    for cheap in ("none", "selective"):
        assert hardware_flops_per_token(SEED, 4096, cheap) == flops_per_token(SEED, 4096)


@pytest.mark.parametrize("name", ["stablelm-1m", "stablelm-12m", "stablelm-2-1_6b", "stablelm-2-12b"])
def test_block_parameters_are_those_of_the_network(name):
    import torch

    config = preset(name)
    with torch.device("meta"):
        model = StableLM(config)
    assert block_parameters(config) == sum(p.numel() for p in model.model.layers[0].parameters())


def test_every_nth_block():
    assert [recomputed_blocks(SEED, n) for n in (1, 2, 3, 32, 33)] == [32, 16, 10, 1, 0]
    with pytest.raises(InputError, match="recompute: 'some'"):
        recomputed_blocks(SEED, "some")
    with pytest.raises(InputError, match="recompute: 0"):
        recomputed_blocks(SEED, 0)
