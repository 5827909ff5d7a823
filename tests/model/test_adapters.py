"""Adapters against the dense weight that they stand for, switched, merged, on every kind of layer."""

import pytest
import torch
from torch.nn import functional

from stablelm.config import InputError, ModelConfig
from stablelm.config.adapter import AdapterConfig
from stablelm.inference.cpu_runner import why_not
from stablelm.inference.prefix import identity
from stablelm.inference.quantization import Recipe, quantize
from stablelm.interchange import save_pretrained
from stablelm.interchange.gguf import save_gguf
from stablelm.interchange.neox_writing import save_neox
from stablelm.model import StableLM, adapters
from stablelm.model.fingerprint import weights_hash

CONFIG = ModelConfig(
    vocab_size=128, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96,
    max_position_embeddings=64, use_qkv_bias=True,
)  # fmt: skip
IDS = torch.arange(2 * 20).view(2, 20) * 7 % 128
LABELS = IDS.roll(-1, 1).masked_fill(IDS % 5 == 0, -1)
METHODS = ("lora", "rslora", "dora", "rsdora")


def network(dtype=torch.float64):
    torch.manual_seed(0)
    model = StableLM(CONFIG, seed=1).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
    return model


def disturbed(model, name="default"):
    """The adapter as if trained: nothing of it is what it starts from."""
    torch.manual_seed(3)
    for part in adapters.parts_of(model, name).values():
        part.double() if model.dtype == torch.float64 else part
        with torch.no_grad():
            for parameter in part.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def config(method="lora", **changes):
    return AdapterConfig(method=method, **{"rank": 4, "alpha": 6, **changes})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "lm_head"]])
def test_output_and_gradients_are_those_of_the_dense_weight(method, targets):
    """W + s B A (rows stretched to m / ‖·‖, whose length is a constant) in place of W, by autograd."""
    model = network()
    chosen = adapters.attach(model, config(method, targets=targets))
    disturbed(model)
    parts = adapters.parts_of(model, "default")
    assert list(parts) == chosen and len(chosen) == (14 if targets == "all-linear" else 3)
    plain = network()
    dense, leaves = {}, {}
    for place, part in parts.items():
        a, b = (p.detach().clone().requires_grad_() for p in (part.lora_A, part.lora_B))
        scale = 6 / (2 if method.startswith("rs") else 4)
        whole = plain.get_submodule(place).weight.detach() + scale * b @ a
        leaves[place] = [a, b]
        if "dora" in method:
            m = part.lora_magnitude_vector.detach().clone().requires_grad_()
            whole = (m / whole.detach().norm(dim=1))[:, None] * whole
            leaves[place].append(m)
        dense[f"{place}.weight"] = whole
    wanted = torch.func.functional_call(plain, dense, (IDS,))
    torch.testing.assert_close(model(IDS), wanted, atol=1e-12, rtol=1e-10)
    for smoothing in (0.0, 0.1):
        model.lm_head.smoothing, model.lm_head.chunk = smoothing, 7
        loss = model(IDS, labels=LABELS)
        reference = functional.cross_entropy(
            wanted.flatten(0, 1),
            LABELS.flatten(),
            ignore_index=-1,
            reduction="sum",
            label_smoothing=smoothing,
        )
        torch.testing.assert_close(loss, reference, atol=1e-10, rtol=1e-10)
        model.zero_grad()
        loss.backward()
        found = torch.autograd.grad(reference, [x for xs in leaves.values() for x in xs], retain_graph=True)
        trained = [p for part in parts.values() for p in part.parameters()]
        assert len(found) == len(trained)
        for parameter, gradient in zip(trained, found, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, atol=1e-9, rtol=1e-8)
    # Log-probabilities of some tokens, as preference tuning weighs them.
    places = (LABELS.flatten() >= 0).nonzero().squeeze(1)
    ids = LABELS.flatten()[places]
    told = model(IDS, labels=ids, places=places)
    nats = wanted.flatten(0, 1)[places].log_softmax(-1)
    assert torch.equal(told[2].bool(), nats.argmax(-1) == ids)
    sums = [
        x.gather(1, ids[:, None]).square().sum() if x is nats else x[0].square().sum() for x in (nats, told)
    ]
    gradients = (
        torch.autograd.grad(value, of, retain_graph=True)
        for value, of in zip(sums, ([x for xs in leaves.values() for x in xs], trained), strict=True)
    )
    for gradient, found_one in zip(*gradients, strict=True):
        torch.testing.assert_close(found_one, gradient, atol=1e-9, rtol=1e-8)
    assert all(p.grad is None for name, p in model.named_parameters() if ".adapters." not in name)


