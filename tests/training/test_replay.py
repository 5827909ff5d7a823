"""Continued pre-training with replay: shares, exact accounts, resume, refusals, and what is forgotten."""

import json
import shutil
from fractions import Fraction

import pytest

from stablelm.config import InputError
from stablelm.config.recipe import DataRecipe
from stablelm.data.preparation import prepare
from stablelm.data.run_data import open_data
from stablelm.interchange.native import finished_checkpoints as checkpoints
from stablelm.storage import read_json
from stablelm.tokenizer import Tokenizer
from stablelm.tokenizer.infilling import with_infilling
from stablelm.training import Trainer, train
from stablelm.training.metrics import read_metrics
from stablelm.training.report import run_page
from tests.training.conftest import Recorder


@pytest.fixture(scope="module")
def poems(dataset_path, tmp_path_factory):
    """New data, in the words of the old, with held-out documents; its tokenizer has the infilling tokens."""
    root = tmp_path_factory.mktemp("poems")
    (root / "texts").mkdir()
    for number in range(30):
        (root / "texts" / f"{number}.txt").write_text(f"{number} geese, {number} geese fly; " * 40)
    with_infilling(Tokenizer.from_file(dataset_path)).save(root / "tok")
    source = {"name": "poems", "paths": [str(root / "texts")]}
    out = str(root / "prepared")
    return prepare(DataRecipe(out=out, tokenizer=str(root / "tok"), sources=[source], held_out=0.2))


QUIET = {"every": 99, "windows": 4, "copying": 0, "cloze": 0}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tmp_path_factory.mktemp("old") / "run"


@pytest.fixture
def old(make_config, made, tmp_path):
    """A run that has read tales and notes, 24 to 16; a copy for each test."""
    if not made.exists():
        saves = {"every": 4, "keep": 9}
        shutil.copytree(
            train(make_config("old", checkpoint=saves, evaluation=QUIET), console=Recorder()), made
        )
    else:
        shutil.copytree(made, tmp_path / "old")
    return tmp_path / "old"


def new(make_config, old, poems, out="new", share=0.25, replay=None, init=None, **changes):
    data = {"path": str(poems), "epochs": {"poems": 1}, "windows": {"poems": 60},
            "replay": {"run": str(old), "share": share, **(replay or {})}}  # fmt: skip
    return make_config(
        out, init=str(init or old), **{"data": data, "checkpoint": {"every": 6, "keep": 9}, **changes}
    )


def results(run):
    kept = ("step", "loss", "lr", "first_sample", "last_sample")
    return [{k: r[k] for k in kept} for r in read_metrics(run) if "kind" not in r]


