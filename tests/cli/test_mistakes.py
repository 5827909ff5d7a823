"""The user from hell: every mistake is one clear message with its place, exit code 2, and leaves nothing."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stablelm.storage import write_json

PRESET = ("--preset", "stablelm-1m")


def refused(said, code=2):
    """One message, no traceback, nothing on standard output."""
    assert said.code == code, said.err
    assert said.out == ""
    assert f"\n{said.err}".count("\nerror: ") == 1
    assert "Traceback" not in said.err and "This is a bug" not in said.err
    return said.err


def left(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.name != ".lock"}


COMMAND_LINES = [
    ("nonsense", "No such command 'nonsense'. stablelm --help"),
    ("train", "Missing argument 'config'. stablelm train --help"),
    ("train run.yml --sett a=1", "No such option: --sett"),
    ("data prepare a.yml b.yml", "unexpected extra argument"),
    ("generate {w}/model x --temperature hot", "--temperature"),
    ("generate {w}/model x --seed -1", "--seed"),
    ("init new --preset stablelm-1m --seed 1.5", "--seed"),
    ("init new --preset stablelm-1m --dtype fp8", "'fp8' is not one of 'fp32', 'bf16'"),
    ("export {w}/run", "Missing argument 'out'"),
]
FILES = [
    ("train nowhere.yml", "nowhere.yml: no such file"),
    ("train .", ".: is a directory; a YAML file is wanted"),
    ("train {w}/tales/00.txt", "00.txt: a mapping of keys to values is wanted"),
    ("train {w}/model/model.safetensors", "model.safetensors: byte"),
    ("data prepare nowhere.yml", "nowhere.yml: no such file"),
    ("data prepare {w}/run.yml", "tokenizer: this key is required"),
    ("data prepare {w}/recipe.yml --set seed=7", "data: already exists, and the recipe or its inputs"),
    ("data prepare {w}/recipe.yml --set out={w}/tales", "tales: already exists. Choose another name"),
    ("data prepare {w}/recipe.yml --executor dask", "'dask' is not one of"),
    ("data run {w}/recipe.yml --stage read --part 3/3", "write k/N with k from 0"),
    ("data run {w}/recipe.yml --stage raed", "no stage 'raed'; did you mean 'read'"),
    ("data verify {w}/tales", "not a prepared dataset"),
    ("data inspect nowhere", "not a prepared dataset"),
    ("tokenizer train {w}/tok {w}/tales", "tok: already exists"),
    ("tokenizer train new nowhere", "nowhere: no such file or folder"),
    ("tokenizer train new {w}/run.yml", "the suffix does not tell its format"),
    ("tokenizer train new {w}/tok", "no file to read (passed over: 3 .json)"),
    ("tokenizer train new {w}/tales/00.txt --format parquet", "00.txt: not a Parquet file"),
    ("tokenizer train new {w}/tales --vocab-size 280", "vocab_size 280 is too small"),
    ("tokenizer train new {w}/tales --vocab-size 99999", "it supports"),
    ("init {w}/model --preset stablelm-1m", "model: already exists"),
    ("init new --preset stablelm-1", "preset 'stablelm-1' does not exist; did you mean 'stablelm-1m'?"),
    ("init new --preset stablelm-1m --tokenizer nowhere", "nowhere: no such file. A tokenizer is"),
    ("init new --preset stablelm-1m --tokenizer {w}/tok --set vocab_size=300", "340 ids are more than"),
    ("init new --preset stablelm-1m --set hiden_size=9", "hiden_size: unknown key; did you mean"),
    ("init new --preset stablelm-1m --set hidden_size=9", "hidden_size 9 does not divide"),
    ("generate nowhere x", "nowhere: no such directory"),
    ("generate someone/model x", "someone/model: no such directory, not in the local cache"),
    ("generate {w}/model/model.safetensors x", "a file; give the directory"),
    ("generate {w}/data x", "no model found. Looked for config.json"),
    ("generate . x", "no model found"),
    ("export nowhere new", "nowhere: no such directory"),
    ("export {w}/run {w}/data", "data: already exists"),
    ("export {w}/tok new", "no model found"),
    ("report nowhere", "nowhere: no such directory"),
    ("report .", "no step yet"),
    ("inspect nowhere", "nowhere: no such file or directory"),
    ("inspect .", "nothing known is in this directory. Looked for config.json"),
    ("inspect {w}/run.yml", "not a kind of file that is known"),
    ("inspect {w}/model/config.json", "give the directory that holds it"),
    ("inspect {w}/data/tales", "try {w}/data/tales/train."),
    ("inspect {w}/run/checkpoints", "try {w}/run/checkpoints/step-000006."),
    ("demo --minutes 0", "--minutes must be above 0"),
    ("demo --minutes nan", "--minutes must be above 0"),
    ("demo --steps 0", "--steps at least 1"),
    ("demo --steps 5 --minutes 1", "give one"),
    ("demo --out {w}/tales", "tales: is not empty. Continue the demo there with --resume"),
    ("demo --out {w}/run.yml", "run.yml: Not a directory. Choose another path."),
]  # fmt: skip
BELOW_A_FILE = [
    "init {w}/run.yml/new --preset stablelm-1m",
    "export {w}/run {w}/run.yml/new",
    "train {w}/run.yml --out {w}/run.yml/new",
    "data prepare {w}/recipe.yml --set out={w}/run.yml/new",
    "tokenizer train {w}/run.yml/new {w}/tales",
    "demo --out {w}/run.yml/new",
]


@pytest.mark.parametrize(("line", "message"), COMMAND_LINES + FILES, ids=lambda value: value[:40])
def test_a_wrong_line(world, run, inside, line, message):
    arguments = [word.replace("{w}", str(world.path)) for word in line.split()]
    assert message.replace("{w}", str(world.path)) in refused(run(*arguments))
    assert left(inside) == set()


@pytest.mark.parametrize("line", BELOW_A_FILE)
def test_an_output_below_a_file(world, run, inside, line):
    said = refused(run(*line.replace("{w}", str(world.path)).split()))
    assert "run.yml is a file, not a folder. Choose another path." in said
    assert left(inside) == set()


@pytest.mark.parametrize(
    ("verb", "change", "message"),
    [
        ("train", "foo", "--set foo: write it as key=value"),
        ("train", "=3", "write it as key=value"),
        ("train", "optimizer.=3", "write it as key=value"),
        ("train", "optimizer.lr=[1", "--set optimizer.lr=[1, line 1: not valid YAML"),
        ("train", "optimizer.lr.x=3", "optimizer.lr is a value, not a section"),
        ("train", "optimizer.lrr=3", "run.yml: optimizer.lrr: unknown key; did you mean 'lr'?"),
        ("train", "optimizer.lr=fast", "run.yml: optimizer.lr: Input should be a valid number"),
        ("train", "optimizer.lr=.nan", "optimizer.lr: Input should be a finite number"),
        ("train", "optimizer=3", "run.yml: optimizer: Input should be a valid dictionary"),
        ("train", "seed=-1", "run.yml: seed: Input should be greater than or equal to 0"),
        ("train", "out=''", "run.yml: out: String should have at least 1 character"),
        ("train", "model.hidden_size=33", "run.yml: model: hidden_size 33 does not divide into 2 heads"),
        ("train", "batch.sequence_length=256", "run.yml: batch.sequence_length 256 is longer than"),
        ("train", "data.epochs={tales:1}", "(given: None); YAML wants a space after a colon"),
        ("train", "data.epochs.tales=0", "source 'tales': epochs must be above 0"),
        ("train", "data.epochs={tale: 1}", "data.windows names"),
        ("data prepare", "on_eror=skip", "recipe.yml: on_eror: unknown key; did you mean 'on_error'?"),
        ("data prepare", "on_error=ignore", "recipe.yml: on_error: Input should be 'stop' or 'skip'"),
        ("data prepare", "held_out=1", "recipe.yml: held_out: Input should be less than 1"),
        ("data prepare", "sources=[]", "recipe.yml: sources: "),
        ("data prepare", "sources=[{nam: a, paths: [x]}]", "sources.0.nam: unknown key; did you mean"),
        ("data prepare", "sources=[{name: a, paths: x}]", "sources.0.paths: Input should be a valid list"),
        ("data prepare", "sources=[{name: a, paths: [nowhere]}]", "source 'a': nowhere: no such file"),
        ("data prepare", "tokenizer=nowhere", "nowhere: no such file. A tokenizer is a `tokenizer.json`"),
        ("data prepare", "tokenizer={w}/run.yml", "run.yml: not a tokenizer.json"),
        ("data prepare", "tokenizer={w}/tales", "tales/tokenizer.json: no such file"),
    ],
)  # fmt: skip
def test_a_wrong_change(world, run, inside, verb, change, message):
    place = ("--out", "new") if verb == "train" and not change.startswith("out") else ()
    first = () if verb == "train" else ("--set", "out=new")
    line = (world / ("run.yml" if verb == "train" else "recipe.yml"), *place, *first)
    said = refused(run(*verb.split(), *line, "--set", change.replace("{w}", str(world.path))))
    assert message in said
    assert left(inside) == set()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.path=nowhere", "nowhere: not a prepared dataset: it has no manifest.json"),
        ("data.path={w}/run.yml", "run.yml: not a prepared dataset"),
        ("data.path={w}/model", "model: not a prepared dataset"),
        ("data.epochs={my_notes: 1, tale: 1};data.windows={}", "no source 'tale'"),
        ("data.windows.tales=100000", "tales"),
        ("model.vocab_size=128", "model.vocab_size 128 is smaller than the 340 ids"),
        ("init=nowhere", "nowhere: no such directory"),
        ("init={w}/tok", "no model found"),
        ("model.num_hidden_layers=1;init={w}/model", "has num_hidden_layers 2, model.num_hidden_layers is 1"),
        ("device=tpu", "device 'tpu' does not exist"),
        ("device=cuda:99", "device 'cuda:99'"),
    ],
)
def test_a_run_that_does_not_fit(world, run, inside, change, message):
    changes = [word for part in change.replace("{w}", str(world.path)).split(";") for word in ("--set", part)]
    assert message in refused(run("train", world / "run.yml", "--out", "new", *changes))
    assert left(inside) <= {"new"}


def test_a_run_that_is_there_is_not_begun_again(world, run):
    assert "already holds a run (step-000006). Continue it with --resume" in refused(
        run("train", world / "run.yml")
    )
    line = ("train", world / "run.yml", "--resume", "--set", "optimizer.lr=1e-4")
    assert "was trained with optimizer.lr = 0.005, this run says 0.0001" in refused(run(*line))


def test_a_run_does_not_go_on_with_other_data(world, run, tmp_path):
    shutil.copytree(world / "run", tmp_path / "run")
    other = ("--set", f"out={tmp_path / 'd'}", "--set", "seed=99")
    assert run("data", "prepare", world / "recipe.yml", *other).code == 0
    line = ("--resume", "--out", tmp_path / "run", "--set", f"data.path={tmp_path / 'd'}")
    said = run("train", world / "run.yml", *line)
    assert said.code == 2
    assert "was trained on another dataset or mixture" in said.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--temperature -1", "temperature must be a number of at least 0, not -1.0."),
        ("--temperature nan", "temperature must be a number of at least 0, not nan."),
        ("--top-p 2", "top_p must be a number from 0 to 1, not 2.0."),
        ("--top-k -1", "top_k must be a whole number of at least 0"),
        ("--min-p 1.1", "min_p must be a number from 0 to 1, not 1.1."),
        ("--repetition-penalty 0", "repetition_penalty must be above 0"),
        ("--max-new-tokens 0", "max_new_tokens must be a whole number of at least 1, not 0."),
        ("--max-new-tokens 127", "the prompt has 3 tokens; with max_new_tokens 127 that makes 130"),
        ("--stop=", "stop must be strings of at least one character, not ''."),
        ("--device tpu", "device 'tpu' does not exist; write auto, cpu, cuda or cuda:N."),
        ("--device cuda:99", "device 'cuda:99'"),
    ],
)
def test_generate_with_a_wrong_number(world, run, options, message):
    assert message in refused(run("generate", world / "model", "the river", *options.split()))


def test_prompts_that_cannot_be_read(world, run):
    model = world / "model"
    assert "the model's context is 128. Shorten the prompt." in refused(run("generate", model, "word " * 200))
    said = refused(run("generate", model, "ab\udcffc"))
    assert "the prompt: byte 2, 0xff, is not UTF-8" in said
    said = refused(run("generate", model, "-", stdin=b"ab\xe9 c"))
    assert "the prompt: byte 2, 0xe9, is not UTF-8" in said


def _cut(folder):
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])


def _tensors(change):
    def apply(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return apply


def _config(**changes):
    def apply(folder):
        values = json.loads((folder / "config.json").read_text())
        write_json(folder / "config.json", values | changes)

    return apply


def _write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_cut, "model.safetensors: truncated: tensor 'model.norm.weight' ends at byte"),
        (_write("model.safetensors", b""), "model.safetensors: truncated, or not a safetensors file"),
        (_write("model.safetensors", b"garbage" * 99), "model.safetensors: truncated, or not a safetensors"),
        (_tensors(lambda t: t.pop(UP)), f"tensor '{UP}' is missing"),
        (_tensors(lambda t: t.update(extra=torch.ones(3))), "tensor 'extra' has no place"),
        (_tensors(lambda t: t.update({UP: torch.ones(3, 2)})), f"tensor '{UP}' has shape [3, 2], config"),
        (_config(model_type="llama"), "config.json: model_type 'llama' is not StableLM"),
        (_config(num_hidden_layers=3), "tensor 'model.layers.2."),
        (_config(num_hidden_layers="many"), "config.json: num_hidden_layers"),
        (_config(hidden_act="gelu"), "config.json: hidden_act = 'gelu' is not supported"),
        (_write("config.json", b"{\n\n"), "config.json, line 3: not valid JSON"),
        (_write("config.json", b"[]"), "config.json: "),
        (_write("tokenizer.json", b'{"version": "1.0", "tr'), "tokenizer.json: not a tokenizer.json"),
        (_write("tokenizer_config.json", b"{"), "tokenizer_config.json, line 1: not valid JSON"),
    ],
)  # fmt: skip
def test_a_broken_model(world, run, tmp_path, harm, message):
    shutil.copytree(world / "model", tmp_path / "m")
    harm(tmp_path / "m")
    for line in (
        ("generate", tmp_path / "m", "the river", "--max-new-tokens", 3),
        ("inspect", tmp_path / "m"),
        ("inspect", tmp_path / "m", "--verify", "--json"),
        ("export", tmp_path / "m", tmp_path / "out"),
    ):
        assert message in refused(run(*line))
    assert not (tmp_path / "out").exists()


def test_models_that_lack_a_part(world, run, tmp_path):
    big = tmp_path / "big"
    assert run("init", big, *PRESET, "--set", "num_hidden_layers=1", "--set", "vocab_size=300").code == 0
    assert "holds weights but no tokenizer.json" in refused(run("generate", big, "x"))
    shutil.copy(world / "tok" / "tokenizer.json", big)
    for line in (("generate", big, "x"), ("inspect", big), ("export", big, tmp_path / "out")):
        assert "340 ids are more than the model's vocab_size 300" in refused(run(*line))
    bare = tmp_path / "bare"
    shutil.copytree(world / "model", bare)
    (bare / "model.safetensors").unlink()
    for line in (("generate", bare, "x"), ("inspect", bare, "--verify"), ("export", bare, tmp_path / "out")):
        assert "no weights: neither model.safetensors nor model.safetensors.index.json" in refused(run(*line))
    assert json.loads(run("inspect", bare, "--json").out)["weights"] == "none"
    (bare / "pytorch_model.bin").write_bytes(b"pickle")
    assert "pytorch_model.bin is a pickle, which can run code" in refused(run("generate", bare, "x"))


def test_weights_that_are_not_numbers(world, run, tmp_path):
    shutil.copytree(world / "model", tmp_path / "m")
    _tensors(lambda tensors: tensors[UP].fill_(torch.nan))(tmp_path / "m")
    assert "are not finite" in refused(run("generate", tmp_path / "m", "x", "--max-new-tokens", 3))
    assert run("inspect", tmp_path / "m").code == 0
    said = refused(run("inspect", tmp_path / "m", "--verify"))
    assert f"model.safetensors: tensor '{UP}' holds values that are not finite" in said


def test_a_shard_that_is_missing(world, run, tmp_path):
    from stablelm import AutoModelForCausalLM

    folder = tmp_path / "m"
    AutoModelForCausalLM.from_pretrained(world / "model").save_pretrained(folder, max_shard_bytes=60_000)
    assert json.loads(run("inspect", folder, "--json").out)["weights"]["files"] > 2
    (folder / "model-00002-of-00004.safetensors").unlink()
    for line in (("generate", folder, "x"), ("inspect", folder), ("export", folder, tmp_path / "out")):
        assert "model-00002-of-00004.safetensors: missing, although" in refused(run(*line))
