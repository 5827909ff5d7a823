"""A run's configuration: exact epochs, cross-checks, and a reference file that is never stale."""

from fractions import Fraction

import pytest
import yaml

from stablelm.config import InputError, RunConfig, load_run_config
from stablelm.config.mixture import as_fraction
from stablelm.config.run import reference_yaml, run_config, small_yaml
from stablelm.config.schema import Schema, validate

DATA = {"path": "prepared", "epochs": {"web": 4, "code": 1}}


def test_defaults_are_the_original_run():
    config = run_config({"data": DATA})
    assert config.batch.sequences * config.batch.sequence_length == 4_194_304
    assert (config.optimizer.lr, config.optimizer.betas, config.optimizer.eps) == (3.2e-4, (0.9, 0.95), 1e-6)
    assert (config.optimizer.weight_decay, config.optimizer.clip) == (0.1, 1.0)
    assert (config.schedule.warmup, config.schedule.floor) == (0.005, 0.04)
    assert config.optimizer.lr * config.schedule.floor == pytest.approx(1.28e-5)
    assert config.model.num_parameters == 2_795_443_200
    assert config.seed == 1234


@pytest.mark.parametrize(
    ("value", "exact"),
    [
        (4, Fraction(4)), (1.5, Fraction(3, 2)), (1.15, Fraction(23, 20)), ("7/3", Fraction(7, 3)),
        ("0.1", Fraction(1, 10)), (1e-4, Fraction(1, 10_000)),
    ],
)  # fmt: skip
def test_epochs_mean_what_they_print(value, exact):
    assert as_fraction(value) == exact


@pytest.mark.parametrize("value", [0, -1, "0", "-1/2", "many", "1/0", "", float("inf"), float("nan"), None])
def test_epochs_that_are_none(value):
    with pytest.raises(InputError, match="run: "):
        run_config({"data": {"path": "x", "epochs": {"web": value}}}, "run")


def test_no_source_at_all():
    with pytest.raises(InputError, match="name at least one source"):
        run_config({"data": {"path": "x", "epochs": {}}})


def test_windows_belong_to_named_sources():
    with pytest.raises(InputError, match="data.windows names 'wed', which data.epochs does not"):
        run_config({"data": {**DATA, "windows": {"wed": 3}}})


def test_a_window_longer_than_the_context():
    with pytest.raises(
        InputError, match=r"batch.sequence_length 512 is longer than model.max_position_embeddings 256"
    ):
        run_config({"data": DATA, "model": {"preset": "stablelm-1m"}, "batch": {"sequence_length": 512}})


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("optimizer", {"lr": 0}), ("optimizer", {"lr": -1e-4}), ("optimizer", {"betas": [0.9, 1.0]}),
        ("optimizer", {"betas": [0.9]}), ("optimizer", {"eps": 0}), ("optimizer", {"clip": -1}),
        ("optimizer", {"weight_decay": -0.1}), ("schedule", {"warmup": 1}), ("schedule", {"warmup": -0.1}),
        ("schedule", {"floor": 1.1}), ("batch", {"sequences": 0}), ("batch", {"sequence_length": 1}),
        ("batch", {"micro_sequences": 0}), ("checkpoint", {"keep": 0}), ("checkpoint", {"every": 0}),
        ("evaluation", {"windows": 0}), ("logging", {"every": 0}), ("optimizer", {"lr": float("inf")}),
    ],
)  # fmt: skip
def test_values_out_of_range_name_their_key(section, values):
    with pytest.raises(InputError, match=rf"config: {section}\.{next(iter(values))}"):
        run_config({"data": DATA, section: values})


def test_precision_lists_its_choices():
    with pytest.raises(InputError, match=r"precision: .*'bf16'.*'fp32'"):
        run_config({"data": DATA, "precision": "fp16"})


def test_a_file_with_overrides(tmp_path):
    path = tmp_path / "run.yml"
    path.write_text(
        "data: {path: p, epochs: {web: 1.5}}\noptimizer: {lr: 1e-4}\n"
        "model: {preset: stablelm-1m}\nbatch: {sequence_length: 256}\n"
    )
    config = load_run_config(path, ["optimizer.lr=5e-4", "model.num_hidden_layers=2"])
    assert config.optimizer.lr == 5e-4
    assert (config.model.num_hidden_layers, config.model.hidden_size) == (2, 128)
    with pytest.raises(InputError, match=r"run\.yml: optimizer\.lr"):
        load_run_config(path, ["optimizer.lr=-1"])


def test_the_reference_is_not_stale(root):
    assert (root / "configs" / "reference.yml").read_text(encoding="utf-8") == reference_yaml(), (
        "run `make docs`"
    )


