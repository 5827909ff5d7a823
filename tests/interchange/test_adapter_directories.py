"""Adapters on a model, merged into it, taken out of a tuned one, listed."""

import json
import shutil

import pytest
import torch

import stablelm
from stablelm.config import InputError
from stablelm.config.adapter import AdapterConfig
from stablelm.inference.cpu_runner import CpuRunner, runner_for, why_not
from stablelm.inference.quantization import Recipe, quantize
from stablelm.interchange import open_path, save_pretrained
from stablelm.interchange.adapters import extract_adapter, list_adapters, merge_adapter, named
from stablelm.interchange.base import BASE, Base
from stablelm.interchange.open import fingerprint_of
from stablelm.interchange.peft import save_adapter
from stablelm.interchange.quantized import is_quantized
from stablelm.model.adapters import attach, detach, merge, parts_of
from tests.finetuning.conftest import base  # noqa: F401 (a fixture)

IDS = torch.arange(60).view(2, 30)


def put(model, config, seed, name="default"):
    """A trained adapter: B is not zero."""
    attach(model, config, name, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for part in parts_of(model, name).values():
        part.lora_B.data.normal_(0, 0.05, generator=generator)
        if part.lora_magnitude_vector is not None:
            part.lora_magnitude_vector.data.mul_(1.1)


def record(folder, run):
    """base.json of an adapter on the model in `folder`."""
    return Base.of(str(folder), folder, fingerprint_of(folder, open_path(folder)[0]), run).as_bytes()


@pytest.fixture(scope="module")
def world(base, tmp_path_factory):  # noqa: F811
    """The base model, packed and in bf16 too, and two adapters that say what they stand on."""
    root = tmp_path_factory.mktemp("adapters")
    shutil.copytree(base, root / "base")
    model, tokenizer = open_path(root / "base")
    configs = {
        "one": AdapterConfig(rank=4, alpha=8),
        "two": AdapterConfig(method="dora", rank=2, alpha=4, targets=["q_proj", "down_proj", "lm_head"]),
    }
    for seed, (name, config) in enumerate(configs.items()):
        put(model, config, seed)
        save_adapter(model, root / name, base=str(root / "base"), files={BASE: record(root / "base", root)})
        detach(model, "default")
    save_pretrained(model.to(torch.bfloat16), tokenizer, root / "half")
    packed = open_path(base)[0]
    save_pretrained(packed, tokenizer, root / "packed", quantization=quantize(packed, Recipe.of(8)).as_dict())
    return root


@torch.no_grad()
def test_switching_between_adapters_is_each_merged_model_and_back_to_the_base(world, tmp_path):
    plain, _ = open_path(world / "base")
    wanted = plain(IDS)
    model, _ = stablelm.load(world / "base", adapters=[world / "one", world / "two"])
    assert model.adapters == ["one", "two"]
    found = {"one": model(IDS)}
    for name in ("two", None, "one", None):
        model.use_adapter(name)
        assert name is None or name not in found or torch.equal(model(IDS), found[name])
        found[name] = model(IDS)
    assert torch.equal(found[None], wanted)
    for name in ("one", "two"):
        list(merge_adapter(world / name, tmp_path / name))
        merged, tokenizer = open_path(tmp_path / name)
        assert tokenizer is not None and type(merged.lm_head).__name__ == "Head"
        torch.testing.assert_close(found[name], merged(IDS), atol=1e-5, rtol=1e-5)
        assert (found[name] - wanted).abs().max() > 1e-3
    with pytest.raises(InputError, match="no such adapter, but one, two"):
        model.use_adapter("three")


def test_generation_uses_the_adapter_and_the_kernels_step_aside(world):
    model, tokenizer = stablelm.load(world / "base", torch.bfloat16, adapters={"x": world / "one"})
    assert why_not(model) == "the adapter 'x' is in use"
    assert not isinstance(runner_for(model), CpuRunner)
    with_it = stablelm.generate(model, tokenizer, "the sky", max_new_tokens=12, temperature=0)
    model.use_adapter(None)
    assert why_not(model) is None and isinstance(runner_for(model), CpuRunner)
    without = stablelm.generate(model, tokenizer, "the sky", max_new_tokens=12, temperature=0)
    plain, _ = stablelm.load(world / "base", torch.bfloat16)
    assert without == stablelm.generate(plain, tokenizer, "the sky", max_new_tokens=12, temperature=0)
    assert with_it != without


@torch.no_grad()
def test_upon_packed_weights(world):
    for path, bits in ((world / "packed", None), (world / "base", 8)):
        model, _ = stablelm.load(path, quantize=bits, adapters=world / "one")
        merged, _ = stablelm.load(world / "base", adapters=world / "one")
        wanted = merged(IDS)
        assert (model(IDS) - wanted).norm() < 0.03 * wanted.norm()
        model.use_adapter(None)
        assert (model(IDS) - wanted).norm() > 0.05 * wanted.norm()
    assert is_quantized(world / "packed")


def test_a_base_in_another_precision_is_the_same_base(world):
    model, _ = stablelm.load(world / "base", dtype="bfloat16", adapters=world / "one")
    assert model.dtype == torch.bfloat16 and model.adapters == ["one"]
    with pytest.raises(InputError, match="not the weights that the adapter .* remove .*base.json"):
        stablelm.load(world / "half", adapters=world / "one")


def test_merging(world, tmp_path):
    (said,) = merge_adapter(world / "one", tmp_path / "half", dtype=torch.bfloat16)
    assert "bfloat16" in said and "merged in" in said
    assert open_path(tmp_path / "half")[0].dtype == torch.bfloat16
    with pytest.raises(InputError, match="already exists"):
        list(merge_adapter(world / "one", tmp_path / "half"))
    with pytest.raises(InputError, match="packed weights cannot hold an adapter.*--base ORIGINAL"):
        list(merge_adapter(world / "one", tmp_path / "x", base=world / "packed"))
    with pytest.raises(InputError, match="not the weights that the adapter in"):
        list(merge_adapter(world / "one", tmp_path / "x", base=tmp_path / "half"))
    with pytest.raises(InputError, match="no adapter: adapter_config.json is not there"):
        list(merge_adapter(world / "base", tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_an_adapter_upon_packed_files_is_merged_into_the_original(world, tmp_path):
    shutil.copytree(world / "one", tmp_path / "one")
    (tmp_path / "one" / BASE).write_bytes(record(world / "packed", tmp_path))
    with pytest.raises(InputError, match="--base ORIGINAL"):
        list(merge_adapter(tmp_path / "one", tmp_path / "out"))
    note, said = merge_adapter(tmp_path / "one", tmp_path / "out", base=world / "base")
    assert note.startswith("note: trained upon packed weights") and "merged in" in said
    list(merge_adapter(world / "one", tmp_path / "plain"))
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        tmp_path / "plain" / "model.safetensors"
    ).read_bytes()


@torch.no_grad()
def test_extraction_gives_back_what_a_rank_can_hold(world, tmp_path):
    model, tokenizer = open_path(world / "base")
    put(model, AdapterConfig(rank=3, alpha=6), 9)
    merge(model, "default")
    save_pretrained(model, tokenizer, tmp_path / "tuned")
    (said,) = extract_adapter(tmp_path / "tuned", world / "base", tmp_path / "three", 3)
    assert "keeps 100.00 %" in said.replace("%", " %").replace("  ", " ")
    again, words = stablelm.load(world / "base", adapters=tmp_path / "three")
    torch.testing.assert_close(again(IDS), model(IDS), atol=1e-4, rtol=1e-4)
    assert words.size == tokenizer.size
    (said,) = extract_adapter(tmp_path / "tuned", world / "base", tmp_path / "one", 1)
    kept = float(said.split("keeps ")[1].split("%")[0])
    changes = {n: p - dict(open_path(world / "base")[0].named_parameters())[n]
               for n, p in model.named_parameters() if n.endswith("proj.weight")}  # fmt: skip
    values = [torch.linalg.svdvals(change).square() for change in changes.values()]
    best = 100 * sum(float(v[0]) for v in values) / sum(float(v.sum()) for v in values)
    assert kept == pytest.approx(best, abs=0.01) and 20 < kept < 90
    # Large matrices are decomposed by random projections: nearly the best, the same each time.
    from stablelm.interchange import adapters

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapters, "_EXACT", 1)
        for name in ("random", "again"):
            (said,) = extract_adapter(tmp_path / "tuned", world / "base", tmp_path / name, 1)
    assert float(said.split("keeps ")[1].split("%")[0]) == pytest.approx(best, abs=0.5)
    files = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("random", "again")]
    assert files[0] == files[1]


