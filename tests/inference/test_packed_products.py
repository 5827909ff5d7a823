"""Training upon packed weights: products and losses with the gradients of the dense weights they mean."""

import copy

import pytest
import torch

from stablelm.config import ModelConfig
from stablelm.inference import packed_products
from stablelm.inference.packed_products import Frozen, exact_product
from stablelm.inference.quantization import QuantizedLinear, Recipe, projections, quantize
from stablelm.kernels.cpu.expansion import expand
from stablelm.kernels.cpu.packing import dense, pack
from stablelm.kernels.cpu.rounding import round_groups
from stablelm.model import StableLM, bfloat16_products
from stablelm.training.dry_run import Alive
from stablelm.training.parallel.recomputation import apply_recomputation

CONFIG = ModelConfig(
    vocab_size=300, hidden_size=96, num_hidden_layers=3, num_attention_heads=4, intermediate_size=200,
    max_position_embeddings=64, use_qkv_bias=True,
)  # fmt: skip


def packed_of(rows, columns, bits, group=32):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows + bits))
    return pack(*round_groups(weight, bits, group), bits, group)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_are_those_of_the_twin_to_the_bit(bits, dtype):
    packed = packed_of(75, 200, bits)
    whole = torch.nn.functional.pad(dense(packed, dtype), (0, 24, 0, 21))
    for tiles, groups in ((range(6), range(7)), (range(1, 4), range(2, 5)), (range(4, 6), range(6, 7))):
        got = expand(packed, tiles, groups, dtype)
        wanted = whole[16 * tiles.start : 16 * tiles.stop, 32 * groups.start : 32 * groups.stop]
        assert got.dtype == dtype and torch.equal(got, wanted)
        if dtype == torch.bfloat16:
            got = expand(packed, tiles, groups, torch.float32, rounded=True, room=torch.full((30_000,), 9.0))
            assert torch.equal(got, wanted.float())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("piece", [1, 1 << 12, 1 << 22])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_product_and_its_gradient_are_the_dense_ones(bits, piece, dtype, monkeypatch):
    monkeypatch.setattr(packed_products, "PIECE", piece)
    packed = packed_of(75, 200, bits)
    ours, theirs = (torch.randn(9, 200, dtype=dtype).requires_grad_() for _ in range(2))
    theirs.data.copy_(ours.data)
    upstream = torch.randn(9, 75, dtype=dtype)
    y, wanted = exact_product(packed, ours), theirs @ dense(packed, dtype).T
    y.backward(upstream)
    wanted.backward(upstream)
    close = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 8e-3}[dtype]
    assert (y - wanted).norm() <= close * wanted.norm()
    assert (ours.grad - theirs.grad).norm() <= close * theirs.grad.norm()


def test_the_gradient_passes_gradcheck():
    packed = packed_of(33, 40, 4)
    x = torch.randn(3, 40, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda value: exact_product(packed, value), (x,))


@pytest.mark.parametrize("bits", [4, 8])
def test_the_operator_of_a_gpu_is_the_same_product(bits):
    """On a GPU compiled blocks hold it whole; PyTorch's own checks of an operator, and its numbers."""
    packed, x = packed_of(75, 200, bits), torch.randn(9, 200).requires_grad_()
    given = (packed.weight, packed.scale, bits, packed.group, 75, 200)
    torch.library.opcheck(packed_products._times, (x, *given))
    along = torch.randn(9, 75)
    found, wanted = packed_products._times(x, *given), exact_product(packed, x)
    assert torch.equal(found, wanted)
    gradients = (torch.autograd.grad(y, x, along)[0] for y in (found, wanted))
    assert torch.equal(*gradients)

    def between(x):
        return packed_products._times(x.sin(), *given).cos()

    compiled = torch.compile(between, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), between(x))


def test_without_numba_the_same_numbers(monkeypatch):
    packed, x = packed_of(75, 200, 4), torch.randn(5, 200)
    upstream = torch.randn(5, 75)

    def both(dtype, widened):
        monkeypatch.setattr(bfloat16_products, "WIDENED", widened)
        given = x.detach().clone().to(dtype).requires_grad_()
        y = exact_product(packed, given)
        y.backward(upstream.to(dtype))
        return y.detach().float(), given.grad.float()

    cases = [(torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)]
    fast = [both(*case) for case in cases]
    monkeypatch.setitem(__import__("sys").modules, "stablelm.kernels.cpu.expansion", None)
    for case, wanted in zip(cases, fast, strict=True):
        close = 1e-6 if case[0] == torch.float32 else 4e-3  # sums in another order, then rounded
        torch.testing.assert_close(both(*case), wanted, atol=close * 30, rtol=close)


