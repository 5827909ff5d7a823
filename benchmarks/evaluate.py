"""The nine tasks of the published table from local files: our backend beside lm_eval's `hf` over
transformers.

    .venv-oracle/bin/python benchmarks/evaluate.py [--limit 200] [--rounds 5] [--layers 4 --hidden 256]
        [--batch 8]

One small model with the NeoX vocabulary, float32 on both sides, the same requests (built once, not timed),
A B A B in one process. What is timed is `loglikelihood`: tokenising and scoring. Every log-likelihood is
compared, too. Theirs runs at the batch size of the published runs, 8."""

import argparse
import os
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from measure import interleave, ratio, summary, write_result

from stablelm.config import ModelConfig
from stablelm.evaluation.harness import backend
from stablelm.evaluation.local_tasks import offline, write_definitions
from stablelm.evaluation.published import TASKS
from stablelm.interchange import save_pretrained
from stablelm.model import StableLM
from stablelm.planning import hardware
from stablelm.tokenizer import Tokenizer


def requests_of(data: Path, limit: int) -> list[Any]:
    """The requests of all nine tasks, as lm_eval builds them."""
    from lm_eval.api.model import LM
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    class Recorder(LM):  # type: ignore[misc]
        """Keeps what it is asked and answers anything."""

        def __init__(self) -> None:
            super().__init__()
            self.asked: list[Any] = []

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            self.asked += requests
            return [(0.0, False)] * len(requests)

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            raise AssertionError("the nine tasks ask for continuations alone")

        def generate_until(self, requests: list[Any]) -> list[str]:
            raise AssertionError("the nine tasks ask for continuations alone")

    recorder = Recorder()
    with tempfile.TemporaryDirectory() as folder, offline():
        write_definitions(Path(folder), data, TASKS)
        manager = TaskManager(include_path=folder, include_defaults=False)
        simple_evaluate(recorder, tasks=list(TASKS), limit=limit, task_manager=manager, bootstrap_iters=0)
    return recorder.asked


def main() -> None:
    """The benchmark."""
    options = argparse.ArgumentParser()
    options.add_argument("--limit", type=int, default=200)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--hidden", type=int, default=256)
    options.add_argument("--layers", type=int, default=4)
    options.add_argument("--batch", type=int, default=8)
    shared = Path(os.environ.get("STABLELM_TEST_DATA", Path(__file__).parents[2] / "shared"))
    options.add_argument("--data", type=Path, default=shared / "data" / "eval")
    options.add_argument("--tokenizer", type=Path, default=shared / "data" / "neox-tokenizer")
    chosen = options.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    config = ModelConfig(
        vocab_size=50304, hidden_size=chosen.hidden, num_hidden_layers=chosen.layers,
        num_attention_heads=chosen.hidden // 64, num_key_value_heads=chosen.hidden // 64,
        intermediate_size=chosen.hidden * 11 // 4, max_position_embeddings=4096,
    )  # fmt: skip
    from lm_eval.models.huggingface import HFLM

    requests = requests_of(chosen.data, chosen.limit)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        save_pretrained(StableLM(config, seed=1), Tokenizer.from_file(chosen.tokenizer), path)
        theirs = HFLM(pretrained=str(path), dtype="float32", device="cpu", batch_size=chosen.batch)
        answers: dict[str, list[tuple[float, bool]]] = {}

        def ours() -> float:
            scorer = backend()(str(path), dtype="float32", progress=False)  # without the scores of last time
            began = time.perf_counter()
            answers["ours"] = scorer.loglikelihood(requests)
            return time.perf_counter() - began

        def hf() -> float:
            began = time.perf_counter()
            answers["hf"] = theirs.loglikelihood(requests, disable_tqdm=True)
            return time.perf_counter() - began

        seconds = interleave({"ours": ours, "hf": hf}, chosen.rounds)
    gap = max(abs(a[0] - b[0]) for a, b in zip(answers["ours"], answers["hf"], strict=True))
    write_result(
        "evaluate",
        {
            "requests": len(requests), "limit": chosen.limit, "hidden": chosen.hidden, "layers":
            chosen.layers, "ours": summary(seconds["ours"]), "hf": summary(seconds["hf"]), "ratio":
            ratio(seconds["ours"], seconds["hf"]), "largest_difference": gap, "lm_eval": version("lm_eval"),
            "transformers": version("transformers"), }, hardware(torch.device("cpu")), )  # fmt: skip


if __name__ == "__main__":
    main()
