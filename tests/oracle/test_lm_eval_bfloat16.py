"""Scores in bfloat16 beside lm_eval's `hf` backend, task by task, of a model that has learnt something.

That backend rounds log-probabilities to bfloat16 by default and adds them up in it: a sum of −80 nats is then
a multiple of a half, and items that are decided by less change. Here it is asked for float32 in that place
(`softmax_dtype`), so that what is compared is the networks."""

import math
import pydoc_data.topics

import pytest
import torch

from stablelm.config import preset
from stablelm.evaluation.harness import backend
from stablelm.evaluation.local_tasks import offline, write_definitions
from stablelm.evaluation.published import TASKS
from stablelm.interchange import save_pretrained
from stablelm.model import StableLM
from stablelm.tokenizer import Tokenizer, train_tokenizer
from tests.oracle.test_lm_eval import loglikelihoods

pytestmark = pytest.mark.oracle
LIMIT = 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model trained for 150 steps on Python's documentation, saved in bfloat16."""
    texts = list(pydoc_data.topics.topics.values())
    tokenizer = train_tokenizer(texts, 2000)
    ids = torch.tensor([i for row in tokenizer.encode_documents(texts) for i in row])
    sizes = dict(vocab_size=2048, num_hidden_layers=2, hidden_size=128, intermediate_size=256)
    model = StableLM(preset("stablelm-1m", **sizes, max_position_embeddings=512), seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    draw = torch.Generator().manual_seed(0)
    for _ in range(150):
        starts = torch.randint(0, len(ids) - 129, (8,), generator=draw).tolist()
        rows = torch.stack([ids[at : at + 129] for at in starts])
        loss = model(rows[:, :-1], labels=rows[:, 1:]) / rows[:, 1:].numel()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 5.5  # ln 2048 = 7.6 at the start
    folder = tmp_path_factory.mktemp("bfloat16") / "model"
    save_pretrained(model.bfloat16(), tokenizer, folder)
    return folder


def test_each_task_is_within_a_third_of_its_standard_error(folder, shared, tmp_path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    write_definitions(tmp_path, shared / "data" / "eval", TASKS)
    sides = (
        backend()(str(folder), dtype="bfloat16", progress=False),
        HFLM(pretrained=str(folder), device="cpu", batch_size=8, dtype="bfloat16", softmax_dtype="float32"),
    )
    with offline():
        manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
        ours, theirs = (
            simple_evaluate(side, tasks=list(TASKS), limit=LIMIT, task_manager=manager, bootstrap_iters=0)
            for side in sides
        )
    tokenizer, total, tokens = Tokenizer.from_file(folder), 0.0, 0
    print("\ntask, score of theirs, difference, its share of the standard error, items that changed")
    for task in TASKS:
        metric = "acc_norm" if task == "hellaswag" else "acc"  # as the published table has it
        pairs = list(zip(ours["samples"][task], theirs["samples"][task], strict=True))
        assert len(pairs) == LIMIT and all(a["doc_hash"] == b["doc_hash"] for a, b in pairs)
        mine, other = ([side[metric] for side in one] for one in zip(*pairs, strict=True))
        score = sum(other) / LIMIT
        error = math.sqrt(max(score * (1 - score), 0.01) / (LIMIT - 1))
        difference = sum(mine) / LIMIT - score
        changed = sum(a != b for a, b in zip(mine, other, strict=True))
        print(f"{task:15} {score:.3f} {difference:+.3f} {abs(difference) / error:.2f} {changed}")
        assert abs(difference) <= 0.3 * error, task
        for a, b in pairs:
            for x, y, asked in zip(loglikelihoods(a), loglikelihoods(b), a["arguments"], strict=False):
                total += abs(x - y)
                tokens += len(tokenizer.encode(asked[1], add_special_tokens=False))
    print(f"mean |Δ| a token: {total / tokens:.5f} of {tokens:,}")
    assert total / tokens <= 0.02
