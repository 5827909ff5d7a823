"""lm_eval's tasks while a network is being trained: items are loaded once, scored again at each evaluation.

Only tasks that score continuations: a network that is spread over processes answers whole rows, and writing
text token by token with it would take longer than the steps between. Windows are those of training."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stablelm.config import InputError
from stablelm.evaluation.harness import backend
from stablelm.evaluation.local_tasks import check_files, environment
from stablelm.evaluation.published import README_RULE
from stablelm.evaluation.shares import Share
from stablelm.evaluation.suites import no_items, task_manager
from stablelm.model import StableLM
from stablelm.tokenizer import Tokenizer

SCORED = ("loglikelihood", "loglikelihood_rolling", "multiple_choice")


class TaskSet:
    """Tasks with their items in memory."""

    def __init__(self, tasks: Sequence[str], data: str | Path | None, limit: int | None) -> None:
        """`data` as for `stablelm evaluate`; `limit` items of each. `InputError` for tasks that are not
        known, that write text, or whose items are missing."""
        if data is not None:
            check_files(data, tasks)
        backend()  # says how lm_eval is installed
        self.names, self.limit = list(tasks), limit
        with _silent(), task_manager(tasks, data) as manager:
            try:
                self._loaded: dict[str, Any] = manager.load(self.names)
            except (ConnectionError, FileNotFoundError) as error:
                raise no_items(tasks, error, "evaluation.task_data") from None
        for name, task in self._loaded["tasks"].items():
            if task.OUTPUT_TYPE not in SCORED:
                raise InputError(
                    f"evaluation.tasks: {name} wants text to be written, which a run in training does not "
                    "do. Leave it out, and use `stablelm evaluate` on a checkpoint."
                )
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=1234)

    @property
    def members(self) -> list[str]:
        """The tasks by name, those of groups too."""
        return list(self._loaded["tasks"])

    def evaluate(
        self, model: StableLM, tokenizer: Tokenizer, window: int, batch_tokens: int, share: Share
    ) -> list[dict[str, Any]]:
        """For JSON, of each task: its accuracy (that of the published table's column; else `acc`, else the
        first metric) with its name, standard error and items; how many requests, of all tasks together,
        were longer than the window."""
        from lm_eval import evaluator

        scorer = backend()(
            model, tokenizer, max_length=window, batch_tokens=batch_tokens, progress=False, share=share
        )
        with _silent(), environment(DISABLE_MULTIPROC="1"):
            found = evaluator.evaluate(
                scorer, self._loaded, limit=self.limit, bootstrap_iters=0, log_samples=False
            )
        results = found["results"]
        names = [name for name in self.names if name in results] or list(results)
        counts = found.get("n-samples", {})
        return [
            {**_number(name, results[name]), "items": int(counts.get(name, {}).get("effective", 0))}
            | {"truncated": scorer.truncated}
            for name in names
        ]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without the harness's lines and bars."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _number(task: str, values: dict[str, Any]) -> dict[str, Any]:
    numbers = {
        key.split(",")[0]: float(value) for key, value in values.items() if isinstance(value, int | float)
    }
    known = (README_RULE.metric(task), "acc", "acc_norm")
    others = [name for name in numbers if not name.endswith("_stderr") and name != "sample_len"]
    metric = next((name for name in (*known, *others) if name in numbers), None)
    if metric is None:
        raise InputError(f"evaluation.tasks: {task} has no number to draw ({', '.join(values) or 'none'}).")
    told: dict[str, Any] = {"task": task, "metric": metric, "value": numbers[metric]}
    error = numbers.get(f"{metric}_stderr")
    return told if error is None else told | {"standard_error": error}
