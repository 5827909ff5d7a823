"""How configurations are read: numbers, duplicates, misspelt keys at every level, overrides."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablelm.config import InputError
from stablelm.config.run import RunConfig
from stablelm.config.schema import Schema, apply_overrides, commented_yaml, parse_yaml, read_yaml, validate

DATA = {"data": {"path": "prepared", "epochs": {"web": 4}}}


def run_with(**values):
    return validate(RunConfig, {**DATA, **values}, "run.yml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1E-4", 1e-4), ("1e5", 1e5), ("-3e+2", -300.0), ("3.2e-4", 3.2e-4), (".5e1", 5.0),
        ("1_000e3", 1e6), ("+2e0", 2.0),
    ],
)  # fmt: skip
def test_exponents_are_floats(text, value):
    parsed = parse_yaml(text, "here")
    assert parsed == value
    assert type(parsed) is float


@pytest.mark.parametrize("text", ["1e", "e4", "1e-4x", "0x1e", "'1e-4'", "1-4", "2e3e4", "v1e3"])
def test_what_only_looks_like_an_exponent_is_left_alone(text):
    assert type(parse_yaml(text, "here")) is not float


@given(st.floats(allow_nan=False, allow_infinity=False, width=64))
def test_every_float_reads_back(value):
    for written in (repr(value), f"{value:e}", f"{value:.0e}"):
        assert parse_yaml(written, "here") == float(written)


def test_a_duplicate_key_is_refused_with_its_line(tmp_path):
    path = tmp_path / "run.yml"
    path.write_text("optimizer:\n  lr: 1e-4\n  eps: 1e-6\n  lr: 2e-4\n")
    with pytest.raises(InputError, match=r"run\.yml, line 4: key 'lr' is given twice"):
        read_yaml(path)


def test_duplicates_are_refused_inside_lists_and_flow_mappings():
    with pytest.raises(InputError, match="'b' is given twice"):
        parse_yaml("a: [{b: 1, b: 2}]", "here")


def test_merge_keys_still_work():
    assert parse_yaml("base: &b {x: 1, y: 2}\nmore: {<<: *b, y: 3}", "here")["more"] == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: [1, 2", "line 1: not valid YAML"),
        (b"a: b: c", "line 1: not valid YAML"),
        (b"- 1\n- 2\n", "a mapping of keys to values is wanted, found list"),
        (b"", "found NoneType"),
        (b"a: \xff\xfe", "byte 3 is not UTF-8"),
        (b"a: !!python/object/apply:os.system ['true']", "not valid YAML"),
        (b"a: *unknown", "not valid YAML"),
        (b"a: 1\n---\nb: 2\n", "not valid YAML"),
        (b"a: \x07", "not valid YAML"),
        (b"? [a, b]\n: 1\n", "line 1: a key must be a name"),
        (b"a: " + 5000 * b"[", "not valid YAML"),
    ],
)
def test_files_that_are_no_configuration(tmp_path, content, said):
    path = tmp_path / "run.yml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        read_yaml(path)
    assert "run.yml" in str(caught.value)


def test_a_missing_file_and_a_directory(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_yaml(tmp_path / "none.yml")
    with pytest.raises(InputError, match="is a directory"):
        read_yaml(tmp_path)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"optimiser": {}}, "optimiser: unknown key; did you mean 'optimizer'?"),
        (
            {"optimizer": {"weight_decya": 0.1}},
            "optimizer.weight_decya: unknown key; did you mean 'weight_decay'?",
        ),
        ({"model": {"hidden_sizes": 8}}, "model.hidden_sizes: unknown key; did you mean 'hidden_size'?"),
        (
            {"data": {"path": "x", "epochs": {"a": 1}, "epoch": 3}},
            "data.epoch: unknown key; did you mean 'epochs'?",
        ),
        ({"schedule": {"warm_up": 0.1}}, "schedule.warm_up: unknown key; did you mean 'warmup'?"),
        (
            {"checkpoint": {"zzz": 0}},
            (
                "checkpoint.zzz: unknown key; valid: every, keep, permanent_every, copy_to, "
                "copy_every, asynchronous."
            ),
        ),
    ],
)
def test_a_misspelt_key_names_the_nearest_at_its_own_level(values, said):
    with pytest.raises(InputError) as caught:
        run_with(**values)
    assert f"run.yml: {said}" in str(caught.value)


def test_every_fault_is_listed_at_once():
    with pytest.raises(InputError) as caught:
        run_with(steps=0, seed=-1, optimizer={"lr": "fast"}, precison="fp32")
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert all(line.startswith("run.yml: ") for line in lines)
    assert "optimizer.lr: " in str(caught.value)
    assert "(given: 'fast')" in str(caught.value)


def test_a_required_key_is_named():
    with pytest.raises(InputError, match=r"run\.yml: data: this key is required"):
        validate(RunConfig, {}, "run.yml")


def test_overrides_make_sections_and_keep_types():
    before = {"optimizer": {"lr": 1.0}, "data": {"epochs": {"web": 4}}}
    after = apply_overrides(
        before,
        [
            "optimizer.lr=1e-4",
            "schedule.warmup=0",
            "data.epochs.code=7/3",
            "out= runs/a=b",
            "steps=null",
            "tags=[a, b]",
        ],
    )
    assert after["optimizer"] == {"lr": 1e-4}
    assert after["schedule"] == {"warmup": 0}
    assert after["data"]["epochs"] == {"web": 4, "code": "7/3"}
    assert after["out"] == "runs/a=b"
    assert after["steps"] is None
    assert after["tags"] == ["a", "b"]
    assert before == {"optimizer": {"lr": 1.0}, "data": {"epochs": {"web": 4}}}


def test_later_overrides_win():
    assert apply_overrides({}, ["a.b=1", "a.b=2", "a.c=3"]) == {"a": {"b": 2, "c": 3}}


@pytest.mark.parametrize("override", ["steps", "=5", "  =5"])
def test_an_override_without_key_or_value_shows_the_form(override):
    with pytest.raises(InputError, match="write it as key=value"):
        apply_overrides({}, [override])


def test_an_override_below_a_value_is_refused():
    with pytest.raises(InputError, match="steps is a value, not a section"):
        apply_overrides({"steps": 5}, ["steps.more=1"])


def test_an_override_passes_the_same_checks():
    with pytest.raises(InputError, match="optimizer.lrr: unknown key; did you mean 'lr'"):
        validate(RunConfig, apply_overrides(DATA, ["optimizer.lrr=1e-4"]), "run.yml")
    with pytest.raises(InputError, match="not valid YAML"):
        apply_overrides({}, ["a=[1"])


class Inner(Schema):
    """A section."""

    rate: float = 1e-4
    """How fast."""
    name: str
    """What it is called."""


class Outer(Schema):
    """Everything."""

    inner: Inner
    """The inside."""
    count: int | None = None
    """How many; null for all."""


def test_commented_yaml_documents_and_reads_back():
    text = commented_yaml(Outer, "A heading.\n\nMore.", {"inner": {"name": "x: y"}})
    assert text.startswith("# A heading.\n#\n# More.\n")
    for part in (
        "# The inside.",
        "# How fast. (float, default 0.0001)",
        "# What it is called. (str, required)",
    ):
        assert part in text
    assert "(int | None, default null)" in text
    assert validate(Outer, parse_yaml(text, "generated"), "generated") == Outer(inner=Inner(name="x: y"))


def test_a_fault_in_a_value_of_several_types_is_one_line_under_the_users_key():
    class Mix(Schema):
        epochs: dict[str, float | str]
        """x"""

    for value in (None, [1], float("nan")):
        with pytest.raises(InputError) as caught:
            validate(Mix, {"epochs": {"web": value, "code": 1}}, "mix.yml")
        assert str(caught.value).startswith("mix.yml: epochs.web: Input should be a ")
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"epochs\.web:4: .*; YAML wants a space after a colon"):
        validate(Mix, {"epochs": parse_yaml("{web:4}", "mix.yml")}, "mix.yml")


def test_a_fault_of_the_whole_mapping_names_only_the_file():
    with pytest.raises(InputError, match=r"^run\.yml: batch\.sequence_length 9000 is longer"):
        values = {"data": {"path": "x", "epochs": {"a": 1}}, "batch": {"sequence_length": 9000}}
        validate(RunConfig, values, "run.yml")


@pytest.mark.parametrize("override", [".=1", "optimizer.=1", ".lr=1", "a..b=1", " =1", "=1", "a"])
def test_an_override_names_a_key(override):
    with pytest.raises(InputError, match="write it as key=value"):
        apply_overrides({}, [override])
