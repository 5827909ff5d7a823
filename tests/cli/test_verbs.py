"""Every verb once, in one story: text → tokenizer → tokens → run → report → export → text; and the commonest
mistakes."""

import json
import subprocess
import sys

import pytest
import yaml

from stablelm.cli import main as cli


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command in this process: (exit code, standard output, standard error)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["stablelm", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def text(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(30):
        lines = [
            f"{'The quick brown fox jumps over the lazy dog. ' * (number % 5 + 2)}{number * 7919}"
            for _ in range(9)
        ]
        (folder / f"{number}.txt").write_text("\n".join(lines))
    return folder


def test_the_whole_story(run, text, tmp_path):
    code, out, err = run("tokenizer", "train", tmp_path / "tok", text, "--vocab-size", 320)
    assert (code, "320 ids" in out) == (0, True), err

    recipe = tmp_path / "recipe.yml"
    values = {"out": str(tmp_path / "data"), "tokenizer": str(tmp_path / "tok"), "held_out": 0.2}
    recipe.write_text(yaml.safe_dump({**values, "sources": [{"name": "text", "paths": [str(text)]}]}))
    code, out, err = run("data", "prepare", recipe, "--set", "seed=5")
    assert (code, "text:" in out) == (0, True), err

    config = tmp_path / "run.yml"
    values = {
        "model": {"preset": "stablelm-1m", "vocab_size": 384, "hidden_size": 64},
        "data": {"path": str(tmp_path / "data"), "epochs": {"text": 1}},
        "batch": {"sequences": 4, "micro_sequences": 4, "sequence_length": 32},
        "precision": "fp32",
        "device": "cpu",
    }
    config.write_text(yaml.safe_dump(values))
    code, out, err = run(
        "train", config, "--out", tmp_path / "run", "--set", "steps=3", "--set", "optimizer.lr=1e-3"
    )
    assert (code, "step 3/3" in out) == (0, True), err

    code, out, err = run("report", tmp_path / "run")
    assert (code, out.strip()) == (0, str(tmp_path / "run" / "report.html"))
    assert "<svg" in (tmp_path / "run" / "report.html").read_text()

    code, out, err = run("export", tmp_path / "run", tmp_path / "model", "--dtype", "bf16")
    assert code == 0, err
    assert json.loads((tmp_path / "model" / "config.json").read_text())["torch_dtype"] == "bfloat16"

    for path in ("model", "run", "data", "tok", "data/text/train.bin", "data/tokenizer.json"):
        code, out, err = run("inspect", tmp_path / path, "--json")
        assert code == 0, err
        assert json.loads(out)["kind"]
    assert run("inspect", tmp_path / "model", "--verify")[0] == 0

    said = run(
        "generate", tmp_path / "model", "The quick", "--temperature", 0, "--max-new-tokens", 8, "--echo"
    )
    again = run("generate", tmp_path / "model", "The quick", "--temperature", 0, "--max-new-tokens", 8)
    assert said[0] == again[0] == 0
    assert said[1] == "The quick" + again[1]
    assert "tokens/s" in again[2]
    assert "tokens/s" not in again[1]


def test_init_writes_a_model(run, tmp_path):
    code, _, err = run("init", tmp_path / "m", "--preset", "stablelm-1m", "--set", "num_hidden_layers=1")
    assert code == 0, err
    assert json.loads((tmp_path / "m" / "config.json").read_text())["num_hidden_layers"] == 1
    code, _, err = run("init", tmp_path / "m", "--preset", "stablelm-1m")
    assert code == 2
    assert "already exists" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "nowhere.yml"), "nowhere.yml: no such file"),
        (("generate", "nowhere", "Hello"), "nowhere: no such"),
        (("inspect", "nowhere"), "nowhere: no such"),
        (("export", "nowhere", "out"), "nowhere: no such"),
        (("report", "nowhere"), "nowhere"),
        (("data", "prepare", "nowhere.yml"), "nowhere.yml: no such file"),
        (("init", "out", "--preset", "stablelm-3b"), "preset 'stablelm-3b' does not exist; did you mean"),
        (("init", "out", "--preset", "stablelm-1m", "--set", "hidden_sizes=3"), "did you mean 'hidden_size'"),
        (("demo", "--minutes", "1", "--steps", "5"), "give one"),
        (("demo", "--minutes", "0"), "--minutes must be above 0"),
    ],
)
def test_a_mistake_is_one_message(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert code == 2
    assert message in err
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "verb",
    ["demo", "data prepare", "tokenizer train", "init", "train", "generate", "inspect", "export", "report"],
)
def test_every_help_shows_an_example(run, verb):
    code, out, _ = run(*verb.split(), "--help")
    assert code == 0
    assert f"stablelm {verb}" in " ".join(out.split()).split("Example:")[1]


def test_debug_shows_where(run, tmp_path):
    with pytest.raises(ValueError, match="no such"):
        run("generate", tmp_path / "nowhere", "Hello", "--debug")


def test_the_real_command(tmp_path):
    """Exit code, streams and no PyTorch for `--help`, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "stablelm", "inspect", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {tmp_path}: nothing known is in this directory")
    probe = (
        "import sys; sys.argv = ['stablelm', '--help']\n"
        "from stablelm.cli.main import main\n"
        "try: main()\nexcept SystemExit as stop: assert not stop.code\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True)
