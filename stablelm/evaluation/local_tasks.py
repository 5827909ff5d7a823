"""The nine tasks of the published table from files on this machine: DIR/<task>.jsonl, one item a line.

Each is lm_eval's own definition (prompt, answers, metrics) with another place for its data, so nothing is
asked of a network. A file is checked before anything is scored: a field that is missing is told with its
line."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import yaml

from stablelm.config import InputError
from stablelm.storage.hashes import sha256_text
from stablelm.storage.json_lines import json_lines

FIELDS = {
    "arc_challenge": ("question", "choices", "answerKey"),
    "arc_easy": ("question", "choices", "answerKey"),
    "boolq": ("passage", "question", "label"),
    "hellaswag": ("activity_label", "ctx_a", "ctx_b", "endings", "label"),
    "lambada_openai": ("text",),
    "openbookqa": ("question_stem", "choices", "answerKey"),
    "piqa": ("goal", "sol1", "sol2", "label"),
    "sciq": ("support", "question", "distractor1", "distractor2", "distractor3", "correct_answer"),
    "winogrande": ("sentence", "option1", "option2", "answer"),
}
"""Task → fields that its definition reads."""

SOURCES = {
    "arc_challenge": "allenai/ai2_arc (ARC-Challenge, test)", "arc_easy": "allenai/ai2_arc (ARC-Easy, test)",
    "boolq": "aps/super_glue (boolq, validation)", "hellaswag": "Rowan/hellaswag (validation)",
    "lambada_openai": "EleutherAI/lambada_openai (test)", "openbookqa": "allenai/openbookqa (main, test)",
    "piqa": "baber/piqa (validation)", "sciq": "allenai/sciq (test)",
    "winogrande": "allenai/winogrande (winogrande_xl, validation)",
}  # fmt: skip
"""Where each comes from on the Hugging Face Hub."""

_DEFINITIONS = {
    "arc_challenge": "arc/arc_challenge.yaml", "arc_easy": "arc/arc_easy.yaml",
    "boolq": "super_glue/boolq/default.yaml", "hellaswag": "hellaswag/hellaswag.yaml",
    "lambada_openai": "lambada/lambada_openai.yaml", "openbookqa": "openbookqa/openbookqa.yaml",
    "piqa": "piqa/piqa.yaml", "sciq": "sciq/sciq.yaml", "winogrande": "winogrande/default.yaml",
}  # fmt: skip


def check_files(folder: str | Path, tasks: Sequence[str]) -> None:
    """`InputError` unless `folder` has a readable file with the right fields for each task."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such directory; --data wants one with a file <task>.jsonl for each task."
        )
    unknown = [task for task in tasks if task not in FIELDS]
    if unknown:
        raise InputError(
            f"--data: {', '.join(unknown)} cannot be read from files, only {', '.join(FIELDS)}. Leave "
            "--data out "
            "to load tasks from the Hub."
        )
    missing = [task for task in tasks if not (folder / f"{task}.jsonl").is_file()]
    if missing:
        wanted = "; ".join(f"{task}.jsonl from {SOURCES[task]}" for task in missing)
        raise InputError(
            f"{folder}: missing {wanted}. Put them there (datasets' to_json), or leave those tasks out."
        )
    for task in tasks:
        _check_file(folder / f"{task}.jsonl", FIELDS[task])


def _check_file(path: Path, fields: Sequence[str]) -> None:
    count = 0
    for _, where, item in json_lines(path):
        if not isinstance(item, dict):
            raise InputError(f"{where}: not a JSON object.")
        if lacking := [field for field in fields if field not in item]:
            raise InputError(
                f"{where}: has no {', '.join(lacking)}; {path.stem} wants {', '.join(fields)}, "
                f"this line has {', '.join(item) or 'nothing'}."
            )
        count += 1
    if not count:
        raise InputError(f"{path}: holds no items.")


def write_definitions(folder: Path, data: str | Path, tasks: Sequence[str]) -> None:
    """Writes a task file into `folder` for each task: the packaged one, reading its items from `data`."""
    import lm_eval.tasks

    packaged = Path(lm_eval.tasks.__file__).parent
    for task in tasks:
        original = packaged / _DEFINITIONS[task]
        if not original.is_file():
            raise InputError(
                f"lm_eval lacks {original}; the versions that are known to work are 0.4.9 to 0.4.13."
            )
        definition: dict[str, Any] = {
            "include": str(original), "task": task, "dataset_path": "json", "dataset_name": None,
            "dataset_kwargs": {"data_files": {"test": str(Path(data).resolve() / f"{task}.jsonl")}},
            "training_split": None, "validation_split": None, "test_split": "test", "fewshot_split": None,
            "tag": None,
        }  # fmt: skip
        (folder / f"{task}.yaml").write_text(yaml.safe_dump(definition), encoding="utf-8")


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """These environment variables while this lasts."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def offline() -> AbstractContextManager[None]:
    """Nothing is asked of the Hub while this lasts."""
    return environment(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")


_SCIQ_VALIDATION = "375fc3d9280f9f14"  # sha256 of the question that its validation split begins with


def sciq_split(folder: str | Path) -> str:
    """Which split of SciQ the file holds, by its first question: validation, or test for any other."""
    with open(Path(folder) / "sciq.jsonl", encoding="utf-8") as file:
        first = next(line for line in file if line.strip())
    known = sha256_text(json.loads(first)["question"]).startswith(_SCIQ_VALIDATION)
    return "validation" if known else "test"
