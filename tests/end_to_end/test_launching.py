"""The batch script of a training run, run by a shell with stand-ins for srun and scontrol."""

import json
import os
import shlex
import subprocess
import sys

import pytest
import yaml

from stablelm.config import InputError
from stablelm.config.schema import validate
from stablelm.config.slurm import TrainingJob
from stablelm.planning.launching import slurm_script
from tests.training.conftest import dataset_path, make_config  # noqa: F401

SRUN = """#!{python}
import os, subprocess, sys
command = [word for word in sys.argv[1:] if not word.startswith("--kill-on-bad-exit")]
base = {{**os.environ, "SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost",
         "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "{port}"}}
places = [{{"SLURM_PROCID": str(n), "SLURM_LOCALID": str(n)}} for n in (0, 1)]
tasks = [subprocess.Popen(command, env={{**base, **place}}) for place in places]
sys.exit(max(task.wait() for task in tasks))
"""


def job(**values):
    return validate(TrainingJob, values, "test")


@pytest.fixture
def cluster(tmp_path):
    """Runs a script with `srun` (two tasks), `scontrol` and `stablelm` on its path → its code, what was said,
    what scontrol was asked."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    programs = tmp_path / "bin"
    programs.mkdir()
    asked = tmp_path / "asked"
    for name, text in {
        "srun": SRUN.format(python=sys.executable, port=port),
        "scontrol": f'#!/bin/bash\necho "$@" >> {shlex.quote(str(asked))}\n',
        "stablelm": f'#!/bin/bash\nexec {shlex.quote(sys.executable)} -m stablelm "$@"\n',
    }.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)

    def run(script, **variables):
        environment = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "7",
            **variables,
        }
        done = subprocess.run(
            ["bash"], input=script, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        return done.returncode, done.stdout + done.stderr, asked.read_text() if asked.exists() else ""

    return run


def test_a_run_of_two_tasks_to_its_end(make_config, cluster, tmp_path):  # noqa: F811
    config = make_config("a run")
    (tmp_path / "the run.yml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    script = slurm_script(
        "the run.yml", config, job(nodes=1, gpus_per_node=2), ["schedule.warmup=0.1"], "stablelm launch slurm"
    )
    code, said, asked = cluster(script)
    assert code == 0, said
    assert asked == ""
    assert "not done yet" not in said
    run = tmp_path / "a run"
    assert json.loads((run / "run.json").read_text())["schedule"]["warmup"] == 0.1
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["step"] == 10  # 40 windows, 4 a step
    assert json.loads((run / "plan.json").read_text())["steps"] == 10


def test_what_happens_after_a_failure(make_config, cluster, tmp_path):  # noqa: F811
    config = make_config()
    at_once = slurm_script("missing.yml", config, job(gpus_per_node=2))
    code, said, asked = cluster(at_once)
    assert (code, asked) == (1, "")
    assert "missing.yml" in said
    assert "failed within 600 s; not queued again" in said
    later = slurm_script("missing.yml", config, job(gpus_per_node=2, least=0, restarts=3))
    code, said, asked = cluster(later, SLURM_RESTART_COUNT="2")
    assert (code, asked) == (0, "requeue 7\n")
    code, said, asked = cluster(later, SLURM_RESTART_COUNT="3")
    assert code == 1
    assert asked == "requeue 7\n"
    assert "queued 3 times" in said


def test_options_are_on_their_lines_and_stay_there(make_config):  # noqa: F811
    place = job(
        partition="gpu", account="a1", options=["--exclude=node7"], setup=["module load cuda"], time="1-00"
    )
    lines = slurm_script("r.yml", make_config(batch={"sequences": 8}), place).splitlines()
    for line in (
        "#SBATCH --partition=gpu", "#SBATCH --account=a1", "#SBATCH --exclude=node7", "module load cuda",
        "#SBATCH --time=1-00", "#SBATCH --ntasks-per-node=8", "#SBATCH --signal=TERM@300",
    ):  # fmt: skip
        assert line in lines
    assert "module load cuda" in lines[lines.index("set -euo pipefail") :]
    for wrong in (
        {"partition": "a b"},
        {"options": ["-x #"]},
        {"setup": ["a\nb"]},
        {"time": "soon"},
        {"nodes": 0},
    ):
        with pytest.raises(InputError, match=next(iter(wrong))):
            job(**wrong)
    with pytest.raises(InputError, match="line break"):
        slurm_script("a\nb.yml", make_config(), job(gpus_per_node=1))


def test_a_mesh_that_does_not_fit_is_refused(make_config):  # noqa: F811
    with pytest.raises(InputError, match="24"):
        slurm_script("r.yml", make_config(), job(nodes=3))


def test_the_script_of_the_original_run_is_what_the_verb_writes(root):
    shipped = (root / "runs" / "256_gpus.slurm").read_text("utf-8")
    (said,) = (line for line in shipped.splitlines() if line.startswith("# Written by: "))
    words = shlex.split(said.removeprefix("# Written by: "))
    done = subprocess.run(
        [sys.executable, "-m", *words[: words.index("--out")]], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    strip = [line for line in done.stdout.splitlines() if not line.startswith("# Written by")]
    assert strip == [line for line in shipped.splitlines() if not line.startswith("# Written by")]
    assert "#SBATCH --nodes=32" in shipped
    assert "parallel.replicate=32 --set parallel.shard=8" in shipped


@pytest.mark.parametrize("name", ["laptop.sh", "one_node.sh", "256_gpus.slurm", "verify_release.sh"])
def test_every_script_is_one_that_bash_reads(root, name):
    subprocess.run(["bash", "-n", root / "runs" / name], check=True)
