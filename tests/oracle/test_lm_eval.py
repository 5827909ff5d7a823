"""Our backend beside lm_eval's own over transformers: every item's log-likelihoods, and the scores.

Local files and no network; `accelerate` and `peft` are there only because that backend imports them."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stablelm.config import ModelConfig
from stablelm.evaluation.harness import backend
from stablelm.evaluation.local_tasks import offline, write_definitions
from stablelm.evaluation.published import TASKS
from stablelm.interchange import save_pretrained
from stablelm.model import StableLM
from stablelm.tokenizer import Tokenizer

LIMIT = 12


@pytest.fixture(scope="module")
def folder(shared, tmp_path_factory):
    """A model with the NeoX tokenizer; large weights, so that its answers differ."""
    config = ModelConfig(
        vocab_size=50304, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
        max_position_embeddings=512,
    )  # fmt: skip
    model = StableLM(config, seed=11)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter *= 6
    folder = tmp_path_factory.mktemp("lm_eval") / "model"
    save_pretrained(model, Tokenizer.from_file(shared / "data" / "neox-tokenizer"), folder)
    return folder


def both(folder, shared, dtype, tmp_path, **tasks):
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    write_definitions(tmp_path, shared / "data" / "eval", TASKS)
    with offline():
        manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
        return [
            simple_evaluate(scorer, tasks=list(TASKS), limit=LIMIT, task_manager=manager, bootstrap_iters=0)
            for scorer in (
                backend()(str(folder), dtype=dtype),
                HFLM(pretrained=str(folder), dtype=dtype, device="cpu", batch_size=8),
            )
        ]


def loglikelihoods(sample):
    found = sample["filtered_resps"]
    return [one[0] for one in found] if isinstance(found[0], list | tuple) else [found[0]]


def pairs(ours, theirs):
    for task in TASKS:
        for a, b in zip(ours["samples"][task], theirs["samples"][task], strict=True):
            assert a["doc_hash"] == b["doc_hash"]
            yield task, a, b


def test_float32_every_item(folder, shared, tmp_path):
    ours, theirs = both(folder, shared, "float32", tmp_path)
    compared = 0
    for _, a, b in pairs(ours, theirs):
        mine, reference = loglikelihoods(a), loglikelihoods(b)
        for x, y in zip(mine, reference, strict=True):
            assert abs(x - y) <= 1e-4 * max(1.0, abs(y) / 100)  # theirs is summed in float32
            compared += 1
        if a.get("acc") != b.get("acc"):
            best = sorted(reference)[-2:]
            assert best[1] - best[0] < 1e-3, "a choice differs where the gap is not tiny"
    assert compared >= 3 * LIMIT * len(TASKS)
    for task in TASKS:
        mine, reference = ours["results"][task], theirs["results"][task]
        assert mine["acc,none"] == pytest.approx(reference["acc,none"], abs=1.01 / LIMIT)


def test_bfloat16_on_average(folder, shared, tmp_path):
    ours, theirs = both(folder, shared, "bfloat16", tmp_path)
    tokenizer = Tokenizer.from_file(shared / "data" / "neox-tokenizer")
    total, tokens, right = 0.0, 0, []
    for task, a, b in pairs(ours, theirs):
        mine, reference = loglikelihoods(a), loglikelihoods(b)
        for x, y, argument in zip(mine, reference, a["arguments"], strict=False):
            total += abs(x - y)
            tokens += len(tokenizer.encode(argument[1], add_special_tokens=False))
        right.append((a["acc"], b["acc"]))
        if a["acc"] != b["acc"] and task != "lambada_openai":
            first, second = sorted(reference)[:-3:-1]
            noise = max(abs(x - y) for x, y in zip(mine, reference, strict=True))
            assert first - second <= 2 * noise, "a choice differs where rounding cannot explain it"
    assert total / tokens <= 0.02
    ours_all, theirs_all = (sum(values) / len(right) for values in zip(*right, strict=True))
    error = math.sqrt(theirs_all * (1 - theirs_all) / (len(right) - 1))
    assert abs(ours_all - theirs_all) <= 0.3 * error


def test_rolling_and_generation_are_theirs(folder, shared):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    ours = backend()(str(folder), dtype="float32", progress=False)
    theirs = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=4)
    texts = ["short", "The cat sat on the mat. " * 200, "Füße – 漢字 \n\n  x", "word " * 511]
    rolling = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(texts)]
    for x, y in zip(ours.loglikelihood_rolling(rolling), theirs.loglikelihood_rolling(rolling), strict=True):
        assert x == pytest.approx(y, rel=1e-5)
    settings = {"until": ["\n", "."], "max_gen_toks": 12, "do_sample": False}
    asked = [Instance("generate_until", {}, (text, settings), i) for i, text in enumerate(texts)]
    assert ours.generate_until(asked) == theirs.generate_until(asked)


def test_lm_evals_own_command_line(folder, shared, tmp_path, root):
    write_definitions(tmp_path, shared / "data" / "eval", ["piqa"])
    done = subprocess.run(
        [
            sys.executable, "-m", "stablelm.evaluation.harness", "run", "--model", "stablelm",
            "--model_args", f"pretrained={folder},dtype=float32", "--tasks", "piqa", "--limit", "3",
            "--include_path", str(tmp_path), "--output_path", str(tmp_path / "out"),
        ],
        capture_output=True, text=True, cwd=root, check=False,
        env={"PATH": str(Path(sys.executable).parent), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
             "HOME": str(tmp_path), "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "|piqa" in done.stdout.replace(" ", "")
    assert list((tmp_path / "out").rglob("results_*.json"))
