"""The moving average of the weights: what it is, that the run does not notice it, that it survives all that a
run survives."""

import json
from functools import partial

import pytest
import torch

from stablelm.config import InputError
from stablelm.interchange import open_path
from stablelm.interchange.checkpoints import moving_average, verify
from stablelm.interchange.native import EMA, finished_checkpoints
from stablelm.training import Trainer, train
from stablelm.training.ema import Ema
from stablelm.training.metrics import read_metrics
from stablelm.training.rollback import go_back
from tests.training.conftest import Recorder
from tests.training.test_guard import NAN, Poisoned, same, tensors


@pytest.fixture
def make_config(make_config):
    """As elsewhere, with an average and little evaluation."""
    quiet = {"every": 1000, "windows": 1, "copying": 0, "cloze": 0}
    return partial(make_config, evaluation=quiet, ema={"decay": 0.3})


def weights(trainer):
    return {name: value.detach().double() for name, value in trainer.model.state_dict().items()}


def reference(average, now, step, decay):
    share = min(decay, (1 + step) / (10 + step))
    return {name: share * average[name] + (1 - share) * now[name] for name in now}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16-pure"])
@pytest.mark.parametrize("decay", [0.3, 0.999])  # reached in step 3; not at all
def test_it_is_what_a_loop_in_float64_gives(make_config, precision, decay):
    trainer = Trainer(make_config(precision=precision, ema={"decay": decay}), Recorder())
    wanted = {name: value.clone() for name, value in weights(trainer).items()}
    for step in range(1, 9):
        trainer.train_step()
        wanted = reference(wanted, weights(trainer), step, decay)
    found = trainer.ema.tensors()
    assert found.keys() == wanted.keys() and trainer.ema.updates == 8
    for name, value in wanted.items():
        assert found[name].dtype == torch.float32
        assert (found[name] - value).abs().max() < 1e-6, name
    moved = max((wanted[name] - value).abs().max() for name, value in weights(trainer).items())
    assert moved > 1e-4  # it is not the weights


def test_a_model_in_pieces_and_uneven_precisions(monkeypatch):
    monkeypatch.setattr("stablelm.training.ema._PIECE", 7)
    model = torch.nn.Linear(5, 3, bias=False).to(torch.bfloat16)
    ema, before = Ema(model, 0.9), model.weight.detach().double()
    with torch.no_grad():
        model.weight.mul_(2)
    ema.update()
    share = 2 / 11
    assert torch.allclose(
        ema.tensors()["weight"].double(), share * before + (1 - share) * 2 * before, atol=1e-6
    )


def test_the_run_does_not_notice_it(make_config):
    runs = [
        train(make_config(name, ema={"decay": decay}), console=Recorder())
        for name, decay in (("with", 0.3), ("without", None))
    ]
    losses = [[(r["loss"], r["grad_norm"]) for r in read_metrics(run) if "kind" not in r] for run in runs]
    assert losses[0] == losses[1]
    mine, theirs = (tensors(finished_checkpoints(run)[-1]) for run in runs)
    assert all(torch.equal(mine[name], value) for name, value in theirs.items())
    assert {name.split("/")[0] for name in mine.keys() - theirs.keys()} == {EMA}
    plans = [json.loads((run / "plan.json").read_text())["checkpoint_bytes"] for run in runs]
    assert 3 * plans[0] == 4 * plans[1]


def test_a_rejected_step_leaves_it_alone(make_config):
    trainer = Poisoned({13: NAN}, make_config(), Recorder())
    for _ in range(3):
        trainer.train_step()
    before = {name: value.clone() for name, value in trainer.ema.tensors().items()}
    assert trainer.train_step()["reason"] == "loss nan"
    assert trainer.ema.updates == 3
    assert all(torch.equal(before[name], value) for name, value in trainer.ema.tensors().items())
    trainer.train_step()
    assert trainer.ema.updates == 4


class Crash(Exception):
    pass


