"""What is measured before a run, on one process, and how findings are judged."""

import json

import pytest
import torch

from stablelm.config import InputError
from stablelm.config.preflight import PreflightConfig
from stablelm.interchange.native import finished_checkpoints
from stablelm.storage import DiskFullError
from stablelm.training import machine, preflight, train
from stablelm.training.machine import groups_of, pairs
from stablelm.training.metrics import read_metrics
from stablelm.training.preflight import Found, judge
from tests.training.conftest import Recorder

QUIET = {"every": 1000, "windows": 1, "copying": 0, "cloze": 0}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(machine, "BLOCK", 1 << 20)
    monkeypatch.setattr(machine, "_SECONDS", 0.05)


def losses(run):
    return [(record["loss"], record["grad_norm"]) for record in read_metrics(run) if "kind" not in record]


def test_a_process_alone_checks_and_then_trains_the_same_run(make_config):
    console = Recorder()
    run = train(make_config("checked", evaluation=QUIET), console=console, checks="first")
    assert console.messages[0].startswith("preflight: 1 process on 1 machine, ")
    report = json.loads((run / preflight.REPORT).read_text())
    (one,) = report["processes"]
    assert set(one["rates"]) == {"matrix products", "disk, write", "disk, read"}
    assert one["same"]["torch"] == torch.__version__ and one["needed"] > one["checkpoint"] > 0
    assert not report["errors"] and not list(run.glob("*.tmp"))
    assert losses(run) == losses(train(make_config("plain", evaluation=QUIET), console=Recorder()))


def test_alone_it_leaves_a_run_as_it_is(make_config):
    config = make_config(evaluation=QUIET, steps=3)
    train(config, console=Recorder(), checks="only")
    assert not finished_checkpoints(train(config, console=Recorder(), checks="only"))
    before = losses(train(config, console=Recorder()))
    assert losses(train(config, console=Recorder(), checks="only")) == before


def test_mistakes_are_told_as_without_it(make_config, tmp_path):
    with pytest.raises(InputError, match=r"^/nowhere: not a prepared dataset"):
        train(make_config(data={"path": "/nowhere"}), console=Recorder(), checks="only")
    with pytest.raises(InputError, match=r"steps 11 × batch.sequences 4 asks for 44 windows"):
        train(make_config(steps=11), console=Recorder(), checks="only")


def test_a_disk_that_is_full_is_told_and_nothing_is_left(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(machine.os, "fsync", full)
    with pytest.raises(DiskFullError, match=r"preflight-3.tmp: the disk is full"):
        machine.disk_rates(tmp_path, 3)
    assert not list(tmp_path.iterdir())


def test_groups_are_those_of_the_mesh():
    assert groups_of((1, 1, 1)) == {}
    assert groups_of((1, 2, 1)) == {"all": [[0, 1]]}  # the one group is all of it
    found = groups_of((2, 2, 2))
    assert found["replicate"] == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert found["shard"] == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert found["tensor"] == [[0, 1], [2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize("world", [3, 4, 5, 16])
def test_pairs_lead_to_the_other_half_and_change(world):
    rounds = [pairs(world, shift) for shift in range(2)]
    for made in rounds:
        members = [rank for pair in made for rank in pair]
        assert len(set(members)) == len(members) >= world - 1
    assert {rank for made in rounds for pair in made for rank in pair} == set(range(world))
    assert not {tuple(pair) for pair in rounds[0]} & {tuple(pair) for pair in rounds[1]}


def found(rank, host="a", same=None, alike=None, **more):
    said = {"device": "x", **(alike or {})}
    return Found(rank, host, rank % 2, same or {"torch": "2.13"}, said, free=10**12, **more)


def test_whoever_differs_from_most_is_named():
    every = [
        found(0),
        found(1),
        found(2, "b", {"torch": "2.12"}),
        found(3, "b", alike={"NCCL_DEBUG": "INFO"}),
    ]
    verdict = judge(every, PreflightConfig())
    assert verdict.errors == ["torch: rank 2 (b, local rank 0) has 2.12, 3 of 4 have 2.13"]
    assert verdict.warnings == ["NCCL_DEBUG: rank 3 (b, local rank 1) has INFO, 3 of 4 have not set"]
    many = judge(
        [found(n, same={"torch": "2.12" if n > 29 else "2.13"}) for n in range(40)], PreflightConfig()
    )
    assert (
        many.errors[0].startswith("torch: rank 30 (a, ")
        and " and 2 more have 2.12, 30 of 40" in many.errors[0]
    )


def test_a_machine_with_a_bad_disk_is_named_and_an_uneven_share_is_not():
    def shares(host, first, *rates):
        return [found(first + n, host, rates={"disk, write": rate}) for n, rate in enumerate(rates)]

    even = [*shares("a", 0, 1e9, 3e9), *shares("b", 2, 3e9, 1e9), *shares("c", 4, 2e9, 2e9)]
    assert judge(even, PreflightConfig()).warnings == []
    bad = [*even[:4], *shares("c", 4, 2e8, 4e8)]
    assert [line.split(":")[0] for line in judge(bad, PreflightConfig()).warnings] == [
        "rank 4 (c, local rank 0)", "rank 5 (c, local rank 1)",
    ]  # fmt: skip


def test_a_bad_link_is_told_from_its_partners():
    """The lowest of two partners is what a sick machine gives both; the better of two rounds acquits them."""
    link = [1.0, 1.0, 1.0, 1.0, 1.0, 0.1, 1.0, 1.0]
    best = dict.fromkeys(range(8), 0.0)
    for shift in range(2):
        for pair in pairs(8, shift):
            for rank in pair:
                best[rank] = max(best[rank], min(link[each] for each in pair))
    every = [found(rank, rates={"all-reduce in pairs": 1e9 * rate}) for rank, rate in best.items()]
    assert judge(every, PreflightConfig()).warnings == [
        "rank 5 (a, local rank 1): all-reduce in pairs: 0.1 GB/s, the median is 1 GB/s"
    ]


def test_clocks_count_beyond_their_uncertainty():
    clocks = [(0.0, 0.001), (0.9, 0.1), (4.0, 3.5), (-2.0, 0.5)]
    every = [found(rank, clock=offset) for rank, offset in enumerate(clocks)]
    told = judge(every, PreflightConfig()).warnings
    assert told == ["rank 3 (a, local rank 1): its clock is -2.45 s from the median (± 0.5 s)"]


@pytest.mark.parametrize(("free", "errors", "warnings"), [(99, 1, 0), (100, 0, 1), (300, 0, 0)])
def test_room_for_one_checkpoint_must_be_there(free, errors, warnings):
    every = [Found(0, "a", 0, {}, {}, free=free, needed=300, checkpoint=100)]
    verdict = judge(every, PreflightConfig())
    assert (len(verdict.errors), len(verdict.warnings)) == (errors, warnings)


def test_what_a_run_will_take_of_the_disk(make_config):
    """Ten steps: the two newest, one being written, and those of every fourth step."""
    config = make_config(checkpoint={"every": 3, "keep": 2, "permanent_every": 4})
    config_ema = make_config(checkpoint={"every": 3, "keep": 2}, ema={"decay": 0.9})
    (preflight.Path(config.out)).mkdir()
    parameters = config.model.num_parameters
    assert preflight.space(config)[1:] == (12 * parameters * 5, 12 * parameters)
    assert preflight.space(config_ema)[1:] == (16 * parameters * 3, 16 * parameters)