@pytest.fixture(scope="module")
def twins():
    """A model with packed weights, and one with the dense weights that these mean."""
    packed = StableLM(CONFIG, seed=3)
    plain = copy.deepcopy(packed)
    quantize(packed, Recipe.of(4, 32))
    with torch.no_grad():
        for name, layer in projections(plain):
            layer.weight.copy_(dense(packed.get_submodule(name).packed))
    return packed, plain


def learnt(model, smoothing=0.0, recompute="none"):
    """Loss and gradients of all that both models have dense: embedding, norms, biases of no projection."""
    model = copy.deepcopy(model)
    apply_recomputation(model, recompute)
    model.lm_head.smoothing, model.lm_head.chunk = smoothing, 16
    ids = torch.randint(0, 300, (2, 41), generator=torch.Generator().manual_seed(0))
    labels = ids[:, 1:].clone()
    labels[0, :5] = -1
    loss = model(ids[:, :-1], labels=labels)
    loss.backward()
    own = {n: p.grad for n, p in model.named_parameters() if "norm" in n or "embed" in n}
    return loss.detach(), own


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_model_learns_what_its_dense_twin_learns(twins, smoothing):
    loss, gradients = learnt(twins[0], smoothing)
    wanted, theirs = learnt(twins[1], smoothing)
    assert loss == pytest.approx(float(wanted), rel=1e-6)
    assert gradients.keys() == theirs.keys() and len(gradients) == 2 * (2 * 3 + 1) + 1
    for name, gradient in gradients.items():
        assert (gradient - theirs[name]).norm() <= 1e-5 * theirs[name].norm(), name


@pytest.mark.parametrize("recompute", ["full", "selective", 2])
def test_recomputation_changes_no_bit(twins, recompute):
    loss, gradients = learnt(twins[0])
    again, repeated = learnt(twins[0], recompute=recompute)
    assert torch.equal(loss, again)
    assert all(torch.equal(gradients[name], repeated[name]) for name in gradients)


def test_exact_also_where_nothing_is_learnt(twins):
    """A layer marked so measures by the arithmetic of training; by default the fast one is used."""
    model = copy.deepcopy(twins[0])
    ids = torch.randint(0, 300, (1, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        fast, wanted = model(ids), twins[1](ids)
        for layer in model.modules():
            if isinstance(layer, QuantizedLinear):
                layer.exact = True
        exact, loss = model(ids), model(ids[:, :-1], labels=ids[:, 1:])
        assert loss == pytest.approx(float(twins[1](ids[:, :-1], labels=ids[:, 1:])), rel=1e-6)
    assert (exact - wanted).norm() <= 1e-5 * wanted.norm() < (fast - wanted).norm()


def test_no_more_than_one_matrix_is_dense(monkeypatch):
    """Counted storages of a step over 24 layers: packed weights, activations, and less than one matrix."""
    monkeypatch.setattr(packed_products, "PIECE", 1 << 14)
    config = CONFIG.model_copy(update={"num_hidden_layers": 24, "intermediate_size": 512})
    model = StableLM(config, seed=3).requires_grad_(False)
    quantize(model, Recipe.of(4, 32))
    apply_recomputation(model, "full")
    first = model.model.layers[0].input_layernorm.weight.requires_grad_()
    alive = Alive()
    held = sum(alive.see(tensor) for tensor in model.state_dict().values())
    ids = torch.randint(0, 300, (1, 9))
    with alive:
        model(ids[:, :-1], labels=ids[:, 1:]).backward()
    dense_matrix, tokens = 4 * 96 * 512, 8
    activations = 4 * tokens * (24 * 96 + 12 * 96 + 6 * 512 + 2 * 300)
    assert first.grad is not None
    assert alive.peak - held < activations + dense_matrix
    assert 24 * 7 * dense_matrix > 50 * (alive.peak - held)


def test_a_packed_matrix_as_the_factor_of_a_loss():
    packed, frozen = packed_of(64, 96, 8), Frozen(packed_of(64, 96, 8))
    x, out = torch.randn(4, 96), torch.empty(4, 64)
    frozen.times(x, out)
    assert torch.allclose(out, x @ dense(packed).T, rtol=1e-5, atol=1e-5)
    back = torch.empty(4, 96)
    frozen.back(out, back)
    assert torch.allclose(back, out @ dense(packed), rtol=1e-5, atol=1e-4)