def crash():
    raise Crash


def test_a_run_that_was_killed_goes_on_bit_for_bit(make_config):
    whole = train(make_config("whole"), console=Recorder())
    with pytest.raises(Crash):
        train(make_config("run"), console=Recorder({5: crash}))
    again = train(make_config("run"), resume=True, console=Recorder())
    first, second = (finished_checkpoints(run)[-1] for run in (whole, again))
    assert any(name.startswith("ema/") for name in tensors(first)) and same(first, second)
    assert json.loads((second / "state.json").read_text())[EMA] == {"decay": 0.3, "updates": 10}


def test_going_back_takes_that_of_the_checkpoint(make_config):
    trainer = Trainer(make_config(), Recorder())
    with trainer.checkpoints:
        for _ in range(3):
            trainer.train_step()
        saved = trainer._save()
        kept = {name: value.clone() for name, value in trainer.ema.tensors().items()}
        for _ in range(2):
            trainer.train_step()
        assert not any(torch.equal(kept[name], value) for name, value in trainer.ema.tensors().items())
        trainer.guard.reject(6, "planted")
        trainer.step = 6
        go_back(trainer, "planted")
    assert trainer.step == 3 and saved.is_dir() and trainer.ema.updates == 3
    assert all(torch.equal(kept[name], value) for name, value in trainer.ema.tensors().items())


def test_it_may_begin_and_end_with_any_checkpoint(make_config):
    with pytest.raises(Crash):
        train(make_config("late", ema={"decay": None}), console=Recorder({4: crash}))
    console = Recorder()
    run = train(make_config("late"), resume=True, console=console)
    assert any("the moving average of the weights begins here, after step 3" in m for m in console.messages)
    state = json.loads((finished_checkpoints(run)[-1] / "state.json").read_text())
    assert state[EMA]["updates"] == 7
    again = Trainer(make_config("late", ema={"decay": None}), Recorder())
    again._begin(resume=True, force_data=False)
    assert again.ema is None and again.step == 10


def test_its_model_opens_and_says_what_it_is(make_config, tmp_path):
    run = train(make_config(), console=Recorder())
    newest = finished_checkpoints(run)[-1]
    (line,) = moving_average(tmp_path / "smooth", run)
    assert "at step 10 (10 updates, decay 0.3)" in line
    model, tokenizer = open_path(tmp_path / "smooth")
    wanted = {n.removeprefix("ema/"): v for n, v in tensors(newest).items() if n.startswith("ema/")}
    found = model.state_dict()
    assert tokenizer is not None and found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert not torch.equal(open_path(run)[0].lm_head.weight, model.lm_head.weight)  # the run is itself
    about = json.loads((tmp_path / "smooth" / "about.json").read_text())
    assert about[EMA]["path"] == str(newest) and about["evaluations"] == []
    list(verify(tmp_path / "smooth"))
    with pytest.raises(InputError, match=r"smooth: keeps no moving average of the weights; ema.decay"):
        list(moving_average(tmp_path / "again", tmp_path / "smooth"))
    assert not (tmp_path / "again").exists()


def test_a_damaged_one_is_named(make_config, tmp_path):
    run = train(make_config(), console=Recorder())
    newest = finished_checkpoints(run)[-1]
    (assured,) = verify(newest)
    assert f"{len(tensors(newest))} tensors" in assured
    shard = next((newest / EMA).iterdir())
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    for action in (
        lambda: list(verify(newest)),
        lambda: list(moving_average(tmp_path / "out", newest)),
        lambda: train(make_config(), resume=True, console=Recorder()),
    ):
        with pytest.raises(InputError, match=rf"{shard.name}: corrupt"):
            action()


@pytest.mark.parametrize("decay", [0, 1, -0.5, 1.5])
def test_a_decay_that_is_none_is_refused(make_config, decay):
    with pytest.raises(InputError, match=r"ema.decay"):
        make_config(ema={"decay": decay})