def test_shares_are_exact_and_the_old_proportions_kept(make_config, old, poems):
    data, loader = open_data(new(make_config, old, poems))
    table = {name: row["samples"] for name, row in loader.table().items()}
    # 60 new windows, a quarter of all is 20: 24 to 16 is 12 to 8
    assert table == {"poems": 60, "replay:tales": 12, "replay:notes": 8}
    account = loader.accounting()
    for name, count in table.items():
        assert sum(entry["windows"] for entry in account[name]["epochs"]) == count
    source = data.train("replay:tales")
    epochs = Fraction(loader.table()["replay:tales"]["epochs"])
    assert epochs == Fraction(12, source.num_tokens // 32), "an exact fraction of the source's windows"
    numbers = loader.numbers(0, 80)
    names, _, _ = loader.mixture.address(numbers)
    for row, text in zip(names, loader.read(numbers), strict=True):
        words = Tokenizer.from_file(data.tokenizer_path).decode(text)
        assert ("geese" in words) == (loader.mixture.sources[row] == "poems")
    first = new(make_config, checkpoints(old)[0], poems)  # a checkpoint is an earlier reading
    seen = read_json(checkpoints(old)[0] / "about.json")["data"]
    shares = {n: row["samples"] for n, row in open_data(first)[1].table().items() if n != "poems"}
    total = sum(read["samples"] for read in seen.values())
    assert shares == {f"replay:{n}": round(20 * read["samples"] / total) for n, read in seen.items()}


def test_a_rare_source_is_left_out_and_told(make_config, old, poems):
    config = new(make_config, old, poems, share=0.03)  # 1.86 windows: one source has less than one
    console = Recorder()
    trainer = Trainer(config, console)
    assert set(trainer.loader.table()) == {"poems", "replay:tales"}
    assert any("replay:" not in n and "too rare for a window: notes" in n for n in trainer.notes)
    with pytest.raises(
        InputError, match=r"0.01 of 60 windows of 32 tokens is not one window of an old source"
    ):
        open_data(new(make_config, old, poems, share=0.01))


def test_forgetting_is_measured_from_the_initial_weights(make_config, old, poems, tmp_path):
    console = Recorder()
    run = train(new(make_config, old, poems), console=console)
    said = "\n".join(console.messages)
    assert f"replay of {checkpoints(old)[-1]}, by samples: tales 15 %, notes 10 %" in said
    assert "have never read, learnt from now on: <fim_prefix> (340), " in said
    held = [r for r in read_metrics(run) if r.get("kind") == "evaluation"]
    rates = [record["lr"] for record in results(run)]
    assert rates[0] < 2e-3 and max(rates) == 5e-3 and rates.index(5e-3) in (3, 4), "warmed up again"
    first = {r["source"]: r["loss"] for r in held if r["step"] == 0}
    last = {r["source"]: r["loss"] for r in held if r["step"] == 20}
    assert set(first) == set(last) == {"poems", "replay:tales", "replay:notes"}
    assert last["poems"] < first["poems"] - 1
    run_page(run).write(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "initial weights" in page and f"{last['replay:tales'] - first['replay:tales']:+.4f}" in page
    about = read_json(checkpoints(run)[-1] / "about.json")
    assert about["dataset"]["sources"]["replay:notes"]["train"]["documents"] > 0
    assert {name: read["samples"] for name, read in about["data"].items()} == {
        "poems": 60, "replay:tales": 12, "replay:notes": 8,
    }  # fmt: skip


def test_resumes_exactly_though_the_old_run_goes_on_or_is_gone(make_config, old, poems, tmp_path):
    weights = shutil.copytree(checkpoints(old)[-1], tmp_path / "weights" / "step-000010")
    same = {"init": weights}
    whole = train(new(make_config, old, poems, "whole", **same), console=Recorder())
    shutil.copytree(whole, tmp_path / "new")
    for path in checkpoints(tmp_path / "new")[1:]:
        shutil.rmtree(path)
    file = checkpoints(old)[-1] / "about.json"
    about = json.loads(file.read_text())
    about["data"]["tales"]["samples"] = 8  # as if it had gone on
    file.write_text(json.dumps(about))
    table = {name: open_data(new(make_config, old, poems, name))[1].table() for name in ("new", "fresh")}
    assert [each["replay:tales"]["samples"] for each in table.values()] == [12, 7]
    shutil.rmtree(old)
    run = train(new(make_config, old, poems, **same), resume=True, console=Recorder())
    assert results(run) == results(whole)
    elsewhere = train(new(make_config, tmp_path / "gone", poems, **same), resume=True, console=Recorder())
    assert elsewhere == run, "where the old run is does not matter"
    with pytest.raises(InputError, match="data.replay.share = 0.25, this run says 0.3"):
        train(new(make_config, old, poems, share=0.3, **same), resume=True, console=Recorder())
    branch = {"checkpoint": str(checkpoints(run)[0]), "cooldown_steps": 3}
    cooled = train(new(make_config, old, poems, "cooled", branch=branch, **same), console=Recorder())
    assert results(cooled)[-1]["step"] == 9


def test_a_third_generation_replays_both(make_config, old, poems):
    second = train(new(make_config, old, poems, steps=4), console=Recorder())
    seen = read_json(checkpoints(second)[-1] / "about.json")["data"]
    assert len(seen) == 3 and sum(read["samples"] for read in seen.values()) == 16
    config = new(make_config, second, poems, "third", share=0.5)
    data, loader = open_data(config)
    wanted = {f"replay:{name}": round(60 * read["samples"] / 16) for name, read in seen.items()}
    assert {n: row["samples"] for n, row in loader.table().items()} == {"poems": 60, **wanted}
    assert data.held_out("replay:replay:tales") is not None


def test_what_cannot_be_replayed_is_refused_by_name(make_config, old, poems, dataset_path, tmp_path):
    def refused(message, **replay):
        with pytest.raises(InputError, match=message):
            open_data(new(make_config, old, poems, replay=replay))

    refused("nowhere: no finished checkpoint there. Name the directory of a run", run="nowhere")
    refused(
        r"read .*prepared, which is not there|nowhere, which is not there.*data.replay.path", path="nowhere"
    )
    refused("holds other data than .* read there .their fingerprints differ", path=str(poems))
    with pytest.raises(InputError, match=r"data.replay.share"):
        new(make_config, old, poems, share=1.0)
    copied = shutil.copytree(dataset_path, tmp_path / "copied")
    assert open_data(new(make_config, old, poems, replay={"path": str(copied)}))[1].num_samples == 80
    state = json.loads((checkpoints(old)[-1] / "state.json").read_text())
    state["config"]["data"]["order"] = "neox"
    (checkpoints(old)[-1] / "state.json").write_text(json.dumps(state))
    refused("read GPT-NeoX's token files in their order, which cannot be replayed")


def test_old_words_must_be_known(make_config, old, dataset_path, tmp_path):
    """The new data's tokenizer may have more words than the old one, not others."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("another text. " * 90)
    parts = json.loads((dataset_path / "tokenizer.json").read_text())
    vocab = parts["model"]["vocab"]
    a, b = sorted(vocab, key=vocab.__getitem__)[20:22]
    vocab[a], vocab[b] = vocab[b], vocab[a]
    (tmp_path / "tok").mkdir()
    (tmp_path / "tok" / "tokenizer.json").write_text(json.dumps(parts))
    source = {"name": "poems", "paths": [str(tmp_path / "texts")]}
    out = prepare(DataRecipe(out=str(tmp_path / "data"), tokenizer=str(tmp_path / "tok"), sources=[source],
                             held_out=0))  # fmt: skip
    data = {
        "path": str(out),
        "epochs": {"poems": 1},
        "windows": {},
        "replay": {"run": str(old), "share": 0.5},
    }
    with pytest.raises(InputError, match=r"data.replay: the tokenizer of the old data .* has '.*' as id 20"):
        open_data(make_config("other", data=data))