def test_a_fresh_adapter_changes_nothing_and_keeps_every_name():
    for method in METHODS:
        model, plain = network(torch.float32), network(torch.float32)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        adapters.attach(model, config(method, targets=["o_proj", "down_proj", "lm_head"]), seed=5)
        torch.testing.assert_close(model(IDS), plain(IDS), atol=1e-5, rtol=1e-5)
        after = model.state_dict()
        assert {name for name in after if ".adapters." not in name} == before.keys()
        assert all(torch.equal(after[name], value) for name, value in before.items())
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        assert trained == after.keys() - before.keys()
        part = adapters.parts_of(model, "default")["lm_head"]
        assert part.lora_A.abs().max() <= 1 / 8 and part.lora_A.std() > 0.05 and not part.lora_B.any()
    again = network(torch.float32)
    adapters.attach(again, config("rsdora", targets=["lm_head"]), seed=5)
    assert torch.equal(adapters.parts_of(again, "default")["lm_head"].lora_A, part.lora_A), "by name and seed"


def test_several_adapters_are_switched_without_a_trace():
    model, base = network(), network()(IDS)
    adapters.attach(model, config("dora", targets=["q_proj", "v_proj"]), "one")
    disturbed(model, "one")
    one = model(IDS)
    adapters.attach(model, config(targets=["up_proj"], rank=2), "two")
    disturbed(model, "two")
    two = model(IDS)
    assert adapters.names_of(model) == ["one", "two"] and adapters.active(model) == "two"
    assert {n.split(".adapters.")[1][:3] for n, p in model.named_parameters() if p.requires_grad} == {"two"}
    with adapters.switched_off(model):
        assert torch.equal(model(IDS), base) and adapters.active(model) is None
        with adapters.using(model, "one"):
            assert torch.equal(model(IDS), one)
        assert torch.equal(model(IDS), base)
    assert torch.equal(model(IDS), two)
    with pytest.raises(RuntimeError), adapters.using(model, "one"):
        raise RuntimeError
    assert adapters.active(model) == "two"
    adapters.use(model, None)
    assert torch.equal(model(IDS), base)
    adapters.use(model, "one")
    assert torch.equal(model(IDS), one)
    adapters.detach(model, "two")
    assert type(model.model.layers[0].mlp.up_proj).__name__ == "Linear"
    assert torch.equal(model(IDS), one)
    adapters.detach(model, "one")
    assert not adapters.carriers(model) and torch.equal(model(IDS), base)
    with pytest.raises(InputError, match="carries no such adapter, but none"):
        adapters.use(model, "one")


@pytest.mark.parametrize("method", METHODS)
def test_merged_is_the_same_model_without_the_adapter(method):
    model = network()
    adapters.attach(model, config(method, targets=["q_proj", "gate_proj", "lm_head"]))
    wanted = disturbed(model)(IDS)
    names = network().state_dict().keys()
    adapters.merge(model, "default")
    torch.testing.assert_close(model(IDS), wanted, atol=1e-12, rtol=1e-10)
    assert model.state_dict().keys() == names
    assert {type(module).__name__ for module in adapters.linear_layers(model).values()} == {"Linear", "Head"}


def test_lengths_follow_another_base_weight():
    model, other = network(), network()
    adapters.attach(model, config("dora", targets=["q_proj"]))
    disturbed(model)(IDS)
    state = {n: v * 1.5 if n.endswith("q_proj.weight") else v for n, v in model.state_dict().items()}
    model.load_state_dict(state)
    adapters.attach(other, config("dora", targets=["q_proj"]))
    disturbed(other).load_state_dict(state)
    assert torch.equal(model(IDS), other(IDS))


@pytest.mark.parametrize("method", ["lora", "dora"])
@torch.no_grad()
def test_packed_weights_carry_adapters(method):
    """On 8 bits as on the matrix that they stand for, but for the rounding of what enters."""
    model = network(torch.float32)
    quantize(model, Recipe.of(8, 32))
    before = model(IDS)
    adapters.attach(model, config(method, targets=["q_proj", "down_proj", "lm_head"]))
    torch.testing.assert_close(model(IDS), before, atol=1e-5, rtol=1e-5)
    disturbed(model)
    changed = model(IDS) - before
    assert changed.abs().max() > 0.05
    assert why_not(model) == "the adapter 'default' is in use", "the kernels would not see it"
    dense = network(torch.float32)
    adapters.attach(dense, config(method, targets=["q_proj", "down_proj", "lm_head"]))
    unpacked = dense(IDS)
    for place, part in adapters.parts_of(dense, "default").items():
        for mine, theirs in zip(
            part.parameters(), adapters.parts_of(model, "default")[place].parameters(), strict=True
        ):
            mine.copy_(theirs)
    wanted = dense(IDS) - unpacked
    assert (changed - wanted).abs().max() < 0.1 * wanted.abs().max()
    with pytest.raises(InputError, match="packed weights cannot hold an adapter"):
        adapters.merge(model, "default")
    with adapters.switched_off(model):
        assert torch.equal(model(IDS), before)


