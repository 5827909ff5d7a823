"""Where records go besides metrics.jsonl: TensorBoard, Weights & Biases (offline, the real package), and
what happens when one of them fails."""

import json
import math
import sys

import pytest

from stablelm.config import InputError
from stablelm.interchange.native import finished_checkpoints
from stablelm.training import boards, guard, train
from stablelm.training.boards import IDENTITY, numbers
from stablelm.training.metrics import Metrics, read_metrics
from tests.training.conftest import Recorder

wandb = pytest.importorskip("wandb", reason="the extra `track` is not installed")


@pytest.fixture(autouse=True)
def _no_account(monkeypatch, tmp_path):
    """W&B knows nobody here, and asks nobody."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB__DISABLE_STATS", "true")
    yield
    wandb.teardown()


def logged(run):
    """What a run's offline files hold: by file, in order, the records of each `log`."""
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    found = []
    for path in sorted((run / "wandb").glob("offline-run-*/*.wandb")):
        store, rows = DataStore(), []
        store.open_for_scan(str(path))
        while (data := store.scan_data()) is not None:
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                rows.append({
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                })  # fmt: skip
        found.append((path, rows))
    return found


def scalars(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_wandb_offline_and_a_resume_that_continues_it(make_config):
    section = {"wandb": {"project": "tests", "mode": "offline"}}
    run = train(make_config(logging=section), console=Recorder())
    newest = finished_checkpoints(run)[-1]
    (newest / "manifest.json").unlink()  # so that the last steps are to be made again
    train(make_config(logging=section), resume=True, console=Recorder())
    identity = json.loads((run / IDENTITY).read_text())
    assert identity["project"] == "tests"
    first, second = logged(run)
    assert all(identity["id"] in path.name for path, _ in (first, second))
    losses = {row["step"]: row["train/loss"] for row in first[1] if "train/loss" in row}
    expected = {r["step"]: r["loss"] for r in read_metrics(run) if "kind" not in r}
    assert losses == expected
    again = {row["step"]: row["train/loss"] for row in second[1] if "train/loss" in row}
    assert again and again.items() <= expected.items() and min(again) > 1
    assert any("evaluation/tales/bits_per_byte" in row for row in first[1])
    assert any("goodput/compute" in row for row in first[1])


class Service:
    """A stand-in for the package, which refuses some modes."""

    Settings = dict

    def __init__(self, *refused):
        self.refused, self.begun = refused, []

    def init(self, **given):
        if given["mode"] in self.refused:
            raise wandb.errors.CommError("timed out\nand more")
        self.begun.append(given)
        return self

    def define_metric(self, *names, **given):
        pass


def begun(make_config, tmp_path, monkeypatch, service, *, fresh, step=0, **section):
    """Name and messages of what W&B is asked for."""
    monkeypatch.setattr(boards, "_wandb", lambda: service)
    messages, config = [], make_config(logging={"wandb": {"project": "tests", **section}})
    found = boards.boards_of(config, tmp_path, step, fresh=fresh, message=messages.append)
    return list(found), messages


def test_a_new_run_has_a_new_identity_and_a_resumed_one_the_old(make_config, tmp_path, monkeypatch):
    service = Service()
    for fresh in (True, True, False):
        begun(make_config, tmp_path, monkeypatch, service, fresh=fresh, name="mine", entity="us")
    first, second, resumed = service.begun
    assert first["id"] != second["id"] == resumed["id"]
    assert resumed["resume"] == "allow" and resumed["name"] == "mine" and resumed["entity"] == "us"
    assert resumed["config"]["optimizer"]["lr"] == 5e-3


def test_wandb_that_cannot_be_reached_is_told_and_written_offline(make_config, tmp_path, monkeypatch):
    service = Service("online")
    found, (message,) = begun(make_config, tmp_path, monkeypatch, service, fresh=True)
    assert found == ["Weights & Biases"] and service.begun[0]["mode"] == "offline"
    assert "cannot be reached (timed out); written offline" in message and "wandb sync" in message
    service = Service("online", "offline")
    found, messages = begun(make_config, tmp_path, monkeypatch, service, fresh=True)
    assert found == [] and "did not start (timed out)" in messages[-1]


def test_tensorboard_takes_back_what_a_rollback_takes_back(make_config, monkeypatch):
    judge = guard.Guard.judge

    def refuse(self, loss, norm, phase):
        bad = self.accepted >= 4 and not self.rollbacks
        return judge(self, math.nan if bad else loss, norm, phase)

    monkeypatch.setattr(guard.Guard, "judge", refuse)
    config = make_config(guard={"in_a_row": 3, "lookback": 0}, logging={"tensorboard": True})
    run = train(config, console=Recorder())
    steps = [r for r in read_metrics(run) if "kind" not in r]
    assert scalars(run)["train/loss"] == [(r["step"], pytest.approx(r["loss"])) for r in steps]


def test_a_sink_that_fails_is_told_once_and_left_out(tmp_path):
    class Broken:
        def __init__(self):
            self.count = 0

        def write(self, record):
            self.count += 1
            raise OSError(28, "No space left on device")

    broken, told = Broken(), []
    with Metrics(tmp_path, 0, others={"TensorBoard": broken}, message=told.append) as metrics:
        for step in (1, 2, 3):
            metrics.write({"step": step})
    assert broken.count == 1 and len(read_metrics(tmp_path)) == 3
    assert len(told) == 1 and "TensorBoard failed" in told[0] and "The run goes on" in told[0]


def test_a_package_that_is_missing_is_named_before_the_run(make_config, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"logging.wandb.*stablelm\[track\]"):
        boards.boards_of(make_config(logging={"wandb": {"project": "p"}}), None, 0, fresh=True, message=print)


def test_numbers_of_records():
    assert dict(numbers({"step": 3, "loss": 2.0, "tokens": 12, "source_loss": {"web": 1.5}})) == {
        "train/loss": 2.0, "train/source_loss/web": 1.5,
    }  # fmt: skip
    assert dict(numbers({"step": 3, "kind": "health", "grad_rms": [0.5, 0.25]})) == {
        "health/grad_rms/00": 0.5, "health/grad_rms/01": 0.25,
    }  # fmt: skip
    assert dict(numbers({"step": 3, "kind": "task", "task": "arc", "value": 0.5})) == {"task/arc/value": 0.5}
    assert dict(numbers({"step": 3, "kind": "evaluation", "source": "w", "loss": 1.0, "tokens": 9})) == {
        "evaluation/w/loss": 1.0
    }
