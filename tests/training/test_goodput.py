"""Where a run's wall time went: nothing missing, nothing twice, over kills and rollbacks."""

import json
import math
import os
import signal
import time
from pathlib import Path

import pytest

from stablelm.config import InputError
from stablelm.config.errors import RunError
from stablelm.training import guard, train

from stablelm.training.goodput import (  # isort: skip
    COMPUTE, DATA, DOWN, EVALUATION, GOODPUT, LOST, OTHER, REJECTED, SAVE, STARTUP, Clock, Goodput,
    read_goodput,
)  # fmt: skip
from stablelm.training.trainer import Trainer
from tests.training.conftest import Recorder


class Killed(BaseException):
    """As kill -9: nothing is written on the way out."""


def whole(run, since):
    """The account of a run that began at a time of the system's clock and has just ended; its sum is that."""
    account = read_goodput(run)
    wall = time.time() - since
    assert sum(account.seconds.values()) == pytest.approx(account.wall, rel=0.01)
    assert account.wall == pytest.approx(wall, rel=0.01, abs=0.02)  # what comes after its last line is not in
    assert min(account.seconds.values()) >= -1e-3
    return account


def killed_at(config, step, monkeypatch):
    """Runs until a step is made; from then on nothing is written to the account, as after a kill."""
    with pytest.raises(Killed), monkeypatch.context() as dead:

        def kill():
            dead.setattr(Clock, "mark", lambda self, step: None)
            raise Killed

        train(config, console=Recorder({step: kill}))


def test_a_run_adds_up_and_says_so(make_config):
    console, since = Recorder(), time.time()
    config = make_config(logging={"tensorboard": True})
    account = whole(train(config, console=console), since)
    assert account.starts == 1
    for name in (COMPUTE, DATA, SAVE, EVALUATION, STARTUP, OTHER):
        assert account.seconds[name] > 0, name
    assert account.seconds[LOST] == account.seconds[DOWN] == account.seconds[REJECTED] == 0
    (line,) = [m for m in console.messages if m.startswith("goodput")]
    assert line.startswith(f"goodput {100 * account.share:.1f} % of 0:00:0") and "save stall" in line


def test_a_killed_run_that_goes_on_has_lost_its_steps(make_config, monkeypatch):
    made = Trainer.train_step

    def slow(self):
        time.sleep(0.05)
        return made(self)

    monkeypatch.setattr(Trainer, "train_step", slow)
    monkeypatch.setattr("stablelm.training.goodput.EVERY", 0.04)
    since, config = time.time(), make_config()
    killed_at(config, 5, monkeypatch)  # saved after step 3
    written = (Path(config.out) / GOODPUT).read_text().splitlines()
    gone = [line["seconds"] for line in map(json.loads, written) if line.get("step", 0) > 3]
    assert all(seconds[COMPUTE] >= 0.05 for seconds in gone) and len(gone) == 2
    time.sleep(0.2)
    account = whole(train(config, resume=True, console=Recorder()), since)
    assert account.starts == 2
    assert account.seconds[DOWN] >= 0.2
    assert account.seconds[LOST] == pytest.approx(sum(sum(seconds.values()) for seconds in gone))
    assert account.seconds[COMPUTE] >= 0.05 * 10  # the other two were the first of a start


def test_a_rollback_loses_what_it_goes_back_behind(make_config, monkeypatch):
    since, judge = time.time(), guard.Guard.judge

    def refuse(self, loss, norm, phase):
        bad = self.accepted >= 4 and not self.rollbacks
        return judge(self, math.nan if bad else loss, norm, phase)

    monkeypatch.setattr(guard.Guard, "judge", refuse)
    config = make_config(guard={"in_a_row": 3, "lookback": 0})
    account = whole(train(config, console=Recorder()), since)
    assert account.rollbacks == 1 and account.starts == 1
    assert account.seconds[LOST] > 0 and account.seconds[REJECTED] == pytest.approx(0, abs=1e-3)


