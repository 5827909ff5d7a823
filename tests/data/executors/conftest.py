"""What the tests of executors share: a recipe of many small tasks, and what it made, byte by byte."""

import hashlib
import json
import random
from pathlib import Path

import pytest
import yaml

from stablelm.config.recipe import load_recipe
from stablelm.data.executors.local import Local
from stablelm.data.preparation import prepare
from stablelm.data.stages import reading

WORDS = ["the", "cat", "sat", "on", "a", "mat", "with", "its", "hat", "and", "that", "was", "all"]


@pytest.fixture
def small_tasks(monkeypatch):
    """Pieces and shards so small that every stage has several tasks."""
    monkeypatch.setattr(reading, "PIECE_BYTES", 1 << 15)
    monkeypatch.setattr(reading, "SHARD_BYTES", 1 << 14)


@pytest.fixture
def recipe_in(tmp_path, small_tokenizer):
    """`recipe_in(out, …)` writes tmp_path/OUT.yml for the same two sources, and returns its path."""
    draw = random.Random(3)
    for name in ("web", "books"):
        (tmp_path / name).mkdir()
        for number in range(3):
            lines = [
                json.dumps(
                    {
                        "id": f"{name}{number}.txt#{row}",
                        "text": " ".join(draw.choices(WORDS, k=draw.randint(3, 120))),
                    }
                )
                + "\n"
                for row in range(120)
            ]
            (tmp_path / name / f"{number}.jsonl").write_text("".join(lines))

    def write(out, **more):
        values = {
            "out": str(tmp_path / out),
            "tokenizer": str(small_tokenizer),
            "held_out": 0.2,
            "shard_tokens": 4000,
            "sources": [{"name": name, "paths": [str(tmp_path / name)]} for name in ("web", "books")],
            **more,
        }
        path = tmp_path / f"{out}.yml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


@pytest.fixture
def expected(small_tasks, recipe_in):
    """What this process alone makes of that recipe."""
    return files_of(prepare(load_recipe(recipe_in("alone")), executor=Local(1)))


def files_of(folder: Path) -> dict[str, str]:
    """Every file below a folder with its hash."""
    paths = (path for path in Path(folder).rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths
    }


@pytest.fixture
def digest():
    """`files_of`."""
    return files_of
