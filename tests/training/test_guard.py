"""Bad steps: rejected before they touch anything, gone back from, left out, told; and what cannot be
helped."""

import json
import shutil
import struct
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from stablelm.cli.find import find
from stablelm.config import InputError
from stablelm.config.errors import RunError
from stablelm.config.guard import GuardConfig
from stablelm.config.run import run_config
from stablelm.data import Dataset, Loader
from stablelm.data.run_data import open_data
from stablelm.interchange.native import finished_checkpoints
from stablelm.storage import MANIFEST, entry
from stablelm.tokenizer import Tokenizer
from stablelm.training import Trainer, rollback
from stablelm.training.guard import Guard
from stablelm.training.metrics import read_metrics
from stablelm.training.report import run_page
from stablelm.training.running import train_by
from tests.training.conftest import Recorder


@pytest.fixture
def make_config(make_config):
    """As elsewhere, with little evaluation: what is evaluated is not the matter here."""
    return partial(make_config, evaluation={"every": 1000, "windows": 1, "copying": 0, "cloze": 0})


class Poisoned(Trainer):
    """A trainer whose network multiplies what enters the head for some samples, known by their ids."""

    def __init__(self, factors, config, *arguments, **options):
        super().__init__(config, *arguments, **options)
        rows = self.loader.read(np.array(sorted(factors)))[:, :-1]
        self.factors = {tuple(row): factors[n] for row, n in zip(rows.tolist(), sorted(factors), strict=True)}
        self.model.model.embed_tokens.register_forward_hook(self._recognise)
        self.model.model.norm.register_forward_hook(self._poison)

    def _recognise(self, module, inputs, embedded):
        self.scales = torch.tensor([self.factors.get(tuple(row), 1.0) for row in inputs[0].tolist()])

    def _poison(self, module, inputs, normed):
        return normed * self.scales[:, None, None]


def run(config, factors, *, resume=False, at=None):
    console = Recorder(at)
    return train_by(partial(Poisoned, factors), config, resume=resume, console=console), console


def results(path):
    kept = ("step", "kind", "loss", "lr", "grad_norm", "tokens", "bits_per_byte", "reason", "first_sample")
    return [{key: record[key] for key in kept if key in record} for record in read_metrics(Path(path))]


def tensors(checkpoint):
    from safetensors.torch import load_file

    return {
        f"{path.parent.name}/{name}": value
        for path in sorted(Path(checkpoint).glob("*/*.safetensors"))
        for name, value in load_file(path).items()
    }


def same(first, second):
    a, b = tensors(first), tensors(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


NAN = float("nan")


def test_a_rejected_step_changes_nothing_but_the_count(make_config):
    trainer = Poisoned({13: NAN}, make_config(), Recorder())  # in step 4
    for _ in range(3):
        assert "reason" not in trainer.train_step()
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    moments = [v.clone() for state in trainer.optimizer.state.values() for v in state.values()]
    record = trainer.train_step()
    assert record["kind"] == "rejected" and record["reason"] == "loss nan" and record["loss"] is None
    assert (record["first_sample"], record["last_sample"]) == (12, 15)
    assert all(torch.equal(weights[name], value) for name, value in trainer.model.state_dict().items())
    left = [v for state in trainer.optimizer.state.values() for v in state.values()]
    assert all(torch.equal(a, b) for a, b in zip(moments, left, strict=True))  # bias correction's count too
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert trainer.step == 4 and "reason" not in trainer.train_step()


@pytest.mark.parametrize("stop", [4, 5])
def test_a_run_with_rejected_steps_resumes_exactly(make_config, stop):
    """NaN in step 4, an infinite gradient in step 7; the update count of AdamW is of updates."""
    factors = {13: NAN, 26: float("inf")}
    whole, console = run(make_config("whole"), factors)
    told = [record for record in read_metrics(whole) if record.get("kind") == "rejected"]
    assert [record["step"] for record in told] == [4, 7]
    assert "(rejected)" in found_by(make_config().data.path, whole, *at_step(whole, 4))
    assert "Rejected steps" in run_page(whole).html()
    assert [m for m in console.messages if "rejected:" in m] == [
        "step 4: rejected: loss nan", "step 7: rejected: loss nan",
    ]  # fmt: skip
    state = json.loads((finished_checkpoints(whole)[-1] / "state.json").read_text())
    assert state["guard"]["rejected"] == 2 and state["step"] == 10

    class Crash(Exception):
        pass

    def crash():
        raise Crash

    with pytest.raises(Crash):  # a rejected step is not told to the console as one that was made
        run(make_config(), factors, at={stop if stop not in (4, 7) else stop + 1: crash})
    again, _ = run(make_config(), factors, resume=True)
    assert results(again) == results(whole)
    assert same(finished_checkpoints(again)[-1], finished_checkpoints(whole)[-1])
    assert all(value.isfinite().all() for value in tensors(finished_checkpoints(whole)[-1]).values())


def test_outliers_are_judged_by_median_and_spread():
    guard = Guard(GuardConfig(deviations=6, window=16))
    rng = np.random.default_rng(0)
    for step in range(1, 41):
        loss, norm = 3 + 0.1 * rng.standard_normal(), 1 + 0.1 * rng.standard_normal()
        assert guard.judge(loss, norm, 0) is None
        guard.accept(step, loss, norm)
    kept = [list(window) for window in guard.windows.values()]
    center, spread = np.median(kept[0]), 1.4826 * np.median(np.abs(kept[0] - np.median(kept[0])))
    assert guard.judge(center + 5.99 * spread, 1.0, 0) is None
    told = guard.judge(center + 6.01 * spread, 1.0, 0)
    assert told.startswith("loss 3.") and "6.0 deviations above 3.0" in told and "16 steps" in told
    assert "gradient norm 9 is" in guard.judge(3.0, 9.0, 0)
    for _ in range(50):  # many spikes do not become normal
        guard.reject(41, told)
        assert guard.judge(30.0, 1.0, 0) is not None and guard.judge(3.0, 1e19, 0) is not None
    assert [list(window) for window in guard.windows.values()] == kept
    assert guard.judge(0.1, 0.01, 0) is None  # only upwards
    again = Guard(guard.config)
    again.restore(json.loads(json.dumps(guard.state())), 41)
    assert again.state() == guard.state() and again.judge(30.0, 1.0, 0) == guard.judge(30.0, 1.0, 0)
    assert guard.judge(30.0, 1.0, 1) is None  # another phase of the data, another window
    off = Guard(GuardConfig(window=16))
    off.restore(guard.state(), 41)
    assert off.judge(1e6, 1e6, 0) is None
    assert off.judge(3.0, 2e19, 0) == "gradient norm 2e+19 is too large"
    assert off.judge(3.0, float("inf"), 0) == "gradient norm inf"


def test_an_even_window_finds_no_outliers_in_nothing():
    guard = Guard(GuardConfig(deviations=8, window=8))
    for step in range(8):
        guard.accept(step, 2.0, 1.0)
    assert guard.judge(2.15, 1.75, 0) is None
    assert guard.judge(2.17, 1.0, 0) is not None and guard.judge(2.0, 1.81, 0) is not None


def test_a_planted_spike_is_rejected(make_config):
    factors = {33: 60.0, 37: 60.0}  # in steps 9 and 10, one after the other
    guard = {"deviations": 5, "window": 8}
    spoiled, _ = run(make_config("loose"), factors)
    watched, _ = run(make_config("watched", guard=guard), factors)
    told = [record for record in read_metrics(watched) if record.get("kind") == "rejected"]
    assert [record["step"] for record in told] == [9, 10] and all("deviations" in r["reason"] for r in told)
    assert not [record for record in read_metrics(spoiled) if record.get("kind") == "rejected"]
    final = tensors(finished_checkpoints(watched)[-1])
    eight, _ = run(make_config("eight", steps=10, guard=guard), {})  # the same up to there
    before = [r for r in results(eight) if r["step"] <= 8]
    assert before == [r for r in results(watched) if r["step"] <= 8]
    assert all(value.isfinite().all() for value in final.values())


REGION = dict.fromkeys(range(19, 28), NAN)  # steps 5, 6 and 7 of four samples
GUARD = {"in_a_row": 3, "lookback": 1}


def documents_by_hand(config, numbers):
    """Per source and document, how many tokens these samples predict, read off the index."""
    loader = Loader(Dataset(config.data.path), config.data, config.batch.sequence_length, config.seed, 4)
    counts = {}
    for name in loader.mixture.sources:
        for document in range(loader._files[0 if name == loader.mixture.sources[0] else 1].num_documents):
            total = sum(s.tokens for s in loader.when(name, document) if s.sample in numbers)
            if total:
                counts[name, document] = total
    return counts


def test_a_bad_region_is_gone_back_from_and_left_out(make_config):
    config = make_config(guard=GUARD)
    path, console = run(config, REGION)
    record = json.loads((path / "guard.json").read_text())["rollbacks"]
    assert [(r["to"], r["from"], r["skip"]) for r in record] == [(3, 7, [12, 27])]  # step 4 is the lookback
    assert [r["step"] for r in record[0]["rejected"]] == [5, 6, 7]
    assert any("Back to step-000003; samples 12 to 27 will be left out (" in m for m in console.messages)
    by_hand, _ = run(make_config("by_hand", data={"skip": [[12, 27]]}), {})
    assert results(path) == results(by_hand)
    assert same(finished_checkpoints(path)[-1], finished_checkpoints(by_hand)[-1])
    accounts = json.loads((path / "accounting.json").read_text())
    assert accounts == json.loads((by_hand / "accounting.json").read_text())
    unread = {(s, d["document"]): d["tokens"] for s in accounts for d in accounts[s]["skipped_documents"]}
    assert unread == documents_by_hand(config, range(12, 28)) and sum(unread.values()) == 16 * 32
    assert all(d["id"] for s in accounts for d in accounts[s]["skipped_documents"])
    assert sum(e["skipped_windows"] for s in accounts.values() for e in s["epochs"]) == 16
    assert json.loads((path / "plan.json").read_text())["steps"] == 6
    assert json.loads((path / "run.json").read_text())["data"]["skip"] == []  # what the user said
    found, expected = (found_by(config.data.path, run) for run in (path, by_hand))
    assert found == expected and "(read)" in found
    page = run_page(path).html()
    assert "from step 7 to 3, without samples 12 to 27" in page
    (path / "guard.json").unlink()
    shutil.rmtree(path / "checkpoints")
    assert found_by(config.data.path, path) != expected  # the record is what tells


def found_by(data, run, text="the old machine", *options):
    """What `stablelm data find` says of a text."""
    application = typer.Typer()
    application.command()(find)
    told = CliRunner().invoke(application, [data, text, "--run", str(run), *options])
    assert told.exit_code == 0, told.output
    return told.output


def at_step(run, step):
    """A text that is read at this step of four samples, and the option that looks in its source."""
    dataset, samples = open_data(run_config(json.loads((run / "run.json").read_text())))
    numbers = samples.numbers(4 * step - 4, 1)
    source, _, _ = next(samples.predicted(numbers))
    tokenizer = Tokenizer.from_file(dataset.tokenizer_path)
    return tokenizer.decode(samples.read(numbers)[0][4:12]), "--source", source


class Killed(BaseException):
    pass


def test_a_run_killed_while_it_goes_back_goes_back_all_the_same(make_config, monkeypatch):
    whole, _ = run(make_config("whole", guard=GUARD), REGION)

    def killed(checkpoints):
        if checkpoints:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(rollback, "remove", killed)
        with pytest.raises(Killed):
            run(make_config(guard=GUARD), REGION)
    config = make_config(guard=GUARD)
    assert [p.name for p in finished_checkpoints(Path(config.out))] == ["step-000003", "step-000006"]
    again, console = run(config, REGION, resume=True)
    assert console.done == 3
    assert any("step-000006: the run has gone back from it; removed" in m for m in console.messages)
    assert results(again) == results(whole)
    assert same(finished_checkpoints(again)[-1], finished_checkpoints(whole)[-1])


@pytest.mark.parametrize("keep_record", [True, False])
def test_resuming_after_a_rollback_keeps_to_it(make_config, keep_record):
    """Also from a checkpoint alone, which carries what was left out; a branch inherits it."""
    options = {"guard": GUARD, "checkpoint": {"every": 2, "keep": 9}}
    whole, _ = run(make_config("whole", **options), REGION)
    assert [path.name[-1] for path in finished_checkpoints(whole)] == ["2", "4", "6"]
    config = make_config(**options)
    shutil.copytree(whole, config.out)
    shutil.rmtree(Path(config.out) / "checkpoints" / "step-000006")
    if not keep_record:
        (Path(config.out) / "guard.json").unlink()
        shutil.rmtree(Path(config.out) / "checkpoints" / "step-000002")
    again, console = run(config, {}, resume=True)  # without the region: it must not be read all the same
    assert console.done == 4 and results(again) == results(whole)
    assert same(finished_checkpoints(again)[-1], finished_checkpoints(whole)[-1])
    point = {"checkpoint": str(finished_checkpoints(whole)[1]), "cooldown_steps": 2}
    branch, _ = run(make_config("branch", branch=point, **options), REGION)
    assert [r["first_sample"] for r in results(branch) if "first_sample" in r] == [32, 36]


@pytest.mark.parametrize(
    ("guard", "factors", "message"),
    [
        ({"in_a_row": 2}, {1: NAN, 5: NAN}, r"step 2: steps 1 to 2 .*and there is no good checkpoint"),
        ({"in_a_row": 3, "rollbacks": 0}, REGION, r"step 7: steps 5 to 7 .*and guard.rollbacks is 0"),
        (
            {"in_a_row": 1, "lookback": 0, "rollbacks": 2},
            dict.fromkeys(range(16, 40), NAN),
            r"step 5: .*and going back to .*step-000003 2 times did not help",
        ),
    ],
)
def test_a_run_that_cannot_recover_says_on_what(make_config, guard, factors, message):
    config = make_config(guard=guard)
    with pytest.raises(RunError, match=message) as stopped:
        run(config, factors)
    report = json.loads((Path(config.out) / "unrecovered.json").read_text())
    begin, end = report["skip"]
    assert f"Samples {begin:,} to {end:,} are of " in str(stopped.value)
    found = {(s, d["document"]): d["tokens"] for s, all_ in report["documents"].items() for d in all_}
    assert found == documents_by_hand(config, range(begin, end + 1))
    assert next(iter(report["documents"].values()))[0]["id"] in str(stopped.value)
    for checkpoint in finished_checkpoints(Path(config.out)):
        assert all(value.isfinite().all() for value in tensors(checkpoint).values())


@pytest.mark.parametrize("what", ["weight", "moment"])
def test_state_that_is_not_finite_never_becomes_a_checkpoint(make_config, what):
    """The last step before a save spoils a weight, or a second moment that no loss shows yet."""
    trainers = []

    class Kept(Trainer):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            trainers.append(self)

    spoiled = []

    def spoil():
        if not spoiled:
            weight = trainers[0].model.lm_head.weight
            target = weight.data if what == "weight" else trainers[0].optimizer.state[weight]["exp_avg_sq"]
            target[3, 3] = torch.inf
            spoiled.append(True)

    config = make_config(guard={"lookback": 0})
    console = Recorder({6: spoil})
    path = train_by(Kept, config, console=console)
    record = json.loads((path / "guard.json").read_text())["rollbacks"]
    assert [(r["to"], r["from"], r["skip"]) for r in record] == [(3, 6, [20, 23])]
    assert "not finite (tensor " in record[0]["reason"] and "lm_head.weight" in record[0]["reason"]
    for checkpoint in finished_checkpoints(path):
        assert all(value.isfinite().all() for value in tensors(checkpoint).values())


@pytest.mark.parametrize("folder", ["model", "optimizer"])
def test_a_checkpoint_with_a_value_that_is_not_finite_is_refused_by_tensor(make_config, folder):
    path, _ = run(make_config(steps=6), {})
    newest = finished_checkpoints(path)[-1]
    file = next((newest / folder).glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-8:-4] = struct.pack("<f", NAN)
    file.write_bytes(content)
    manifest = json.loads((newest / MANIFEST).read_text())
    manifest["files"][f"{folder}/{file.name}"] = entry(file)  # so that only the value is wrong
    (newest / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=rf"{folder}: tensor '.*' holds values that are not finite.*step-"):
        run(make_config(steps=6), {}, resume=True)


def test_an_id_that_no_word_has_is_a_fault_of_the_data(make_config, dataset_path, tmp_path):
    """A token file damaged after it was prepared."""
    shutil.copytree(dataset_path, tmp_path / "damaged")
    file = next((tmp_path / "damaged" / "tales").glob("train*.bin"))
    ids = np.fromfile(file, dtype="<u2")
    ids[200] = 9_999
    file.chmod(0o644)
    ids.tofile(file)
    path, _ = run(make_config(data={"path": str(tmp_path / "damaged")}), {})
    told = [record for record in read_metrics(path) if record.get("kind") == "rejected"]
    assert 1 <= len(told) <= 3  # once in each epoch, or at the edge of two windows
    assert all(
        "id 9,999 is beyond the vocabulary of 384; the token file is damaged" in r["reason"] for r in told
    )
    sample = int(told[0]["reason"].split("sample ")[1].split(",")[0])
    assert told[0]["first_sample"] <= sample <= told[0]["last_sample"]
