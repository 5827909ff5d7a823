"""Records to pairs: their shapes, which tokens are compared, and what is no preference."""

import pytest

from stablelm.config import InputError
from stablelm.finetuning.tuner import prepare
from tests.finetuning.conftest import write_lines
from tests.finetuning.test_preference import pairs


def test_shapes_of_pairs(make, tokenizer):
    first = {"role": "user", "content": "What colour is the sky?"}
    good, bad = ({"role": "assistant", "content": text} for text in ("Blue.", "Green."))
    more = [{"role": "user", "content": "Really?"}, {"role": "assistant", "content": "Yes."}]
    shapes = {
        "explicit": {"prompt": [first], "chosen": [good], "rejected": [bad]},
        "implicit": {"chosen": [first, good], "rejected": [first, bad]},
        "ultrafeedback": {"prompt": first["content"], "chosen": [first, good], "rejected": [first, bad]},
        "mixed": {"prompt": first["content"], "chosen": [good], "rejected": [bad]},
    }
    found = {}
    for name, record in shapes.items():
        data = prepare(make([record], preference={"loss": "dpo"}, data={"held_out_share": 0}))[1]
        assert data.accounts["train"].format == "chat pairs" and data.chats
        (found[name],) = data.train
    assert len({pair.ids.tobytes() for pair in found.values()}) == 1
    for side, text in zip(found["explicit"].sides, ("Blue.", "Green."), strict=True):
        trained = side.ids[side.ids >= 0].tolist()
        assert trained == [*tokenizer.encode(text), 0], "the answer and its end, nothing else"
    # Only what comes after the shared beginning is compared, turns of the user are read.
    record = {"chosen": [first, good, *more], "rejected": [first, good, more[0], bad]}
    (pair,) = prepare(make([record], preference={"loss": "dpo"}, data={"held_out_share": 0}))[1].train
    assert [side.trained for side in pair.sides] == [len(tokenizer.encode(t)) + 1 for t in ("Yes.", "Green.")]
    record = {"chosen": [first, good, *more], "rejected": [first, bad, *more]}
    (pair,) = prepare(make([record], preference={"loss": "dpo"}, data={"held_out_share": 0}))[1].train
    assert pair.first.trained == sum(len(tokenizer.encode(t)) + 1 for t in ("Blue.", "Yes."))
    # Texts, other names, and KTO's two from a pair.
    record = {"q": "The sky is", "good": " blue", "bad": " green", "score": 3}
    keys = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    data = prepare(make([record], preference={"loss": "dpo"}, data={"keys": keys, "held_out_share": 0}))[1]
    assert tokenizer.decode(data.train[0].first.ids[data.train[0].first.ids >= 0]) == " blue<|endoftext|>"
    assert any("keys that were not read: score" in line for line in data.describe())
    data = prepare(make([record], preference={"loss": "kto"}, data={"keys": keys, "held_out_share": 0}))[1]
    assert [pair.wanted for pair in data.train] == [True, False]
    talk = {"prompt": [first], "completion": [good], "label": False}
    (pair,) = prepare(make([talk], preference={"loss": "kto"}, data={"held_out_share": 0}))[1].train
    assert not pair.wanted and pair.first.trained == len(tokenizer.encode("Blue.")) + 1


P = {"prompt": "The sky is", "chosen": " blue", "rejected": " green"}
U, A, B = (
    {"role": role, "content": role + more}
    for role, more in (("user", ""), ("assistant", "a"), ("assistant", "b"))
)


