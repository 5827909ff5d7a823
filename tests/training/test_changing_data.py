"""The data ahead may change, the data behind may not; documents kept apart inside a window."""

import json
import shutil

import numpy as np
import pytest
import torch

from stablelm.config import InputError
from stablelm.data.run_data import open_data
from stablelm.interchange import open_path
from stablelm.interchange.native import finished_checkpoints as checkpoints
from stablelm.storage import MANIFEST, read_json, write_manifest
from stablelm.training import Trainer, train
from stablelm.training.metrics import read_metrics
from tests.training.conftest import Recorder

TABLE = {"tales": 2, "notes": 1}  # 2·12 + 16 windows: ten steps of four


class Crash(Exception):
    pass


def crash():
    raise Crash


def begun(config, step=8):
    """A run that crashed in a step; its newest checkpoint is at most two steps older."""
    with pytest.raises(Crash):
        train(config, console=Recorder({step: crash}))


def results(run):
    kept = ("step", "loss", "lr", "grad_norm", "first_sample", "last_sample")
    return [{k: r[k] for k in kept} for r in read_metrics(run) if "kind" not in r]


def phased(*phases, **more):
    return {"epochs": {}, "phases": list(phases), **more}


FUTURES = {
    "skips ahead": {"skip": [[24, 24], [30, 33]]},
    "cut here": phased({"epochs": TABLE, "until_step": 6}, {"epochs": {"notes": 1}}),
    "one more": phased({"epochs": TABLE}, {"epochs": {"tales": 1}}),
    "boundaries": phased({"epochs": TABLE, "until_step": 7},
                         {"epochs": {"tales": 2}, "document_boundaries": True}),
    "batch": {"phases": [{"until_step": 6}, {"sequences": 2}]},
    "context": {"phases": [{"until_step": 6}, {"sequence_length": 8, "until_step": 8},
                           {"sequence_length": 16, "sequences": 4, "document_boundaries": True}]},
    "rate": {"phases": [{"until_step": 7}, {"lr": 1e-3}]},
    "schedule": phased({"epochs": TABLE, "until_step": 7},
                       {"epochs": TABLE, "schedule": {"warmup_steps": 1, "cooldown_steps": 1}}),
}  # fmt: skip


def test_another_future_is_the_run_that_had_it_from_the_start(make_config):
    plain = results(train(make_config("plain", steps=10), console=Recorder()))
    config = make_config(steps=10)
    begun(config)
    for name, change in FUTURES.items():
        from_start = results(train(make_config(f"whole {name}", steps=10, data=change), console=Recorder()))
        shutil.copytree(config.out, f"{config.out} {name}")
        console = Recorder()
        resumed = train(make_config(f"run {name}", steps=10, data=change), resume=True, console=console)
        assert console.done == 6
        assert results(resumed) == from_start, name
        assert from_start[:6] == plain[:6]
        if name != "one more":  # which begins where these ten steps end
            assert [r["loss"] for r in from_start[7:]] != [r["loss"] for r in plain[7:]]


PASTS = {
    "a skip behind": ({"skip": [[23, 25]]}, r"data.skip = \[\], this run says \[\[23, 23\]\].*number 23 are"),
    "another table": (phased({"epochs": {"tales": 3, "notes": 1}}), r"data.phases.0.epochs.tales = '2'"),
    "cut behind": (phased({"epochs": TABLE, "until_step": 5}, {"epochs": TABLE}), r"data.phases = .*24"),
    "boundaries": ({"document_boundaries": True}, "data.phases.0.document_boundaries = False"),
    "windows": ({"windows": {"tales": 11, "notes": 16}}, "data.windows.tales = 12, this run says 11"),
    "a batch behind": (
        {"phases": [{"until_step": 5}, {"sequences": 2}]},
        "data.phases, from step 6: sequences = 4, this run says 2.*The 6 steps so far",
    ),
    "the first batch": (
        {"phases": [{"sequences": 8, "until_step": 3}, {}]},
        "from step 1: sequences = 4, this",
    ),
    "a context behind": ({"phases": [{"sequence_length": 8}]}, "from step 1: sequence_length = 32, this run"),
    "a rate behind": (
        {"phases": [{"until_step": 2}, {"until_step": 4, "lr": 1e-3}, {}]},
        "from step 3: lr = 0.005, this run says 0.001",
    ),
    "shorter": (phased({"epochs": {"tales": "1/4", "notes": "1/4"}}), "data.phases.0.epochs.notes"),
}


def test_another_past_is_refused_by_its_key(make_config):
    begun(make_config())
    for change, message in PASTS.values():
        with pytest.raises(InputError, match=message):
            train(make_config(data=change), resume=True, console=Recorder())


def test_what_was_skipped_stays_skipped(make_config):
    begun(make_config(data={"skip": [[2, 3], [35, 36]]}))
    with pytest.raises(InputError, match=r"data.skip = \[\[2, 3\]\], this run says \[\]"):
        train(make_config(), resume=True, console=Recorder())
    train(make_config(data={"skip": [[2, 3]]}), resume=True, console=Recorder())


def test_a_future_that_moves_the_learning_rate_is_refused_with_the_remedy(make_config):
    longer = phased({"epochs": TABLE}, {"epochs": {"tales": 1}})
    begun(make_config())
    with pytest.raises(
        InputError, match=r"steps = 10, this run says 13.*with `steps: 10` the data ahead may"
    ):
        train(make_config(data=longer), resume=True, console=Recorder())
    assert len(results(train(make_config(data=longer, steps=10), resume=True, console=Recorder()))) == 10