def test_rejected_steps_have_their_own_time(make_config, monkeypatch):
    since, judge = time.time(), guard.Guard.judge
    monkeypatch.setattr(
        guard.Guard, "judge",
        lambda self, loss, norm, phase: judge(self, math.nan if self.accepted == 5 and not self.row else loss,
                                              norm, phase),
    )  # fmt: skip
    account = whole(train(make_config(), console=Recorder()), since)
    assert account.seconds[REJECTED] > 0 and account.seconds[LOST] == 0


def test_a_run_stopped_by_hand_says_it_too(make_config):
    console = Recorder({4: lambda: os.kill(os.getpid(), signal.SIGINT)})
    with pytest.raises(RunError, match="stopped after step"):
        train(make_config(), console=console)
    assert console.messages[-1].startswith("goodput")


def test_lines_become_an_account():
    account = Goodput()
    for line in (
        {"start": 100.0, "from": 0},
        {"time": 101.0, "step": 0, "seconds": {"startup": 1.0}},
        {"time": 111.0, "step": 10, "seconds": {"compute": 9.0, "save": 1.0}},
        {"time": 121.0, "step": 20, "seconds": {"compute": 9.0, "evaluation": 1.0}},
        {"start": 150.0, "from": 10},
        {"time": 152.0, "step": 10, "seconds": {"startup": 2.0}},
        {"time": 162.0, "step": 20, "seconds": {"compute": 10.0}},
        {"time": 163.0, "step": 21, "seconds": {"rejected": 1.0}},
        {"time": 163.0, "back": 20},
        {"time": 173.0, "step": 30, "seconds": {"compute": 10.0}},
    ):
        account.add(line)
    found = {name: seconds for name, seconds in account.seconds.items() if seconds}
    assert found == {"compute": 29.0, "save": 1.0, "startup": 3.0, "lost": 11.0, "down": 29.0}
    assert account.wall == 73.0 and account.share == pytest.approx(29 / 73)
    assert account.told() == (
        "goodput 39.7 % of 0:01:13 in 2 starts; the rest: down 39.7 %, restart loss 15.1 %, start-up 4.1 %, "
        "save stall 1.4 %"
    )


def test_nested_phases_are_counted_once():
    clock = Clock()
    with clock.phase(COMPUTE):
        with clock.phase(DATA):
            time.sleep(0.03)
        time.sleep(0.01)
    clock.switch(OTHER)
    passed = time.perf_counter() - clock.began
    assert clock.seconds[DATA] >= 0.03 and 0.01 <= clock.seconds[COMPUTE] < clock.seconds[DATA]
    assert sum(clock.seconds.values()) == pytest.approx(passed, rel=0.01)


def test_a_line_cut_by_a_kill_and_a_damaged_one(make_config):
    config = make_config()
    run = train(config, console=Recorder({}))
    path = run / GOODPUT
    lines = path.read_text()
    path.write_text(lines + '{"time": 17')
    assert read_goodput(run).wall > 0
    path.write_text(lines + json.dumps({"time": 1}) + "\n")
    with pytest.raises(InputError, match=rf"{GOODPUT}, line {lines.count(chr(10)) + 1}: .*Remove it"):
        read_goodput(run)
    for saved in sorted((run / "checkpoints").glob("step-*"))[-1:]:  # so that there is a step left to make
        (saved / "manifest.json").unlink()
    console = Recorder()
    train(config, resume=True, console=console)
    assert any("set aside as goodput.jsonl.damaged" in message for message in console.messages)
    assert read_goodput(run).starts == 1


def test_a_new_run_in_an_old_place_begins_a_new_account(make_config, monkeypatch):
    config = make_config()
    killed_at(config, 2, monkeypatch)  # before its first save
    assert read_goodput(train(config, console=Recorder())).starts == 1