def test_what_cannot_be_taken_out(world, tmp_path):
    with pytest.raises(InputError, match="nothing to take out"):
        list(extract_adapter(world / "base", world / "base", tmp_path / "x", 2))
    with pytest.raises(InputError, match="packed weights have no plain difference"):
        list(extract_adapter(world / "packed", world / "base", tmp_path / "x", 2))
    with pytest.raises(InputError, match="is no matrix of this model"):
        list(extract_adapter(world / "base", world / "base", tmp_path / "x", 2, ["w_proj"]))
    with pytest.raises(InputError, match="adapter rank 99"):
        list(extract_adapter(world / "base", world / "base", tmp_path / "x", 99))
    model, _ = open_path(world / "base")
    with torch.no_grad():
        model.model.embed_tokens.weight[5] += 1
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 0.1
    save_pretrained(model, None, tmp_path / "odd")
    _, warning = extract_adapter(tmp_path / "odd", world / "base", tmp_path / "odd-adapter", 2)
    assert warning.startswith("warning: 99.9") and "is lost" in warning


def test_listing(world, tmp_path):
    shutil.copytree(world / "one", tmp_path / "runs" / "mine" / "adapter")
    shutil.copytree(world / "two", tmp_path / "two")
    shutil.copytree(world / "two", tmp_path / "broken")
    values = json.loads((tmp_path / "broken" / "adapter_config.json").read_text())
    (tmp_path / "broken" / "adapter_config.json").write_text(json.dumps({**values, "peft_type": "IA3"}))
    rows = {row.path.relative_to(tmp_path).as_posix(): row for row in list_adapters(tmp_path)}
    assert rows.keys() == {"broken", "two", "runs/mine/adapter"}
    assert "IA3" in rows["broken"].fault
    two, one = rows["two"], rows["runs/mine/adapter"]
    assert (two.method, two.rank, two.alpha, two.targets) == ("dora", 2, 4.0, "q_proj, down_proj, lm_head")
    assert one.base == str(world / "base") and one.method == "lora" and one.fault == ""
    assert one.numbers == 2 * 4 * (4 * 64 + 3 * 96)
    with pytest.raises(InputError, match="no such directory"):
        list_adapters(tmp_path / "nowhere")


def test_adapters_of_other_weights_and_names(world, tmp_path):
    model, tokenizer = open_path(world / "base")
    with torch.no_grad():
        model.model.norm.weight[0] += 1
    save_pretrained(model, tokenizer, tmp_path / "other")
    with pytest.raises(InputError, match="not the weights that the adapter in"):
        stablelm.load(tmp_path / "other", adapters=world / "one")
    assert named(["runs/a/adapter", "x=runs/b", "v1.5"]).keys() == {"a", "x", "v1-5"}
    with pytest.raises(InputError, match="'a' is the name of runs/a/adapter already"):
        named(["runs/a/adapter", "old/a"])
