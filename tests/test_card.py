"""The model card's own snippets, import changed, against a local Hub cache and no network."""

import contextlib
import io
import re

import pytest
import torch

from stablelm.auto import AutoModelForCausalLM, AutoTokenizer, load
from stablelm.config import InputError, preset
from stablelm.interchange import save_pretrained
from stablelm.interchange.hub import resolve
from stablelm.model import StableLM
from stablelm.tokenizer import Tokenizer

ID = "stabilityai/stablelm-3b-4e1t"


@pytest.fixture
def cache(shared, tmp_path, monkeypatch):
    """A Hub cache that holds the id: the real tokenizer, a small network with random weights."""
    folder = tmp_path / "hub" / "models--stabilityai--stablelm-3b-4e1t"
    config = preset("stablelm-3b-4e1t", hidden_size=80, num_hidden_layers=1, num_attention_heads=1)
    tokenizer = Tokenizer.from_file(shared / "data" / "neox-tokenizer")
    (folder / "refs").mkdir(parents=True)
    for name, seed in (("main", 1), ("older", 2)):
        commit = str(seed) * 40
        (folder / "refs" / name).write_text(commit)
        save_pretrained(StableLM(config, seed).to(torch.bfloat16), tokenizer, folder / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def snippets(shared):
    card = (shared / "seed" / "model-card.md").read_text()
    found = [code for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if ID in code]
    assert len(found) == 2
    for code in found:
        code = code.replace("from transformers import", "from stablelm import")
        yield re.sub(r"^\+", "", code, flags=re.MULTILINE)  # the second is a diff


def test_the_snippets_run(cache, shared):
    for number, code in enumerate(snippets(shared)):
        assert ("use_flash_attention_2=True" in code) == (number == 1)
        if not torch.cuda.is_available():
            with pytest.raises(InputError, match="no usable CUDA GPU. Without that line it runs here"):
                exec(code, {})
            code = code.replace("model.cuda()\n", "")
        names, output = {}, io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(code, names)
        assert output.getvalue().startswith("The weather is always wonderful")
        assert names["model"].dtype == torch.bfloat16  # "auto": what the files hold
        tokens = names["tokens"]
        assert tokens.shape[0] == 1
        assert tokens.shape[1] <= names["inputs"]["input_ids"].shape[1] + 64
        assert int(tokens.max()) < 50_277


def test_revision_and_cache_directory(cache):
    main, older = (AutoModelForCausalLM.from_pretrained(ID, revision=r) for r in (None, "older"))
    assert not torch.equal(main.lm_head.weight, older.lm_head.weight)
    elsewhere = AutoModelForCausalLM.from_pretrained(ID, cache_dir=cache, local_files_only=True)
    assert torch.equal(main.lm_head.weight, elsewhere.lm_head.weight)
    assert load(ID)[1].size == AutoTokenizer.from_pretrained(ID).size == 50_277


@pytest.mark.parametrize(
    "opened", [AutoModelForCausalLM.from_pretrained, AutoTokenizer.from_pretrained, load]
)
def test_an_id_that_cannot_be_had_says_what_to_do(cache, opened):
    with pytest.raises(InputError, match=r"^nobody/nothing: .*not in the local cache.*Connect"):
        opened("nobody/nothing")
    with pytest.raises(InputError, match="no-such-thing: no such"):
        opened("no-such-thing")


def test_a_local_directory_comes_before_an_id(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stabilityai" / "stablelm-3b-4e1t").mkdir(parents=True)
    assert resolve(ID) == type(tmp_path)(ID)


def test_attention_is_chosen_and_named(cache):
    for asked, name in ((None, "sdpa"), ("eager", "eager"), ("sdpa", "sdpa"), ("flash_attention_2", "sdpa")):
        model = AutoModelForCausalLM.from_pretrained(ID, attn_implementation=asked)
        assert model.attention.name == name
        assert model.attention.reason
    flash = AutoModelForCausalLM.from_pretrained(ID, use_flash_attention_2=True)
    assert "the CPU" in flash.attention.reason
    with pytest.raises(InputError, match="disagree"):
        AutoModelForCausalLM.from_pretrained(ID, use_flash_attention_2=True, attn_implementation="eager")
    with pytest.raises(InputError, match="attn_implementation 'flash2'"):
        AutoModelForCausalLM.from_pretrained(ID, attn_implementation="flash2")
