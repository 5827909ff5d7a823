"""Which texts of an evaluation item would be a leak if a model had read them.

An item gives its query (what the model is shown) and the query with its right answer; wrong answers are not
looked for. The shape is told by the item's keys, those that EleutherAI's evaluation harness reads. A passage
(BoolQ, SciQ's support) is part of the query: whoever has read it has read what is asked about, though it is
often an encyclopedia's. `fields` replaces all this by the texts of these keys, joined."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stablelm.config import InputError
from stablelm.data.unpacking import BrokenFile, Lines, unpacked

Item = dict[str, Any]
_MARKER = re.compile(r"\[[^\]\n]{1,40}\]")  # HellaSwag's [header], [step], …, which the harness takes out


def _choice(item: Item) -> str:
    choices = item["choices"]
    return str(choices["text"][choices["label"].index(item["answerKey"])])


def _yes_no(item: Item) -> str:
    return ("no", "yes")[int(item["label"])]


def _blank(item: Item) -> tuple[str, str]:
    before, after = item["sentence"].split("_", 1)
    return item["sentence"], f"{before}{item['option' + str(item['answer'])]}{after}"


def _hellaswag(item: Item) -> tuple[str, str]:
    query = _MARKER.sub("", item["ctx"])
    return query, f"{query} {_MARKER.sub('', item['endings'][int(item['label'])])}"


def _asked(query: str, answer: Callable[[Item], str]) -> Callable[[Item], tuple[str, str]]:
    """The keys of the query, in order, and what its right answer is."""

    def texts(item: Item) -> tuple[str, str]:
        asked = " ".join(str(item[key]) for key in query.split() if item[key])
        return asked, f"{asked} {answer(item)}"

    return texts


# Keys that tell a shape, and the texts of an item. The first shape whose keys are all there is taken.
_SHAPES: list[tuple[set[str], Callable[[Item], tuple[str, ...]]]] = [
    ({"question", "choices", "answerKey"}, _asked("question", _choice)),
    ({"question_stem", "choices", "answerKey"}, _asked("question_stem", _choice)),
    ({"question", "passage", "label"}, _asked("passage question", _yes_no)),
    ({"goal", "sol1", "sol2", "label"}, _asked("goal", lambda item: item[f"sol{int(item['label']) + 1}"])),
    ({"sentence", "option1", "option2", "answer"}, _blank),
    ({"ctx", "endings", "label"}, _hellaswag),
    ({"question", "correct_answer", "support"}, _asked("support question", lambda i: i["correct_answer"])),
    ({"question", "correct_answer"}, _asked("question", lambda i: i["correct_answer"])),
    *(
        ({key, "answer"}, _asked(key, lambda item: _joined(item["answer"])))
        for key in ("query", "prompt", "question")
    ),
    *(({key}, lambda item, key=key: (str(item[key]),)) for key in ("query", "prompt", "question", "text")),
]


def item_texts(path: str | Path, fields: list[str]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(line, texts) of every item of a file of JSON lines; `InputError` names file, line and key."""
    for number, item in _items(Path(path)):
        try:
            texts = _texts(item, fields)
            for text in texts:
                text.encode()
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise InputError(
                f"{path}, line {number}: the item's texts cannot be made ({what}; keys: {', '.join(item)}). "
                "Repair the line, or say in `fields` which keys to join."
            ) from None
        yield number, texts


def _texts(item: Item, fields: list[str]) -> tuple[str, ...]:
    if fields:
        return (" ".join(_joined(_value(item, field)) for field in fields),)
    for keys, texts in _SHAPES:
        if keys <= item.keys():
            return texts(item)
    raise ValueError("no known shape of evaluation item")


def _items(path: Path) -> Iterator[tuple[int, Item]]:
    try:
        with open(path, "rb") as file:
            chunks: Iterator[bytes] = iter(lambda: file.read(1 << 16), b"")
            if path.suffix.lower() in (".gz", ".zst"):
                chunks = unpacked(chunks, path.suffix.lower(), str(path))
            for number, line in enumerate(Lines(chunks), 1):
                if line.strip():
                    yield number, _item(line, number, path)
    except OSError as error:
        raise InputError(
            f"{path}: this evaluation file cannot be read ({error.strerror or error}). Correct its path in "
            "`decontamination.sets`."
        ) from None
    except BrokenFile as broken:
        raise InputError(f"{path}: {broken.what}. Copy or download it again.") from None


def _item(line: bytes, number: int, path: Path) -> Item:
    try:
        item = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}, line {number}: byte {error.start + 1} is not UTF-8.") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}, line {number}: not valid JSON ({error}). Repair the line.") from None
    if not isinstance(item, dict):
        raise InputError(f"{path}, line {number}: not a JSON object. An item is an object with its texts.")
    return item


def _value(item: Any, field: str) -> Any:
    for key in field.split("."):
        if isinstance(item, list):
            item = [part[key] for part in item]
        else:
            item = item[key]
    return item


def _joined(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_joined, value))
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    raise TypeError(f"a text is wanted, not {json.dumps(value)[:40]}")
