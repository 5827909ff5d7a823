"""Task files: checked before anything is scored."""

import json

import pytest

from stablelm.config import InputError
from stablelm.evaluation.local_tasks import FIELDS, check_files, sciq_split
from stablelm.evaluation.published import TASKS


def test_the_files_at_hand_are_right(shared):
    check_files(shared / "data" / "eval", TASKS)
    assert sciq_split(shared / "data" / "eval") == "validation"


def test_every_task_of_the_suite_can_be_read_from_files():
    assert set(FIELDS) == set(TASKS)


def test_missing_files_are_named_with_their_origin(tmp_path):
    (tmp_path / "piqa.jsonl").write_text('{"goal": "a", "sol1": "b", "sol2": "c", "label": 0}\n')
    with pytest.raises(InputError, match=r"missing sciq\.jsonl from allenai/sciq \(test\)"):
        check_files(tmp_path, ["piqa", "sciq"])
    with pytest.raises(InputError, match="no such directory"):
        check_files(tmp_path / "nowhere", ["piqa"])
    with pytest.raises(InputError, match="mmlu cannot be read from files"):
        check_files(tmp_path, ["mmlu"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not valid JSON"),
        ("[1]", "line 2: not a JSON object"),
        ('{"goal": "a", "sol1": "b"}', r"line 2: has no sol2, label; piqa wants goal, sol1, sol2, label"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    good = json.dumps({"goal": "a", "sol1": "b", "sol2": "c", "label": 0})
    (tmp_path / "piqa.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(InputError, match=message):
        check_files(tmp_path, ["piqa"])


def test_an_empty_file(tmp_path):
    (tmp_path / "piqa.jsonl").write_text("\n")
    with pytest.raises(InputError, match="holds no items"):
        check_files(tmp_path, ["piqa"])
