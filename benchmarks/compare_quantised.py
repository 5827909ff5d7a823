"""`--compare` of a model with itself in 4 bits: do the intervals of a quick look hold what all items say?

    .venv/bin/python benchmarks/compare_quantised.py runs/demo/model [--limit 200] [--tasks arc_easy,piqa,…]

Both models are evaluated on every item of each task; the truth is the difference over all of them. The quick
look is `--compare` on the first `--limit` items, exactly what `stablelm evaluate --limit` reads. Of many 95 %
intervals one in twenty misses by chance."""

import argparse
import os
import tempfile
from pathlib import Path

import torch
from measure import write_result

from stablelm.auto import load
from stablelm.evaluation.comparison import compare
from stablelm.evaluation.evaluate import evaluate_suite
from stablelm.evaluation.suites import choose_tasks
from stablelm.inference.quantization import Recipe, quantize
from stablelm.interchange import save_pretrained
from stablelm.planning import hardware

TASKS = "arc_challenge,arc_easy,openbookqa,piqa,sciq,winogrande"


def main() -> None:
    """The benchmark."""
    options = argparse.ArgumentParser()
    options.add_argument("model", type=Path)
    options.add_argument("--limit", type=int, default=200)
    options.add_argument("--tasks", default=TASKS)
    shared = Path(os.environ.get("STABLELM_TEST_DATA", Path(__file__).parents[2] / "shared"))
    options.add_argument("--data", type=Path, default=shared / "data" / "eval")
    chosen = options.parse_args()
    model, tokenizer = load(chosen.model)
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "4-bit"
        recipe = quantize(model, Recipe.of(4))
        save_pretrained(model, tokenizer, packed, quantization=recipe.as_dict())
        suite = choose_tasks(None, chosen.tasks.split(","))
        found, differences = evaluate_suite(
            [chosen.model, packed], suite, chosen.data, out=Path(folder) / "out", compared=True
        )
    whole = {one.task: one for one in differences[0][2]}
    first, second = (
        {
            task: [item for item in items if item["doc_id"] < chosen.limit]
            for task, items in one.samples.items()
        }
        for one in found
    )
    tasks = {}
    for one in compare(first, second):
        low, high = one.interval
        truth = whole[one.task].difference
        tasks[one.task] = {
            "items": one.items, "changed": one.changed, "difference": one.difference,
            "low": low, "high": high, "all_items": whole[one.task].items, "truth": truth,
            "holds": low <= truth <= high,
        }  # fmt: skip
    held = sum(one["holds"] for one in tasks.values())
    write_result(
        "compare_quantised",
        {"model": chosen.model.name, "parameters": sum(p.numel() for p in load(chosen.model)[0].parameters()),
         "limit": chosen.limit, "tasks": tasks, "held": held, "of": len(tasks)},
        hardware(torch.device("cpu")),
    )  # fmt: skip


if __name__ == "__main__":
    main()
