"""Every sampling flag of `stablelm generate` reaches the draw."""

import stablelm
from stablelm.inference import Sampling


def test_every_flag_reaches_the_draw(world, run):
    model, tokenizer = stablelm.load(world / "model")
    line = ("generate", world / "model", "the river", "--max-new-tokens", 12, "--quiet")
    first = tokenizer.encode("x")[0]
    flags = dict(
        temperature=1.5, top_k=40, top_p=0.99, min_p=0.001, repetition_penalty=1.2, seed=4, typical_p=0.9,
        presence_penalty=0.4, frequency_penalty=0.3, min_new_tokens=12,
    )  # fmt: skip
    spelled = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", value)]
    more = ("--logit-bias", f"{first}=3.5", "--ban-id", first + 1, "--ban-id", first + 2)
    said = run(*line, *spelled, *more)
    sampling = Sampling(**flags, logit_bias={first: 3.5}, banned_ids=[first + 1, first + 2])
    text = stablelm.generate(model, tokenizer, "the river", max_new_tokens=12, sampling=sampling)
    assert (said.code, said.out) == (0, f"{text}\n")
    only = run(*line, "--allow-id", first)
    assert only.out == "x" * 12 + "\n"


def test_wrong_values_are_named(world, run):
    line = ("generate", world / "model", "the", "--logit-bias")
    for wrong in ("5", "a=1", "5=much"):
        said = run(*line, wrong)
        assert (said.code, said.out) == (2, "") and f"--logit-bias {wrong}: wants ID=VALUE" in said.err
    said = run(*line, "999999=1")
    assert said.code == 2 and "the vocabulary has" in said.err


def test_lookup_gives_the_same_text_with_fewer_passes(world, run, monkeypatch):
    from stablelm.inference.runner import ModelRunner

    passes = []
    hidden = ModelRunner._hidden
    monkeypatch.setattr(ModelRunner, "_hidden", lambda *given: passes.append(1) or hidden(*given))
    for more in (("--temperature", 0), ("--seed", 3, "--temperature", 1, "--top-k", 2)):
        line = ("generate", world / "model", "the river runs past", "--max-new-tokens", 80, "--quiet", *more)
        plain, count = run(*line), len(passes)
        passes.clear()
        assert run(*line, "--lookup") == plain
        assert plain.code == 0 and len(passes) < count
        passes.clear()
