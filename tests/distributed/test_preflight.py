"""Before the first step: of four processes the one that is slow, or is another, is named by all."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import stablelm
from stablelm.data import run_data
from stablelm.training import machine, preflight
from tests.training.conftest import Recorder, dataset_path, make_config  # noqa: F401 (fixtures)

VICTIM = 2


def slow(config, copy):
    preflight.matmul_rate = lambda *arguments: 1e6


def older(config, copy):
    stablelm.__version__ = "0.0.9"


def other_data(config, copy):
    """The manifest is the same, one token in the middle of a file is not."""
    there = config.model_copy(update={"data": config.data.model_copy(update={"path": str(copy)})})
    preflight.open_data = lambda _: run_data.open_data(there)


def another_configuration(config, copy):
    config.__dict__["steps"] = 5


def late(config, copy):
    measured = preflight.clock
    preflight.clock = lambda ranks: (measured(ranks)[0] + 30, 0.001)


def check(rank, config, copy, spoil):
    torch.set_num_threads(1)
    kept = {name: getattr(preflight, name) for name in ("matmul_rate", "open_data", "clock")}
    version, usual = stablelm.__version__, (machine.BLOCK, machine._SECONDS, machine.SIZES)
    machine.BLOCK, machine._SECONDS, machine.SIZES = 1 << 20, 0.05, {"cpu": (256, 1 << 20)}
    preflight.make_console = lambda: console
    console = Recorder()
    try:
        if rank == VICTIM:
            spoil(config, copy)
        preflight.preflight(config, torch.device("cpu"), console)
    except Exception as error:
        return console.messages, f"{type(error).__name__}: {error}"
    finally:
        stablelm.__version__ = version
        machine.BLOCK, machine._SECONDS, machine.SIZES = usual
        for name, value in kept.items():
            setattr(preflight, name, value)
    return console.messages, None


@pytest.fixture
def copy(dataset_path, tmp_path):  # noqa: F811
    """The data with one byte changed."""
    shutil.copytree(dataset_path, tmp_path / "copy")
    victim = sorted((tmp_path / "copy").rglob("train*.bin"))[0]
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    return tmp_path / "copy"


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (older, r"stablelm: rank 2 (HOST, local rank 0) has 0.0.9, 3 of 4 have 0.1.0"),
        (other_data, "token files: rank 2 (HOST, local rank 0) has "),
        (another_configuration, "configuration: rank 2 (HOST, local rank 0) has "),
    ],
)
def test_one_that_is_another_stops_all(pool, make_config, copy, spoil, told):  # noqa: F811
    config = make_config()
    found = pool.run(4, check, config, copy, spoil)
    report = json.loads((Path(config.out) / preflight.REPORT).read_text())
    told = told.replace("HOST", report["processes"][0]["host"])
    assert len({error for _, error in found}) == 1
    assert found[0][1].startswith(f"InputError: preflight: {told}"), found[0][1]
    assert len(report["errors"]) == 1 and report["errors"][0].startswith(told)


@pytest.mark.parametrize(("spoil", "told"), [
    (slow, "rank 2 (HOST, local rank 0): matrix products: "), (late, "its clock is +30.00 s from the median"),
])  # fmt: skip
@pytest.mark.parametrize("action", ["continue", "stop"])
def test_a_slow_one_is_named_and_stops_all_only_when_asked(
    pool, make_config, copy, spoil, told, action  # noqa: F811
):  # fmt: skip
    # What two cores do with four processes is uneven anyway.
    config = make_config(
        parallel={"replicate": 2}, preflight={"tolerance": 0.2, "on_warning": action},
        model={"num_attention_heads": 4},
    )  # fmt: skip
    found = pool.run(4, check, config, copy, spoil)
    report = json.loads((Path(config.out) / preflight.REPORT).read_text())
    told = told.replace("HOST", report["processes"][0]["host"])
    assert not report["errors"]
    (warning,) = [line for line in report["warnings"] if told in line]
    assert warning.startswith("rank 2 ")
    if action == "continue":
        assert [error for _, error in found] == [None] * 4
        assert f"warning: {warning}" in found[0][0] and not any(said for said, _ in found[1:])
    else:
        assert all(error.startswith("InputError: preflight: ") and warning in error for _, error in found)
    rates = set(report["processes"][0]["rates"])
    assert rates == {
        "matrix products", "all-reduce over all 4", "all-reduce over 2 (replicate)",
        "all-reduce over 2 (shard)", "all-reduce in pairs", "disk, write", "disk, read",
    }  # fmt: skip
    assert all(rate > 0 for each in report["processes"] for rate in each["rates"].values())
    assert not list(Path(config.out).glob("*.tmp"))
