"""More of what `tests/distributed` shows on more meshes, at more moments, for more steps: minutes."""

import dataclasses

import pytest

from tests.distributed import test_parity as parity
from tests.distributed import test_resuming as resuming
from tests.distributed import test_runs as runs
from tests.distributed.conftest import pool  # noqa: F401 (a fixture)
from tests.distributed.test_resuming import configure, whole  # noqa: F401 (fixtures)
from tests.training import test_dry_run as planned
from tests.training.conftest import dataset_path, make_config  # noqa: F401 (fixtures)


@pytest.mark.parametrize("name", parity.CASES)
def test_ten_steps_on_any_mesh_are_those_of_one_process(pool, name):  # noqa: F811
    parity.agrees(pool, dataclasses.replace(parity.CASES[name], steps=10))


def test_compiled_and_recomputed_blocks_keep_the_gradient_of_a_cut_embedding(pool):  # noqa: F811
    parity.test_compiled_blocks_keep_the_gradient_of_a_cut_embedding(pool, False, "full")


def test_torchrun_with_cut_tensors_gives_the_losses_of_one_process(make_config, tmp_path):  # noqa: F811
    runs.test_torchrun_gives_the_losses_of_one_process(make_config, tmp_path, {"tensor": 2})


@pytest.mark.parametrize(("first", "then", "victim"), [("(2,2)", "HSDP", 0), ("(1,1)", "(2,2)", None)])
def test_a_run_killed_on_one_mesh_goes_on_on_another(configure, whole, first, then, victim):  # noqa: F811
    resuming.test_a_run_killed_on_one_mesh_goes_on_on_another(configure, whole, first, then, victim)


@pytest.mark.parametrize("moment", ["forward", "backward"])
def test_a_process_killed_within_a_step_loses_nothing(configure, whole, moment):  # noqa: F811
    resuming.test_a_process_killed_within_a_step_stops_the_others_and_loses_nothing(configure, whole, moment)


def test_a_branch_point_on_a_mesh_is_cooled_down_by_one(configure):  # noqa: F811
    resuming.test_a_branch_point_may_be_on_any_mesh(configure, "(2,2)", "(1,1)")


def test_the_original_model_on_256_gpus_with_cut_tensors():
    planned.test_the_original_model_on_256_gpus(4, (227, 194, 387))
