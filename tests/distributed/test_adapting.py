"""A longer context and replay over processes: the losses and norms of one process."""

import numpy as np

from stablelm.training import train
from tests.distributed.test_runs import steps
from tests.training.conftest import Recorder, dataset_path, make_config  # noqa: F401 (fixtures)


def test_an_adapted_run_is_the_same_on_a_mesh(pool, make_config, dataset_path):  # noqa: F811
    old = train(make_config("old", steps=4), console=Recorder())

    def config(**parallel):
        return make_config(
            "new", init=str(old), parallel=parallel,
            adapt={"rope_theta": 1e5, "max_position_embeddings": 128},
            batch={"sequences": 4, "micro_sequences": 1, "sequence_length": 128},
            data={"path": str(dataset_path), "epochs": {"notes": 1}, "windows": {"notes": 6},
                  "replay": {"run": str(old), "share": 0.4}},
        )  # fmt: skip

    wanted = steps(0, config())
    found = pool.run(2, steps, config(zero=3))
    assert np.abs(np.array(found[0][0]) - np.array(wanted[0])).max() < 1e-12
    losses = [[r["loss"] for r in each[1] if r["kind"] == "evaluation"] for each in (found[0], wanted)]
    assert np.allclose(*losses, rtol=0, atol=1e-12) and len(losses[0]) == 3, "notes, and both of the old"
