"""Every step of cleaning on the three executors: the same bytes, clusters and report included.

Near-duplicates lie in other shards and in other sources than what they are compared with, so nothing that a
worker sees alone can find them."""

import json
import sys

from stablelm.config.recipe import load_recipe
from stablelm.config.schema import validate
from stablelm.config.slurm import SlurmConfig
from stablelm.data.executors.slurm import write_jobs
from tests.data.executors.test_slurm import COMMAND, Cluster
from tests.end_to_end.test_data_kill import (  # noqa: F401 (fixtures)
    cluster,
    files,
    resumed_to_the_end,
    whole,
    world,
)


def test_two_local_processes(world, whole):  # noqa: F811
    recipe = world("two-processes")
    assert resumed_to_the_end(recipe) == whole[1]
    assert files(recipe) == whole[0]


def test_two_nodes_of_ray(world, whole, cluster):  # noqa: F811
    recipe = world("two-nodes")
    assert resumed_to_the_end(recipe, cluster) == whole[1]
    assert files(recipe) == whole[0]


def test_arrays_of_slurm(world, whole, tmp_path, root):  # noqa: F811
    recipe = world("arrays")
    command = tmp_path / "stablelm"
    sizes = "reading.PIECE_BYTES, reading.SHARD_BYTES = 1 << 13, 1 << 12"
    lines = COMMAND.format(python=sys.executable, fail="nothing").splitlines()
    command.write_text("\n".join(sizes if "PIECE_BYTES" in line else line for line in lines))
    command.chmod(0o755)
    slurm = Cluster(tmp_path / "slurm", root)
    submit = write_jobs(
        load_recipe(recipe), validate(SlurmConfig, {"jobs": 2, "command": str(command)}, "slurm")
    )
    assert slurm.submit(submit).returncode == 0
    logs = submit.parent.parent / "logs"
    assert not any(code for codes in slurm.run_queue().values() for code in codes), [
        path.read_text()[-300:] for path in logs.iterdir()
    ]
    assert files(recipe) == whole[0]


def test_near_duplicates_were_across_shards_and_sources(world, whole):  # noqa: F811
    out = world("whole").with_suffix("")
    lines = (out / "clusters-near.jsonl").read_text().splitlines()
    assert "clusters-near.jsonl" in whole[0] and "report.json" in whole[0]
    clusters = {}
    for member in map(json.loads, lines):
        clusters.setdefault(member["cluster"], []).append(member)
    assert any({one["source"] for one in each} == {"web", "books"} for each in clusters.values())
    assert any(len({one["id"].split("#")[0] for one in each}) > 1 for each in clusters.values()), "files"
    assert all(sum(one["kept"] for one in each) == 1 for each in clusters.values())
