"""What the page of a run shows of sources, memory and layers."""

import json
from pathlib import Path

import pytest

from stablelm.config import InputError
from stablelm.training import train
from stablelm.training.report import run_page
from tests.training.conftest import Recorder


def test_sources_memory_and_layers_are_shown(make_config):
    html = run_page(train(make_config(logging={"health": 2}), console=Recorder())).html()
    for title in (
        "Loss by source", "Epochs read", "Memory", "Gradient RMS", "Activation RMS",
        "Largest attention logit", "Update / weight", "Every layer after step 10",
    ):  # fmt: skip
        assert title in html, title
    assert "Now: notes 1, tales 2." in html


def test_a_run_without_them_has_no_such_section(make_config, dataset_path):
    config = make_config(data={"epochs": {"notes": 1}, "windows": {"notes": 16}})
    html = run_page(train(config, console=Recorder())).html()
    assert "Loss by source" not in html and "<h2>Layers" not in html and "Epochs read" in html


def test_many_layers_nulls_and_missing_updates_are_drawn(make_config):
    """Of 32 layers eight have lines; a step that was rejected says what it can."""
    run = Path(train(make_config(), console=Recorder()))
    layers = [0.5 + n for n in range(32)]
    records = [
        {"step": 8, "kind": "health", "gradient": layers, "gradient_max": 31.5, "gradient_head": 0.25},
        {"step": 9, "kind": "health", "gradient": [None] * 32, "gradient_max": None},
        {"step": 10, "kind": "health", "gradient": [None, *layers[1:]], "gradient_max": 31.5},
    ]
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    html = run_page(run).html()
    assert "Gradient RMS" in html and "Update / weight" not in html
    assert "largest of all" in html and html.count(">layer ") < 20
    assert ">none<" in html and ">31.5<" in html


def test_a_damaged_record_of_layers_is_named(make_config):
    run = Path(train(make_config(), console=Recorder()))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 10, "kind": "health", "gradient": 3, "gradient_max": 1.0}) + "\n")
    with pytest.raises(InputError, match="damaged"):
        run_page(run)
