"""On a GPU: kernels beside their twins, the network beside itself on a CPU, runs that resume to the bit.

Skipped where there is none. Needs nothing but the package and its core dependencies (docs/gpu.md)."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from stablelm.config import ModelConfig
from stablelm.inference.generation import generate_ids
from stablelm.model import StableLM
from stablelm.model.feedforward import swiglu as plain_swiglu
from stablelm.model.head import softmax_gradient
from stablelm.model.normalization import LayerNorm
from stablelm.model.rotary import Rotary
from stablelm.training import Trainer, train
from stablelm.training.console import SilentConsole
from stablelm.training.metrics import read_metrics
from tests.training.conftest import dataset_path, make_config  # noqa: F401

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")

NETWORK = ModelConfig(
    vocab_size=384, hidden_size=320, intermediate_size=864, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=4, max_position_embeddings=256,
)  # fmt: skip
PRECISIONS = [(torch.float32, 2e-5), (torch.bfloat16, 2e-2)]


def leaf(*shape, dtype):
    return torch.randn(*shape, device="cuda", dtype=dtype).requires_grad_()


def apart(found, exact):
    """‖found − exact‖ / ‖exact‖; not a number counts as infinitely far."""
    far = (found.double() - exact).norm() / exact.norm()
    return float(far.nan_to_num(torch.inf))


def check(ours, twin, inputs, bound):
    """Outputs and gradients of a kernel beside its twin's in float64."""
    exact_inputs = [x.detach().double().requires_grad_() for x in inputs]
    outputs, exact = (
        [x] if isinstance(x, torch.Tensor) else list(x) for x in (ours(*inputs), twin(*exact_inputs))
    )
    along = [torch.randn_like(x) for x in outputs]
    found = torch.autograd.grad(outputs, inputs, along)
    wanted = torch.autograd.grad(exact, exact_inputs, [x.double() for x in along])
    for a, b in zip((*outputs, *found), (*exact, *wanted), strict=True):
        assert apart(a, b) < bound


@pytest.mark.parametrize(("dtype", "bound"), PRECISIONS)
@pytest.mark.parametrize("rows", [1, 300, 4096])
def test_kernels(dtype, bound, rows):
    from stablelm.kernels.gpu import norm, rotary, swiglu

    torch.manual_seed(rows)
    check(swiglu.swiglu, plain_swiglu, [leaf(rows, 6912, dtype=dtype) for _ in range(2)], bound)
    turn = Rotary(torch.arange(rows, device="cuda"), 20, 10_000.0)
    cos, sin = turn.cos.to(dtype), turn.sin.to(dtype)
    x = torch.randn(2, rows, 32, 80, device="cuda", dtype=dtype).transpose(1, 2).requires_grad_()
    check(lambda x: rotary.rotate(x, cos, sin),
          lambda x: turn.turn(x, cos.double(), sin.double()), [x], bound)  # fmt: skip
    layer = LayerNorm(2560, 1e-5).cuda().double()
    torch.nn.init.normal_(layer.weight)
    inputs = [leaf(rows, 2560, dtype=dtype), leaf(rows, 2560, dtype=dtype)]
    weight, bias = (x.detach().to(dtype).requires_grad_() for x in (layer.weight, layer.bias))

    def twin(x, delta, w, b):
        total = x + delta
        return total, torch.nn.functional.layer_norm(total, (2560,), w, b, 1e-5)

    check(lambda *given: norm.add_norm(*given, 1e-5), twin, [*inputs, weight, bias], bound)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_softmax_of_the_loss(compiled):
    logits = torch.randn(130, 50_304, device="cuda") * 3
    label, counted = (
        torch.randint(0, 50_304, (130, 1), device="cuda"),
        torch.arange(130, device="cuda") % 7 > 0,
    )
    exact = logits.double().requires_grad_()
    wanted = torch.nn.functional.cross_entropy(exact, label[:, 0], reduction="none")[counted].sum()
    wanted.backward()
    function = torch.compile(softmax_gradient) if compiled else softmax_gradient
    for dtype, bound in PRECISIONS:
        gradient = logits.to(dtype, copy=True)
        assert float(function(gradient, label, counted, 0.0)[0].sum()) == pytest.approx(
            float(wanted), rel=bound
        )
        assert apart(gradient, exact.grad) < bound


