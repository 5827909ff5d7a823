"""5,000 tiny steps with saves, rejected steps and evaluations: nothing piles up, all time is told."""

import gc
import os
import threading
import time

import pytest

from stablelm.training import train
from stablelm.training.goodput import read_goodput
from tests.training.conftest import Recorder, dataset_path, make_config  # noqa: F401 (fixtures)

STEPS, WARM = 5_000, 1_000


def resident():
    """Bytes of memory that this process holds."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Quiet(Recorder):
    """Keeps nothing but what is looked at: at step WARM, and at the last."""

    def __init__(self):
        super().__init__()
        self.held = {}

    def step(self, record, eta_seconds, line):
        if record["step"] in (WARM, STEPS):
            threads = sorted(thread.name for thread in threading.enumerate() if thread.name != "checkpoint")
            self.held[record["step"]] = resident(), threads, len(os.listdir("/proc/self/fd"))

    def message(self, text):
        pass


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="reads /proc")
def test_nothing_piles_up(make_config, tmp_path):  # noqa: F811
    before = sorted(thread.name for thread in threading.enumerate()), len(os.listdir("/proc/self/fd"))
    config = make_config(
        data={"epochs": {"tales": 1_000, "notes": 500}},
        steps=STEPS,
        checkpoint={"every": 50, "keep": 2, "copy_to": f"file://{tmp_path}/copies", "copy_every": 500},
        evaluation={"every": 250, "windows": 2, "copying": 0, "cloze": 0},
        guard={"hang_timeout": 600, "deviations": 6, "in_a_row": 1000},
    )
    console, began = Quiet(), time.time()
    account = read_goodput(train(config, console=console))
    assert sum(account.seconds.values()) == pytest.approx(account.wall, rel=0.01)
    assert account.wall == pytest.approx(time.time() - began, rel=0.01)
    (early, threads, files), (late, threads_late, files_late) = console.held[WARM], console.held[STEPS]
    assert late - early <= 20e6, f"{early / 1e6:.1f} MB at step {WARM:,}, {late / 1e6:.1f} MB at {STEPS:,}"
    assert threads == threads_late and abs(files_late - files) <= 1  # a save may be open
    gc.collect()  # the run's token files are mapped until it is gone
    after = sorted(thread.name for thread in threading.enumerate() if not thread.name.startswith("batches"))
    assert (after, len(os.listdir("/proc/self/fd"))) == before
