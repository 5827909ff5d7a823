"""Fine-tuning on a GPU: packed matrices beside their twin, and runs beside the same runs on a CPU.

Skipped where there is none. Needs nothing but the package and its core dependencies (docs/gpu.md)."""

import copy

import pytest
import torch

from stablelm import load
from stablelm.finetuning import finetune
from stablelm.finetuning.tuner import Tuner, prepare
from stablelm.inference.packed_products import Frozen, exact_product
from stablelm.inference.quantization import Recipe, compute_exactly, is_packed, kernels_in_use, quantize
from stablelm.interchange import open_path
from stablelm.interchange.weights import read_header, read_tensor
from stablelm.kernels.cpu.packing import Packed, dense, pack
from stablelm.kernels.cpu.rounding import round_groups
from stablelm.training.console import SilentConsole
from stablelm.training.metrics import read_metrics
from tests.finetuning.conftest import base, make  # noqa: F401

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


def packed_of(rows, columns, bits, group=64):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows + bits))
    packed = pack(*round_groups(weight, bits, group), bits, group)
    return Packed(bits, group, rows, columns, packed.weight.cuda(), packed.scale.cuda())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("rows", "columns"), [(75, 200), (2560, 6912), (6912, 2560), (50_304, 1000)])
def test_packed_matrices_made_dense_to_the_bit(bits, rows, columns):
    from stablelm.kernels.gpu.expansion import expand

    packed = packed_of(rows, columns, bits)
    tiles, groups = range(len(packed.weight)), range(packed.scale.shape[1])
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(expand(packed, tiles, groups, dtype), dense(packed, dtype))
    part = expand(packed, range(1, 3), range(1, 3), torch.bfloat16)
    assert torch.equal(part, dense(packed, torch.bfloat16)[16:48, 64:192])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)]
)
def test_their_products_and_gradients(bits, dtype, bound):
    packed = packed_of(50_304, 640, bits)  # in two pieces
    whole = dense(packed).double()
    x = torch.randn(130, 640, device="cuda", dtype=dtype).requires_grad_()
    along = torch.randn(130, 50_304, device="cuda", dtype=dtype)
    y = exact_product(packed, x)
    found = torch.autograd.grad(y, x, along)[0]
    for a, b in ((y.detach(), x.detach().double() @ whole.T), (found, along.double() @ whole)):
        assert a.dtype == dtype and float((a.double() - b).norm() / b.norm()) < bound
    out = torch.empty_like(y)
    Frozen(packed).times(x.detach(), out)
    assert torch.equal(out, y)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_packed_model_computes_what_it_does_on_a_cpu(base, bits):  # noqa: F811
    model, _ = open_path(base)
    quantize(model, Recipe.of(bits))
    there = copy.deepcopy(model).cuda()
    compute_exactly(model)
    ids = torch.arange(300).view(3, 100) % 384
    with torch.no_grad():
        found, wanted = there(ids.cuda()).cpu(), model(ids)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-4


@pytest.mark.parametrize("bits", [4, 8])
def test_a_model_is_rounded_first_and_moved_then(base, bits):  # noqa: F811
    """Greedy text of a packed model: each token is the likeliest after the ones before it."""
    model, tokenizer = load(base, quantize=bits, device="cuda")
    assert is_packed(model) and model.lm_head.weight.is_cuda
    ids = torch.tensor([[5, 6, 7], [30, 2, 9]])
    written = model.generate(ids.cuda(), max_new_tokens=20, eos_token_id=[])
    assert written.shape == (2, 23)
    with torch.no_grad():
        logits = model(written[:, :-1])[:, 2:, : tokenizer.size]
    chosen = logits.gather(2, written[:, 3:, None])[..., 0]
    assert float((logits.amax(2) - chosen).max()) < 1e-4
    assert "a piece of a matrix dense" in kernels_in_use(model.device)


def losses(run):
    return [record["loss"] for record in read_metrics(run) if "kind" not in record]


def adapter_of(run):
    file = run / "adapter" / "adapter_model.safetensors"
    return {name: read_tensor(name, stored) for name, stored in read_header(file).items()}


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("bits", [None, 4, 8])
def test_an_adapter_learns_what_it_learns_on_a_cpu(make, method, bits):  # noqa: F811
    runs = [
        finetune(make(out=name, device=device, quantize=bits, steps=6, adapter={"rank": 4, "method": method}),
                 console=SilentConsole()) for name, device in (("first", "cpu"), ("second", "cuda"))
    ]  # fmt: skip
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), abs=1e-4)
    assert losses(runs[0])[-1] < losses(runs[0])[0] - 0.1
    ours, theirs = adapter_of(runs[1]), adapter_of(runs[0])
    assert ours.keys() == theirs.keys() and len(ours) >= 28
    for name, tensor in ours.items():  # Adam magnifies the rounding of a gradient that is nearly zero
        assert float((tensor - theirs[name]).norm()) <= 5e-3 * float(theirs[name].norm()), name


@pytest.mark.parametrize(("bits", "dropout"), [(None, 0.0), (4, 0.0), (None, 0.1)])
def test_compiling_and_recomputing_change_no_loss(make, bits, dropout):  # noqa: F811
    found = {}
    torch._dynamo.reset()
    for name, change in {"eager": {"compile": False}, "compiled": {}, "full": {"recompute": "full"},
                         "selective": {"recompute": "selective"}}.items():  # fmt: skip
        adapter = {"rank": 4, "dropout": dropout}
        config = make(out=name, device="cuda", precision="bf16", quantize=bits, adapter=adapter, **change)
        model, data = prepare(config)
        tuner = Tuner(data, config, config.run(model), SilentConsole())
        found[name] = [tuner.train_step()["loss"] for _ in range(4)]
    for name, values in found.items():
        assert values == pytest.approx(found["eager"], rel=5e-3), (name, found)


def test_a_compiled_block_holds_its_packed_products_whole(make):  # noqa: F811
    """No graph ends at one."""
    config = make(device="cuda", precision="bf16", quantize=4, adapter={"rank": 4})
    model, data = prepare(config)
    tuner = Tuner(data, config, config.run(model), SilentConsole())
    torch._dynamo.utils.counters.clear()
    tuner.train_step()
    broken = torch._dynamo.utils.counters["graph_break"]
    assert not [why for why in broken if "packed" in str(why) or "_uncompiled" in str(why)], broken


def test_preferences_are_learnt_as_on_a_cpu(make):  # noqa: F811
    pairs = [
        {"prompt": f"Number {n}: ", "chosen": "A short answer.", "rejected": "No, never, not at all."}
        for n in range(24)
    ]
    found = []
    for name, device in (("first", "cpu"), ("second", "cuda")):
        config = make(
            pairs, out=name, device=device, steps=5, adapter={"rank": 4}, preference={"loss": "dpo"}
        )
        found.append(losses(finetune(config, console=SilentConsole())))
    assert found[1] == pytest.approx(found[0], abs=1e-4)