def test_skipping_ahead_shortens_the_run_and_keeps_the_learning_rates(make_config):
    whole = results(train(make_config("whole"), console=Recorder()))
    begun(make_config())
    run = train(make_config(data={"skip": [[26, 32]]}), resume=True, console=Recorder())
    after = results(run)
    assert [r["lr"] for r in after] == [r["lr"] for r in whole[:9]]
    assert [(r["first_sample"], r["last_sample"]) for r in after[5:]] == [
        (20, 23),
        (24, 34),
        (35, 38),
        (39, 39),
    ]
    plan = read_json(run / "plan.json")
    assert (plan["steps"], plan["schedule_steps"], plan["samples"]) == (9, 10, 33)
    state = read_json(checkpoints(run)[-1] / "state.json")
    assert (state["samples"], state["skipped"], state["steps"]) == (33, [[26, 32]], 10)
    account = read_json(run / "accounting.json")
    assert sum(e["skipped_windows"] for name in TABLE for e in account[name]["epochs"]) == 7
    again = Recorder()
    train(make_config(data={"skip": [[26, 32]]}), resume=True, console=again)
    assert any("all 9 steps are done already" in message for message in again.messages)


def test_a_checkpoint_from_before_phases_goes_on(make_config):
    """Its configuration has none of the keys that came later."""
    whole = results(train(make_config("whole"), console=Recorder()))
    begun(make_config())
    path = checkpoints(train_folder(make_config()))[-1]
    state = json.loads((path / "state.json").read_text())
    for key in ("phases", "skip", "document_boundaries", "order", "neox"):
        del state["config"]["data"][key]
    del state["skipped"]
    (path / "state.json").write_text(json.dumps(state))
    (path / MANIFEST).unlink()
    write_manifest(path, {"format": "stablelm-checkpoint", "version": 1, "step": 6})
    assert results(train(make_config(), resume=True, console=Recorder())) == whole


def train_folder(config):
    from pathlib import Path

    return Path(config.out)


def test_a_packed_window_is_its_documents_alone(make_config):
    """The loss of a step with boundaries, from each document's piece by itself at positions from 0."""
    batch = {"sequences": 40, "micro_sequences": 16, "sequence_length": 64}
    config = make_config(data={"document_boundaries": True, "windows": {}}, batch=batch)
    trainer = Trainer(config, Recorder())
    ids = torch.from_numpy(trainer.loader.samples(0, 40))
    documents = trainer.loader.document_ids(0, 40)
    total, pieces = 0.0, 0
    with torch.no_grad():
        for row, numbers in zip(ids, documents, strict=True):
            for number in np.unique(numbers):
                at = np.flatnonzero(numbers == number)
                first, last = int(at[0]), int(at[-1])
                total += float(
                    trainer.model(row[None, first : last + 1], labels=row[None, first + 1 : last + 2])
                )
                pieces += 1
        together = trainer.model(ids[:, :-1], labels=ids[:, 1:], document_ids=torch.from_numpy(documents))
        without = trainer.model(ids[:, :-1], labels=ids[:, 1:])
    assert pieces > 42, "some windows hold two documents"
    assert float(together) == pytest.approx(total, rel=1e-6)
    assert float(without) != pytest.approx(total, rel=1e-6)
    assert trainer.train_step()["loss"] == pytest.approx(total / (40 * 64), rel=1e-6)


def test_evaluation_is_measured_without_boundaries(make_config):
    """So that held-out losses before and after a change of phase can be compared."""
    apart = Trainer(make_config("a", data={"document_boundaries": True}), Recorder())
    plain = Trainer(make_config("b"), Recorder())
    from stablelm.evaluation import perplexity

    file = plain.dataset.held_out("tales")
    assert perplexity(apart.model, file, 1, 32) == perplexity(plain.model, file, 1, 32)


def test_a_run_in_gpt_neox_s_order(make_config, dataset_path, tmp_path):
    neox = {
        "paths": [str(dataset_path / name / "train") for name in ("tales", "notes")], "weights": [3, 1],
        "train_iters": 6, "tokenizer": str(dataset_path),
    }  # fmt: skip
    data = {"path": "", "epochs": {}, "windows": {}, "order": "neox", "neox": neox}
    whole = results(train(make_config("whole", data=data), console=Recorder()))
    assert len(whole) == 6
    begun(make_config(data=data), 5)
    run = train(make_config(data=data), resume=True, console=Recorder())
    assert results(run) == whole
    _, tokenizer = open_path(run)
    assert tokenizer is not None
    ahead = {**data, "skip": [[12, 15]]}
    begun(make_config("ahead", data=data), 5)
    skipped = results(train(make_config("ahead", data=ahead), resume=True, console=Recorder()))
    assert skipped == results(train(make_config("from start", data=ahead), console=Recorder()))
    assert [r["first_sample"] for r in skipped] == [0, 4, 8, 16, 20]
    about = read_json(checkpoints(run)[-1] / "about.json")
    drawn = open_data(make_config(data=data))[1].drawn(24)
    assert {name: seen["samples"] for name, seen in about["data"].items()} == drawn
    from stablelm.training.report import run_page

    run_page(run).write(tmp_path / "report.html")
    with pytest.raises(InputError, match=r"data.neox.train_iters = 6, this run says 7"):
        train(make_config(data={**data, "neox": {**neox, "train_iters": 7}}), resume=True, console=Recorder())
