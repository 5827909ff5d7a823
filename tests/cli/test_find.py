"""`stablelm data find`: what it says, with and without a run."""

import pytest
import typer
import yaml
from typer.testing import CliRunner

from stablelm.cli.find import find
from stablelm.config import InputError, load_run_config
from stablelm.data import Dataset
from stablelm.data.run_data import open_data
from stablelm.tokenizer import Tokenizer

application = typer.Typer()
application.command()(find)


def said(*arguments):
    result = CliRunner().invoke(application, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_where_a_text_is(world):
    output = said(world / "data", "the river", "--source", "tales", "--limit", 2)
    assert output.count(f"{world / 'data' / 'tales' / 'train'}, document ") == 2
    assert output.count("\n  in train.bin, document ") == 2
    assert ".txt" in output
    assert "the river" in output
    assert "stopped after 2 documents; --limit looks further" in output
    assert said(world / "data", "no such words here") == "not found\n"


def test_when_a_run_reads_it(world):
    """Checked against the samples themselves: a step is told exactly when the text's tokens are in it."""
    config = load_run_config(world / "run.yml")
    dataset, samples = Dataset(world / "data"), open_data(config)[1]
    tokenizer = Tokenizer.from_file(world / "tok")
    text = tokenizer.decode(dataset.train("tales").document(0)[5:11])
    everything = [tokenizer.decode(row) for row in samples.samples(0, samples.num_samples)]
    steps = {position // 4 + 1 for position, content in enumerate(everything) if text in content}
    for run, state in ((world / "run.yml", ""), (world / "run", " (read)")):
        output = said(world / "data", text, "--run", run, "--source", "tales", "--limit", 1)
        line = output.splitlines()[2]
        told = {
            int(n) for part in line.split("; ") for n in part.split("at step ")[1].split(" (")[0].split(", ")
        }
        assert line.startswith("  epoch 1 at step ")
        assert (" (read)" in line) == bool(state)
        assert steps <= told
        assert len(told - steps) <= 2, "a text that a window's edge cuts"


def test_what_no_step_reads(world, tmp_path):
    values = yaml.safe_load((world / "run.yml").read_text())
    values["data"] |= {"epochs": {"my_notes": 1}, "windows": {}}
    (tmp_path / "other.yml").write_text(yaml.safe_dump({**values, "steps": 1}))
    output = said(world / "data", "the", "--run", tmp_path / "other.yml", "--limit", 100)
    assert "the run does not read 'tales'" in output
    assert "held out: no step trains on it" in output
    assert "no step of this run reads it" in output
    assert "at step 2" not in output
    samples = open_data(load_run_config(tmp_path / "other.yml"))[1]
    ids = next(row for row in samples.samples(0, 4) if 0 not in row)  # no end of a document in it
    text = Tokenizer.from_file(world / "tok").decode(ids[2:])
    output = said(world / "data", text, "--run", tmp_path / "other.yml")
    assert "epoch 1 at step 1\n" in output


def test_a_run_on_other_data_is_refused(world, tmp_path):
    recipe = yaml.safe_load((world / "recipe.yml").read_text())
    (tmp_path / "recipe.yml").write_text(
        yaml.safe_dump({**recipe, "out": str(tmp_path / "other"), "held_out": 0.5})
    )
    from stablelm.config.recipe import load_recipe
    from stablelm.data.preparation import prepare

    prepare(load_recipe(tmp_path / "recipe.yml"))
    with pytest.raises(InputError, match="the run reads another dataset"):
        said(tmp_path / "other", "the", "--run", world / "run.yml")
    with pytest.raises(InputError, match=r"run.json: no such file"):
        said(world / "data", "the", "--run", tmp_path)
    with pytest.raises(InputError, match="not a prepared dataset"):
        said(tmp_path, "the")


def test_a_run_in_gpt_neox_s_order(world, tmp_path):
    """Its sources are token files, found again by their paths."""
    values = yaml.safe_load((world / "run.yml").read_text())
    prefix = world / "data" / "tales" / "train"
    neox = {"paths": [str(prefix)], "train_iters": 30, "tokenizer": str(world / "tok")}
    values |= {"out": str(tmp_path / "run"), "data": {"order": "neox", "neox": neox}}
    (tmp_path / "neox.yml").write_text(yaml.safe_dump(values))
    samples = open_data(load_run_config(tmp_path / "neox.yml"))[1]
    steps = {sighting.step for sighting in samples.when(str(prefix), 3)}
    text = Tokenizer.from_file(world / "tok").decode(Dataset(world / "data").train("tales").document(3)[:-1])
    output = said(world / "data", text, "--run", tmp_path / "neox.yml", "--source", "tales")
    told = [
        int(n) for part in output.splitlines()[2].split("; ") for n in part.split("at step ")[1].split(", ")
    ]
    assert set(told) == steps
    assert "the run does not read 'my_notes'" in said(
        world / "data", "the", "--run", tmp_path / "neox.yml", "--limit", 99
    )
