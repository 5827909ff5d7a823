"""The chunked cross-entropy against PyTorch's, loss and gradients."""

import pytest
import torch
from torch.nn import functional

from stablelm.model.head import Head, softmax_gradient


def case(dtype, tokens=53, hidden=24, words=61):
    generator = torch.Generator().manual_seed(tokens)
    head = Head(hidden, words).to(dtype)
    with torch.no_grad():
        head.weight.normal_(generator=generator)
    states = (
        torch.randn(1, tokens, hidden, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    )
    labels = torch.randint(0, words, (1, tokens), generator=generator)
    labels[0, ::5] = -100
    labels[0, 3] = -1
    return head, states, labels


@pytest.mark.parametrize(("chunk", "smoothing"), [(1, 0), (7, 0), (7, 0.1), (53, 0), (1000, 0), (1000, 0.3)])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_loss_and_gradients_equal_the_plain_loss(chunk, smoothing, dtype, bound):
    head, states, labels = case(dtype)
    head.chunk, head.smoothing = chunk, smoothing
    (head(states, labels) / 7).backward()
    ours = [states.grad.clone(), head.weight.grad.clone()]
    states.grad = head.weight.grad = None
    expected = functional.cross_entropy(
        head(states).flatten(0, 1),
        labels.flatten().clamp(min=-1),
        ignore_index=-1,
        reduction="sum",
        label_smoothing=smoothing,
    )
    (expected / 7).backward()
    torch.testing.assert_close(head(states, labels), expected, atol=bound * 100, rtol=bound)
    torch.testing.assert_close(ours, [states.grad, head.weight.grad], atol=bound, rtol=bound)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_the_softmax_of_a_gpu_gives_the_same(chunk, dtype, bound):
    head, states, labels = case(dtype)
    found = {}
    for fused in (None, softmax_gradient):
        head.chunk, head.fused = chunk, fused
        states.grad = head.weight.grad = None
        loss = head(states, labels)
        (loss / 7).backward()
        found[fused is None] = [loss.detach(), states.grad.clone(), head.weight.grad.clone()]
    torch.testing.assert_close(found[True], found[False], atol=bound, rtol=bound)


@pytest.mark.parametrize("chunk", [7, 1000])
@pytest.mark.parametrize(("smoothing", "fused"), [(0, None), (0.2, None), (0, softmax_gradient)])
def test_the_z_loss_and_its_gradient_are_those_of_autograd(chunk, smoothing, fused):
    head, states, labels = case(torch.float64)
    head.chunk, head.smoothing, head.z_loss, head.fused = chunk, smoothing, 0.03, fused
    head.told = torch.full((2, labels.numel()), torch.nan, dtype=torch.float64)
    loss = head(states, labels)
    (loss / 7).backward()
    ours, states.grad = [states.grad.clone(), head.weight.grad.clone()], None
    head.weight.grad = None
    logits, flat = head(states).flatten(0, 1), labels.flatten()
    each = functional.cross_entropy(
        logits, flat.clamp(min=-1), ignore_index=-1, reduction="none", label_smoothing=smoothing
    )
    log_z = logits.logsumexp(-1) * (flat >= 0)
    expected = each.sum() + 0.03 * log_z.square().sum()
    (expected / 7).backward()
    assert 0.03 * log_z.square().sum() > 1  # so a term left out would show
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(ours, [states.grad, head.weight.grad], atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(head.told, torch.stack([each, log_z]).detach(), atol=1e-12, rtol=1e-12)


def test_what_each_label_costs_is_told_without_changing_the_loss():
    head, states, labels = case(torch.float32)
    plain = head(states, labels)
    head.told = torch.empty(2, labels.numel())
    assert torch.equal(head(states, labels), plain)
    assert head.told[0].sum().item() == pytest.approx(plain.item(), rel=1e-6)
    assert (head.told[:, labels[0] < 0] == 0).all()


def test_every_label_ignored_gives_zero_loss_and_gradient():
    head, states, labels = case(torch.float32)
    loss = head(states, torch.full_like(labels, -100))
    loss.backward()
    assert loss.item() == 0 and states.grad.abs().max() == 0 and head.weight.grad.abs().max() == 0


def test_without_gradients_only_the_loss_is_made():
    head, states, labels = case(torch.float32)
    with torch.no_grad():
        quiet = head(states, labels)
    assert not quiet.requires_grad and torch.equal(quiet, head(states, labels).detach())
    head.weight.requires_grad_(False)
    head(states, labels).backward()
    assert head.weight.grad is None and states.grad.abs().max() > 0


def test_bf16_states_give_a_float32_loss_close_to_exact():
    head, states, labels = case(torch.float32)
    exact = head(states, labels)
    rough = head(states.to(torch.bfloat16), labels)
    assert rough.dtype == torch.float32
    assert abs(rough - exact) < 0.01 * exact
