"""Lines that a user hands in: read one at a time, every fault with its place."""

import pytest

from stablelm.config import InputError
from stablelm.storage.json_lines import decoded, json_lines


def test_numbers_count_blank_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\r\n\n  \n["\xc3\xa9"]')
    assert list(json_lines(path)) == [(1, f"{path}, line 1", {"a": 1}), (4, f"{path}, line 4", ["é"])]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "line 2: not valid JSON"),
        (b'"\xff"', "line 2: byte 1, 0xff, is not UTF-8"),
        (b"[" * 100_000, "line 2"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"1\n" + line + b"\n2\n")
    with pytest.raises(InputError, match=message):
        list(json_lines(path))


def test_lines_before_the_wrong_one_are_given(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("1\n{\n")
    lines = json_lines(path)
    assert next(lines)[2] == 1
    with pytest.raises(InputError):
        next(lines)


def test_text():
    assert decoded("é".encode(), "x") == "é"
    with pytest.raises(InputError, match="^here: byte 2, 0xe9, is not UTF-8"):
        decoded(b"ab\xe9", "here")
