"""Adapters upon packed weights over processes: each holds the packed model whole, and shares the adapter."""

import numpy as np
import pytest

from tests.distributed.test_tuning import steps
from tests.finetuning.conftest import base, make  # noqa: F401 (fixtures)


@pytest.mark.parametrize("zero", [0, 3])
def test_an_adapter_upon_packed_weights_is_trained_alike(pool, make, zero):  # noqa: F811
    same = {
        "batch": {"sequences": 4, "micro_sequences": 1}, "epochs": 1, "data": {"held_out_share": 0.1},
        "adapter": {"rank": 4}, "quantize": 4, "recompute": "full",
    }  # fmt: skip
    wanted = steps(0, make(**same))
    found = pool.run(2, steps, make(**same, parallel={"zero": zero}))
    assert len({repr(each) for each in found}) == 1
    assert np.abs(np.array(found[0][0]) - np.array(wanted[0])).max() < 1e-12
    assert found[0][1] == pytest.approx(wanted[1], abs=1e-12)
