"""What the tests of the commands share: commands run in this process, and one small world that they made."""

import io
import random
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from stablelm.cli import main as cli

SUBJECTS = ["the river", "a small town", "my neighbour", "the old machine", "every morning", "her letter"]
VERBS = ["runs past", "remembers", "never answers", "repairs", "waits for", "writes about"]


@dataclass(frozen=True)
class Result:
    """What a command did."""

    code: int
    out: str
    err: str


def command(*arguments: object, stdin: bytes = b"") -> Result:
    """`stablelm ARGUMENTS` in this process, streams and signal handlers put back afterwards."""
    pipes = [io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True) for _ in range(2)]
    handler = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["stablelm", *map(str, arguments)])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        patch.setattr(sys, "stdout", pipes[0])
        patch.setattr(sys, "stderr", pipes[1])
        patch.setenv("COLUMNS", "80")
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            signal.signal(signal.SIGINT, handler)
    return Result(code, *(pipe.buffer.getvalue().decode("utf-8", "surrogateescape") for pipe in pipes))


@pytest.fixture
def run() -> Callable[..., Result]:
    """`run("inspect", path, stdin=…)` → code, out, err."""
    return command


def sentences(seed: int, count: int) -> str:
    pick = random.Random(seed)
    return " ".join(
        f"{pick.choice(SUBJECTS)} {pick.choice(VERBS)} {pick.choice(SUBJECTS)}." for _ in range(count)
    )


@dataclass
class World:
    """Text → tokenizer `tok` → dataset `data` → `run` → `model`, and what each command said."""

    path: Path
    said: dict[str, Result] = field(default_factory=dict)

    def __truediv__(self, name: str) -> Path:
        return self.path / name


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    """Never written to by a test: copy what is to be broken."""
    made = World(tmp_path_factory.mktemp("world"))
    for name, files in (("tales", 30), ("my_notes", 20)):
        (made / name).mkdir()
        for i in range(files):
            (made / name / f"{i:02}.txt").write_text(sentences(i + (500 if name == "tales" else 0), 60))
    sources = [{"name": name, "paths": [str(made / name)]} for name in ("tales", "my_notes")]
    recipe = {"out": str(made / "data"), "tokenizer": str(made / "tok"), "held_out": 0.2, "sources": sources}
    (made / "recipe.yml").write_text(yaml.safe_dump(recipe))
    values = {
        "out": str(made / "run"),
        "model": {
            "vocab_size": 384, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 64, "max_position_embeddings": 128,
        },
        "data": {"path": str(made / "data"), "epochs": {"tales": 2, "my_notes": 1},
                 "windows": {"tales": 8, "my_notes": 8}},
        "batch": {"sequences": 4, "micro_sequences": 4, "sequence_length": 32},
        "optimizer": {"lr": 5e-3}, "precision": "fp32", "device": "cpu",
        "checkpoint": {"every": 4, "keep": 2},
        "evaluation": {"every": 100, "windows": 2, "copying": 4, "cloze": 4},
    }  # fmt: skip
    (made / "run.yml").write_text(yaml.safe_dump(values))
    texts = (made / "tales", made / "my_notes")
    for name, arguments in {
        "tokenizer": ("tokenizer", "train", made / "tok", *texts, "--vocab-size", 340),
        "data": ("data", "prepare", made / "recipe.yml"),
        "train": ("train", made / "run.yml"),
        "model": ("export", made / "run", made / "model"),
    }.items():  # fmt: skip
        made.said[name] = command(*arguments)
        assert made.said[name].code == 0, made.said[name].err
    return made


@pytest.fixture
def inside(tmp_path, monkeypatch) -> Path:
    """An empty directory, in which the command runs."""
    folder = tmp_path / "inside"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder
