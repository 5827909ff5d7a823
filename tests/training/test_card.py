"""From training to a Hub-ready directory: what the card says, and whose licence and credit it carries."""

import json
import re

import pytest
import torch
from huggingface_hub import ModelCard

from stablelm.config import InputError
from stablelm.evaluation.evaluate import evaluate
from stablelm.evaluation.safety import LIMITS
from stablelm.interchange import open_path, save_pretrained
from stablelm.interchange.export import export
from stablelm.interchange.provenance import Ancestor, hub_name, lineage
from stablelm.model import StableLM
from stablelm.training import train
from tests.training.conftest import Recorder

SEED_CARD = """---
license: cc-by-sa-4.0
language: [en]
extra_gated_fields: {Name: text}
---
# The ancestor
"""
MADE_BY = {
    "name": "River | 1M", "licence": "apache-2.0", "language": ["en"], "tags": ["river", "causal-lm"],
    "authors": "The Authors", "gated_fields": {"Country": "country"}, "datasets": ["someone/rivers"],
}  # fmt: skip


def exported(path, out, *overrides):
    lines = list(export(path, out, torch.float32, overrides))
    text = (out / "README.md").read_text("utf-8")
    return ModelCard(text).data.to_dict(), text, lines


def test_a_trained_run_fills_its_card(make_config, tmp_path):
    config = make_config(card=MADE_BY)
    train(config, console=Recorder())
    matter, text, lines = exported(config.out, tmp_path / "released")
    assert matter["license"] == "apache-2.0" and matter["language"] == ["en"]
    assert matter["tags"] == ["causal-lm", "river"] and matter["datasets"] == ["someone/rivers"]
    assert matter["extra_gated_fields"] == {"Country": "country"} and "base_model" not in matter
    (index,) = matter["model-index"]
    assert index["name"] == "River | 1M"
    state = json.loads((newest(config) / "state.json").read_text())
    measured = {(r["dataset"]["type"], m["type"]): m["value"] for r in index["results"] for m in r["metrics"]}
    for record in state["evaluations"][-2:]:
        for metric in ("bits_per_byte", "loss", "perplexity"):
            assert measured[f"held-out-{record['source']}", metric] == pytest.approx(record[metric], abs=1e-6)
    parameters = StableLM(config.model).num_parameters()
    assert f"{parameters:,} parameters with a context of 64 tokens" in text
    assert f"Trained for {state['step']} steps ({state['samples'] * 32:,} tokens) on" in text
    for expected in (r"# River \| 1M", "| tales | not stated |", "AdamW", "| Peak learning rate | 0.005 |"):
        assert expected in text
    manifest = json.loads((config_path(config) / "manifest.json").read_text())["sources"]
    for name, about in manifest.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| {name} | not stated"))
        assert f"| {about['train']['documents']:,} | {about['train']['tokens']:,} |" in row
    assert "epochs read" in text.lower() and re.search(r"\| notes .*\| 1 \|", text)
    assert lines == [f"{tmp_path / 'released'}: {parameters:,} parameters, float32"]
    model, tokenizer = open_path(tmp_path / "released")
    assert model.num_parameters() == parameters and tokenizer is not None


def newest(config):
    from pathlib import Path

    return sorted((Path(config.out) / "checkpoints").glob("step-*"))[-1]


def config_path(config):
    from pathlib import Path

    return Path(config.data.path)


@pytest.fixture
def ancestor(make_config, tmp_path):
    """A share-alike model in a Hub cache, as the released one would lie there."""
    folder = tmp_path / "hub" / "models--stabilityai--stablelm-3b-4e1t" / "snapshots" / ("1" * 40)
    save_pretrained(StableLM(make_config().model, 7), None, folder, files={"README.md": SEED_CARD})
    return folder


def test_a_share_alike_licence_is_carried_with_credit_and_changes(make_config, ancestor, tmp_path):
    config = make_config(init=str(ancestor), card={"authors": "The Authors", "name": "Child"})
    train(config, console=Recorder())
    matter, text, _ = exported(config.out, tmp_path / "child")
    assert matter["license"] == "cc-by-sa-4.0" and matter["base_model"] == ["stabilityai/stablelm-3b-4e1t"]
    credit = text[text.index("### Credit and changes") :]
    assert "**stabilityai/stablelm-3b-4e1t** by Stability AI" in credit
    assert "(https://creativecommons.org/licenses/by-sa/4.0/)" in credit
    assert re.search(r"Changes: trained for \d+ steps \([\d,]+ tokens\) on notes, tales\.", credit)
    assert "endorses" in credit

    # the next generation, from the exported directory and from the checkpoint, keeps both
    for start in (tmp_path / "child", newest(config)):
        again = make_config(out=f"again-{start.name}", init=str(start))
        train(again, console=Recorder())
        matter, text, _ = exported(again.out, tmp_path / f"grandchild-{start.name}")
        assert matter["license"] == "cc-by-sa-4.0"
        assert [a["name"] for a in matter["lineage"]] == ["Child", "stabilityai/stablelm-3b-4e1t"]
        assert "**Child** by The Authors" in text and "by Stability AI" in text
        assert text.count("Changes: trained for") == 2


def test_another_licence_is_refused_before_anything_is_written(make_config, ancestor, tmp_path):
    with pytest.raises(InputError, match=r"apache-2.0: the weights come from stabilityai/.* share-alike"):
        exported(ancestor, tmp_path / "out", "licence=apache-2.0")
    assert not (tmp_path / "out").exists()
    assert exported(ancestor, tmp_path / "out", "licence=cc-by-sa-4.0")[0]["license"] == "cc-by-sa-4.0"


def test_a_directory_without_a_card_knows_nothing_and_says_so(make_config, tmp_path):
    save_pretrained(StableLM(make_config().model, 7), None, tmp_path / "fresh")
    matter, text, lines = exported(tmp_path / "fresh", tmp_path / "out")
    assert matter["license"] == "unknown" and "lineage" not in matter and "## Training" not in text
    assert any("states no licence" in line for line in lines)
    assert "not stated; ask its makers" in text
    matter, _, lines = exported(tmp_path / "fresh", tmp_path / "named", "licence=mit", "name=Fresh")
    assert matter["license"] == "mit" and not any("licence" in line for line in lines)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("licence=other", "licence_name and licence_link"),
        ("language=[English]", "'English' is not a language code"),
        ("datasets=['a b']", "not the id of a dataset"),
        ("gated_fields={Name: essay}", "the Hub knows text"),
        ("license=mit", "unknown key; did you mean 'licence'"),
    ],
)
def test_a_wrong_key_of_the_card(make_config, tmp_path, override, said):
    save_pretrained(StableLM(make_config().model, 7), None, tmp_path / "fresh")
    with pytest.raises(InputError, match=said):
        exported(tmp_path / "fresh", tmp_path / "out", override)
    assert not (tmp_path / "out").exists()


def test_a_broken_card_is_named(make_config, tmp_path):
    files = {"README.md": "---\nlicense: [\n---\n"}
    save_pretrained(StableLM(make_config().model, 7), None, tmp_path / "broken", files=files)
    with pytest.raises(InputError, match=r"README.md: its front matter cannot be read"):
        exported(tmp_path / "broken", tmp_path / "out")


def test_the_released_model_binds_even_when_a_cache_lacks_its_card(tmp_path):
    folder = tmp_path / "models--stabilityai--stablelm-3b-4e1t" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    assert hub_name(folder) == "stabilityai/stablelm-3b-4e1t" and hub_name(tmp_path) == ""
    (known,) = lineage(folder, folder)
    assert known == Ancestor(
        "stabilityai/stablelm-3b-4e1t", "cc-by-sa-4.0", "",
        "https://creativecommons.org/licenses/by-sa/4.0/", "Stability AI",
    )  # fmt: skip


def test_what_was_evaluated_beside_training_has_its_section(make_config, tmp_path):
    """Safety of these very weights; then the same results on a card of other ones, which says so."""
    config = make_config(model={"max_position_embeddings": 96})
    train(config, console=Recorder())
    evaluate(config.out, suite="safety", limit=3, out=tmp_path / "safety", progress=False)
    lines = list(export(config.out, tmp_path / "same", torch.float32, (), [tmp_path / "safety"]))
    text = (tmp_path / "same" / "README.md").read_text("utf-8")
    section = text[text.index("## Safety") : text.index("## Use and limitations")]
    assert "| toxicity | toxic_lexicon |" in section
    assert "gender and work" in section and "email 0, ip" in section
    for limit in LIMITS:
        assert limit in section
    assert "bit for bit" not in section and not any("not on these" in line for line in lines)
    assert "| Calibration error |" in text
    lines = list(export(config.out, tmp_path / "other", torch.bfloat16, (), [tmp_path / "safety"]))
    text = (tmp_path / "other" / "README.md").read_text("utf-8")
    assert "whose weights are not bit for bit these" in text
    assert any(line.startswith("warning: safety was measured on run, not on these") for line in lines)
    ModelCard(text)


def test_results_that_are_none_are_refused_before_anything_is_written(make_config, tmp_path):
    config = make_config()
    train(config, console=Recorder())
    (tmp_path / "results.json").write_text('{"results": {}}')
    for folder, message in ((tmp_path / "nowhere", "no results.json"), (tmp_path, "not the results of")):
        with pytest.raises(InputError, match=message):
            list(export(config.out, tmp_path / "released", torch.float32, (), [folder]))
    assert not (tmp_path / "released").exists()
