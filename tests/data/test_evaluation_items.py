"""Which texts of an evaluation item are looked for."""

import gzip
import json

import pytest

from stablelm.config import InputError
from stablelm.data.evaluation_items import item_texts

CHOICES = {"text": ["red", "green"], "label": ["A", "B"]}


def texts(path, *items, fields=()):
    path.write_text("".join(json.dumps(item) + "\n" for item in items), "utf-8")
    return list(item_texts(path, list(fields)))


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({"id": "1", "question": "Which?", "choices": CHOICES, "answerKey": "B"}, ("Which?", "Which? green")),
        ({"question_stem": "It is", "choices": CHOICES, "answerKey": "A"}, ("It is", "It is red")),
        (
            {"question": "is it", "passage": "T -- p.", "idx": 1, "label": 1},
            ("T -- p. is it", "T -- p. is it yes"),
        ),
        ({"goal": "Sit.", "sol1": "Bend.", "sol2": "Fly.", "label": 1}, ("Sit.", "Sit. Fly.")),
        (
            {"sentence": "Ann saw _ run.", "option1": "Bo", "option2": "Cy", "answer": "2"},
            ("Ann saw _ run.", "Ann saw Cy run."),
        ),
        (
            {"ctx": "A man [step] sits.", "ctx_a": "", "endings": ["x", "[substeps] stands."], "label": "1"},
            ("A man  sits.", "A man  sits.  stands."),
        ),
        (
            {"question": "Who?", "correct_answer": "darwin", "distractor1": "x", "support": ""},
            ("Who?", "Who? darwin"),
        ),
        ({"question": "Who?", "correct_answer": "d", "support": "S."}, ("S. Who?", "S. Who? d")),
        ({"text": "In my palm"}, ("In my palm",)),
        ({"question": "2+2?", "answer": "4"}, ("2+2?", "2+2? 4")),
        ({"query": "q", "answer": ["a", "b"]}, ("q", "q a b")),
    ],
)
def test_known_shapes(tmp_path, item, expected):
    assert texts(tmp_path / "set.jsonl", item) == [(1, expected)]


def test_named_fields(tmp_path):
    item = {"a": "x", "b": {"c": [{"d": "y"}, {"d": 2}]}, "text": "no"}
    assert texts(tmp_path / "s.jsonl", item, fields=["b.c.d", "a"]) == [(1, ("y 2 x",))]


def test_packed_files_and_blank_lines(tmp_path):
    data = b'\xef\xbb\xbf{"text": "a"}\n\n{"text": "b"}'
    (tmp_path / "s.jsonl").write_bytes(data)
    (tmp_path / "s.jsonl.gz").write_bytes(gzip.compress(data))
    for name in ("s.jsonl", "s.jsonl.gz"):
        assert list(item_texts(tmp_path / name, [])) == [(1, ("a",)), (3, ("b",))]


def test_the_nine_sets_of_the_model_card(shared):
    counts = {
        "arc_challenge": 1172, "arc_easy": 2376, "boolq": 3270, "hellaswag": 10042, "lambada_openai": 5153,
        "openbookqa": 500, "piqa": 1838, "sciq": 1000, "winogrande": 1267,
    }  # fmt: skip
    for name, count in counts.items():
        found = list(item_texts(shared / "data" / "eval" / f"{name}.jsonl", []))
        assert len(found) == count, name
        assert {len(both) for _, both in found} == ({1} if name == "lambada_openai" else {2}), name
        assert all(text.strip() for _, both in found for text in both)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', r"line 2: not valid JSON .*Repair the line"),
        (b"[1]", r"line 2: not a JSON object"),
        (b'{"text": "\xff"}', r"line 2: byte 11 is not UTF-8"),
        (b'{"other": "a"}', r"line 2: .*no known shape .*keys: other.*`fields`"),
        (b'{"text": "\\ud800"}', r"line 2: .*surrogates not allowed"),
        (
            b'{"question": "a", "choices": {"text": ["x"], "label": ["A"]}, "answerKey": "C"}',
            r"line 2: .*not in list",
        ),
        (b'{"goal": "a", "sol1": "x", "sol2": "y", "label": 7}', r"line 2: .*no 'sol8'"),
        (
            b'{"sentence": "no blank", "option1": "x", "option2": "y", "answer": "1"}',
            r"line 2: .*cannot be made",
        ),
        (b'{"question": "q", "answer": null}', r"line 2: .*a text is wanted, not null"),
    ],
)
def test_a_faulty_line_is_named(tmp_path, line, message):
    path = tmp_path / "set.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(InputError, match=r"set\.jsonl, " + message):
        list(item_texts(path, []))


def test_faulty_files_and_fields(tmp_path):
    with pytest.raises(InputError, match=r"gone\.jsonl: this evaluation file cannot be read"):
        list(item_texts(tmp_path / "gone.jsonl", []))
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\)"):
        list(item_texts(tmp_path, []))
    with pytest.raises(InputError, match=r"line 1: .*no 'b'; keys: a"):
        texts(tmp_path / "s.jsonl", {"a": {"c": 1}}, fields=["a.b"])
    with pytest.raises(InputError, match=r"a text is wanted, not \{\"c\": 1\}"):
        texts(tmp_path / "s.jsonl", {"a": {"c": 1}}, fields=["a"])
    packed = gzip.compress(b'{"text": "a"}\n' * 1000)
    (tmp_path / "s.gz").write_bytes(packed[:-10])
    with pytest.raises(InputError, match=r"s\.gz: the file ends here, inside a gzip member"):
        list(item_texts(tmp_path / "s.gz", []))