def test_which_matrices():
    names = list(adapters.linear_layers(network()))
    assert len(names) == 15

    def chosen(targets):
        return adapters.matched(AdapterConfig(targets=targets), names)

    assert chosen("all-linear") == names[:-1]
    assert chosen(["q_proj", "layers.1.self_attn.v_proj", "lm_head"]) == [
        "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj",
        "model.layers.1.self_attn.v_proj", "lm_head",
    ]  # fmt: skip
    assert chosen(r".*\.1\.mlp\..*") == [f"model.layers.1.mlp.{n}_proj" for n in ("gate", "up", "down")]
    for targets, message in (
        (
            ["q_proj", "query"],
            "'query' is no matrix of this model. This model has down_proj, gate_proj, k_proj",
        ),
        (["embed_tokens"], "'embed_tokens' is no matrix"),
        (["proj"], "'proj' is no matrix"),
        ("q_proj", "match the whole name of no matrix"),
        ("(", "not a regular expression"),
    ):
        with pytest.raises(InputError, match=message):
            chosen(targets)
    patterns = AdapterConfig(
        rank=8,
        rank_pattern={"layers.0.self_attn.q_proj": 2, r"layers\.\d+\.mlp.*": 3},
        alpha_pattern={"o_proj": 5},
    )
    assert [adapters.sizes(patterns, name) for name in (names[0], names[3], names[4], names[7])] == [
        (2, 32.0), (8, 5.0), (3, 32.0), (8, 32.0),
    ]  # fmt: skip


def test_what_cannot_be():
    model = network()
    with pytest.raises(InputError, match=r"rank 65: model\.layers\.0\.self_attn\.q_proj is \[64, 64\]"):
        adapters.attach(model, config(rank=65))
    with pytest.raises(InputError, match="adapter name 'a.b'"):
        adapters.attach(model, config(), "a.b")
    assert not adapters.carriers(model) and all(p.requires_grad for p in model.parameters()), "untouched"
    adapters.attach(model, config())
    with pytest.raises(InputError, match="'default': the model carries one of this name"):
        adapters.attach(model, config())
    adapters.attach(model, config(), "more")
    with pytest.raises(InputError, match="'more' was made for the unmerged model"):
        adapters.merge(model, "default")
    for changes, message in (
        ({"rank": 0}, "rank"), ({"alpha": 0}, "alpha"), ({"targets": []}, "name at least one"),
        ({"rank_pattern": {"q_proj": 0}}, "must be above 0"), ({"alpha_pattern": {"(": 1}}, "not a regular"),
        ({"method": "vera"}, "method"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            AdapterConfig(**changes)


def test_an_adapter_is_never_lost_in_silence(tmp_path):
    model = network(torch.float32)
    adapters.attach(model, config("lora"), "mine")
    before, kept = weights_hash(model), identity(model)
    for write in (
        lambda: save_pretrained(model, None, tmp_path / "out"),
        lambda: save_neox(model, None, tmp_path / "out"),
        lambda: save_gguf(model, None, tmp_path / "out.gguf"),
        lambda: quantize(model, Recipe.of(4)),
    ):
        with pytest.raises(InputError, match=r"carries an adapter \(mine\), which would be lost"):
            write()
    assert not list(tmp_path.iterdir())
    with adapters.switched_off(model):
        assert weights_hash(model) != before and identity(model) != kept
    assert weights_hash(model) == before


@pytest.mark.parametrize("targets", ["all-linear", ["lm_head"]])
@pytest.mark.parametrize("packed", [False, True])
def test_every_head_tells_what_each_label_costs(targets, packed):
    model = network(torch.float32)
    if packed:
        quantize(model, Recipe.of(8))
    adapters.attach(model, config(targets=targets))
    disturbed(model)
    model.lm_head.chunk, model.lm_head.told = 7, torch.zeros(2, LABELS.numel())
    loss = model(IDS, labels=LABELS)
    told, model.lm_head.told = model.lm_head.told, None
    with torch.no_grad():
        nats = -model(IDS).log_softmax(-1).flatten(0, 1).gather(1, LABELS.flatten().clamp(min=0)[:, None])
    torch.testing.assert_close(told[0].sum(), loss.detach())
    bound = 2e-2 if packed else 1e-5  # without a gradient packed products round what they read
    counted = LABELS.flatten() >= 0
    torch.testing.assert_close(told[0][counted], nats.squeeze(1)[counted], atol=bound, rtol=bound)
    assert not told[0][~counted].any()
