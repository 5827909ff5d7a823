"""The GPT-NeoX YAML: one verdict for every key of the nine files, the original's values, faults by name."""

import pytest
import yaml

from stablelm.config import InputError, load_run_config, preset
from stablelm.config.mixture import NO_PATHS
from stablelm.config.neox import is_neox, read_neox
from stablelm.config.run import RunConfig
from stablelm.config.schema import read_yaml

NINE = (
    "stablelm-2-12b", "stablelm-2-1_6b", "stablelm-3b-4e1t", "stablelm-base-alpha-3b",
    "stablelm-base-alpha-3b-v2", "stablelm-base-alpha-3b-v2-4k-extension", "stablelm-base-alpha-7b",
    "stablelm-base-alpha-7b-v2", "stablelm-base-alpha-7b-v2-4k-extension",
)  # fmt: skip
WORLD = ["batch.reference_world=256"]


def keys_of(values, above=""):
    for name, value in values.items():
        yield above + name
        if isinstance(value, dict):
            yield from keys_of(value, f"{above}{name}.")


@pytest.fixture
def configs(shared):
    folder = shared / "seed" / "configs"
    assert sorted(file.stem for file in folder.glob("*.yml")) == sorted(NINE)
    return folder


@pytest.mark.parametrize("name", NINE)
def test_one_verdict_for_every_key(configs, name):
    values = read_yaml(configs / f"{name}.yml")
    assert is_neox(values, list(RunConfig.model_fields))
    reading = read_neox(values, name, WORLD)
    given = [row for row in reading.rows if row.given and row.key != WORLD[0].partition("=")[0]]
    assert sorted(row.key for row in given) == sorted(keys_of(values))
    for row in reading.rows:
        assert row.verdict in ("used", "mapped", "ignored", "refused")
        assert row.ours if row.verdict == "mapped" else row.why
        assert "unknown" not in row.why


def test_the_original_has_its_values(configs):
    run = load_run_config(configs / "stablelm-3b-4e1t.yml", WORLD)
    assert run.model == preset("stablelm-3b-4e1t")
    assert (run.optimizer.lr, run.optimizer.betas, run.optimizer.eps) == (3.2e-4, (0.9, 0.95), 1e-6)
    assert (run.optimizer.weight_decay, run.optimizer.clip) == (0.1, 1.0)
    assert (run.schedule.warmup, run.schedule.floor, run.steps) == (0.005, 0.04, 955_000)
    assert (run.batch.sequences, run.batch.micro_sequences, run.batch.sequence_length) == (1024, 4, 4096)
    assert (run.precision, run.checkpoint.every, run.evaluation.every) == ("bf16", 2000, 5000)
    assert (run.seed, run.logging.every, run.evaluation.windows) == (1234, 10, 10 * 1024)
    assert run.data.order == "neox" and run.data.neox.paths == [NO_PATHS]
    assert run.data.neox.train_iters == 955_000


def test_without_a_world_the_line_to_add_is_told(configs):
    file = configs / "stablelm-3b-4e1t.yml"
    with pytest.raises(InputError, match=r"e1t\.yml: .*--set batch\.reference_world=N"):
        load_run_config(file)
    assert load_run_config(file, gpus=8).batch.sequences == 32
    assert load_run_config(file, WORLD, gpus=8).batch.sequences == 1024
    assert yaml.safe_load(file.read_text("utf-8")).get("reference_world") is None
