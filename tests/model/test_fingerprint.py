"""A fingerprint tells any change of a model's numbers: one word, two words exchanged, names and shapes."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from stablelm.model import fingerprint
from stablelm.model.fingerprint import ROW, digest

WORDS = 3 * ROW + 5


def words() -> torch.Tensor:
    return torch.randint(-(2**62), 2**62, (WORDS,), generator=torch.Generator().manual_seed(1))


@given(st.integers(0, WORDS - 1), st.integers(0, WORDS - 1), st.integers(0, 63))
def test_any_single_bit_and_any_exchange(first: int, second: int, bit: int) -> None:
    plain, changed, exchanged = words(), words(), words()
    changed[first] ^= 1 << bit if bit < 63 else -(2**63)
    assert digest({"x": plain}) == digest({"x": words()}) != digest({"x": changed})
    exchanged[[first, second]] = exchanged[[second, first]]
    assert (digest({"x": exchanged}) == digest({"x": plain})) == (first == second)


def test_names_shapes_precisions_and_places() -> None:
    plain = words()
    found = {
        digest({"x": plain}), digest({"y": plain}), digest({"x": plain[None]}), digest({}),
        digest({"x": plain.view(torch.float64)}), digest({"x": plain.view(-1, 1)}), digest({"x": plain[:-1]}),
    }  # fmt: skip
    assert len(found) == 7
    both = {"a": plain, "b": plain[:9].to(torch.int8)}
    assert digest(both) == digest(dict(reversed(both.items())))
    odd = torch.zeros(8 * WORDS + 3, dtype=torch.uint8)[3:]  # not where 8-byte words may lie
    odd.copy_(plain.view(torch.uint8))
    assert digest({"x": odd.clone()}) == digest({"x": odd})
    wide = torch.stack((plain, plain), 1)[:, 0]
    assert digest({"x": wide}) == digest({"x": plain})


def test_pieces_do_not_show(monkeypatch) -> None:
    whole = digest({"x": words()})
    monkeypatch.setattr(fingerprint, "_PIECE", 2)
    assert digest({"x": words()}) == whole
