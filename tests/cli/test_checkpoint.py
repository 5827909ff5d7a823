"""`stablelm checkpoint list | verify | average`: what they print, refuse and leave."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from stablelm.interchange import open_path
from stablelm.interchange.native import finished_checkpoints
from stablelm.storage import MANIFEST, write_manifest


@pytest.fixture
def trained(world, tmp_path) -> Path:
    """A copy of the run, to break."""
    shutil.copytree(world / "run", tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("verb", ["list", "verify", "average", "ema"])
def test_help_fits_and_shows_an_example(run, verb):
    said = run("checkpoint", verb, "--help")
    assert said.code == 0
    assert f"stablelm checkpoint {verb}" in " ".join(said.out.split()).split("Example:")[1]
    assert max(map(len, said.out.splitlines())) <= 80


def test_list_names_what_is_there_and_what_is_none(run, trained):
    steps = [path.name for path in finished_checkpoints(trained)]
    assert len(steps) == 2
    for aside in ("step-000099.tmp-7", "step-000003.damaged"):
        (trained / "checkpoints" / aside).mkdir()
    said = run("checkpoint", "list", trained)
    lines = said.out.splitlines()
    assert said.code == 0
    assert [line.split()[0] for line in lines] == [*steps, "step-000003.damaged", "step-000099.tmp-7"]
    assert re.search(r"\d bytes +1 process .*tales \d\.\d{4}.*latest$", lines[1])
    assert lines[3].endswith("not a finished checkpoint")
    assert run("checkpoint", "list", trained / "checkpoints").code == 2


def test_verify_reads_every_byte(run, trained):
    said = run("checkpoint", "verify", trained)
    assert said.code == 0
    assert said.out.count(": whole: ") == 2
    older, newest = finished_checkpoints(trained)
    shard = next((newest / "optimizer").iterdir())
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    said = run("checkpoint", "verify", trained)
    assert said.code == 2
    assert said.out.count(": whole: ") == 1
    assert f"{shard}: corrupt" in said.err
    assert f"newest that is whole is {older}" in said.err
    said = run("checkpoint", "verify", newest)
    assert f"one before is {older}" in said.err
    shard.unlink()
    assert f"{shard}: missing" in run("checkpoint", "verify", newest).err
    assert "no finished checkpoint" in run("checkpoint", "verify", trained / "nowhere").err


def rewrite(checkpoint: Path, folder: str, change) -> None:
    """Changes tensors and makes the manifest fit, as a wrong writer would."""
    shard = next((checkpoint / folder).iterdir())
    tensors = load_file(shard)
    change(tensors)
    with safe_open(shard, "pt") as opened:
        notes = json.loads(opened.metadata()["DCP_SHARDING_INFO"])
    notes = {name: notes.get(name, {"saved_offsets": [0] * t.dim()}) for name, t in tensors.items()}
    save_file(tensors, shard, {"DCP_SHARDING_INFO": json.dumps(notes)})
    (checkpoint / MANIFEST).unlink()
    write_manifest(checkpoint, {})


@pytest.mark.parametrize(
    ("folder", "change", "message"),
    [
        ("model", lambda t: t["model.norm.weight"].fill_(torch.nan), "'model.norm.weight' holds values that"),
        ("optimizer", lambda t: t["exp_avg.lm_head.weight"][3].fill_(torch.inf), "holds values that"),
        ("model", lambda t: t.pop("lm_head.weight"), "'lm_head.weight' is missing"),
        ("optimizer", lambda t: t.pop("exp_avg.lm_head.weight"), "'exp_avg.lm_head.weight' is not as"),
    ],
)
def test_verify_looks_inside(run, trained, folder, change, message):
    newest = finished_checkpoints(trained)[-1]
    rewrite(newest, folder, change)
    said = run("checkpoint", "verify", newest)
    assert said.code == 2
    assert message in said.err


def test_the_average_opens_exports_and_says_what_it_is_made_of(run, trained, tmp_path, world):
    a, b = finished_checkpoints(trained)
    said = run("checkpoint", "average", tmp_path / "mean", a, b)
    assert (said.code, said.err) == (0, "")
    mean, tokenizer = open_path(tmp_path / "mean")
    assert tokenizer is not None
    parts = [open_path(path)[0].state_dict() for path in (a, b)]
    for name, value in mean.state_dict().items():
        assert torch.equal(value, ((parts[0][name].double() + parts[1][name]) / 2).float())
        assert value.dtype == torch.float32
    assert run("checkpoint", "verify", tmp_path / "mean").code == 0
    steps = [json.loads((path / "state.json").read_text())["step"] for path in (a, b)]
    made_of = json.loads((tmp_path / "mean" / MANIFEST).read_text())["averaged"]
    assert [part["step"] for part in made_of] == steps
    assert run("inspect", tmp_path / "mean").code == 0
    assert run("export", tmp_path / "mean", tmp_path / "model").code == 0
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"mean of the checkpoints of steps {steps[0]}, {steps[1]}" in card
    values = yaml.safe_load((world / "run.yml").read_text())
    values |= {"out": str(tmp_path / "on"), "init": str(tmp_path / "mean"), "steps": 1}
    (tmp_path / "on.yml").write_text(yaml.safe_dump(values))
    assert run("train", tmp_path / "on.yml").code == 0


def test_the_moving_average_is_asked_for_where_none_is_kept(run, trained, tmp_path):
    said = run("checkpoint", "ema", tmp_path / "smooth", trained)
    assert said.code == 2 and "keeps no moving average of the weights; ema.decay in the run's" in said.err


def test_what_does_not_belong_together_is_not_averaged(run, trained, tmp_path, world):
    a, b = finished_checkpoints(trained)
    out = tmp_path / "mean"
    assert "two or more different" in run("checkpoint", "average", out, a, a).err
    assert "two or more different" in run("checkpoint", "average", out, a).err
    assert "not a checkpoint" in run("checkpoint", "average", out, a, world / "model").err
    config = json.loads((b / "config.json").read_text())
    (b / "config.json").write_text(json.dumps({**config, "rope_theta": 7}))
    (b / MANIFEST).unlink()
    write_manifest(b, {})
    assert "has rope_theta 7" in run("checkpoint", "average", out, a, b).err
    (b / "config.json").write_text("{}")
    assert "truncated or changed" in run("checkpoint", "average", out, a, b).err
    assert not out.exists()
    out.mkdir()
    (out / "mine").write_text("")
    assert "already exists" in run("checkpoint", "average", out, a, b).err
