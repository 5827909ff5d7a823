"""A run that stands still ends, and names the process, what it was doing and where."""

import os
import re
import subprocess
import sys

import pytest
import yaml

from tests.training.conftest import dataset_path, make_config  # noqa: F401 (fixtures)

SCRIPT = """
import ctypes, os, sys, time
from stablelm.config import load_run_config
from stablelm.training import Trainer
from stablelm.training.running import train_by

KIND, VICTIM = sys.argv[2], int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1

def fell_asleep():
    if KIND == "python":
        time.sleep(600)
    elif KIND == "stopped":
        os.kill(os.getpid(), 19)
    else:
        ctypes.PyDLL(None).sleep(600)  # keeps the interpreter to itself

class Sleepy(Trainer):
    def make_plan(self):
        super().make_plan()
        read = self.batches.get
        def get(*arguments):
            if VICTIM and self.step == 2:
                fell_asleep()
            return read(*arguments)
        self.batches.get = get

train_by(Sleepy, load_run_config(sys.argv[1]))
"""


@pytest.fixture
def script(make_config, tmp_path):  # noqa: F811
    quiet = {"every": 1000, "windows": 1, "copying": 0, "cloze": 0}
    config = make_config(guard={"hang_timeout": 2}, evaluation=quiet, checkpoint={"every": 100})
    (tmp_path / "run.yml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    (tmp_path / "sleepy.py").write_text(SCRIPT)
    return tmp_path


def run(folder, kind, *launcher):
    found = subprocess.run(
        [sys.executable, *launcher, str(folder / "sleepy.py"), str(folder / "run.yml"), kind],
        capture_output=True, text=True, timeout=60,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert found.returncode == 1, found.stdout + found.stderr
    return found.stderr


@pytest.mark.parametrize("kind", ["python", "interpreter"])
def test_a_process_alone(script, kind):
    stderr = run(script, kind)
    assert "in fell_asleep" in stderr and "sleepy.py" in stderr
    if kind == "python":
        assert "in fell_asleep" in (script / "run" / "hang-rank-0.txt").read_text()
        told = re.search(
            r"stood still: rank 0 of 1, .*, step 3: reading its samples for \d+ s, in File .*", stderr
        )
        assert told and "in fell_asleep" in told[0]


def test_one_of_two_is_named_with_its_stack(script):
    stderr = run(script, "python", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    told = re.search(r"the run stood still: rank 1 of 2, process \d+ on .*, in File .*sleepy.py.*", stderr)
    assert told and "in fell_asleep" in told[0] and "hang-rank-1.txt" in told[0]
    texts = [(script / "run" / f"hang-rank-{rank}.txt").read_text() for rank in range(2)]
    assert "waiting for others" in texts[0] and "waiting for nobody" in texts[1]
    assert "in fell_asleep" in texts[1] and "in fell_asleep" not in texts[0]