def test_the_small_run_is_not_stale_and_valid(root):
    path = root / "configs" / "small.yml"
    assert path.read_text(encoding="utf-8") == small_yaml(), "run `make docs`"
    config = load_run_config(path)
    assert config.model.num_parameters == 15_147_264
    assert config.checkpoint.keep == 3


def test_the_reference_is_a_valid_run_of_defaults():
    read = validate(RunConfig, yaml.safe_load(reference_yaml().replace("3.2e-4", "0.00032")), "reference")
    assert read == run_config({"data": {"path": "data/prepared", "epochs": {"web": 4, "code": 1}}})


def sections(schema: type[Schema]) -> list[type[Schema]]:
    nested = [f.annotation for f in schema.model_fields.values() if isinstance(f.annotation, type)]
    return [schema, *(s for part in nested if issubclass(part, Schema) for s in sections(part))]


def test_every_key_is_documented_and_in_the_reference():
    text = reference_yaml()
    for section in sections(RunConfig):
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name} has no docstring"
            assert f"{name}:" in text


def test_a_changed_default_changes_the_reference():
    """The staleness test above can fail: the file is made from the values, not from a copy of itself."""
    assert "# Peak learning rate. (float, default 0.00032)" in reference_yaml()
    assert "lr: 0.00032" in reference_yaml()


def test_an_empty_out_is_refused():
    with pytest.raises(InputError, match="out: String should have at least 1 character"):
        run_config({"out": "", "data": {"path": "x", "epochs": {"a": 1}}})


NEOX = {"paths": ["a", "b"], "train_iters": 5, "tokenizer": "tok"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"epochs": {"a": 1}}, "data: path is required"),
        ({"path": "x"}, "data: name at least one source"),
        ({"path": "x", "phases": [{"epochs": {}}]}, "data: phases.0: name at least one source"),
        ({"path": "x", "phases": [{"epochs": {"a": 0}}]}, "data.phases.0.epochs: source 'a': epochs must be"),
        (
            {"path": "x", "phases": [{"until": 3}]},
            r"data.phases.0.until: unknown key; did you mean 'until_step'",
        ),
        ({"path": "x", "phases": [{"epochs": {"a": 1}, "until_step": 0}]}, "data.phases.0.until_step"),
        (
            {**DATA, "phases": [{"epochs": {"a": 1}}]},
            "epochs and phases.0.epochs are both given",
        ),
        (
            {"path": "x", "phases": [{"epochs": {"a": 1}}], "windows": {"b": 1}},
            "'b', which data.phases do not",
        ),
        ({**DATA, "skip": [[3, 2]]}, r"data.skip: \[3, 2\] is no range of sample numbers"),
        ({**DATA, "skip": [[-1, 2]]}, r"data.skip: \[-1, 2\] is no range"),
        ({**DATA, "skip": [3]}, r"data.skip.0"),
        ({**DATA, "order": "megatron"}, r"data.order: .*'stablelm' or 'neox'"),
        ({**DATA, "neox": NEOX}, "data: the section `neox` wants order: neox"),
        ({"order": "neox"}, "data: order neox wants the section `neox`"),
        ({**DATA, "order": "neox", "neox": NEOX}, "order neox reads data.neox alone; leave out path, epochs"),
        ({"order": "neox", "neox": {**NEOX, "weights": [1]}}, "2 paths have 1 weights"),
        ({"order": "neox", "neox": {**NEOX, "weights": [1, 0]}}, "weights must be above 0"),
        ({"order": "neox", "neox": {**NEOX, "split": "9,1"}}, "`split` belongs to a single data_path"),
        ({"order": "neox", "neox": {**NEOX, "paths": []}}, "data.neox.paths"),
        ({"order": "neox", "neox": {**NEOX, "paths": ["a"] * 255}}, "fewer than 255"),
        ({"order": "neox", "neox": {"paths": ["a"]}}, "data.neox.train_iters: this key is required"),
    ],
)
def test_data_that_contradict_themselves(data, message):
    with pytest.raises(InputError, match=message):
        run_config({"data": data})


def test_phases_and_one_table():
    table = run_config({"data": DATA}).data
    assert [phase.epochs for phase in table.parts()] == [{"web": 4, "code": 1}]
    data = {"path": "x", "phases": [{"epochs": {"web": 4}, "until_step": 9}, {"epochs": {"code": "7/3"}}]}
    phases = run_config({"data": data}).data
    assert phases.sources() == ["code", "web"] == table.sources()
    assert [phase.until_step for phase in phases.parts()] == [9, None]
    assert run_config({"data": {"order": "neox", "neox": NEOX}}).data.sources() == []