@pytest.mark.parametrize("attention", [None, "eager"])
def test_logits_and_gradients_are_those_of_a_cpu(attention):
    ids = torch.randint(0, 384, (2, 201), generator=torch.Generator().manual_seed(0))
    documents = torch.cumsum(ids[:, :-1] % 50 == 0, 1)
    found = {}
    for place in ("cpu", "cuda"):
        model = StableLM(NETWORK, seed=5).to(place)
        model.use_attention(attention)
        x = ids.to(place)
        model(x[:, :-1], labels=x[:, 1:], document_ids=documents.to(place)).backward()
        found[place] = [model(x).detach().cpu(), *(p.grad.cpu() for p in model.parameters())]
    for a, b in zip(found["cuda"], found["cpu"], strict=True):
        assert apart(a, b.double()) < 1e-4


def test_the_same_text_as_on_a_cpu():
    texts = []
    for place in ("cpu", "cuda"):
        ids = torch.tensor([[9, 8, 1, 2, 3], [7, 7, 7, 7, 7]])
        padding = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
        model = StableLM(NETWORK, seed=5).to(place)
        texts.append(generate_ids(model, ids, padding, max_new_tokens=30).tolist())
    assert texts[0] == texts[1]


def test_long_sequences_add_gradients_in_any_order():
    """What docs/gpu.md says: forward passes repeat to the bit, gradients through attention to rounding."""
    model = StableLM(NETWORK, seed=5).cuda()
    model.compute_dtype = torch.bfloat16
    ids = torch.randint(0, 384, (2, 4097), device="cuda")
    found = []
    for _ in range(3):
        model.zero_grad()
        loss = model(ids[:, :-1], labels=ids[:, 1:])
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    for again in found[1:]:
        assert torch.equal(found[0][0], again[0])
        for (name, _), a, b in zip(model.named_parameters(), found[0][1:], again[1:], strict=True):
            assert apart(a, b.double()) < 2e-2, name


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
def test_products_in_8_bits(make_config, recipe):  # noqa: F811
    pytest.importorskip("torchao")
    found = {}
    for fp8 in (None, recipe):
        trainer = Trainer(make_config(str(fp8), device="cuda", precision="bf16", fp8=fp8), SilentConsole())
        found[fp8] = [trainer.train_step()["loss"] for _ in range(6)]
    assert found[recipe] != found[None]
    assert found[recipe] == pytest.approx(found[None], rel=2e-2)


def losses(run):
    return [(r["step"], r["loss"], r["grad_norm"]) for r in read_metrics(Path(run)) if "kind" not in r]


@pytest.mark.parametrize("kernels", ["pytorch", "triton"])
def test_a_run_resumes_to_the_bit(make_config, kernels):  # noqa: F811
    """In bf16, compiled, at a length that attention does not share out."""
    make = partial(make_config, device="cuda", precision="bf16", kernels=kernels)
    whole, again = (losses(train(make(name), console=SilentConsole())) for name in ("whole", "again"))
    assert whole == again

    class Stopped(Exception):
        pass

    class Stop(SilentConsole):
        def step(self, record, eta_seconds, line):
            if record["step"] == 5:
                raise Stopped

    with pytest.raises(Stopped):
        train(make("cut"), console=Stop())
    assert losses(train(make("cut"), resume=True, console=SilentConsole())) == whole


def test_kernels_and_recomputation_do_not_change_the_losses(make_config):  # noqa: F811
    found = {}
    for name, change in {"none": {}, "full": {"recompute": "full"}, "selective": {"recompute": "selective"},
                         "triton": {"kernels": "triton"}, "eager": {"compile": False}}.items():  # fmt: skip
        trainer = Trainer(make_config(name, device="cuda", precision="bf16", **change), SilentConsole())
        found[name] = [trainer.train_step()["loss"] for _ in range(4)]
    for name, values in found.items():
        assert values == pytest.approx(found["none"], rel=2e-3), (name, found)


@pytest.mark.parametrize("zero", [1, 3])
def test_a_mesh_of_one_gpu_under_torchrun(make_config, tmp_path, zero):  # noqa: F811
    alone = losses(train(make_config("alone", device="cuda", precision="fp32"), console=SilentConsole()))
    config = make_config("mesh", device="cuda", precision="fp32", parallel={"zero": zero})
    (tmp_path / "run.json").write_text(config.model_dump_json())
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m",
         "stablelm", "train", str(tmp_path / "run.json")],
        env={**os.environ, "OMP_NUM_THREADS": "2"}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for ours, theirs in zip(losses(config.out), alone, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
