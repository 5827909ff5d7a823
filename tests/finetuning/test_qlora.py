"""Adapters trained upon packed weights: the run on the dense weights that these mean, bit for bit again."""

import copy

import pytest
import torch

from stablelm.config import InputError
from stablelm.config.adapter import AdapterConfig
from stablelm.finetuning import finetune
from stablelm.inference.quantization import QuantizedLinear, Recipe, projections, quantize
from stablelm.interchange import open_path, save_pretrained
from stablelm.interchange.weights import read_header, read_tensor
from stablelm.kernels.cpu.packing import dense
from stablelm.model.adapters import attach
from tests.finetuning.test_finetune import steps_of
from tests.training.conftest import Recorder

LORA = {"rank": 4, "alpha": 8}
SHORT = {"steps": 6, "adapter": LORA}


@pytest.fixture(scope="module")
def forms(base, tmp_path_factory):
    """The base model with packed weights, and with the dense weights that these mean, as directories."""
    root = tmp_path_factory.mktemp("forms")
    plain, tokenizer = open_path(base)
    packed = copy.deepcopy(plain)
    recipe = quantize(packed, Recipe.of(4))
    save_pretrained(packed, tokenizer, root / "packed", quantization=recipe.as_dict())
    with torch.no_grad():
        for name, layer in projections(plain):
            layer.weight = torch.nn.Parameter(dense(packed.get_submodule(name).packed))
    save_pretrained(plain, tokenizer, root / "dense")
    return root


def adapter_of(run):
    file = run / "adapter" / "adapter_model.safetensors"
    return {name: read_tensor(name, stored) for name, stored in read_header(file).items()}


def losses(run):
    return [record["loss"] for record in steps_of(run)]


def test_upon_packed_weights_as_upon_the_dense_ones_they_mean(make, forms, base):
    before = {path: path.read_bytes() for path in base.iterdir()}
    rounded = finetune(make(out="rounded", quantize=4, **SHORT), console=Recorder())
    assert all(path.read_bytes() == content for path, content in before.items())
    packed = finetune(make(out="packed", model=str(forms / "packed"), **SHORT), console=Recorder())
    dense_run = finetune(make(out="dense", model=str(forms / "dense"), **SHORT), console=Recorder())
    assert losses(rounded) == losses(packed), "rounded while opening, or before: the same weights"
    assert losses(packed) == pytest.approx(losses(dense_run), abs=1e-5)
    ours, theirs = adapter_of(rounded), adapter_of(dense_run)
    assert ours.keys() == theirs.keys() and len(ours) == 2 * 2 * 7
    for name, tensor in ours.items():
        assert (tensor - theirs[name]).norm() <= 1e-4 * theirs[name].norm(), name
    assert losses(rounded)[-1] < losses(rounded)[0]
    # The run opens as the packed model with its adapter, which no merging can hold.
    ids = torch.arange(40).view(2, 20)
    with torch.no_grad():
        wanted = open_path(dense_run)[0](ids)
        for run in (rounded, packed):
            model, _ = open_path(run)
            assert isinstance(model.lm_head, QuantizedLinear)
            assert (model(ids) - wanted).norm() < 0.02 * wanted.norm()


def test_a_run_that_stops_goes_on_bit_for_bit(make):
    class Stop(Exception):
        pass

    def stop():
        raise Stop

    settings = {**SHORT, "quantize": 8, "precision": "bf16", "recompute": "full"}
    whole = finetune(make(out="whole", **settings), console=Recorder())
    with pytest.raises(Stop):
        finetune(make(out="cut", **settings), console=Recorder({5: stop}))
    cut = finetune(make(out="cut", **settings), resume=True, console=Recorder())
    assert losses(cut) == losses(whole)
    name = "adapter/adapter_model.safetensors"
    assert (cut / name).read_bytes() == (whole / name).read_bytes()
    with pytest.raises(InputError, match="the run began with quantize = 8, this one says 4"):
        finetune(make(out="cut", **{**settings, "quantize": 4}), resume=True, console=Recorder())


def test_mistakes(make, forms):
    for changes, words in (
        ({"model": str(forms / "packed")}, "packed weights cannot be trained; an adapter on them can"),
        (
            {"model": str(forms / "packed"), "quantize": 8, "adapter": LORA},
            "packed already; leave --quantize",
        ),
        ({"quantize": 4}, "give adapter.rank"),
        ({"quantize": 3, "adapter": LORA}, "quantize"),
    ):
        with pytest.raises(InputError, match=words):
            finetune(make(out="none", **changes), console=Recorder())


def test_an_adapter_upon_packed_weights_moves_with_them(base):
    """To another device, or precision: of the packed matrices only the place changes."""
    model, _ = open_path(base)
    quantize(model, Recipe.of(4))
    attach(model, AdapterConfig(rank=4))
    model.to(torch.float64)
    assert {p.dtype for n, p in model.named_parameters() if "lora" in n} == {torch.float64}
    layer = model.lm_head
    assert (layer.weight.dtype, layer.scale.dtype) == (torch.uint8, torch.bfloat16)
    model.to("meta")
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}