@pytest.mark.parametrize(
    ("loss", "record", "message"),
    [
        ("dpo", {**P, "rejected": " blue"}, "'chosen' and 'rejected' are the same text"),
        ("dpo", {**P, "rejected": " blue "}, "are the same text"),
        ("dpo", {"chosen": [U, A], "rejected": [U, A]}, "are the same messages"),
        ("dpo", {**P, "chosen": "  "}, "'chosen': the answer has no text"),
        ("dpo", {**P, "chosen": None}, "'chosen' is null; wanted is a list of messages"),
        ("dpo", {"chosen": "a", "rejected": "b"}, "are texts without 'prompt'"),
        ("dpo", {"chosen": [U, A], "rejected": [{**U, "content": "x"}, B]}, "no answers of the assistant"),
        ("dpo", {"prompt": "else", "chosen": [U, A], "rejected": [U, B]}, "'prompt' is not what"),
        ("dpo", {"prompt": [U], "chosen": [U, A], "rejected": [U, B]}, "no answers of the assistant"),
        ("dpo", {"prompt": [U, A], "chosen": [A], "rejected": [B]}, "a prompt that ends with the user"),
        ("dpo", {"prompt": [U], "chosen": [{**A, "content": ""}], "rejected": [B]}, r"chosen.1.: the answer"),
        ("dpo", {"prompt": "a", "better": "b", "worse": "c"}, "fit no shape of preferences: prompt"),
        ("dpo", {"prompt": "a", "completion": "b", "label": True}, "which preference.loss: kto learns from"),
        ("kto", {"prompt": "a", "completion": "b", "label": 1}, "'label' is 1; wanted is true"),
        ("kto", {"prompt": "a", "completion": "b", "label": "good"}, "'label' is 'good'"),
        ("kto", {"prompt": "a", "completion": "", "label": True}, "'completion': the answer has no text"),
        ("kto", {"prompt": None, "completion": [U, A], "label": True}, "'prompt' is null"),
        ("kto", {"prompt": "a", "completion": [U, A], "label": True}, "'completion' begins anew behind"),
        ("dpo", {**P, "chosen": " blue" * 99}, "tokens; the longest that fits rows of 96 has 97"),
        ("dpo", [P], "a list; wanted is an object"),
    ],
)  # fmt: skip
def test_records_that_are_no_preferences(make, loss, record, message):
    good = {"prompt": "a", "completion": "b", "label": True} if loss == "kto" else P
    with pytest.raises(InputError, match=r"data\.jsonl, line 2: .*" + message):
        prepare(make([good, record], preference={"loss": loss}))
    skip = {"on_error": "skip", "too_long": "drop", "held_out_share": 0}
    account = prepare(make([good, record], preference={"loss": loss}, data=skip))[1].accounts["train"]
    assert (account.read, account.kept, sum(account.dropped.values())) == (2, 1, 1)


def test_pairs_that_are_too_long_are_cut_or_left_out(make):
    long = {**P, "rejected": " green" * 99}
    both = {"prompt": "The sky is", "chosen": " a" * 150 + " blue", "rejected": " a" * 150 + " green"}
    data = prepare(
        make([P, long], preference={"loss": "dpo"}, data={"too_long": "truncate", "held_out_share": 0})
    )[1]
    assert len(data.train[1].second.ids) == 97 and data.accounts["train"].truncated == 1
    skip = {"too_long": "truncate", "on_error": "skip", "held_out_share": 0}
    account = prepare(make([P, both], preference={"loss": "dpo"}, data=skip))[1].accounts["train"]
    assert dict(account.dropped) == {"equal answers": 1}, "as far as they are read, they are the same"


def test_equal_pairs_are_told_and_stay_on_one_side(make, tmp_path):
    data = prepare(make(pairs(10) * 2, preference={"loss": "dpo"}, data={"held_out_share": 0.2}))[1]
    assert not {p.ids.tobytes() for p in data.train} & {p.ids.tobytes() for p in data.held}
    assert data.duplicates == 8 and any("8 of them repeat" in line for line in data.describe())
    path = write_lines(tmp_path / "held.jsonl", [pairs()[3], {**pairs()[4], "rejected": "No."}])
    data = prepare(make(pairs(10), preference={"loss": "dpo"}, data={"held_out": str(path)}))[1]
    assert any("1 held-out examples are trained too, the first" in line for line in data.describe())
