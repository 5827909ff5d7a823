"""A run that changes how its initial weights are used: a longer context, another rotary base, more tokens."""

import json
import shutil

import pytest
import torch

from stablelm.config import InputError, ModelConfig
from stablelm.evaluation.text_files import documents, score_texts
from stablelm.interchange import open_path, save_pretrained
from stablelm.interchange.conversion import Conversion, convert
from stablelm.interchange.export import export
from stablelm.interchange.native import finished_checkpoints as checkpoints
from stablelm.model import StableLM
from stablelm.storage import read_json
from stablelm.tokenizer import Tokenizer
from stablelm.training import Trainer, train
from stablelm.training.metrics import read_metrics
from tests.training.conftest import Recorder, sentences

LONGER = {"rope_theta": 1e6, "max_position_embeddings": 256}
QUIET = {"every": 99, "windows": 2, "copying": 0, "cloze": 0}
CARD = "---\nlicense: cc-by-sa-4.0\n---\n"
MODEL = ModelConfig(
    vocab_size=384, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    max_position_embeddings=64,
)  # fmt: skip


@pytest.fixture(scope="module")
def weights(dataset_path, tmp_path_factory):
    """A model with a context of 64 and the data's tokenizer, under a share-alike licence."""
    folder = tmp_path_factory.mktemp("weights") / "base"
    save_pretrained(StableLM(MODEL, 7), Tokenizer.from_file(dataset_path), folder, files={"README.md": CARD})
    return folder


def losses(run):
    return [record["loss"] for record in read_metrics(run) if "kind" not in record]


def test_only_what_adapt_names_may_differ(make_config, weights):
    init = str(weights)
    for change, message in (
        (
            {"rope_theta": 2e4},
            r"rope_theta 10000.0, model.rope_theta is 20000.0.*adapt.rope_theta changes it",
        ),
        (
            {"num_hidden_layers": 3, "rope_theta": 2e4},
            "num_hidden_layers 2, .* is 3; also rope_theta 10000.0",
        ),
    ):
        with pytest.raises(InputError, match=message):
            Trainer(make_config(init=init, model=change), Recorder())
    with pytest.raises(InputError, match="num_hidden_layers 2, model.num_hidden_layers is 3"):
        Trainer(make_config(init=init, model={"num_hidden_layers": 3}, adapt=LONGER), Recorder())
    with pytest.raises(InputError, match="adapt changes the architecture of the weights that `init` names"):
        make_config(adapt=LONGER)
    with pytest.raises(InputError, match="adapt.hidden_size"):
        make_config(init=init, adapt={"hidden_size": 64})
    with pytest.raises(
        InputError, match="sequence_length 96 is longer than model.max_position_embeddings 64"
    ):
        make_config(init=init, batch={"sequence_length": 96})


def test_the_weights_are_the_same_the_logits_those_of_the_new_base(make_config, weights):
    config = make_config(init=str(weights), adapt=LONGER, batch={"sequence_length": 96})
    assert (config.model.rope_theta, config.model.max_position_embeddings) == (1e6, 256)
    trainer = Trainer(config, Recorder())
    wanted = StableLM(MODEL.model_copy(update=LONGER), 7)
    assert all(
        torch.equal(a, b) for a, b in zip(trainer.model.parameters(), wanted.parameters(), strict=True)
    )
    ids = torch.randint(0, 384, (1, 96), generator=torch.Generator().manual_seed(1))
    assert torch.equal(trainer.model(ids), wanted(ids))
    assert not torch.equal(trainer.model(ids), StableLM(MODEL, 7)(ids))


def test_a_run_tells_resumes_branches_and_signs(make_config, weights, tmp_path):
    same = {"init": str(weights), "adapt": LONGER, "checkpoint": {"every": 3, "keep": 9}, "steps": 6,
            "evaluation": QUIET}  # fmt: skip
    console = Recorder()
    whole = train(make_config("whole", **same), console=console)
    told = "context changed from 64 to 256 and rotary base changed from 10,000 to 1,000,000"
    assert f"{told}, as adapt says" in console.messages
    assert any("batch.sequence_length 32 trains nothing beyond the old context of 64" in m
               for m in console.messages)  # fmt: skip
    shutil.copytree(whole, tmp_path / "cut")
    for path in checkpoints(tmp_path / "cut")[1:]:
        shutil.rmtree(path)
    assert losses(train(make_config("cut", **same), resume=True, console=Recorder())) == losses(whole)
    with pytest.raises(InputError, match=r"model.rope_theta = 1000000.0|adapt.rope_theta"):
        train(make_config("cut", **{**same, "adapt": {**LONGER, "rope_theta": 2e6}}), resume=True)

    branch = {"checkpoint": str(checkpoints(whole)[0]), "cooldown_steps": 2}
    cooled = train(make_config("cooled", **{**same, "steps": None}, branch=branch), console=Recorder())
    for run in (whole, cooled):
        assert read_json(checkpoints(run)[-1] / "about.json")["adapted"] == {
            "max_position_embeddings": [64, 256], "rope_theta": [1e4, 1e6],
        }  # fmt: skip
        list(export(run, tmp_path / f"{run.name}-model", torch.float32))
        card = (tmp_path / f"{run.name}-model" / "README.md").read_text()
        assert f"Changes: {told}, then trained for" in card and "(base 1,000,000)" in card
        saved = json.loads((tmp_path / f"{run.name}-model" / "config.json").read_text())
        assert (saved["rope_theta"], saved["max_position_embeddings"]) == (1e6, 256)


