"""A data recipe: strict keys, names that are safe folder names, and an example file that is never stale."""

import pytest
import yaml

from stablelm.config import InputError
from stablelm.config.recipe import DataRecipe, load_recipe, recipe_yaml
from stablelm.config.schema import validate

WEB = {"name": "web", "paths": ["web"]}


def recipe(**changes):
    values = {"out": "out", "tokenizer": "t.json", "sources": [WEB], **changes}
    return validate(DataRecipe, values, "recipe.yml")


def test_defaults():
    made = recipe()
    assert (made.held_out, made.on_error, made.append_eod, made.seed) == (0.01, "stop", True, 1234)
    source = made.sources[0]
    assert (source.format, source.text_key, source.id_key, source.licence, source.url) == (
        "auto", "text", "id", "", "",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": []}, "sources"),
        ({"sources": [{"name": "web"}]}, r"sources\.0\.paths: this key is required"),
        ({"sources": [{**WEB, "path": "x"}]}, r"sources\.0\.path: unknown key; did you mean 'paths'"),
        ({"sources": [{**WEB, "paths": []}]}, r"sources\.0\.paths"),
        ({"sources": [{**WEB, "paths": ["a", " "]}]}, "a path is empty"),
        ({"sources": [{**WEB, "paths": ["a\0b"]}]}, "a path is empty"),
        ({"sources": [{**WEB, "format": "csv"}]}, r"sources\.0\.format"),
        ({"sources": [{**WEB, "exclude": ["Books3"]}]}, "`exclude` needs `label_key` or `label_from_folder`"),
        ({"sources": [{**WEB, "exclude": ["_ -"], "label_key": "a"}]}, "a label needs a letter or a digit"),
        ({"sources": [{**WEB, "suffixes": ["py"]}]}, "write a suffix with its dot"),
        ({"sources": [{**WEB, "suffixes": [".tar.gz"]}]}, "write a suffix with its dot"),
        ({"sources": [{**WEB, "split": "test"}]}, "are only for `format: datasets`"),
        ({"sources": [{**WEB, "revision": "v1"}]}, "are only for `format: datasets`"),
        ({"sources": [{**WEB, "label_keys": "a"}]}, "did you mean 'label_key'"),
        ({"sources": [WEB, dict(WEB)]}, "'web' and 'web' have one name"),
        (
            {"sources": [WEB, {**WEB, "name": "code"}, {**WEB, "name": "WEB"}]},
            "'web' and 'WEB' have one name",
        ),
        ({"held_out": 1}, "held_out"),
        ({"held_out": -0.1}, "held_out"),
        ({"on_error": "ignore"}, "on_error"),
        ({"seed": -1}, "seed"),
        ({"heldout": 0.1}, "did you mean 'held_out'"),
    ],
)
def test_refusals_name_the_key(changes, message):
    with pytest.raises(InputError, match=message) as error:
        recipe(**changes)
    assert "recipe.yml: " in str(error.value)


@pytest.mark.parametrize(
    "name", ["", "a/b", "..", ".hidden", "a..b", "a b", "naïve", "x" * 101, "dot.", "a\n"]
)
def test_names_that_are_no_folder_names(name):
    with pytest.raises(InputError, match=r"sources\.0\.name"):
        recipe(sources=[{**WEB, "name": name}])


@pytest.mark.parametrize("name", ["web", "Web-2_x", "books.v1.2", "0", "x" * 100])
def test_names_that_are(name):
    assert recipe(sources=[{**WEB, "name": name}]).sources[0].name == name


def test_a_recipe_file_with_overrides(tmp_path):
    path = tmp_path / "recipe.yml"
    path.write_text("out: a\ntokenizer: t\nsources:\n- name: web\n  paths: [x]\n")
    made = load_recipe(path, ["held_out=5e-2", "on_error=skip", "out=b"])
    assert (made.held_out, made.on_error, made.out) == (0.05, "skip", "b")
    with pytest.raises(InputError, match=r"recipe\.yml.*seed"):
        load_recipe(path, ["seed=many"])


def test_the_example_is_generated_and_complete(root):
    text = (root / "configs" / "data" / "example.yml").read_text(encoding="utf-8")
    assert text == recipe_yaml(), "stale: run `make docs`"
    values = yaml.safe_load(text)
    assert set(values) == set(DataRecipe.model_fields)
    assert set(values["sources"][0]) == set(
        DataRecipe.model_fields["sources"].annotation.__args__[0].model_fields
    )
    made = load_recipe(root / "configs" / "data" / "example.yml")
    assert [source.name for source in made.sources] == ["web", "code"]
    for name in DataRecipe.model_fields:
        assert DataRecipe.model_fields[name].description, name


def test_one_label_key_needs_no_brackets():
    keys = {"label_key": "meta.pile_set_name", "exclude": ["Books3"], "suffixes": [".C"]}
    source = recipe(sources=[{**WEB, **keys}]).sources[0]
    assert (source.label_key, source.suffixes) == (["meta.pile_set_name"], [".c"])


def test_named_sets_of_filters():
    def filters(value):
        return recipe(sources=[{**WEB, "filters": value}]).sources[0].filters

    assert filters("none") == filters({}) and not filters("none").active()
    assert filters("code") == filters({"code": True, "pii": True})
    assert filters("web").gopher_quality and filters("web").pii and filters("web").code is None
    with pytest.raises(InputError, match=r"sources\.0\.filters: no set of filters 'wep'; did you mean 'web'"):
        filters("wep")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": [{**WEB, "epochs": 0}]}, r"sources\.0\.epochs: epochs must be above 0"),
        ({"sources": [{**WEB, "epochs": "-1/2"}]}, r"sources\.0\.epochs"),
        ({"sources": [{**WEB, "epochs": "often"}]}, r"sources\.0\.epochs: 'often' is not a number"),
        ({"sources": [{**WEB, "name": "Report.json"}]}, "is the name of a file of ours"),
        ({"deduplication": {"precedence": ["wep"]}}, r"precedence: no source 'wep'; did you mean 'web'"),
        ({"deduplication": {"nearr": {}}}, r"deduplication\.nearr: unknown key; did you mean 'near'"),
        ({"deduplication": {"near": {"threshold": 1}}}, r"deduplication\.near\.threshold"),
        ({"decontamination": {}}, r"decontamination\.sets: this key is required"),
        ({"shard_tokens": 0}, "shard_tokens"),
        ({"max_error_rate": 2}, "max_error_rate"),
    ],
)
def test_the_steps_keys_are_refused_by_name(changes, message):
    with pytest.raises(InputError, match=message):
        recipe(**changes)


def test_the_recipe_of_the_model_card_is_valid(root):
    made = load_recipe(root / "configs" / "data" / "stablelm-3b-4e1t.yml")
    assert {source.epochs for source in made.sources} == {4}
    assert made.deduplication.order([source.name for source in made.sources])[0] == "pes2o"
    assert len(made.decontamination.sets) == 9
