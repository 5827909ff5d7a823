"""Who is to blame when a run stands still; whole processes that hang are in tests/end_to_end."""

import os
import threading
import time

import pytest

from stablelm.training import watchdog
from stablelm.training.watchdog import SLOW, Watchdog


def test_nothing_is_left_where_nothing_hangs(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "_exit", lambda code: pytest.fail("it barked"))
    with Watchdog(tmp_path, 0, 1, 0.5) as dog:
        for step in range(20):
            dog.beat(step, "computing")
            time.sleep(0.05)
        dog.beat(20, "evaluating", SLOW)
        time.sleep(1)
    assert not list(tmp_path.iterdir())
    with Watchdog(tmp_path, 0, 1, 0) as dog:
        dog.beat(1, "computing")
    assert not list(tmp_path.iterdir())


class Ended(BaseException):
    pass


def ended(code):
    assert code == 1
    raise Ended


def report(run, rank, at, waits, end="end\n"):
    text = f"rank {rank} of 3, process 7 on here, step 6: computing for 9 s\nat {at}, waiting for {waits}\n\n"
    frame = f'  File "there.py", line {rank}, in spot_{rank}\n    call()\n'
    (run / f"hang-rank-{rank}.txt").write_text(text + frame + "\n" + end)


@pytest.mark.parametrize(
    ("others", "told"),
    [
        ({1: ("5.3", "nobody"), 2: ("5.3", "others")}, "the run stood still: rank 1 of 3, .* in spot_1"),
        ({1: ("5.3", "others"), 2: ("5.2", "others")}, "the run stood still: rank 2 of 3, .* in spot_2"),
        ({1: ("4.9", "nobody"), 2: ("5.2", "nobody")}, "the run stood still: rank 1 of 3, .* in spot_1"),
        ({2: ("5.2", "others")}, r"error: rank 1 of 3 wrote nothing when the run stood still"),
        (
            {1: ("5.3", "others", ""), 2: ("5.3", "others")},
            r"error: rank 1 of 3 wrote nothing",
        ),  # half a report
    ],
)
def test_who_holds_the_run_up(tmp_path, monkeypatch, capfd, others, told):
    """This process waits for others, as its innermost frame says."""
    import re
    import types

    monkeypatch.setattr(os, "_exit", ended)
    monkeypatch.setattr(watchdog, "_GRACE", 0.3)
    inside = f"torch{os.sep}distributed{os.sep}distributed_c10d.py"
    wait = types.FunctionType(compile("import time; time.sleep(0.1); bark()", inside, "exec"), {})
    for rank, about in others.items():
        report(tmp_path, rank, *about)
    dog = Watchdog(tmp_path, 0, 3, 1.0)
    for _ in range(4):
        dog.beat(5, "computing")
    wait.__globals__["bark"] = dog._bark
    assert threading.current_thread() is threading.main_thread()
    with pytest.raises(Ended):
        wait()
    assert re.search(told, capfd.readouterr().err)
    mine = (tmp_path / "hang-rank-0.txt").read_text()
    assert "step 6: computing for 0 s" in mine and "at 5.3, waiting for others" in mine
    assert "Thread 0x" in mine or "Current thread 0x" in mine


def test_only_the_first_that_is_left_speaks(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(os, "_exit", ended)
    report(tmp_path, 0, "5.3", "nobody")
    report(tmp_path, 2, "5.3", "nobody")
    with pytest.raises(Ended):
        Watchdog(tmp_path, 1, 3, 1.0)._bark()
    assert capfd.readouterr().err == ""