def test_from_any_form_of_checkpoint(make_config, weights, tmp_path):
    """The same weights, whatever they lie in: the first losses are the same."""
    starts = {"hf": weights}
    for to in ("neox", "gguf", "huggingface-epoch"):
        starts[to] = tmp_path / (f"{to}.gguf" if to == "gguf" else to)
        list(convert(weights, starts[to], Conversion(to)))
    first = train(
        make_config("ours", init=str(weights), steps=1, optimizer={"lr": 1e-30}, evaluation=QUIET),
        console=Recorder(),
    )
    starts["ours"] = first
    found = {}
    for name, path in starts.items():
        trainer = Trainer(make_config(name, init=str(path), adapt=LONGER), Recorder())
        found[name] = [trainer.train_step()["loss"] for _ in range(2)]
    assert len({tuple(each) for each in found.values()}) == 1, found


def test_packed_weights_are_refused(make_config, weights, tmp_path):
    shutil.copytree(weights, tmp_path / "packed")
    config = json.loads((weights / "config.json").read_text()) | {"quantization_config": {"bits": 4}}
    (tmp_path / "packed" / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        InputError, match="packed: its weights are packed, and packed weights cannot be trained"
    ):
        train(make_config(init=str(tmp_path / "packed")), console=Recorder())


def test_other_words_are_refused(make_config, weights, tmp_path):
    other = json.loads((weights / "tokenizer.json").read_text())
    vocab = other["model"]["vocab"]
    a, b = sorted(vocab, key=vocab.__getitem__)[20:22]
    vocab[a], vocab[b] = vocab[b], vocab[a]
    shutil.copytree(weights, tmp_path / "other")
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(other))
    with pytest.raises(InputError, match=r"as id 20, that of the data \(.*\) as id 21: ids would mean"):
        Trainer(make_config(init=str(tmp_path / "other")), Recorder())
    assert not any(Trainer(make_config(init=str(weights)), Recorder()).notes)


def test_continued_on_longer_texts_it_reads_them_better(make_config, dataset_path, tmp_path):
    """Beyond the old context the extended model, trained there, beats the one it came from, also when that
    reads on as many tokens in windows of its own."""
    data = {"windows": {}, "epochs": {"tales": 9, "notes": 9}}
    rare = {"data": data, "checkpoint": {"every": 99}, "evaluation": QUIET}
    batch = {"sequences": 32, "micro_sequences": 32, "sequence_length": 32}
    base = train(
        make_config("base", batch=batch, steps=40, optimizer={"lr": 1e-2}, **rare), console=Recorder()
    )
    more = {"init": str(base), "steps": 40, "optimizer": {"lr": 3e-3}, **rare}
    same = train(make_config("same", batch=batch, **more), console=Recorder())
    batch = {"sequences": 4, "micro_sequences": 4, "sequence_length": 256}
    longer = train(make_config("longer", batch=batch, adapt=LONGER, **more), console=Recorder())
    (tmp_path / "held.txt").write_text(sentences(4321, 120))
    beyond = {}
    for run in (base, same, longer):
        model, tokenizer = open_path(run)
        scores = score_texts(model, tokenizer, documents(tmp_path / "held.txt"), 256, 256, parts=4)
        assert scores.positions is not None
        rows = scores.positions.as_dicts()
        assert [row["first"] for row in rows] == [1, 65, 129, 193] and rows[0]["tokens"] % 64 == 0
        beyond[run.name] = sum(row["loss"] for row in rows[1:]) / 3
    assert beyond["longer"] < min(beyond["base"], beyond["same"]) - 0.04, beyond
